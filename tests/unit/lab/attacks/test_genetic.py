"""The genetic searches: what the published fitness is, and that the repaired one depends on the permutation."""

from typing import Any

import pytest
import torch

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.genetic import (
    Genetic,
    GeneticAsPublished,
    GeneticSegments,
    as_published,
    placement,
    random_genes,
)
from awfulowl.lab.positions.breeding import Breeding
from awfulowl.lab.scenes.loot import assemble
from awfulowl.randomness import Entropy
from tests.scenes import tiny_scene
from tests.sites import hidden

EVERY_IMAGE = torch.arange(40)


def fitness(attack: Any, site: Any, genes: Any) -> Any:
    return attack.worth(*site.evaluate(attack.weights(site, genes), Ledger(), EVERY_IMAGE))


@pytest.mark.parametrize("attack", [Genetic(), GeneticSegments()])
def test_the_repaired_fitness_depends_on_the_permutation(attack: Any) -> None:
    site = hidden().site
    people = [random_genes(site, Entropy(seed)) for seed in range(6)]
    weights = [attack.weights(site, genes) for genes in people]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
    assert len({fitness(attack, site, genes) for genes in people}) > 1


def test_the_repaired_weights_are_the_blocks_where_the_permutation_says() -> None:
    case = hidden((5, 6), [2, 9, 4])
    site = case.site
    genes = [[*range(16)]]
    genes[0][7], genes[0][0] = 0, 7
    expected = torch.zeros(20, 24)
    for place, block in ((7, 0), (1, 1), (2, 2)):
        expected[site.places.slices[place]] = site.spoils.blocks[block]
    assert torch.equal(Genetic().weights(site, genes), expected)


def test_ragged_blocks_stay_among_places_that_fit() -> None:
    site = hidden((6, 7)).site
    assemble(site.spoils, placement(site, random_genes(site, Entropy(0))))
    assert len(random_genes(site, Entropy(0))) == 4


def test_the_published_fitness_is_that_of_zeros_whatever_the_permutation() -> None:
    site, attack = hidden().site, GeneticAsPublished()
    values = {fitness(attack, site, random_genes(site, Entropy(seed))) for seed in range(6)}
    assert values == {site.evaluate(torch.zeros(20, 24), Ledger(), EVERY_IMAGE)[1]}


def test_the_published_code_has_a_second_defect_behind_the_first() -> None:
    """Numbers compared with numbers, as was meant: then every permutation of what is held gives the same weights."""
    case = hidden()
    site, held = case.site, range(16)
    orders = [Entropy(seed).permutation(16) for seed in range(3)]
    assert all(torch.equal(as_published(order, held, case.weight, site), case.weight) for order in orders)
    pairs = site.places.positions.tolist()
    assert all(as_published(order, pairs, case.weight, site).abs().max() == 0 for order in orders)


@pytest.mark.parametrize("kind", [Genetic, GeneticSegments])
def test_a_search_is_better_than_its_first_generation(kind: Any) -> None:
    scene, truth = tiny_scene(share=1.0, sees_inputs=False)
    short, long = (
        kind(Breeding(evaluations=evaluations, population=10, images=100))(scene, truth, seed=2)
        for evaluations in (10, 150)
    )
    assert long.grade.accuracy > short.grade.accuracy
    assert long.cost["evaluations"] == 150


def test_a_grown_child_is_a_permutation_for_every_shape() -> None:
    site = hidden((6, 7)).site
    cross = GeneticSegments().crossing(site, Entropy(0))
    child = cross(random_genes(site, Entropy(1)), random_genes(site, Entropy(2)))
    assert [sorted(part) for part in child] == [[*range(9)], [*range(3)], [*range(3)], [0]]
