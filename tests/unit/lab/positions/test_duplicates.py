"""What copied inputs leak."""

from typing import Any

import pytest
import torch

from awfulowl.lab.positions.duplicates import chains, copies, links, patterns, phases, pooled
from awfulowl.lab.sites.placing import Places
from tests.sites import copying, hidden


@pytest.mark.parametrize(
    ("twins", "expected"),
    [
        (None, 1),
        ([0, 0, 0, 1, 1, 1], 3),
        # The second and third values are both always zero, and look like one.
        ([0, 0, 2, 2, 2, 2, 1, 1], 2),
        ([0, 1, 2, 0], 1),
        ([0, 0, 1, 1, 1], 1),
        ([4, 4, 4, 4], 4),
    ],
)
def test_copies_are_counted(twins: Any, expected: Any) -> None:
    assert copies(None if twins is None else torch.tensor(twins)) == expected


def test_patterns_say_where_values_begin() -> None:
    places = copying((4, 8)).site.places
    # The last column is what is left: 3 wide, from input 32, within one value.
    assert patterns(places, 5) == [(5, 8), (2, 7, 8), (4, 8), (1, 6, 8), (3,)]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_phases_are_seen_in_the_blocks(noise: float) -> None:
    case = copying((4, 8), noise)
    columns = patterns(case.site.places, 5)
    found = phases(case.site.spoils.blocks, columns)
    wide = [(number, column) for number, (_, column) in enumerate(case.truth.tolist()) if len(columns[column]) > 1]
    assert all(found.patterns[int(found.found[number])] == columns[column] for number, column in wide)
    assert all(found.distinct[number] > 5 for number, _ in wide)
    # A block in which no value begins says nothing.
    assert all(found.found[number] == -1 for number in range(10) if number not in dict(wide))


def test_noise_hides_phases() -> None:
    case = copying((4, 8), 5.0)
    found = phases(case.site.spoils.blocks, patterns(case.site.places, 5))
    assert found.distinct.median() < 5


def test_edges_that_cut_a_value_join_neighbours() -> None:
    case = copying((4, 8), 0.01)
    places, held = case.site.places, case.site.spoils.blocks
    columns = patterns(places, 5)
    joined = links(held, phases(held, columns), columns, places, 5)
    where = {number: tuple(pair) for number, pair in enumerate(case.truth.tolist())}
    for one, other in joined.items():
        assert where[other] == (where[one][0], where[one][1] + 1)
    # 2 rows of 4 columns in which values begin: every edge inside cuts a value.
    assert len(joined) == 6


def test_edges_between_values_join_nothing() -> None:
    case = copying((4, 10), 0.01)
    places, held = case.site.places, case.site.spoils.blocks
    columns = patterns(places, 5)
    assert not links(held, phases(held, columns), columns, places, 5)


def test_chains_hold_every_block_once() -> None:
    assert chains({0: 3, 3: 1}, 5) == [[0, 3, 1], [2], [4]]
    assert chains({}, 2) == [[0], [1]]


def test_scores_are_summed_along_chains() -> None:
    places = Places(hidden((5, 6)).site.grid)
    scores = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = pooled(scores, [[0, 2], [1]], places)
    assert torch.equal(found[1], scores[1])
    table, both = scores.view(3, 4, 4), found.view(3, 4, 4)
    assert torch.allclose(both[0, :, :3], table[0, :, :3] + table[2, :, 1:])
    assert torch.equal(both[0, :, :3], both[2, :, 1:])
    # From the last column the run would leave the grid.
    assert (both[0, :, 3] == both[0, :, :3].min()).all()
    assert (both[2, :, 0] == both[0, :, :3].min()).all()
