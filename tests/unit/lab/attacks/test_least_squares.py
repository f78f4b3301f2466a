"""Layers whose traffic is seen are put into the model as they are; the rest is left alone."""

from functools import partial

import pytest
import torch
from torch import nn

from awfulowl.costs import TRAINING, Ledger
from awfulowl.lab.attacks.least_squares import LeastSquares, _solve_layer
from awfulowl.lab.scenes.loot import Service
from awfulowl.lab.traffic.relays import find_relays
from tests.scenes import whole_scene
from tests.unit.lab.shuffled.networks import made


def normed() -> nn.Sequential:
    """Layers of which every kind is seen: behind a batch norm and a ReLU, behind a ReLU, and as answers."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


LAYERS = ("0", "4", "6")


@torch.no_grad()
def victim() -> nn.Module:
    model: nn.Module = made(normed, seed=3).train()
    for _ in range(20):
        model(torch.randn(64, 2, 4, 4))
    return model.eval()


def test_a_network_of_which_everything_is_seen_is_known() -> None:
    model = victim()
    seen = {name: torch.ones(inputs).bool() for name, inputs in zip(LAYERS, (2, 96, 12), strict=True)}
    x = torch.randn(900, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    watched = Service(model, model, seen).watch(x, Ledger())
    own = made(normed, seed=77).eval()
    for layer, relay in find_relays(own, LAYERS).items():
        _solve_layer(own, layer, relay, watched, Ledger())
    fresh = torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(own(fresh), model(fresh), atol=1e-2)


@pytest.mark.parametrize("queries", [20, 900])
def test_rows_with_too_few_equations_stay(queries: int) -> None:
    model = victim()
    seen = {name: torch.ones(inputs).bool() for name, inputs in zip(LAYERS, (2, 96, 12), strict=True)}
    x = torch.randn(queries, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    watched = Service(model, model, seen).watch(x, Ledger())
    own = made(normed, seed=77).eval()
    before = own[4].weight.detach().clone()
    _solve_layer(own, "4", find_relays(own, LAYERS)["4"], watched, Ledger())
    assert torch.equal(own[4].weight, before) == (queries == 20)


def test_unseen_inputs_and_outputs_are_left_alone() -> None:
    model = victim()
    seen = {"0": torch.tensor([True, False]), "4": torch.arange(96) < 48, "6": torch.zeros(12).bool()}
    x = torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    watched = Service(model, model, seen).watch(x, Ledger())
    own = made(normed, seed=77).eval()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    for layer, relay in find_relays(own, LAYERS).items():
        _solve_layer(own, layer, relay, watched, Ledger())
    after = own.state_dict()
    assert torch.equal(after["4.weight"], before["4.weight"])
    assert torch.equal(after["6.weight"], before["6.weight"])
    assert torch.equal(after["0.weight"][3:], before["0.weight"][3:])
    assert not torch.equal(after["0.weight"][:3], before["0.weight"][:3])


def test_in_a_scene_solved_layers_have_the_victims_weights() -> None:
    scene, truth = whole_scene(share=1.0)
    found = LeastSquares()(scene, truth, seed=1)
    # Units that are never positive tell nothing: neither their own rows, nor what follows would make of them.
    assert found.grade.cosines["conv"] > 0.95
    assert found.grade.cosines["head"] > 0.95
    assert abs(found.grade.cosines["inner"]) < 0.1
    assert found.cost["queries"] == 600
    assert found.by_kind["least squares"] > 0


def test_layers_that_the_budget_does_not_allow_are_left_out() -> None:
    scene, truth = whole_scene(share=1.0)
    budget = partial(Ledger, queries=600)
    found = LeastSquares()(scene, truth, seed=1, budget=budget(flops=600 * TRAINING * scene.forward_flops))
    poor = LeastSquares()(scene, truth, seed=1, budget=budget(flops=TRAINING * scene.forward_flops))
    assert poor.cost["queries"] == 1
    assert poor.cost["flops"] <= TRAINING * scene.forward_flops
    assert abs(poor.grade.cosines["head"]) < 0.5 < found.grade.cosines["head"]
