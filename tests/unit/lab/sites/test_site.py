"""An attacked layer among what is known around it."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from awfulowl.costs import Ledger
from awfulowl.errors import InputError, ModelError
from awfulowl.lab.scenes.loot import Spoils, assemble
from awfulowl.lab.sites.site import UNKNOWN_BIAS, layer_by_layer, look, make_site
from awfulowl.models.data import Labelled
from tests.scenes import tiny_scene
from tests.sites import around, copying, examples, hidden, inner

CASES = pytest.mark.parametrize("make", [hidden, inner, copying])
ALL = torch.arange(40)


@CASES
def test_a_full_evaluation_is_the_models(make: Any) -> None:
    case, ledger = make(), Ledger()
    loss, accuracy = case.site.evaluate(case.weight, ledger)
    assert loss == pytest.approx(case.slow_loss(case.weight, ALL), rel=1e-4)
    with torch.no_grad():
        right = case.model(case.public.inputs).argmax(1) == case.public.labels
    assert accuracy == float(right.double().mean())
    assert ledger.evaluations == 1
    assert ledger.flops == 40 * (case.site.layer_flops + case.site.tail_flops)


@CASES
def test_descent_is_minus_the_gradient_of_the_model(make: Any) -> None:
    case, ledger = make(), Ledger()
    weight = case.model.get_submodule(case.layer).get_parameter("weight")
    loss = functional.cross_entropy(case.model(case.public.inputs), case.public.labels)
    (slope,) = torch.autograd.grad(loss, weight)
    found = case.site.descent(case.weight, ALL, 0.0, ledger)
    assert torch.allclose(found, -slope, atol=1e-6)
    assert ledger.flops == 40 * 2 * (case.site.layer_flops + case.site.tail_flops)


def test_the_plain_gradient_is_blind_where_units_are_off_and_a_leak_sees() -> None:
    case = copying()
    zero = torch.zeros_like(case.weight)
    off = case.site.bias < 0
    assert off.any()
    assert case.site.descent(zero, ALL, 0.0, Ledger())[off].abs().max() == 0
    assert case.site.descent(zero, ALL, 1.0, Ledger())[off].abs().min() > 0


def test_copied_inputs_are_kept_once() -> None:
    case = copying()
    site = case.site
    assert site.entered.inputs.shape == (40, 7)
    assert site.twins is not None
    assert torch.equal(site.entered.inputs[:, site.twins], torch.repeat_interleave(case.public.inputs, 5, dim=1))
    assert site.layer_flops == 2 * 8 * 7
    values = torch.repeat_interleave(case.public.inputs, 5, dim=1)
    assert torch.allclose(site.outputs(site.folded(case.weight), ALL), values @ case.weight.T + site.bias, atol=1e-5)
    assert torch.equal(site.column_inputs(1), values[:, 8:16])


def test_inputs_that_differ_are_left_alone() -> None:
    site = hidden().site
    assert site.twins is None
    assert torch.equal(site.column_inputs(1, slice(3)), site.entered.inputs[:3, 6:12])


def test_an_unknown_bias_is_guessed() -> None:
    case = hidden()
    spoils = Spoils(grid=case.site.grid, blocks=case.site.spoils.blocks)
    guessed = look(case.model, "hidden", spoils, case.public, Ledger()).bias
    assert torch.equal(guessed, torch.full((20,), UNKNOWN_BIAS))
    assert inner().site.bias.tolist() == [0.0] * 6


def test_looking_costs_one_pass_through_what_comes_before() -> None:
    ledger = Ledger()
    case = hidden()
    look(case.model, "hidden", case.site.spoils, case.public, ledger)
    assert ledger.flops == 40 * 2 * 36 * (6 * 2 * 9 + 6 * 6 * 9)


def test_what_is_not_finite_or_not_there_is_refused() -> None:
    case = hidden()
    none = Labelled(case.public.inputs[:0], case.public.labels[:0])
    with pytest.raises(InputError, match="no public images"):
        look(case.model, "hidden", case.site.spoils, none, Ledger())
    blocks = (case.site.spoils.blocks[0] * torch.nan, *case.site.spoils.blocks[1:])
    with pytest.raises(InputError, match="blocks of layer 'hidden'"):
        look(case.model, "hidden", Spoils(grid=case.site.grid, blocks=blocks), case.public, Ledger())
    model = around()
    nn.init.constant_(model.first.weight, torch.nan)
    with pytest.raises(InputError, match="enters layer 'hidden' is not finite"):
        look(model, "hidden", case.site.spoils, case.public, Ledger())
    with pytest.raises(ModelError, match="another form"):
        look(case.model, "head", case.site.spoils, case.public, Ledger())
    words = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 5))
    with pytest.raises(ModelError, match="not \\(images, inputs\\)"):
        look(words, "0", case.site.spoils, examples((3, 24)), Ledger())


def test_layers_are_found_one_after_the_other() -> None:
    scene, truth = tiny_scene(share=1.0, layers=("inner", "hidden"))
    seen = []

    def attack(layer: str, model: Any) -> Any:
        weight = model.get_submodule("inner").weight
        seen.append((layer, bool(weight.abs().max() > 0)))
        return truth.positions[layer]

    found = layer_by_layer(scene, attack)
    assert seen == [("inner", False), ("hidden", True)]
    assert torch.equal(
        assemble(scene.layers["inner"], found["inner"]), truth.victim.get_submodule("inner").get_parameter("weight")
    )
    assert scene.model.get_submodule("inner").get_parameter("weight").abs().max() == 0


def test_a_scene_is_looked_at() -> None:
    scene, _ = tiny_scene()
    site = make_site(scene, "hidden", Ledger())
    assert len(site) == len(scene.public.labels)
    assert site.grid is scene.layers["hidden"].grid
