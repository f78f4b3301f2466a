"""Floors, completion and lines: what stolen blocks are read against."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Recovery
from awfulowl.lab.scenes.grading import share_right
from awfulowl.lab.scenes.threat import changed
from awfulowl.lab.sites.relearning import augmented, relearn
from awfulowl.lab.victims.fitting import Schedule
from awfulowl.lab.yardsticks import lines
from awfulowl.lab.yardsticks.completion import complete, completion_flops
from awfulowl.lab.yardsticks.floors import Distilled, FromBase, MissingLayers, WholeFromPublic, floors
from awfulowl.models.data import Labelled
from awfulowl.randomness import Entropy
from tests.scenes import digits, tiny_scene, tiny_victim, whole_scene

EVERY = floors(base=tiny_victim(1).model, mirrored=False)


def budget(share: float = 0.5) -> Ledger:
    return Ledger(flops=share * tiny_victim().training_flops, queries=600)


@pytest.mark.parametrize("floor", EVERY, ids=[floor.name for floor in EVERY])
def test_a_floor_learns_without_loot_within_its_budget_and_the_same_from_equal_seeds(floor: object) -> None:
    scene, truth = tiny_scene(knows_base_model=True)
    poor = replace(scene, layers={name: replace(one, blocks=()) for name, one in scene.layers.items()})
    assert isinstance(floor, MissingLayers | WholeFromPublic | Distilled | FromBase)
    first, again = (floor(one, truth, seed=5, budget=budget()) for one in (scene, poor))
    assert first.grade.accuracy > 0.5
    assert 0 < first.cost["flops"] <= tiny_victim().training_flops / 2
    assert torch.equal(first.grade.right, again.grade.right)
    assert first.cost == again.cost


def test_missing_layers_are_learned_between_those_that_are_known() -> None:
    scene, truth = tiny_scene()
    outcome = MissingLayers()(scene, truth, seed=5, budget=budget())
    assert set(outcome.recovery.weights) == {"hidden.weight"}
    assert outcome.grade.accuracy > 0.7
    several, truth = tiny_scene(layers=("inner", "hidden"))
    outcome = MissingLayers()(several, truth, seed=5, budget=budget())
    assert set(outcome.recovery.weights) == {"inner.weight", "hidden.weight"}


def test_unknown_biases_are_learned_or_guessed_too() -> None:
    scene, truth = tiny_scene(knows_biases=False)
    assert "hidden.bias" in MissingLayers()(scene, truth, seed=5, budget=budget()).recovery.weights
    weights = Distilled()(scene, truth, seed=5, budget=budget()).recovery.weights
    assert set(weights) == {"hidden.weight", "hidden.bias"}


def test_distillation_asks_as_often_as_it_may_and_needs_no_labels() -> None:
    scene, truth = tiny_scene(knows_labels=False)
    outcome = Distilled()(scene, truth, seed=5, budget=budget())
    assert outcome.cost["queries"] == 600
    assert outcome.grade.agreement > 0.7
    with pytest.raises(InputError, match="knows_labels"):
        WholeFromPublic()(scene, truth, seed=5, budget=budget())


def test_floors_are_refused_what_the_pirate_has_not() -> None:
    scene, truth = tiny_scene()
    with pytest.raises(InputError, match="knows_base_model"):
        FromBase(tiny_victim(1).model)(scene, truth, seed=5)
    whole, truth = whole_scene()
    with pytest.raises(InputError, match="knows_other_layers"):
        MissingLayers()(whole, truth, seed=5)
    assert [floor.name for floor in floors(base=None, mirrored=False)] == [
        MissingLayers.name,
        WholeFromPublic.name,
        Distilled.name,
    ]


def test_a_budget_of_nothing_gives_no_number() -> None:
    scene, truth = tiny_scene()
    for floor in (MissingLayers(), WholeFromPublic(), Distilled()):
        with pytest.raises(InputError, match=r"budget ended|no operations"):
            floor(scene, truth, seed=5, budget=Ledger(flops=1000))


def test_no_floor_begins_where_the_victim_began() -> None:
    scene, truth = whole_scene()
    outcome = WholeFromPublic()(scene, truth, seed=0, budget=budget())
    assert outcome.grade.cosine < 0.2


def test_more_inputs_are_made_of_few() -> None:
    images = digits().public.inputs[:20]
    for mirrored in (False, True):
        many = augmented(images, 90, Entropy(1), mirrored=mirrored)
        assert torch.equal(many[:20], images)
        assert len(many) == 90
        assert len(torch.unique(many.flatten(1), dim=0)) > 60
        assert torch.equal(many, augmented(images, 90, Entropy(1), mirrored=mirrored))
    assert torch.equal(augmented(images, 7, Entropy(1), mirrored=False), images[:7])
    assert augmented(torch.rand(5, 3), 9, Entropy(1), mirrored=False).shape == (9, 3)


def test_relearning_moves_what_is_unknown_and_nothing_else() -> None:
    scene, _ = tiny_scene(knows_biases=False)
    before = {name: tensor.clone() for name, tensor in scene.model.state_dict().items()}
    schedule, ledger = Schedule(epochs=1, batch=64, lr=0.05), Ledger()
    found = relearn(scene, {}, scene.public, schedule, Entropy(1), ledger)
    assert set(found) == {"hidden.weight", "hidden.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in scene.model.state_dict().items())
    assert ledger.by_kind["training"] > 0


@cache
def fill() -> dict[str, torch.Tensor]:
    scene, truth = tiny_scene()
    return dict(MissingLayers()(scene, truth, seed=5, budget=budget()).recovery.weights)


def test_a_completion_is_the_best_of_three_by_validation_images() -> None:
    scene, truth = tiny_scene(share=0.3)
    ledger = Ledger(flops=completion_flops(scene))
    found = complete(scene, Recovery(placements=truth.positions), fill(), ledger, 3)
    placed = complete(scene, Recovery(placements=truth.positions), {}, Ledger(), 3)
    assert placed.way == "as placed"
    assert found.way in {"filled", "tuned"}
    assert share_right(found.model, truth.validation) >= share_right(placed.model, truth.validation)
    assert 0 < ledger.flops <= completion_flops(scene)
    again = complete(scene, Recovery(placements=truth.positions), fill(), Ledger(flops=completion_flops(scene)), 3)
    assert all(torch.equal(*pair) for pair in zip(found.model.parameters(), again.model.parameters(), strict=True))


def test_a_completion_without_means_leaves_the_placement() -> None:
    scene, truth = tiny_scene(share=0.3)
    recovery = Recovery(placements=truth.positions)
    assert complete(scene, recovery, fill(), Ledger(flops=0), 3).way == "filled"
    blind = replace(
        scene, threat=changed(scene.threat, knows_labels=False), validation=Labelled(*(t[:0] for t in scene.validation))
    )
    assert complete(blind, recovery, fill(), Ledger(), 3).way == "filled"


def test_standard_lines_stand_in_their_order() -> None:
    scene, truth = tiny_scene(share=0.5)
    found = {name: lines.line(name, scene, truth, 3) for name in lines.LINES if name != lines.CEILING}
    assert found[lines.VICTIM].accuracy == share_right(truth.victim, truth.test)
    assert found[lines.VICTIM].agreement == pytest.approx(found[lines.VICTIM].cosine) == 1.0
    assert found[lines.TRUE].positions_right == 1.0
    assert (found[lines.RANDOM].positions_right or 0.0) < 0.2
    assert found[lines.ZEROED].positions_right is None
    assert found[lines.VICTIM].accuracy > found[lines.TRUE].accuracy > found[lines.ZEROED].accuracy
    assert found[lines.TRUE].cosine > found[lines.RANDOM].cosine
    with pytest.raises(KeyError):
        lines.line("made up", scene, truth, 3)


def test_shuffled_blocks_keep_their_scale_and_nothing_else() -> None:
    scene, _ = tiny_scene()
    mixed = lines.shuffled(scene, 3)
    for block, other in zip(scene.layers["hidden"].blocks, mixed.layers["hidden"].blocks, strict=True):
        assert torch.equal(block.flatten().sort().values, other.flatten().sort().values)
        assert not torch.equal(block, other)
    assert torch.equal(lines.shuffled(scene, 3).layers["hidden"].blocks[0], mixed.layers["hidden"].blocks[0])
