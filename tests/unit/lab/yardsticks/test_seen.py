"""Plans of every shape, side by side: what coalitions see of them."""

import pytest

from awfulowl.errors import InputError
from awfulowl.lab.yardsticks.seen import SHAPES, compare_shapes
from tests.unit.placement.fleets import chain, fleet


def test_shapes_side_by_side() -> None:
    rows = compare_shapes(chain(128, 128, 128), fleet(12), block=16, seed=0, coalitions=(0.25,))
    found = {(row.shape, row.replicas): row for row in rows}
    assert len(found) == len(rows) == len(SHAPES) * 2
    assert found["columns", 1].seen == pytest.approx(0.25, abs=0.01)
    assert found["scattered", 1].seen == pytest.approx(1 - 0.75**8, abs=0.1)
    assert found["columns", 1].seen < found["rectangles", 1].seen < found["scattered", 1].seen
    assert found["rows", 1].seen > 0.85
    for shape in SHAPES:
        assert found[shape, 2].seen >= found[shape, 1].seen
        assert found[shape, 1].seen <= found[shape, 1].projected
        assert found[shape, 1].most >= found[shape, 1].seen - 1e-9


def test_equal_seeds_give_equal_rows_and_nonsense_is_refused() -> None:
    layers, devices = chain(64, 64), fleet(6)
    assert compare_shapes(layers, devices, block=16, seed=1) == compare_shapes(layers, devices, block=16, seed=1)
    with pytest.raises(InputError, match="block"):
        compare_shapes(layers, devices, block=0, seed=1)
