"""Placement attacks on a tiny victim, and the numbers inside them."""

from typing import Any

import pytest
import torch

from awfulowl.errors import InputError
from awfulowl.lab.attacks.annealing import Annealing, HillClimbing
from awfulowl.lab.attacks.base import Attack
from awfulowl.lab.attacks.class_means import ClassMeans
from awfulowl.lab.attacks.frank_wolfe import FrankWolfe, mixed, uniform
from awfulowl.lab.attacks.guided_swaps import GuidedSwaps, best_swaps
from awfulowl.lab.attacks.gumbel_sinkhorn import GumbelSinkhorn, check_small, sinkhorn
from awfulowl.lab.attacks.jigsaw import Jigsaw, joined
from awfulowl.lab.attacks.norms import Norms
from awfulowl.lab.attacks.policy_gradient import PolicyGradient, draw
from awfulowl.lab.attacks.surrogate import Surrogate, SurrogateWithNorms
from awfulowl.lab.positions.incremental import EMPTY, filling
from awfulowl.lab.scenes.loot import assemble
from awfulowl.lab.sites.placing import fitting, place, products
from awfulowl.lab.sites.surrogates import Retraining
from awfulowl.randomness import Entropy
from tests.scenes import tiny_scene
from tests.sites import copying, hidden

LEAST = {
    Norms(): 0.3,
    ClassMeans(): 0.5,
    Surrogate(): 0.6,
    SurrogateWithNorms(): 0.6,
    FrankWolfe(steps=10): 0.3,
    GuidedSwaps(rounds=5): 0.15,
    HillClimbing(800, images=200): 0.2,
    Annealing(800, images=200): 0.2,
    Jigsaw(): 0.5,
    Jigsaw(Retraining()): 0.6,
}


@pytest.mark.parametrize(("attack", "least"), LEAST.items(), ids=[attack.name for attack in LEAST])
def test_it_finds_far_more_than_chance_would(attack: Attack, least: float) -> None:
    scene, truth = tiny_scene(share=1.0, block=32, sees_inputs=False)
    right = attack(scene, truth, seed=1).grade.positions_right
    assert right is not None
    # By chance, 1 block of 16.
    assert right >= least


@pytest.mark.parametrize("attack", [Norms(), ClassMeans(), SurrogateWithNorms()], ids=lambda attack: attack.name)
def test_convolutions_go_back_too(attack: Attack) -> None:
    scene, truth = tiny_scene(share=1.0, block=4, layers=("inner",), sees_inputs=False)
    right = attack(scene, truth, seed=1).grade.positions_right
    assert right is not None
    assert right >= 0.3


def test_a_side_channel_is_used() -> None:
    scene, truth = tiny_scene(share=1.0)
    found = Norms()(scene, truth, seed=1).grade
    assert found.columns_right == 1.0
    assert found.rows_right is not None
    assert found.rows_right > 0.9


def slow_best(scores: Any, filled: Any) -> Any:
    """Every exchange of two places, one by one."""
    found = {}
    for one in range(len(filled)):
        for other in range(one + 1, len(filled)):
            gain = 0.0
            for here, there in ((one, other), (other, one)):
                if filled[here] != EMPTY:
                    gain += float(scores[filled[here], there] - scores[filled[here], here])
            if filled[one] != filled[other] and gain > 0:
                found[one, other] = gain
    return found


@pytest.mark.parametrize("held", [12, 5])
def test_the_best_swaps_are_those_of_all_pairs(held: Any) -> None:
    generator = torch.Generator().manual_seed(held)
    scores = torch.randn(held, 12, generator=generator, dtype=torch.float64)
    scores[1, 3:] = -torch.inf
    filled = filling(12, [1, 0, *range(2, held)])
    expected = slow_best(scores, filled)
    best = best_swaps(scores, filled, 7)
    assert [tuple(swap) for swap in best] == sorted(expected, key=expected.__getitem__, reverse=True)[:7]
    assert len(best_swaps(scores, filled, 1000)) == len(expected)


