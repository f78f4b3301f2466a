"""The paper's inequality is solved as printed; the sound threshold does what its words say."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.scenes.loot import positions
from awfulowl.lab.yardsticks.granularity import (
    Attempt,
    Place,
    _one_right,
    _scattered,
    clue_probability,
    detectability,
    fitnesses,
    printed_threshold,
    sound_threshold,
)
from awfulowl.models.data import Labelled
from awfulowl.randomness import Entropy
from tests.scenes import digits, tiny_victim


def test_the_clue_is_as_printed_and_the_papers_number_is_not() -> None:
    assert clue_probability(1568) == pytest.approx((1 / 1568) * (1 - 1 / math.sqrt(1568)) ** 1567)
    # The printed 0.000452 lacks the first factor, and takes 16 for the root and 156 held blocks for all.
    expected = 10 * (15 / 16) ** 155
    assert expected == pytest.approx(0.000452, rel=2e-3)
    assert expected / 1568 == pytest.approx(2.9e-7, rel=1e-2)
    assert clue_probability(1) == 1.0


@given(st.integers(1, 10_000))
def test_clues_get_rarer_with_more_blocks(blocks: int) -> None:
    assert clue_probability(blocks + 1) < clue_probability(blocks)


@given(st.integers(1, 1000), st.integers(1, 10_000), st.integers(1, 100_000), st.integers(1, 200))
def test_the_printed_threshold_is_the_first_at_which_no_clue_is_expected(
    generations: int, evaluated: int, trained: int, epochs: int
) -> None:
    found = printed_threshold(generations=generations, evaluated=evaluated, trained=trained, epochs=epochs)
    assert found.population == pytest.approx(2 * trained * epochs / (generations * evaluated))
    assert found.blocks is not None
    assert found.population * clue_probability(found.blocks) < 1
    assert found.blocks == 1 or found.population * clue_probability(found.blocks - 1) >= 1


def test_the_printed_threshold_for_the_papers_constants() -> None:
    # 100 generations of which each individual is tried on 10,000 images; 50,000 images and 100 epochs of training.
    found = printed_threshold(generations=100, evaluated=10_000, trained=50_000, epochs=100)
    assert found == (10.0, 3)
    assert 10 * clue_probability(2) >= 1 > 10 * clue_probability(3)
    with pytest.raises(InputError):
        printed_threshold(generations=0, evaluated=1, trained=1, epochs=1)
    with pytest.raises(InputError):
        clue_probability(0)


def test_fitnesses_are_larger_for_better_answers() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    found = fitnesses(logits, torch.tensor([0, 2]))
    assert found["accuracy"].tolist() == [1.0, 0.0]
    assert found["margin"].tolist() == [1.0, -3.0]
    assert torch.allclose(
        found["cross-entropy"], logits.log_softmax(1).gather(1, torch.tensor([[0], [2]])).flatten().double()
    )


def test_gains_are_those_of_two_whole_passes() -> None:
    """The obvious way: weights put together, the whole network run before and after."""
    victim = tiny_victim().model
    grid = make_grid((64, 256), Dense(), 1, block=16)
    held = positions(grid)[::3]
    some = Labelled(digits().public.inputs[:60], digits().public.labels[:60])
    found = detectability(victim, "hidden", grid, held, some, Entropy(4), draws=3)
    weight = victim.get_submodule("hidden").get_parameter("weight").detach().clone()
    places: list[Place] = [tuple(place) for place in positions(grid).tolist()]
    own: list[Place] = [tuple(place) for place in held.tolist()]
    at = {place: weight[16 * place[0] : 16 * place[0] + 16, 16 * place[1] : 16 * place[1] + 16] for place in own}
    entropy, gains = Entropy(4), []
    for _ in range(3):
        layout = _scattered(own, places, 0.0, entropy)
        values = []
        changes = list(_one_right(layout, at, entropy))
        for extra in ([], changes):
            whole = torch.zeros(64, 256)
            for (row, column), block in [*((place, at[mine]) for place, mine in layout.items()), *extra]:
                whole[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += block
            values.append(_loss(whole, some))
        gains.append(values[1] - values[0])
    (loss,) = [one for one in found if one.fitness == "cross-entropy"]
    assert loss.signal == pytest.approx(sum(gains) / 3, rel=1e-3, abs=1e-5)


def _loss(weight: torch.Tensor, some: Labelled) -> float:
    model = copy.deepcopy(tiny_victim().model)
    with torch.no_grad():
        model.get_submodule("hidden").get_parameter("weight").copy_(weight)
        return float(fitnesses(model(some.inputs), some.labels)["cross-entropy"].mean())


def test_a_large_block_shows_more_often_than_a_small_one_and_in_margins_more_than_in_accuracy() -> None:
    victim, some = tiny_victim().model, digits().public
    shown = {}
    for block in (32, 4):
        grid = make_grid((64, 256), Dense(), 1, block=block)
        found = detectability(victim, "hidden", grid, positions(grid), some, Entropy(1), draws=30, right=0.5)
        shown[block] = {one.fitness: one for one in found}
        assert [one.fitness for one in found] == ["accuracy", "cross-entropy", "margin"]
        assert all(one.interval.low <= one.probability <= one.interval.high and one.draws == 30 for one in found)
        assert all(one.noise > 0 for one in found)
    assert shown[32]["margin"].probability > shown[4]["margin"].probability
    assert shown[32]["margin"].signal > shown[4]["margin"].signal
    assert shown[4]["margin"].probability >= shown[4]["accuracy"].probability


def test_draws_repeat_and_are_paid_for() -> None:
    victim, some = tiny_victim().model, digits().public
    grid = make_grid((64, 256), Dense(), 1, block=32)
    ledger = Ledger()
    one = detectability(victim, "hidden", grid, positions(grid), some, Entropy(2), draws=4, ledger=ledger)
    assert one == detectability(victim, "hidden", grid, positions(grid), some, Entropy(2), draws=4)
    assert ledger.evaluations == 8
    assert ledger.flops > 0


def test_convolutions_are_measured_too() -> None:
    grid = make_grid((16, 16, 3, 3), Convolution((1, 1), (1, 1), (1, 1)), 1, block=8)
    some = Labelled(digits().public.inputs[:50], digits().public.labels[:50])
    found = detectability(tiny_victim().model, "inner", grid, positions(grid), some, Entropy(0), draws=10)
    assert max(one.signal for one in found) > 0


@given(st.integers(0, 1000), st.floats(0, 1))
def test_one_block_goes_to_its_place_and_the_other_takes_its_own(seed: int, right: float) -> None:
    places: list[Place] = [(row, column) for row in range(3) for column in range(4)]
    held = places[::2]
    layout = _scattered(held, places, right, Entropy(seed))
    assert sorted(layout.values()) == sorted(held)
    assert sum(place == own for place, own in layout.items()) >= min(round(right * 6), 5)
    blocks = {own: torch.tensor([1.0 + number]) for number, own in enumerate(held)}
    before = {place: float(blocks[own]) for place, own in layout.items()}
    after = dict(before)
    for place, change in _one_right(layout, blocks, Entropy(seed)):
        after[place] = after.get(place, 0.0) + float(change)
    true = {own: float(block) for own, block in blocks.items()}
    gained = [place for place in true if after.get(place, 0.0) == true[place] and before.get(place, 0.0) != true[place]]
    assert len(gained) in {0, 1, 2}
    assert bool(gained) == any(place != own for place, own in layout.items())
    assert sorted(value for value in after.values() if value) == sorted(true.values())


def test_the_largest_block_that_holds() -> None:
    tries = [
        Attempt("cheap", 64, 10.0, succeeded=True),
        Attempt("dear", 64, 90.0, succeeded=True),
        Attempt("dear", 32, 200.0, succeeded=True),
        Attempt("cheap", 32, 10.0, succeeded=False),
        Attempt("dear", 16, 200.0, succeeded=False),
    ]
    found = sound_threshold(tries, floor_flops=100.0)
    assert found.holds == 32
    assert found.cheapest == {16: None, 32: tries[2], 64: tries[0]}
    assert sound_threshold(tries, floor_flops=300.0).holds == 16
    assert sound_threshold(tries, floor_flops=5.0).holds == 64


def test_none_holds_where_the_smallest_falls() -> None:
    tries = [Attempt("a", 16, 1.0, succeeded=True), Attempt("a", 32, 1.0, succeeded=False)]
    assert sound_threshold(tries, floor_flops=10.0).holds is None
    with pytest.raises(InputError, match="no attack"):
        sound_threshold([], floor_flops=1.0)


def test_what_cannot_be_measured_is_refused() -> None:
    victim, some = tiny_victim().model, digits().public
    grid = make_grid((64, 256), Dense(), 1, block=16)
    with pytest.raises(InputError, match="two or more"):
        detectability(victim, "hidden", grid, positions(grid)[:1], some, Entropy(0))
    with pytest.raises(InputError, match="MaxPool2d"):
        detectability(victim, "pool", grid, positions(grid), some, Entropy(0))
