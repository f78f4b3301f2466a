"""What a coalition has seen is what the plan's history says, whatever the shape of a plan."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.lab.seen import SHAPES, compare_shapes, expected_share, seen_columns, seen_inputs, seen_share
from awfulowl.placement.assignment import Assignment
from awfulowl.placement.exposure import expose
from awfulowl.randomness import Entropy
from tests.unit.placement.fleets import chain, dense, fleet, plan, small_plan


def test_columns_are_those_of_cells_in_a_fresh_plan() -> None:
    made = plan(chain(64, 128, 96, 10), fleet(6), seed=1, block=16, replicas=1, shape="scattered")
    coalition = {"d0", "d4"}
    for panel, seen in zip(made.panels, seen_columns(made, coalition), strict=True):
        assert seen == {cell.column for cell in panel.cells if coalition & set(cell.holders)}


def test_nobody_sees_nothing_and_everybody_all() -> None:
    made = small_plan()
    everybody = [device.name for device in made.devices]
    assert all(not columns for columns in seen_columns(made, []))
    assert seen_share(made, everybody) == 1.0
    assert all(bool(mask.all()) for mask in seen_inputs(made, everybody).values())


def test_masks_are_of_inputs_and_by_product() -> None:
    made = plan([dense("q", 24, 40, source=1), dense("k", 8, 40, source=1)], fleet(4), seed=0, block=16, replicas=1)
    masks = seen_inputs(made, ["d1"])
    assert masks.keys() == {"q", "k"}
    assert masks["q"].shape == (40,)
    assert torch.equal(masks["q"], masks["k"])
    (columns,) = seen_columns(made, ["d1"])
    assert int(masks["q"].sum()) == sum(made.panels[0].grid.columns[column].span.size for column in columns)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_over_all_coalitions_is_the_expectation(shape: str) -> None:
    made = plan(chain(48, 64, 32), fleet(6), seed=3, block=8, replicas=1, shape=shape)
    drawn = [seen_share(made, chosen) for chosen in itertools.combinations([f"d{n}" for n in range(6)], 2)]
    assert math.fsum(drawn) / len(drawn) == pytest.approx(expose(made, shares=[1 / 3]).model[0].seen)


def test_what_was_seen_stays_seen() -> None:
    made = plan(chain(32, 64), fleet(5), seed=2, block=4, replicas=1, share=0.6)
    before = seen_columns(made, ["d0"])[0]
    book = Assignment(made, Entropy(0))
    alive = {"d0", "d2", "d3", "d4"}
    moved = [book.replace(0, cell, alive) for cell, kept in enumerate(made.panels[0].cells) if "d1" in kept.holders]
    assert "d0" in moved
    after = seen_columns(book.plan(), ["d0"])[0]
    assert after > before
    assert seen_columns(book.plan(), ["d1"]) == seen_columns(made, ["d1"])


def test_shares_are_learnt_by_who_has_enough_of_them() -> None:
    made = plan(chain(64, 64), fleet(6, domains=3), seed=1, block=16, arithmetic="int8", sharing="inputs:2", replicas=1)
    lanes = {
        lane: {name for cell in made.panels[0].cells if cell.lane == lane for name in cell.holders} for lane in (0, 1)
    }
    assert not seen_columns(made, lanes[0])[0]
    assert len(seen_columns(made, lanes[0] | lanes[1])[0]) == len(made.panels[0].grid.columns)


def test_the_closed_form_against_known_values() -> None:
    assert expected_share(0.3) == pytest.approx(0.3)
    assert expected_share(0.1, rows=16) == pytest.approx(0.8147, abs=1e-4)
    assert expected_share(0.3, rows=4, shares=2) == pytest.approx(0.3143, abs=1e-4)
    assert expected_share(0.3, replicas=2) == pytest.approx(0.51)
    assert expected_share(0.3, churn=1) == expected_share(0.3, replicas=2)


@given(st.floats(0, 1), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_more_rows_and_replicas_show_more_and_more_shares_less(
    held: float, rows: int, replicas: int, shares: int, churn: int
) -> None:
    share = expected_share(held, rows=rows, replicas=replicas, shares=shares, churn=churn)
    assert 0.0 <= share <= 1.0
    assert expected_share(held, rows=rows + 1, replicas=replicas, shares=shares, churn=churn) >= share
    assert expected_share(held, rows=rows, replicas=replicas, shares=shares + 1, churn=churn) <= share


def test_the_closed_form_is_that_of_large_fleets() -> None:
    made = plan(chain(64, 128), fleet(200), seed=0, block=16, replicas=1, shape="scattered")
    rows = len(made.panels[0].grid.rows)
    assert expose(made, shares=[0.3]).model[0].seen == pytest.approx(expected_share(0.3, rows=rows), abs=0.01)


def test_shapes_side_by_side() -> None:
    rows = compare_shapes(chain(128, 128, 128), fleet(12), block=16, seed=0, coalitions=(0.25,))
    found = {(row.shape, row.replicas): row for row in rows}
    assert len(found) == len(rows) == len(SHAPES) * 2
    assert found["columns", 1].seen == pytest.approx(0.25, abs=0.01)
    assert found["scattered", 1].seen == pytest.approx(expected_share(0.25, rows=8), abs=0.1)
    assert found["columns", 1].seen < found["rectangles", 1].seen < found["scattered", 1].seen
    assert found["rows", 1].seen > 0.85
    for shape in SHAPES:
        assert found[shape, 2].seen >= found[shape, 1].seen
        assert found[shape, 1].seen <= found[shape, 1].projected
        assert found[shape, 1].most >= found[shape, 1].seen - 1e-9


def test_bad_input() -> None:
    with pytest.raises(InputError, match="no device 'stranger'"):
        seen_columns(small_plan(), ["stranger"])
    with pytest.raises(InputError, match="no placement"):
        expected_share(1.5)
    with pytest.raises(InputError, match="no placement"):
        expected_share(0.5, shares=0)
