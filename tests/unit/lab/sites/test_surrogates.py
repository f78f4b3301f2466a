"""Layers learned anew between known ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from awfulowl.costs import Ledger, SpentError
from awfulowl.errors import InputError
from awfulowl.lab.sites.site import Site
from awfulowl.lab.sites.surrogates import Retraining, retrain
from awfulowl.lab.victims.tail import Entered
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy
from tests.sites import copying, hidden, inner

QUICK = Retraining(epochs=4, batch=10, soft_steps=3)


def spread(site: Site) -> Site:
    """The same layer with its copied inputs written out."""
    assert site.twins is not None
    return replace(site, entered=Entered(site.entered.inputs[:, site.twins], ()), twins=None, layer_flops=2.0 * 8 * 35)


def test_the_sum_over_copies_learns_as_all_copies_do() -> None:
    site = copying().site
    found = retrain(site, QUICK, Ledger(), Entropy(0))
    slow = retrain(spread(site), QUICK, Ledger(), Entropy(0))
    assert found.abs().max() > 0.01
    assert torch.allclose(found, slow, atol=1e-6)


def test_it_is_torchs_own_gradient_descent() -> None:
    site = spread(copying().site)
    schedule = Retraining(epochs=3, batch=40, soft_steps=0)
    weight = torch.zeros(8, 35, requires_grad=True)
    bias = site.bias.abs() + 0.1
    site = replace(site, bias=bias)
    found = retrain(site, schedule, Ledger(), Entropy(0))
    optimiser = torch.optim.SGD([weight], lr=schedule.lr, momentum=0.9, weight_decay=5e-4)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3)
    for _ in range(3):
        loss = site.loss(site.entered.inputs @ weight.T + bias, slice(None))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        rates.step()
    assert torch.allclose(found, weight.detach(), atol=1e-6)


@pytest.mark.parametrize("make", [hidden, inner, copying])
def test_it_lowers_the_loss_and_costs_what_it_says(make: Any) -> None:
    site, ledger = make().site, Ledger()
    with seeded(0):
        found = retrain(site, QUICK, ledger, Entropy(0))
    assert found.shape == site.grid.shape
    assert ledger.flops == QUICK.flops(site) == 4 * 40 * 2 * (site.layer_flops + site.tail_flops)
    zeros = torch.zeros(site.grid.shape)
    assert site.evaluate(found, Ledger())[0] < site.evaluate(zeros, Ledger())[0]


def test_equal_seeds_give_equal_layers() -> None:
    site = hidden().site
    layers = []
    for seed in (0, 0, 1):
        with seeded(5):
            layers.append(retrain(site, QUICK, Ledger(), Entropy(seed)))
    assert torch.equal(layers[0], layers[1])
    assert not torch.equal(layers[0], layers[2])


def test_dropout_is_off_again_afterwards() -> None:
    case = hidden()
    retrain(case.site, QUICK, Ledger(), Entropy(0))
    assert not any(module.training for module in case.model.modules())


def test_what_it_cannot_learn_from_is_refused() -> None:
    site = hidden().site
    unlabelled = replace(site, labels=torch.full_like(site.labels, -1))
    with pytest.raises(InputError, match="learns from labels"):
        retrain(unlabelled, QUICK, Ledger(), Entropy(0))
    with pytest.raises(SpentError):
        retrain(site, QUICK, Ledger(flops=100), Entropy(0))
    with pytest.raises(InputError, match="lower its rate"):
        retrain(site, Retraining(epochs=30, lr=1e30), Ledger(), Entropy(0))