def test_a_mixture_is_the_mean_of_its_placements() -> None:
    site = hidden((5, 6), [0, 1, 4, 8]).site
    first, second = torch.tensor([0, 1, 4, 8]), torch.tensor([1, 2, 5, 0])
    mixture = torch.zeros(4, len(site.places), dtype=torch.float64)
    expected = torch.zeros(site.grid.shape)
    for chosen, share in ((first, 0.75), (second, 0.25)):
        mixture[torch.arange(4), chosen] += share
        expected += share * assemble(site.spoils, site.places.positions[chosen])
    assert torch.allclose(mixed(site, mixture), expected, atol=1e-6)


def test_the_uniform_mixture_has_every_block_once() -> None:
    site = hidden((6, 7)).site
    mixture = uniform(site)
    assert torch.allclose(mixture.clamp_min(0).sum(dim=1), torch.ones(len(site.spoils), dtype=torch.float64))


def test_sinkhorn_is_doubly_stochastic() -> None:
    scores = torch.randn(6, 6, dtype=torch.float64)
    soft = sinkhorn(scores, 50)
    assert torch.allclose(soft.sum(dim=0), torch.ones(6, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(soft.sum(dim=1), torch.ones(6, dtype=torch.float64), atol=1e-6)


def test_placements_are_drawn_without_replacement_and_by_their_chances() -> None:
    site = hidden((5, 6), [0, 1, 2]).site
    scores = fitting(site.spoils.blocks, site.places)
    scores[0, 4] = 50.0
    drawn = draw(scores, 200, Entropy(0))
    assert all(len(set(chosen)) == 3 for chosen in drawn.chosen.tolist())
    assert (drawn.chosen[:, 0] == 4).double().mean() > 0.8
    assert (drawn.likelihood <= 0).all()
    two = draw(torch.zeros(2, 2, dtype=torch.float64), 4000, Entropy(1))
    assert torch.allclose(two.likelihood.exp(), torch.full((4000,), 0.5, dtype=torch.float64))
    assert two.chosen[:, 0].double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_jigsaw_puts_copied_inputs_together_where_scores_alone_fail() -> None:
    """Scores that hardly say anything: chains of blocks add them up."""
    case = copying((4, 8), noise=0.01)
    site = case.site
    alone, chained = 0.0, 0.0
    for seed in range(6):
        noise = torch.randn(case.weight.shape, generator=torch.Generator().manual_seed(seed))
        scores = products(site.spoils.blocks, case.weight + 6 * noise, site.places)
        for known in (False, True):
            found = place(site.spoils, joined(site, scores.clone()) if known else scores.clone(), site.places)
            right = float((found == case.truth).all(dim=1).double().mean()) / 6
            alone, chained = alone + right * (not known), chained + right * known
    assert alone < 0.6
    assert chained > 0.8


def test_without_copies_jigsaw_changes_nothing() -> None:
    site = hidden().site
    scores = torch.randn(16, 16, dtype=torch.float64)
    assert torch.equal(joined(site, scores.clone()), scores)


@pytest.mark.parametrize("attack", [GumbelSinkhorn(), PolicyGradient()], ids=lambda attack: attack.name)
def test_slow_searches_are_for_small_layers(attack: Attack) -> None:
    scene, truth = tiny_scene(share=0.1, block=2, sees_inputs=False)
    with pytest.raises(InputError, match="cut larger"):
        attack(scene, truth, seed=1)
    check_small(attack.name, hidden().site, 16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HillClimbing(0),
        lambda: Annealing(10, images=0),
        lambda: Annealing(first=1e-5, last=1e-3),
        lambda: Annealing(last=0.0),
        lambda: GuidedSwaps(rounds=0),
        lambda: FrankWolfe(steps=0),
        lambda: GumbelSinkhorn(lr=0.0),
        lambda: PolicyGradient(batch=1),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(InputError):
        make()
