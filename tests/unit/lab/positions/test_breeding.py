"""Populations of permutations."""

from itertools import count
from typing import Any

import pytest

from awfulowl.errors import InputError
from awfulowl.lab.positions.breeding import Breeding, World, breed
from awfulowl.lab.positions.crossover import order_crossover
from awfulowl.randomness import Entropy


def world(entropy: Entropy, fitness: Any, affords: Any = lambda: True, length: int = 8) -> World:
    return World(
        create=lambda: [entropy.permutation(length)],
        cross=lambda first, second: [order_crossover(*pair, entropy.below) for pair in zip(first, second, strict=True)],
        fitness=fitness,
        affords=affords,
    )


def in_place(genes: Any) -> Any:
    return float(sum(place == gene for place, gene in enumerate(genes[0])))


def test_it_finds_what_is_easy() -> None:
    entropy = Entropy(0)
    best = breed(world(entropy, in_place), Breeding(evaluations=3000, population=30), entropy)
    assert best.fitness >= 6
    assert best.fitness == in_place(best.genes)


@pytest.mark.parametrize(("evaluations", "population"), [(1, 5), (3, 5), (5, 5), (12, 5), (7, 1)])
def test_every_evaluation_is_used_and_none_more(evaluations: Any, population: Any) -> None:
    entropy, seen = Entropy(0), []

    def fitness(genes: Any) -> Any:
        seen.append(in_place(genes))
        return seen[-1]

    best = breed(world(entropy, fitness), Breeding(evaluations=evaluations, population=population), entropy)
    assert len(seen) == evaluations
    assert best.fitness == max(seen)


def test_a_budget_ends_it_after_the_first() -> None:
    entropy, seen = Entropy(0), count()
    best = breed(world(entropy, lambda _: float(next(seen)), affords=lambda: False), Breeding(), entropy)
    assert best.fitness == 0
    assert next(seen) == 1


def test_children_do_not_change_their_parents() -> None:
    entropy, born = Entropy(0), []

    def fitness(genes: Any) -> Any:
        born.append((genes, [[*part] for part in genes]))
        return in_place(genes)

    breed(world(entropy, fitness), Breeding(evaluations=200, population=10, mutation=1.0), entropy)
    assert all(genes == as_born for genes, as_born in born)


@pytest.mark.parametrize("wrong", [{"evaluations": 0}, {"population": 0}, {"tournament": 0}, {"images": 0}])
def test_nothing_to_breed_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="must each be 1 or more"):
        Breeding(**wrong)


@pytest.mark.parametrize("wrong", [{"crossover": 1.5}, {"mutation": -0.1}])
def test_rates_are_probabilities(wrong: Any) -> None:
    with pytest.raises(InputError, match="probabilities"):
        Breeding(**wrong)
