"""Scores of blocks at places, and assignments."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.errors import InputError
from awfulowl.lab.scenes.loot import Spoils, cut_blocks, positions
from awfulowl.lab.sites.placing import (
    NEVER,
    Places,
    assign,
    assign_flops,
    correlations,
    place,
    product_flops,
    products,
    score,
    standardise,
)

GRIDS = {
    "even": make_grid((12, 8), Dense(), 1, block=4),
    "ragged": make_grid((10, 7), Dense(), 1, block=(4, 3)),
    "convolution": make_grid((6, 4, 3, 3), Convolution((1, 1), (1, 1), (1, 1)), 1, block=2),
    "groups": make_grid((8, 2, 3), Convolution((1,), (1,), (1,)), 4, block=4),
    "split groups": make_grid((8, 4, 3), Convolution((1,), (1,), (1,)), 2, block=2),
}
EVERY = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))


def weight_of(grid: Any, seed: int = 0) -> Any:
    return torch.randn(grid.shape, generator=torch.Generator().manual_seed(seed))


def spoils_of(grid: Any, held: Any = None, seed: int = 0, **known: Any) -> Any:
    truth = positions(grid) if held is None else positions(grid)[torch.tensor(held)]
    return Spoils(grid=grid, blocks=cut_blocks(weight_of(grid, seed), grid, truth), **known), truth


@EVERY
def test_products_are_those_of_every_pair_that_fits(grid: Any) -> None:
    spoils, _ = spoils_of(grid)
    places, guess = Places(grid), weight_of(grid, 1)
    scores = products(spoils.blocks, guess, places)
    assert scores.dtype == torch.float64
    for number, block in enumerate(spoils.blocks):
        for where, cell in enumerate(places.cells(guess)):
            if cell.shape == block.shape:
                assert scores[number, where].item() == pytest.approx(float((block * cell).sum()), rel=1e-4, abs=1e-4)
            else:
                assert scores[number, where] == NEVER


@EVERY
def test_blocks_go_back_where_the_guess_is_right(grid: Any) -> None:
    spoils, truth = spoils_of(grid)
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(2))
    shuffled = replace(spoils, blocks=tuple(spoils.blocks[index] for index in order.tolist()))
    places = Places(grid)
    assert torch.equal(place(shuffled, products(shuffled.blocks, weight_of(grid), places), places), truth[order])


def test_the_operations_of_products_are_counted() -> None:
    grid = GRIDS["ragged"]
    spoils, _ = spoils_of(grid)
    places = Places(grid)
    shapes = [tuple(cell.shape) for cell in places.cells(weight_of(grid))]
    expected = sum(2 * block.numel() * shapes.count(tuple(block.shape)) for block in spoils.blocks)
    assert product_flops(spoils.blocks, places) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2), st.integers(0, 10_000))
def test_an_assignment_is_the_best_of_all(blocks: Any, room: Any, seed: int) -> None:
    scores = torch.randn(blocks, blocks + room, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = scores.clone()
    chosen = assign(scores)
    assert torch.equal(scores, before)
    assert len(set(chosen.tolist())) == blocks
    best = max(
        sum(scores[block, where].item() for block, where in enumerate(choice))
        for choice in permutations(range(blocks + room), blocks)
    )
    assert sum(scores[block, where].item() for block, where in enumerate(chosen.tolist())) == pytest.approx(best)


def test_an_assignment_refuses_what_cannot_be_assigned() -> None:
    with pytest.raises(InputError, match="3 blocks do not fit into 2 places"):
        assign(torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(InputError, match="no finite numbers"):
        assign(torch.tensor([[0.0, torch.nan], [1.0, 0.0]], dtype=torch.float64))
    with pytest.raises(InputError, match="no finite numbers"):
        assign(torch.tensor([[0.0, torch.inf]], dtype=torch.float64))
    scores = torch.tensor([[1.0, NEVER], [1.0, NEVER]], dtype=torch.float64)
    with pytest.raises(InputError, match="where it fits"):
        assign(scores)
    assert scores[0, 0] == 1.0


def test_more_blocks_of_a_shape_than_places_are_refused() -> None:
    grid = GRIDS["ragged"]
    spoils, _ = spoils_of(grid)
    with pytest.raises(InputError, match="places for them"):
        products([*spoils.blocks, spoils.blocks[0]], weight_of(grid), Places(grid))


def test_nothing_held_is_placed_nowhere() -> None:
    grid = GRIDS["even"]
    spoils = Spoils(grid=grid, blocks=())
    places = Places(grid)
    assert place(spoils, products((), weight_of(grid), places), places).shape == (0, 2)


def test_known_columns_leave_rows_to_assign() -> None:
    grid = GRIDS["even"]
    spoils, truth = spoils_of(grid, [0, 2, 3, 5])
    places = Places(grid)
    scores = torch.rand(4, len(places), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = place(replace(spoils, columns=truth[:, 1]), scores, places)
    assert torch.equal(found[:, 1], truth[:, 1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
def test_blocks_of_one_set_share_a_column_in_the_best_way(seed: int, held: Any) -> None:
    grid = GRIDS["even"]
    spoils, truth = spoils_of(grid, held)
    places = Places(grid)
    scores = torch.randn(len(held), len(places), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    together = truth[:, 1] + 7

    def allowed(choice: Any) -> Any:
        columns = places.columns[torch.tensor(choice)]
        same = columns[:, None] == columns
        return torch.equal(same, together[:, None] == together)

    def total(choice: Any) -> Any:
        return sum(scores[block, where].item() for block, where in enumerate(choice))

    best = max(total(choice) for choice in permutations(range(len(places)), len(held)) if allowed(choice))
    found = place(replace(spoils, together=together), scores.clone(), places)
    choice = [(places.positions == pair).all(dim=1).nonzero().item() for pair in found]
    assert allowed(choice)
    assert total(choice) == pytest.approx(best)


def test_scores_of_a_function_are_by_shape() -> None:
    grid = GRIDS["ragged"]
    spoils, _ = spoils_of(grid)
    places = Places(grid)
    scores = score(spoils.blocks, places, lambda held, room: torch.full((len(held), len(room)), float(held[0].numel())))
    assert scores[0, 0] == 12.0
    assert scores[-1, -1] == 2.0
    assert scores[0, -1] == NEVER


def test_standard_scores_have_mean_0_and_deviation_1() -> None:
    scores = torch.randn(6, 7, dtype=torch.float64) * 5 + 3
    scores[2, 3] = NEVER
    standard = standardise(scores)
    known = standard[standard.isfinite()]
    assert len(known) == 41
    assert standard[2, 3] == NEVER
    assert known.mean().item() == pytest.approx(0, abs=1e-12)
    assert known.std(correction=0).item() == pytest.approx(1)


def test_equal_scores_say_nothing() -> None:
    scores = torch.full((2, 3), 0.1, dtype=torch.float64)
    scores[0, 0] = NEVER
    standard = standardise(scores)
    assert standard[0, 0] == NEVER
    assert standard.masked_fill(standard == NEVER, 0.0).abs().max() == 0


def test_correlations_are_pearsons() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(3, 9, generator=generator), torch.randn(2, 9, generator=generator)
    expected = torch.corrcoef(torch.cat([ours, theirs]))[:3, 3:]
    assert torch.allclose(correlations(ours, theirs), expected, atol=1e-5)
    assert correlations(torch.ones(1, 9), theirs).abs().max() == 0
    assert correlations(torch.ones(1, 1), torch.ones(1, 1)).item() == 0


def test_operations_of_an_assignment_are_bounded_by_blocks_and_places() -> None:
    assert assign_flops(3, 5) == 45
