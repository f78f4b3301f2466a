"""The whole model from what devices hold and see: more than from answers, and blocks where they belong."""

import dataclasses

import pytest
import torch

from awfulowl.costs import TRAINING, Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.whole_model import Hints, HintsAndBlocks
from awfulowl.lab.scenes.drawing import Cut, draw
from awfulowl.lab.scenes.loot import Scene, Truth, Watched
from awfulowl.lab.traffic.hints import Hinting
from awfulowl.lab.traffic.placing import place_by_traffic, traffic_scores
from awfulowl.lab.traffic.relays import find_relays
from awfulowl.lab.yardsticks.floors import Distilled
from tests.scenes import digits, tiny_scene, tiny_victim, whole_scene


def passes(scene: Scene, count: int) -> Ledger:
    return Ledger(flops=count * TRAINING * scene.forward_flops, queries=scene.threat.queries)


def traffic(scene: Scene) -> Watched:
    return scene.service.watch(scene.public.inputs, Ledger())


def test_what_is_seen_gives_the_victims_own_weights_and_answers_do_not() -> None:
    scene, truth = whole_scene(share=1.0)
    floor, hinted = (attack(scene, truth, seed=5, budget=passes(scene, 5000)) for attack in (Distilled(), Hints()))
    assert hinted.grade.cosine > 0.3 > abs(floor.grade.cosine) + 0.1


def test_held_blocks_make_more_again() -> None:
    scene, truth = whole_scene(share=1.0)
    hinted, both = (attack(scene, truth, seed=5, budget=passes(scene, 5000)) for attack in (Hints(), HintsAndBlocks()))
    assert both.grade.cosine > hinted.grade.cosine + 0.2
    assert both.grade.positions_right is not None
    assert both.grade.positions_right > 0.5


def test_known_positions_are_taken_as_they_are() -> None:
    scene, truth = whole_scene(share=0.5)
    found = HintsAndBlocks(positions=truth.positions)(scene, truth, seed=1, budget=passes(scene, 1000))
    assert found.grade.positions_right == 1.0
    victim = truth.victim.get_submodule("hidden").get_parameter("weight")
    own = found.model.get_submodule("hidden").get_parameter("weight")
    for row, column in truth.positions["hidden"].tolist():
        place = (slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        assert torch.equal(own[place], victim[place])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_traffic_places_blocks_or_leaves_them_out(share: float) -> None:
    scene, truth = whole_scene(share=share)
    found = place_by_traffic(scene, traffic(scene), Ledger())
    placed = {layer: placement[:, 0] >= 0 for layer, placement in found.items()}
    for layer, placement in found.items():
        right = (placement == truth.positions[layer]).all(dim=1)[placed[layer]]
        assert float(right.double().mean()) > 0.9
    assert "hidden" in found
    assert bool(placed["hidden"].any())


def test_nobody_is_surer_where_less_is_asked_for() -> None:
    scene, _ = whole_scene(share=0.5)
    counts = [
        sum(
            int((place[:, 0] >= 0).sum())
            for place in place_by_traffic(scene, traffic(scene), Ledger(), sure=sure).values()
        )
        for sure in (0.0, 0.3, 0.9)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_true_places_resemble_most_and_unseen_columns_never() -> None:
    scene, truth = whole_scene(share=0.5)
    relay = find_relays(scene.model, scene.layers)["hidden"]
    watched = traffic(scene)
    scores = traffic_scores(scene, "hidden", relay, watched, Ledger())
    assert scores is not None
    grid = scene.layers["hidden"].grid
    columns = len(grid.columns)
    true = [row * columns + column for row, column in truth.positions["hidden"].tolist()]
    own = scores[torch.arange(len(true)), torch.tensor(true)]
    assert float(own.mean()) > float(scores[scores.isfinite()].mean()) + 0.1
    unseen = [c for c in range(columns) if not watched.seen["hidden"][16 * c]]
    assert unseen
    assert bool((scores[:, [c for c in range(len(scores[0])) if c % columns in unseen]] == -torch.inf).all())


def test_foreign_traffic_does_not_give_the_victims_weights() -> None:
    scene, _ = whole_scene(share=1.0)
    control, truth = draw(
        tiny_victim(), digits(), scene.threat, Cut(block=16), seed=1, source=tiny_victim(seed=1).model
    )
    found = Hints()(control, truth, seed=5, budget=passes(control, 4000))
    assert abs(found.grade.cosine) < 0.1


def test_the_budget_sets_the_epochs() -> None:
    scene, truth = whole_scene(share=0.5)
    for count, epochs in ((600, 1), (1300, 2)):
        found = Hints()(scene, truth, seed=1, budget=passes(scene, count))
        assert found.cost["flops"] == pytest.approx(epochs * 600 * TRAINING * scene.forward_flops)
        assert found.cost["queries"] == 600
    capped = Hints(most_epochs=1)(scene, truth, seed=1, budget=passes(scene, 10_000))
    assert capped.cost["flops"] == pytest.approx(600 * TRAINING * scene.forward_flops)


def test_no_query_and_no_sight_are_refused() -> None:
    scene, truth = whole_scene(share=0.5)
    with pytest.raises(InputError, match="no query is left"):
        Hints()(scene, truth, seed=1, budget=Ledger(queries=0))
    blind, truth = whole_scene(share=0.5, sees_inputs=False)
    with pytest.raises(InputError, match="sees_inputs"):
        Hints()(blind, truth, seed=1)
    known: tuple[Scene, Truth] = tiny_scene()
    with pytest.raises(InputError, match="knows_other_layers"):
        Hints()(*known, seed=1)


def test_the_hinting_is_that_of_the_caller() -> None:
    assert Hints()._hinting == Hinting()
    assert HintsAndBlocks()._hinting == dataclasses.replace(Hinting(), frozen=1.0)
    assert Hints(hinting=Hinting(weight=0.0))._hinting.weight == 0.0
