"""Blocks, their places, and what a service shows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.costs import Ledger, SpentError
from awfulowl.errors import InputError
from awfulowl.lab.scenes.loot import (
    Service,
    Spoils,
    assemble,
    block_shape,
    cut_blocks,
    held_share,
    input_channels,
    largest_block,
    positions,
    seen_share,
    span,
)
from tests.scenes import tiny_scene

NATIVE = Convolution((1, 1), (1, 1), (1, 1))


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_blocks_put_back_in_their_places_are_the_weights(
    shape: tuple[int, int], block: tuple[int, int], seed: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    grid = make_grid(shape, Dense(), 1, block=block)
    places = positions(grid)[torch.randperm(grid.blocks, generator=torch.Generator().manual_seed(seed))]
    spoils = Spoils(grid=grid, blocks=cut_blocks(weight, grid, places))
    assert torch.equal(assemble(spoils, places), weight)
    assert held_share(spoils) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shape", "block", "largest"), [((64, 48), 16, (16, 16)), ((10, 64), 16, (10, 16)), ((20, 5), (16, 2), (16, 2))]
)
def test_the_largest_block_says_how_a_layer_was_cut(
    shape: tuple[int, int], block: int | tuple[int, int], largest: tuple[int, int]
) -> None:
    assert largest_block(make_grid(shape, Dense(), 1, block=block)) == largest
    assert largest_block(make_grid((*shape, 3, 3), NATIVE, 1, block=block)) == largest


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_blocks_of_grouped_convolutions_go_back_too(groups: int) -> None:
    weight = torch.randn(8, 8 // groups, 3, 3)
    grid = make_grid(tuple(weight.shape), NATIVE, groups, block=2)
    places = positions(grid)
    assert len(places) == grid.blocks
    spoils = Spoils(grid=grid, blocks=cut_blocks(weight, grid, places))
    assert torch.equal(assemble(spoils, places), weight)


def test_blocks_are_copies() -> None:
    weight = torch.zeros(4, 4)
    grid = make_grid((4, 4), Dense(), 1, block=2)
    spoils = Spoils(grid=grid, blocks=cut_blocks(weight, grid, positions(grid)))
    weight += 1
    assert all(float(block.sum()) == 0 for block in spoils.blocks)
    assert all(block.untyped_storage().nbytes() == 4 * 4 for block in spoils.blocks)


def test_what_lies_below_stays_where_no_block_is() -> None:
    grid = make_grid((4, 4), Dense(), 1, block=2)
    spoils = Spoils(grid=grid, blocks=(torch.ones(2, 2), 2 * torch.ones(2, 2)))
    below = torch.full((4, 4), 7.0)
    whole = assemble(spoils, torch.tensor([[1, 0], [-1, -1]]), below)
    assert whole[2:, :2].eq(1).all()
    assert whole[:2].eq(7).all()
    assert below.eq(7).all()


def test_ragged_blocks_fit_only_places_of_their_own_shape() -> None:
    grid = make_grid((5, 7), Dense(), 1, block=3)
    places = positions(grid)
    spoils = Spoils(grid=grid, blocks=cut_blocks(torch.arange(35.0).reshape(5, 7), grid, places))
    assert [tuple(block.shape) for block in spoils.blocks] == [block_shape(grid, *place) for place in places.tolist()]
    assert torch.equal(spoils.stacked(torch.tensor([0, 1])), torch.stack(spoils.blocks[:2]))
    with pytest.raises(InputError, match=r"where \(\d, \d\) fits"):
        assemble(spoils, places.roll(1, 0))


@pytest.mark.parametrize("place", [(0, 9), (9, 0), (-1, 0), (0, -1)])
def test_places_outside_the_grid_are_refused(place: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="no block at row"):
        span(make_grid((4, 4), Dense(), 1, block=2), *place)


def test_seen_inputs_are_those_of_held_columns() -> None:
    grid = make_grid((4, 6), Dense(), 1, block=2)
    seen = input_channels(grid, torch.tensor([2, 0, 2]))
    assert seen.tolist() == [True, True, False, False, True, True]
    assert seen_share({"a": seen, "b": torch.zeros(6, dtype=torch.bool)}) == pytest.approx(1 / 3)
    assert seen_share({}) == 0.0


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layer(2 * x)
        return answer


def test_a_service_shows_what_devices_see_and_counts_queries() -> None:
    model = Doubled()
    seen = torch.tensor([True, False, True])
    service = Service(model, model, {"layer": seen}, batch=2)
    ledger, x = Ledger(queries=5), torch.ones(3, 3)
    watched = service.watch(x, ledger)
    assert torch.equal(watched.inputs["layer"], torch.tensor([[2.0, 0.0, 2.0]]).expand(3, 3))
    assert torch.allclose(watched.logits, model(x))
    assert torch.allclose(service.ask(x[:2], ledger), model(x[:2]))
    assert ledger.queries == 5
    with pytest.raises(SpentError):
        service.ask(x, ledger)
    assert not model.layer._forward_pre_hooks


def test_what_foreign_devices_see_is_not_the_victim_s_but_answers_are() -> None:
    victim, foreign = Doubled(), Doubled()
    service = Service(victim, foreign, {"layer": torch.ones(3, dtype=torch.bool)})
    assert torch.allclose(service.watch(torch.ones(1, 3), Ledger()).logits, victim(torch.ones(1, 3)))


def test_who_sees_nothing_is_told_so() -> None:
    with pytest.raises(InputError, match="sees_inputs = true"):
        Service(Doubled(), Doubled(), {}).watch(torch.ones(1, 3), Ledger())


def test_a_scene_s_model_is_copied_to_be_changed() -> None:
    scene, _ = tiny_scene()
    copied = scene.fresh_copy()
    next(copied.parameters()).data.zero_()
    assert next(scene.model.parameters()).abs().sum() > 0
    assert scene.only_layer == "hidden"
