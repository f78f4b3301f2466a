"""How finely layers are cut: the automatic block size, and columns that the rules can deal."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import RuleError
from awfulowl.placement.capacity import Capacity
from awfulowl.placement.cutting import Layer, block_size, cut
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options
from awfulowl.placement.rules import Rules, choose_rules, slices_within
from tests.unit.placement.fleets import convolution, dense, fleet, plan, some, some_devices


@pytest.mark.parametrize(
    ("outputs", "inputs", "side"),
    [
        (4096, 4096, 256),
        (2048, 2048, 256),
        (2047, 2047, 256),
        (1792, 2048, 128),
        (128, 1024, 32),
        (4096, 25088, 256),
        (10, 64, 16),
    ],
)
def test_the_automatic_block_gives_the_largest_layer_64_blocks(outputs: int, inputs: int, side: int) -> None:
    layers = [dense("small", 8, 8), dense("large", outputs, inputs)]
    assert block_size(layers, Options()) == (side, side)


@some
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_automatic_block_is_the_largest_with_64_blocks_or_the_smallest(outputs: int, inputs: int) -> None:
    side, _ = block_size([dense("layer", outputs, inputs)], Options())
    blocks = {size: math.ceil(outputs / size) * math.ceil(inputs / size) for size in (256, 128, 64, 32, 16)}
    enough = [size for size, count in blocks.items() if count >= 64]
    assert side == (max(enough) if enough else 16)


def test_a_block_that_is_asked_for_is_taken() -> None:
    assert block_size([dense("layer", 8, 8)], Options(block=12)) == (12, 12)
    assert block_size([dense("layer", 8, 8)], Options(block=(5, 9))) == (5, 9)


def test_channels_of_a_grouped_convolution_are_counted_with_its_groups() -> None:
    assert convolution("grouped", 64, 48, groups=4).inputs == 48
    assert block_size([convolution("grouped", 256, 256, groups=4)], Options()) == (32, 32)


def columns_of(layer: Layer, devices: list[Device], **chosen: object) -> int:
    options = Options(block=256, **chosen)  # type: ignore[arg-type]
    rules, _ = choose_rules(options, [devices])
    return len(cut([layer], block_size([layer], options), Capacity(rules, devices), options).columns)


def test_a_wide_layer_is_cut_by_the_block() -> None:
    assert columns_of(dense("wide", 4096, 4096), fleet(8)) == 16


def test_columns_are_as_alike_as_they_can_be() -> None:
    devices = fleet(4)
    rules, _ = choose_rules(Options(), [devices])
    for inputs, spans in ((64, [16, 16, 16, 16]), (1000, [250, 250, 250, 250]), (27, [7, 7, 7, 6])):
        grid = cut([dense("layer", 64, inputs)], (256, 256), Capacity(rules, devices), Options())
        assert [column.span.size for column in grid.columns] == spans


@pytest.mark.parametrize(("devices", "inputs", "columns"), [(4, 384, 8), (12, 4096, 22), (8, 100, 15), (8, 25088, 98)])
def test_wide_layers_are_cut_so_that_devices_have_equally_many_columns(devices: int, inputs: int, columns: int) -> None:
    """By the block they would have 6, 16, 12 and 98 columns; the last are even enough."""
    layer, options = dense("wide", 512, inputs), Options(block={384: 64, 100: 9}.get(inputs, 256), replicas=1)
    rules, _ = choose_rules(options, [fleet(devices)])
    capacity = Capacity(rules, fleet(devices))
    assert len(cut([layer], block_size([layer], options), capacity, options).columns) == columns


def test_a_narrow_layer_is_cut_finer_than_the_block() -> None:
    assert columns_of(dense("narrow", 100, 64), fleet(8)) == 8
    assert columns_of(dense("narrow", 100, 64), fleet(4)) == 4
    assert columns_of(dense("narrow", 100, 64), fleet(1)) == 2


def test_three_colours_are_three_columns() -> None:
    assert columns_of(convolution("first", 64, 3), fleet(8)) == 3


def test_a_single_input_is_one_column() -> None:
    assert columns_of(convolution("first", 64, 1), fleet(8)) == 1
    assert columns_of(convolution("first", 64, 1), fleet(8), share=0.5) == 1


def test_groups_are_joined_beyond_the_block_where_single_ones_cannot_be_dealt() -> None:
    """Seven devices may see one of four columns each, which is no two replicas of all; of two columns it is."""
    layer, options = convolution("grouped", 20, 4, groups=4), Options(block=8)
    rules, _ = choose_rules(options, [fleet(7)])
    grid = cut([layer], (8, 8), Capacity(rules, fleet(7)), options)
    assert [column.groups for column in grid.columns] == [2, 2]


def test_strict_refuses_a_single_input_and_says_what_to_do() -> None:
    with pytest.raises(RuleError, match=r"first has a single input.*keep=\('first',\)"):
        columns_of(convolution("first", 64, 1), fleet(30, domains=6), strict=True)


def test_layers_with_one_input_are_each_named_to_be_kept() -> None:
    layers = [dense("q", 64, 1, source=1), dense("k", 64, 1, source=1)]
    with pytest.raises(RuleError, match=r"q\+k has a single input.*keep=\('q', 'k'\)"):
        plan(layers, fleet(30, domains=6), strict=True)


def test_a_share_that_so_few_devices_cannot_keep_is_refused_with_numbers() -> None:
    with pytest.raises(RuleError, match=r"rule 'device share': 4 devices.*wide.*a share of 0\.5, or 8 devices"):
        columns_of(dense("wide", 512, 512), fleet(4), share=0.25)


def test_strict_refuses_one_domain_and_says_what_to_do() -> None:
    with pytest.raises(RuleError, match=r"'domain share' 0\.5.*wide.*name the domains"):
        columns_of(dense("wide", 512, 512), fleet(20), strict=True)


def test_asked_shares_do_not_escape_through_one_column() -> None:
    with pytest.raises(RuleError, match="domain share"):
        columns_of(dense("narrow", 16, 16), fleet(20), domain_share=0.5)


def test_strict_serves_many_devices_of_several_domains() -> None:
    assert columns_of(dense("wide", 512, 512), fleet(20, domains=4), strict=True) >= 4


def test_members_of_a_panel_start_rows_of_their_own() -> None:
    layers = [dense("q", 10, 32), dense("k", 6, 32), dense("v", 16, 32)]
    rules = Rules(1, 1.0, 1.0)
    grid = cut(layers, (8, 8), Capacity(rules, fleet(2)), Options())
    assert [(row.start, row.stop) for row in grid.rows] == [(0, 8), (8, 10), (10, 16), (16, 24), (24, 32)]


@some
@given(st.integers(1, 300), some_devices(), st.integers(1, 3))
def test_defaults_cut_every_layer_so_that_it_can_be_dealt(inputs: int, devices: list[Device], replicas: int) -> None:
    options = Options(replicas=min(replicas, len(devices)))
    rules, _ = choose_rules(options, [devices])
    capacity = Capacity(rules, devices)
    columns = len(cut([dense("layer", 40, inputs)], (64, 64), capacity, options).columns)
    assert capacity.allot(columns) is not None
    assert columns * rules.replicas <= len(devices) * slices_within(rules.share, columns)
    finer = {math.ceil(inputs / width) for width in range(1, min(64, inputs) + 1)} - {1}
    assert columns > 1 or not any(capacity.allot(count) for count in finer)


@some
@given(st.integers(200, 3000), st.integers(1, 30))
def test_layers_have_room_for_a_lost_device_if_any_width_gives_it(inputs: int, devices: int) -> None:
    options = Options()
    rules, _ = choose_rules(options, [fleet(devices)])
    capacity = Capacity(rules, fleet(devices))
    columns = len(cut([dense("layer", 64, inputs)], (64, 64), capacity, options).columns)
    possible = {math.ceil(inputs / width) for width in range(1, 65)}
    assert capacity.has_room(columns) or not any(capacity.has_room(count) for count in possible if count <= 8 * devices)


def test_room_is_a_column_more_for_each_device_and_everything_without_one() -> None:
    assert Capacity(Rules(2, 3 / 8, 1.0), fleet(8)).has_room(8)
    assert not Capacity(Rules(2, 3 / 8, 1.0), fleet(8)).has_room(7)
    assert not Capacity(Rules(2, 1 / 4, 1.0), fleet(8)).has_room(8)
    assert not Capacity(Rules(1, 1.0, 1.0), fleet(1)).has_room(8)


def test_room_is_not_sought_by_dust() -> None:
    """A share just above what is dealt would take thousands of columns; the block's own columns are taken."""
    assert columns_of(dense("wide", 512, 24576), fleet(8), share=0.2501) == 96
