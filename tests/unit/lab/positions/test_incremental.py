"""Incremental evaluation against the slow and obvious one: put the weights together and run the model."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.costs import Ledger, SpentError
from awfulowl.lab.positions import incremental
from awfulowl.lab.positions.incremental import EMPTY, Incremental, chosen_places, filling
from awfulowl.lab.positions.swapping import random_filling, random_swaps
from awfulowl.lab.scenes.loot import assemble
from awfulowl.randomness import Entropy
from tests.sites import copying, hidden, inner

CASES = {
    "dense": lambda: hidden((5, 6)),
    "dense, some held": lambda: hidden((5, 6), [0, 3, 7, 9, 12]),
    "dense, ragged": lambda: hidden((6, 7)),
    "convolution with a shortcut": lambda: inner(2),
    "convolution, some held": lambda: inner(3, [0, 1]),
    "copied inputs": lambda: copying((4, 8)),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
IMAGES = torch.arange(3, 33)


def slow(case: Any, filled: Any) -> Any:
    """Put the weights together and run the whole model."""
    placement = case.site.places.positions[chosen_places(filled, len(case.site.spoils))]
    return case.slow_loss(assemble(case.site.spoils, placement), IMAGES)


def start(case: Any, seed: int = 0, ledger: Any = None) -> Any:
    return Incremental(case.site, random_filling(case.site, Entropy(seed)), IMAGES, ledger or Ledger())


@EVERY
def test_every_swap_is_worth_what_the_whole_model_says(case: Any) -> None:
    case = case()
    state = start(case)
    swaps = random_swaps(case.site, state.filled, Entropy(1))
    assert state.loss == pytest.approx(slow(case, state.filled), rel=1e-4)
    for number in range(25):
        swap = next(swaps)
        expected = [*state.filled]
        expected[swap.one], expected[swap.other] = expected[swap.other], expected[swap.one]
        tried = state.try_swap(*swap)
        assert tried.loss == pytest.approx(slow(case, expected), rel=1e-4)
        if number % 3:
            state.make(tried)
            assert state.filled == expected
            assert state.loss == tried.loss
        assert state.try_swap(*swap).loss == pytest.approx(slow(case, swapped(state.filled, swap)), rel=1e-4)


def swapped(filled: Any, swap: Any) -> Any:
    other = [*filled]
    other[swap.one], other[swap.other] = other[swap.other], other[swap.one]
    return other


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 16))
def test_any_holding_and_any_swaps(seed: int, held: Any) -> None:
    case = hidden((5, 6), Entropy(seed).permutation(16)[:held])
    state = start(case, seed)
    swaps = random_swaps(case.site, state.filled, Entropy(seed + 1))
    for _ in range(5):
        state.make(state.try_swap(*next(swaps)))
    assert state.loss == pytest.approx(slow(case, state.filled), rel=1e-4)
    assert sorted(block for block in state.filled if block != EMPTY) == list(range(held))


def test_a_swap_that_was_only_tried_changes_nothing() -> None:
    case = hidden()
    state = start(case)
    before = [*state.filled], state.loss
    swaps = random_swaps(case.site, state.filled, Entropy(1))
    for _ in range(5):
        state.try_swap(*next(swaps))
    assert ([*state.filled], state.loss) == before


def test_everything_is_computed_anew_now_and_then(monkeypatch: Any) -> None:
    monkeypatch.setattr(incremental, "_RENEWED", 4)
    case, ledger = hidden(), Ledger()
    state = start(case, ledger=ledger)
    swaps = random_swaps(case.site, state.filled, Entropy(1))
    for _ in range(8):
        state.make(state.try_swap(*next(swaps)))
    assert ledger.evaluations == 1 + 8 + 2
    assert state.loss == pytest.approx(slow(case, state.filled), rel=1e-4)


def test_operations_of_a_swap_are_those_of_two_slices() -> None:
    ledger = Ledger()
    state = start(hidden((5, 6)), ledger=ledger)
    # Two products of 5 x 6 blocks, and 5 outputs each through the next layer's 5 columns of 5.
    assert state.swap_flops == 30 * (2 * 2 * 5 * 6 + 2 * 2 * 5 * 5)
    assert state.whole_flops == 30 * (2 * 20 * 24 + 2 * 20 * 5)
    spent = ledger.flops
    state.try_swap(0, 1)
    assert ledger.flops - spent == state.swap_flops


def test_without_a_split_the_tail_is_counted_whole() -> None:
    state = start(inner(2))
    assert state.swap_flops == 30 * (2 * 2 * 2 * 2 * 9 * 36 + 2 * (24 * 20 + 20 * 5))


def test_a_spent_budget_stops_before_the_evaluation() -> None:
    ledger = Ledger(evaluations=1)
    state = start(hidden(), ledger=ledger)
    with pytest.raises(SpentError):
        state.try_swap(0, 1)
    assert ledger.evaluations == 1


def test_exchanging_nothing_is_refused() -> None:
    state = start(hidden((5, 6), [2]))
    empty = [place for place, block in enumerate(state.filled) if block == EMPTY]
    for pair in ((3, 3), (empty[0], empty[1])):
        with pytest.raises(ValueError, match="nothing is exchanged"):
            state.try_swap(*pair)


def test_fillings_and_places_are_each_others_inverse() -> None:
    filled = filling(5, [3, 0])
    assert filled == [1, EMPTY, EMPTY, 0, EMPTY]
    assert chosen_places(filled, 2).tolist() == [3, 0]
