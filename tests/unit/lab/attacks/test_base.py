"""The call that every attack goes through: nobody grades itself, and what is no answer is refused."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack, Recovery, Scope
from awfulowl.lab.scenes.loot import Scene
from awfulowl.randomness import Entropy
from tests.scenes import tiny_scene, whole_scene

Answer = Callable[[Scene, Ledger, Entropy], Recovery]


class Given(Attack):
    """Answers what it was made with."""

    name: ClassVar[str] = "given"
    rung: ClassVar[str] = "P2"

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        return self._answer(scene, ledger, entropy)


class Whole(Given):
    name: ClassVar[str] = "whole"
    scope: ClassVar[Scope] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"knows_architecture", "knows_base_model", "links"})


def placing(change: Callable[[Tensor], Tensor], layer: str = "hidden") -> Answer:
    places = tiny_scene()[1].positions["hidden"].clone()
    return lambda _, __, ___: Recovery(placements={layer: change(places)})


def weighing(weights: Mapping[str, Tensor]) -> Answer:
    return lambda _, __, ___: Recovery(weights=weights)


def test_the_truth_is_right_everywhere() -> None:
    scene, truth = tiny_scene(share=1.0)
    answer = Recovery(placements=truth.positions)
    grade = Given(lambda *_: answer)(scene, truth, seed=1).grade
    assert (grade.positions_right, grade.rows_right, grade.columns_right) == (1.0, 1.0, 1.0)
    assert grade.cosine == pytest.approx(1.0)
    assert grade.agreement == 1.0


def test_rows_and_columns_are_graded_apart() -> None:
    scene, truth = tiny_scene()
    moved = truth.positions["hidden"].clone()
    moved[:, 0] = (moved[:, 0] + 1) % 4
    grade = Given(lambda *_: Recovery(placements={"hidden": moved}))(scene, truth, seed=1).grade
    assert (grade.positions_right, grade.rows_right, grade.columns_right) == (0.0, 0.0, 1.0)


def test_a_block_that_is_left_out_is_not_right_and_not_placed() -> None:
    scene, truth = tiny_scene()
    places = truth.positions["hidden"].clone()
    places[::2] = -1
    outcome = Given(lambda *_: Recovery(placements={"hidden": places}))(scene, truth, seed=1)
    assert outcome.grade.positions_right == pytest.approx(0.5, abs=0.02)
    assert outcome.model.get_submodule("hidden").get_parameter("weight").count_nonzero() < 0.3 * 256 * 64


def test_blocks_lie_on_top_of_recovered_weights() -> None:
    scene, truth = tiny_scene()
    ones = torch.ones(64, 256)
    recovery = Recovery(placements=truth.positions, weights={"hidden.weight": ones})
    weight = Given(lambda *_: recovery)(scene, truth, seed=1).model.get_submodule("hidden").get_parameter("weight")
    assert 0.4 < float((weight == 1).float().mean()) < 0.6


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (placing(lambda places: places, "head"), "places blocks of 'head', which is not attacked"),
        (placing(lambda places: places[1:]), r"\(31, 2\) of torch.int64, not \(32, 2\)"),
        (placing(lambda places: places.float()), "float32, not"),
        (placing(lambda places: places[:1].expand(32, 2)), "two blocks of 'hidden' on each other"),
        (placing(lambda places: places + 100), "outside the grid"),
        (placing(lambda places: places - 5), "outside the grid"),
        (weighing({"hidden.weight": torch.zeros(2, 2)}), r"'hidden.weight' of shape \(2, 2\), which the model has not"),
        (weighing({"nose": torch.zeros(2)}), "'nose'"),
        (weighing({"hidden.weight": torch.full((64, 256), torch.nan)}), "not finite"),
    ],
)
def test_what_is_no_answer_is_refused_by_the_attack_s_name(answer: Answer, complaint: str) -> None:
    scene, truth = tiny_scene()
    with pytest.raises(InputError, match=complaint) as raised:
        Given(answer)(scene, truth, seed=1)
    assert str(raised.value).startswith("attack given: ")


def test_a_spent_budget_is_no_answer() -> None:
    def greedy(scene: Scene, ledger: Ledger, _: Entropy) -> Recovery:
        ledger.spend("forward", 10)
        return Recovery(placements={"hidden": scene.layers["hidden"].grid})  # type: ignore[dict-item]

    scene, truth = tiny_scene()
    with pytest.raises(InputError, match="budget ended before there was an answer: 10 flops for forward, and 5 of 5"):
        Given(greedy)(scene, truth, seed=1, budget=Ledger(flops=5))


def test_queries_are_limited_by_the_threat_model() -> None:
    def ask(scene: Scene, ledger: Ledger, _: Entropy) -> Recovery:
        for _time in range(3):
            scene.service.ask(scene.public.inputs, ledger)
        return Recovery()

    scene, truth = tiny_scene()
    with pytest.raises(InputError, match="300 queries for queries, and 0 of 600 are left"):
        Given(ask)(scene, truth, seed=1)


def test_both_sources_of_chance_are_seeded() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(_: Scene, __: Ledger, entropy: Entropy) -> Recovery:
        drawn.append((float(torch.rand(())), float(entropy.uniform(1))))
        return Recovery()

    scene, truth = tiny_scene()
    for seed in (1, 1, 2):
        torch.rand(3)
        Given(draw)(scene, truth, seed=seed)
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]


def test_what_is_lacking_is_named() -> None:
    attack = Whole(lambda *_: Recovery())
    scene, truth = whole_scene()
    with pytest.raises(InputError, match="attack whole needs knows_base_model, links, which the threat model does not"):
        attack(scene, truth, seed=1)


def test_scopes_are_kept_apart() -> None:
    granted, truth = tiny_scene(knows_base_model=True, links=True)
    with pytest.raises(InputError, match="for a model of which no layer is known: set knows_other_layers = false"):
        Whole(lambda *_: Recovery())(granted, truth, seed=1)
    whole, truth = whole_scene()
    with pytest.raises(InputError, match="for layers between known ones: set knows_other_layers = true"):
        Given(lambda *_: Recovery())(whole, truth, seed=1)


def test_the_cost_is_in_the_outcome() -> None:
    def spend(_: Scene, ledger: Ledger, __: Entropy) -> Recovery:
        ledger.spend("scores", 7, evaluations=2)
        return Recovery()

    scene, truth = tiny_scene()
    outcome = Given(spend)(scene, truth, seed=1)
    assert (outcome.cost["flops"], outcome.cost["evaluations"]) == (7.0, 2.0)
    assert outcome.by_kind == {"scores": 7}
    assert outcome.seconds >= 0
