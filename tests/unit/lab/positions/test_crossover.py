"""Children of permutations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.lab.positions.crossover import (
    DOWN,
    RIGHT,
    Affinity,
    Growth,
    order_crossover,
    rectangle,
    swap_mutation,
)
from awfulowl.randomness import Entropy

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000))
def test_order_crossover_makes_permutations(length: Any, seed: int) -> None:
    entropy = Entropy(seed)
    first, second = entropy.permutation(length), entropy.permutation(length)
    child = order_crossover(first, second, entropy.below)
    assert sorted(child) == list(range(length))


def test_order_crossover_is_davis_example() -> None:
    cuts = iter([3, 6])
    child = order_crossover([0, 1, 2, 3, 4, 5, 6, 7, 8], [3, 4, 7, 2, 8, 5, 0, 6, 1], lambda _: next(cuts))
    # 3 4 5 stay; after them, in the order of the second parent from its own second cut: 0 6 1, then 7 2 8.
    assert child == [7, 2, 8, 3, 4, 5, 0, 6, 1]


def test_equal_parents_have_equal_children_by_order() -> None:
    entropy = Entropy(0)
    genes = entropy.permutation(9)
    assert order_crossover(genes, genes, entropy.below) == genes


def test_a_mutation_exchanges_two() -> None:
    genes = [0, 1, 2, 3]
    drawn = iter([1, 3])
    swap_mutation(genes, lambda _: next(drawn))
    assert genes == [0, 3, 2, 1]


def nobody(pieces: Any) -> Any:
    return Affinity(torch.zeros(pieces, pieces), torch.zeros(pieces, pieces))


def without_strays(entropy: Any) -> Any:
    """Random, but for the strays of one in twenty."""
    return lambda bound: 1 if bound == 20 else entropy.below(bound)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 10_000))
def test_growth_makes_permutations(size: Any, seed: int) -> None:
    entropy, pieces = Entropy(seed), size[0] * size[1]
    affinity = Affinity(*torch.rand(2, pieces, pieces, generator=torch.Generator().manual_seed(seed)))
    growth = Growth(size[0], size[1], affinity, held=entropy.below(pieces + 1))
    child = growth.child(entropy.permutation(pieces), entropy.permutation(pieces), entropy.below)
    assert sorted(child) == list(range(pieces))


@settings(max_examples=30, deadline=None)
@given(SIZES.filter(lambda size: size[0] * size[1] != 20), st.integers(0, 10_000))
def test_what_both_parents_have_a_child_has(size: Any, seed: int) -> None:
    entropy, pieces = Entropy(seed), size[0] * size[1]
    genes = entropy.permutation(pieces)
    growth = Growth(size[0], size[1], nobody(pieces), held=pieces)
    assert growth.child(genes, genes, without_strays(entropy)) == genes


def from_the_first_piece(seed: int) -> Callable[[int], int]:
    """Random without strays, but that the kernel starts with piece 0."""
    below, starts = without_strays(Entropy(seed)), iter([0])
    return lambda bound: next(starts, below(bound))


def test_segments_survive_that_lie_in_different_places() -> None:
    """Both parents have 0 1 2 side by side, in different rows and columns."""
    first = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    second = [11, 9, 10, 8, 7, 6, 5, 4, 3, 0, 1, 2]
    growth = Growth(3, 4, nobody(12), held=12)
    kept = 0
    for seed in range(20):
        child = growth.child(first, second, from_the_first_piece(seed))
        where = [child.index(piece) for piece in (0, 1, 2)]
        kept += where[0] // 4 == where[2] // 4 and where[1] - where[0] == 1 == where[2] - where[1]
    assert kept == 20


def test_pieces_that_are_most_alike_come_together() -> None:
    """Without anything in common between the parents, rows form of pieces that are alike."""
    beside = torch.kron(torch.eye(4), torch.ones(4, 4))
    growth = Growth(4, 4, Affinity(beside, torch.zeros(16, 16)), held=16)
    found = []
    for seed in range(10):
        entropy = Entropy(seed)
        child = growth.child(entropy.permutation(16), entropy.permutation(16), entropy.below)
        found += [child[at] // 4 == child[at + 1] // 4 for at in range(15) if at % 4 < 3]
    # Of random neighbours one in five is alike.
    assert sum(found) / len(found) > 0.5


def test_directions_ask_for_their_own_likeness() -> None:
    affinity = Affinity(torch.ones(2, 2), torch.zeros(2, 2))
    assert affinity.towards(RIGHT).sum() == 4
    assert affinity.towards(DOWN).sum() == 0


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(0, 0), (0, 2), (3, 0), (3, 2)], (2, 2)),
        ([(1, 5)], (1, 1)),
        ([(0, 0), (1, 1)], None),
        ([(0, 0), (0, 1), (1, 0)], None),
    ],
)
def test_places_form_a_rectangle_or_not(places: Any, expected: Any) -> None:
    assert rectangle(places) == expected
