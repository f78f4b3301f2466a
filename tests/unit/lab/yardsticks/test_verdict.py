"""When loot is said to be worth something, and when not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.lab.yardsticks.verdict import Answers, accuracy, difference, judge
from awfulowl.randomness import Entropy

IMAGES = 300


def answers(rate: float, *, victims: int = 3, shuffles: int = 3, seed: int = 0, spread: float = 0.0) -> Answers:
    chance = torch.Generator().manual_seed(seed)

    def one() -> Tensor:
        own = rate + spread * float(torch.randn((), generator=chance))
        return torch.rand(IMAGES, generator=chance) < own

    return [[one() for _ in range(shuffles)] for _ in range(victims)]


def test_equal_seeds_give_equal_intervals() -> None:
    first, again = (accuracy(answers(0.7), Entropy(1)) for _ in range(2))
    assert first == again
    assert first.interval.low < first.value < first.interval.high
    assert first.value == pytest.approx(0.7, abs=0.03)


def test_a_difference_is_paired() -> None:
    own = answers(0.7)
    better = [[one | (torch.arange(IMAGES) < 20) for one in shuffles] for shuffles in own]
    found = difference(better, own, Entropy(1))
    assert 0 < found.value < 0.05
    assert found.interval.low > 0
    apart = difference(answers(0.715, seed=2), own, Entropy(1))
    assert apart.interval.high - apart.interval.low > 2 * (found.interval.high - found.interval.low)


def test_what_is_equal_differs_by_nothing() -> None:
    own = answers(0.7)
    assert difference(own, own, Entropy(1)) == (0.0, (0.0, 0.0))


def test_a_floor_without_shuffles_is_paired_with_every_shuffle() -> None:
    own, floor = answers(0.8), answers(0.6, shuffles=1, seed=9)
    found = difference(own, floor, Entropy(1))
    expected = sum(
        float((one.float() - floor[number][0].float()).mean())
        for number, shuffles in enumerate(own)
        for one in shuffles
    )
    assert found.value == pytest.approx(expected / 9)


@given(rate=st.floats(0.05, 0.95), victims=st.integers(1, 4), shuffles=st.integers(1, 4), seed=st.integers(0, 50))
def test_intervals_hold_their_value(rate: float, victims: int, shuffles: int, seed: int) -> None:
    own = answers(rate, victims=victims, shuffles=shuffles, seed=seed)
    found = accuracy(own, Entropy(seed))
    assert found.value == pytest.approx(float(torch.stack([one for line in own for one in line]).float().mean()))
    assert 0 <= found.interval.low <= found.value <= found.interval.high <= 1


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Of victims that differ: images alone would give intervals that are far too short."""
    hits = 0
    for seed in range(40):
        own = answers(0.7, victims=8, shuffles=2, seed=seed, spread=0.0)
        found = accuracy(own, Entropy(seed))
        hits += found.interval.low <= 0.7 <= found.interval.high
    assert hits >= 34


def test_victims_that_differ_make_intervals_wider() -> None:
    alike, apart = (accuracy(answers(0.7, spread=spread), Entropy(1)).interval for spread in (0.0, 0.15))
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


CHOSEN, FLOOR, FOREIGN = answers(0.9, seed=1), answers(0.6, shuffles=1, seed=2), answers(0.65, seed=3)


def test_an_advantage_beats_the_floor_and_foreign_blocks() -> None:
    verdict = judge(CHOSEN, FLOOR, FOREIGN, Entropy(1))
    assert verdict.word == "advantage"
    assert verdict.over_floor.interval.low > 0
    assert verdict.over_foreign is not None


@pytest.mark.parametrize(
    ("chosen", "floor", "foreign", "word", "reason"),
    [
        (FOREIGN, answers(0.8, shuffles=1), FLOOR, "no advantage", "reaches 0"),
        (CHOSEN, FLOOR, answers(0.9, seed=7), "no advantage", "another network"),
        (CHOSEN, FLOOR, None, "undecided", "was not fed"),
        (answers(0.9, victims=2), FLOOR[:2], FOREIGN[:2], "undecided", "2 victims and 3 shuffles"),
        (answers(0.9, shuffles=2), FLOOR, answers(0.6, shuffles=2), "undecided", "3 victims and 2 shuffles"),
    ],
)
def test_anything_less_is_none(
    chosen: Answers, floor: Answers, foreign: Answers | None, word: str, reason: str
) -> None:
    verdict = judge(chosen, floor, foreign, Entropy(1))
    assert verdict.word == word
    assert reason in verdict.reason


def test_foreign_blocks_judged_as_the_victim_s_get_no_advantage() -> None:
    """Two networks of equal worth: whatever the blocks add over the floor, the other's add as much."""
    for seed in range(8):
        one, other = answers(0.9, seed=seed), answers(0.9, seed=100 + seed)
        assert judge(one, FLOOR, other, Entropy(seed)).word != "advantage" or (
            difference(one, other, Entropy(seed)).interval.low > 0
        )
    wins = sum(
        judge(answers(0.9, seed=seed), FLOOR, answers(0.9, seed=100 + seed), Entropy(seed)).word == "advantage"
        for seed in range(30)
    )
    assert wins <= 3  # at 95 %, one in forty lies above 0


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(InputError, match="3 victims cannot be paired with those about 2"):
        difference(CHOSEN, FOREIGN[:2], Entropy(1))
    with pytest.raises(InputError, match="3 shuffles cannot be paired with 2"):
        difference(CHOSEN, answers(0.6, shuffles=2), Entropy(1))
    with pytest.raises(InputError, match="no answers"):
        accuracy([], Entropy(1))
    with pytest.raises(InputError, match=r"\[5, 6\] images"):
        accuracy([[torch.ones(5, dtype=torch.bool), torch.ones(6, dtype=torch.bool)]], Entropy(1))
