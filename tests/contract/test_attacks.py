"""What every attack of the catalogue promises, on a tiny scene."""

import copy
import functools

import pytest
import torch

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack, Outcome
from awfulowl.lab.attacks.catalogue import ATTACKS, catalogue, find_attacks
from awfulowl.lab.scenes.loot import Scene, Truth
from awfulowl.lab.scenes.threat import changed
from awfulowl.models.data import Labelled
from tests.scenes import tiny_scene, whole_scene

EVERY = pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))


def scene_for(attack: Attack) -> tuple[Scene, Truth]:
    """A scene that grants what the attack needs."""
    grants = {"knows_base_model": True, "sees_gradients": True, "links": True, "snapshots": 2}
    granted = {field: value for field, value in grants.items() if field in attack.needs}
    return whole_scene(**granted) if attack.scope == "model" else tiny_scene(**granted)


def run(attack: Attack, seed: int = 3, budget: Ledger | None = None) -> Outcome:
    scene, truth = scene_for(attack)
    return attack(scene, truth, seed=seed, budget=budget)


@functools.cache
def known(name: str) -> Outcome:
    """What an attack answers to seed 3 without a budget; it is run for it once."""
    return run(ATTACKS[name])


def numbers(outcome: Outcome) -> tuple[object, ...]:
    """Everything that equal seeds repeat, whatever it is graded on."""
    places = {layer: placement.tolist() for layer, placement in outcome.recovery.placements.items()}
    weights = {name: tensor.double().sum().item() for name, tensor in outcome.recovery.weights.items()}
    return places, weights, dict(outcome.cost), dict(outcome.by_kind)


@EVERY
def test_equal_seeds_give_equal_numbers_and_the_test_images_guide_nothing(attack: Attack) -> None:
    """And it leaves the scene and the generator as they are."""
    first = known(attack.name)
    assert first.recovery.placements or first.recovery.weights
    assert 0 <= first.grade.accuracy <= 1
    torch.manual_seed(99)
    generator = torch.get_rng_state()
    scene, truth = scene_for(attack)
    model = copy.deepcopy(scene.model.state_dict())
    blocks = {layer: [block.clone() for block in spoils.blocks] for layer, spoils in scene.layers.items()}
    public = [tensor.clone() for tensor in (*scene.public, *scene.validation)]
    again = attack(scene, with_few_images(truth), seed=3)
    assert numbers(again) == numbers(first)
    assert all(torch.equal(weights, again.recovery.weights[name]) for name, weights in first.recovery.weights.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, model[name]) for name, tensor in scene.model.state_dict().items())
    for layer, spoils in scene.layers.items():
        assert all(torch.equal(*pair) for pair in zip(spoils.blocks, blocks[layer], strict=True))
    assert all(torch.equal(*pair) for pair in zip((*scene.public, *scene.validation), public, strict=True))


def with_few_images(truth: Truth) -> Truth:
    """Return the same but for the test images: whoever is guided by them goes another way."""
    return Truth(
        positions=truth.positions,
        answers=truth.answers,
        validation=truth.validation,
        test=Labelled(truth.test.inputs[:5], truth.test.labels[:5]),
        seed=truth.seed,
    )


@EVERY
def test_it_never_spends_more_than_its_budget(attack: Attack) -> None:
    spent = known(attack.name).cost
    small = Ledger(flops=spent["flops"] / 3, evaluations=max(1, spent["evaluations"] // 3), queries=600)
    refusal = ""
    try:
        run(attack, budget=small)
    except InputError as error:
        refusal = str(error)
    assert not refusal or "the budget ended before there was an answer" in refusal
    assert small.flops <= spent["flops"] / 3
    assert small.evaluations <= max(1, spent["evaluations"] // 3)


@EVERY
def test_it_refuses_what_it_is_not_granted(attack: Attack) -> None:
    scene, truth = scene_for(attack)
    assert "knows_architecture" in attack.needs
    for field in attack.needs:
        denied = {"queries": 0, "public": 0, "snapshots": 1}.get(field, False)
        poorer = Scene(
            **{
                name: getattr(scene, name)
                for name in ("model", "unknown", "layers", "public", "validation", "service", "build", "forward_flops")
            },
            threat=changed(scene.threat, **{field: denied}),
        )
        with pytest.raises(InputError, match=field):
            attack(poorer, truth, seed=1)


@EVERY
def test_it_has_a_name_and_a_rung(attack: Attack) -> None:
    assert ATTACKS[attack.name] is attack
    assert attack.rung[0] in "PS"
    assert type(attack).__doc__
    assert attack.name == attack.name.lower()
    assert not set(attack.name) & set(" \t'\"/:")  # one word on a command line


def test_the_catalogue_refuses_duplicates() -> None:
    entry = ATTACKS["random"]
    with pytest.raises(InputError, match="two attacks are called 'random'"):
        catalogue([entry, entry])


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    assert [attack.name for attack in find_attacks(["random"])] == ["random"]
    with pytest.raises(InputError, match=r"no attack 'randon'; did you mean 'random'\? There are random, norms"):
        find_attacks(["randon"])
