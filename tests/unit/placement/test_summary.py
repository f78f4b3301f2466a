"""Summaries: work, traffic and exceptions, against figures worked out by hand."""

import msgspec
import pytest

from awfulowl.placement.options import Options, Shape
from awfulowl.placement.planner import make_plan
from awfulowl.placement.summary import Summary, summarise
from tests.unit.placement.fleets import chain, convolution, dense, fleet, plan, small_plan


def test_a_dense_layer_in_columns() -> None:
    """64 inputs to 24 outputs on four devices: each gets 16 inputs and returns a sum of all 24 outputs."""
    one = summarise(plan([dense("layer", 24, 64)], fleet(4), block=8)).panels[0]
    assert (one.rows, one.columns, one.blocks) == (3, 8, 24)
    assert (one.parameters, one.flops, one.devices) == (24 * 64, 2 * 24 * 64, 4)
    assert (one.bytes_to_devices, one.bytes_from_devices) == (4 * 64, 4 * 4 * 24)
    assert one.exceptions == ()


def test_positions_multiply_work_and_traffic() -> None:
    layer = convolution("conv", 16, 8, positions=25)._replace(input_positions=49)
    one = summarise(plan([layer], fleet(2), block=4, replicas=1)).panels[0]
    assert one.parameters == 16 * 8 * 9
    assert one.flops == 2 * one.parameters * 25
    assert one.bytes_to_devices == 4 * 8 * 49
    assert one.bytes_from_devices == 4 * 2 * 16 * 25


def test_depthwise_convolutions_return_only_their_own_outputs() -> None:
    one = summarise(plan([convolution("conv", 16, 16, groups=16, positions=1)], fleet(4), block=2)).panels[0]
    assert one.parameters == 16 * 9
    assert one.bytes_to_devices == one.bytes_from_devices == 4 * 16


@pytest.mark.parametrize(("shape", "to", "back"), [("rows", 4, 1), ("rectangles", 2, 2), ("columns", 1, 4)])
def test_the_shape_decides_what_travels(shape: Shape, to: int, back: int) -> None:
    """Rows: everybody gets all inputs. Columns: everybody returns all outputs. Rectangles: half of each."""
    one = summarise(plan([dense("layer", 32, 64)], fleet(4), block=8, shape=shape, replicas=1)).panels[0]
    assert one.bytes_to_devices == 4 * 64 * to
    assert one.bytes_from_devices == 4 * 32 * back


def test_a_group_gets_its_input_once() -> None:
    layers = [dense("q", 8, 32, source=1), dense("k", 8, 32, source=1)]
    one = summarise(plan(layers, fleet(2), block=8)).panels[0]
    assert one.members == ("q", "k")
    assert one.bytes_to_devices == 4 * 32


def test_totals_add_up() -> None:
    told = summarise(small_plan())
    assert told.parameters == 16 * 3 * 9 + 40 * 32 + 10 * 24
    assert told.flops == 2 * (64 * 16 * 3 * 9 + 40 * 32 + 10 * 24)
    assert told.blocks == sum(panel.blocks for panel in told.panels)
    assert told.bytes_per_sample == sum(panel.bytes_to_devices + panel.bytes_from_devices for panel in told.panels)


def test_devices_hold_replicas_and_work_once() -> None:
    made = plan(chain(64, 64, 64), fleet(4), block=8)
    told = summarise(made)
    assert sum(device.blocks for device in told.devices) == 2 * told.blocks
    assert sum(device.parameters for device in told.devices) == 2 * told.parameters
    assert sum(device.flops for device in told.devices) == told.flops
    assert len({device.flops for device in told.devices}) == 1


def test_one_column_is_an_exception() -> None:
    told = summarise(plan([convolution("first", 16, 1), dense("second", 8, 64)], fleet(8), block=8))
    assert told.exceptions == ("first is one column: each holder sees its whole input",)


def test_columns_fewer_than_the_share_allows_for_are_an_exception() -> None:
    told = summarise(plan([convolution("first", 16, 3)], fleet(12), block=8))
    assert told.exceptions == ("first has 3 columns only: one slice is more than the share 0.25",)


def test_what_is_kept_and_noted_is_told() -> None:
    made = make_plan([dense("one", 8, 8), dense("two", 8, 8)], fleet(2), Options(keep=("two",)))
    told = summarise(made)
    assert told.kept == (("two", "kept by request"),)
    assert told.notes == made.notes
    assert told.rules == made.rules
    assert summarise(small_plan()).unsafe


def test_a_summary_can_be_written_down_and_says_no_position() -> None:
    told = summarise(small_plan())
    written = msgspec.json.encode(told)
    assert msgspec.json.decode(written, type=Summary) == told
    assert b"holders" not in written
