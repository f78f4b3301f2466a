"""Naive possession: what is dropped, what is withheld, and what training starts from."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.request import ORDERS, Order
from awfulowl.lab.scenes.drawing import grids_of
from awfulowl.lab.yardsticks.possession import drop, warm_start, withheld
from awfulowl.models.data import Labelled
from awfulowl.randomness import Entropy
from tests.scenes import digits, tiny_victim

LAYERS = ("conv", "inner", "hidden", "head")
GRIDS = grids_of(tiny_victim().model, LAYERS, 8)
PUBLIC = Labelled(*(part[:64] for part in digits().public))


def hidden(model: nn.Module) -> torch.Tensor:
    return model.get_submodule("hidden").get_parameter("weight").detach().flatten()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_blocks_of_each_layer_is_dropped(share: float) -> None:
    model = copy.deepcopy(tiny_victim().model)
    drop(model, {"hidden": GRIDS["hidden"]}, share, Entropy(1))
    weight = model.get_submodule("hidden").get_parameter("weight")
    assert float((weight == 0).float().mean()) == pytest.approx(share)
    own = tiny_victim().model.get_submodule("hidden").get_parameter("weight")
    assert torch.equal(weight[weight != 0], own[weight != 0])
    assert torch.equal(
        model.get_submodule("head").get_parameter("weight"),
        tiny_victim().model.get_submodule("head").get_parameter("weight"),
    )


@given(share=st.floats(0, 1), order=st.sampled_from(ORDERS), seed=st.integers(0, 20))
def test_a_share_of_all_blocks_is_held(share: float, order: Order, seed: int) -> None:
    held = withheld(GRIDS, share, order, Entropy(seed))
    blocks = sum(grid.blocks for grid in GRIDS.values())
    total = sum(math.prod(grid.shape) for grid in GRIDS.values())
    weights = sum(int(mask.sum()) for mask in held.values())
    assert list(held) == list(LAYERS)
    largest = max(math.prod(grid.shape) / grid.blocks for grid in GRIDS.values())
    assert weights <= min(total, (round(share * blocks) + 1) * 576)
    assert (weights == total) == (round((1 - share) * blocks) == 0)
    assert (weights == 0) == (round((1 - share) * blocks) == blocks)
    assert largest > 0


def test_orders_withhold_what_they_say() -> None:
    def shares(order: Order) -> list[float]:
        return [float(mask.float().mean()) for mask in withheld(GRIDS, 0.5, order, Entropy(1)).values()]

    shallow, deep, largest, drawn = (
        shares(order) for order in ("shallow first", "deep first", "largest first", "random")
    )
    assert shallow[0] == 0.0
    assert shallow[3] == 1.0
    assert deep[0] == 1.0
    assert deep[3] == 0.0
    assert largest[2] == min(largest) < 0.5
    assert largest[0] == largest[1] == largest[3] == 1.0
    assert all(0.2 < share < 0.8 for share in drawn[1:3])


def test_a_warm_start_begins_with_what_is_held_and_scratch_does_not() -> None:
    victim = tiny_victim()
    everything = withheld(GRIDS, 1.0, "random", Entropy(1))
    found = {
        loot: warm_start(victim, everything, PUBLIC, 1 << 21, Ledger(flops=victim.training_flops), loot=loot)
        for loot in (True, False)
    }
    cosines = {
        loot: float(torch.cosine_similarity(hidden(model), hidden(victim.model), dim=0))
        for loot, model in found.items()
    }
    assert cosines[True] > 0.7
    assert abs(cosines[False]) < 0.2


def test_warm_starts_stay_within_their_budget_and_repeat() -> None:
    victim = tiny_victim()
    held = withheld(GRIDS, 0.5, "random", Entropy(1))
    ledger = Ledger(flops=victim.training_flops / 10)
    first = warm_start(victim, held, PUBLIC, 1 << 21, ledger, loot=True)
    assert 0 < ledger.flops <= victim.training_flops / 10
    again = warm_start(victim, held, PUBLIC, 1 << 21, Ledger(flops=victim.training_flops / 10), loot=True)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="nothing to learn from"):
        warm_start(victim, held, Labelled(*(part[:0] for part in PUBLIC)), 1 << 21, Ledger(), loot=True)
