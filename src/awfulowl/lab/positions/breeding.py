"""A population of permutations: tournaments, crossover, swap mutation, and the best survives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from awfulowl.errors import InputError
from awfulowl.lab.positions.crossover import swap_mutation
from awfulowl.randomness import Entropy

Genes = list[list[int]]
"""What lies at every place, shape by shape: a block's number, or one after the last for an empty piece."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Breeding:
    """How a population goes on; rates are the founding paper's, sizes are what a lab can afford.

    Raises:
        InputError: a count is less than 1, or a rate is no probability.
    """

    evaluations: int = 300
    population: int = 20
    crossover: float = 0.8
    mutation: float = 0.2
    tournament: int = 3
    images: int = 500

    def __post_init__(self) -> None:
        if min(self.evaluations, self.population, self.tournament, self.images) < 1:
            raise InputError(f"{self}: evaluations, population, tournament and images must each be 1 or more")
        if not (0 <= self.crossover <= 1 and 0 <= self.mutation <= 1):
            raise InputError(f"{self}: crossover and mutation are probabilities")


class Individual(NamedTuple):
    """A permutation and its fitness: the higher, the better."""

    fitness: float
    genes: Genes


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What a population lives in: how one is born from nothing or of two, what it is worth, and whether it may live."""

    create: Callable[[], Genes]
    cross: Callable[[Genes, Genes], Genes]
    fitness: Callable[[Genes], float]
    affords: Callable[[], bool]


def breed(world: World, breeding: Breeding, entropy: Entropy) -> Individual:
    """Return the best of all generations.

    The first is evaluated without asking whether it is afforded, so there always is one.

    Args:
        world: of the population.
        breeding: how it goes on.
        entropy: of tournaments, crossovers and mutations.
    """
    genes = world.create()
    people, left = [Individual(world.fitness(genes), genes)], breeding.evaluations - 1
    size = breeding.population
    while left and len(people) < size and world.affords():
        genes = world.create()
        people.append(Individual(world.fitness(genes), genes))
        left -= 1
    while left and world.affords():
        born = [max(people, key=_fitness)]
        # A population of one would only survive, and try nothing.
        while left and len(born) < max(2, size) and world.affords():
            genes = _child(people, world, breeding, entropy)
            born.append(Individual(world.fitness(genes), genes))
            left -= 1
        people = born
    return max(people, key=_fitness)


def _child(people: Sequence[Individual], world: World, breeding: Breeding, entropy: Entropy) -> Genes:
    first, second = (_winner(people, breeding, entropy) for _ in range(2))
    crossed, mutated = entropy.uniform(2).tolist()
    genes = (
        world.cross(first.genes, second.genes) if crossed <= breeding.crossover else [[*part] for part in first.genes]
    )
    if mutated <= breeding.mutation:
        swap_mutation(genes[entropy.below(len(genes))], entropy.below)
    return genes


def _winner(people: Sequence[Individual], breeding: Breeding, entropy: Entropy) -> Individual:
    return max((people[entropy.below(len(people))] for _ in range(breeding.tournament)), key=_fitness)


def _fitness(individual: Individual) -> float:
    return individual.fitness
