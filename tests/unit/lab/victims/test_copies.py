"""A layer with copied inputs, trained by the sums over copies."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from awfulowl.costs import Ledger
from awfulowl.errors import ModelError
from awfulowl.lab.victims.copies import Summed, train_copied
from awfulowl.lab.victims.fitting import Schedule, fit
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy
from tests.scenes import digits, tiny_victim

SCHEDULE = Schedule(epochs=3, batch=10, lr=0.05, weight_decay=0.05, warmup=0.2)


class Repeat(nn.Module):
    def forward(self, values: Any) -> Any:
        return torch.repeat_interleave(values, 4, dim=1)


def layers() -> Any:
    with seeded(1):
        return nn.Linear(12, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3))


def data() -> Any:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(40, 3, generator=generator), torch.randint(3, (40,), generator=generator)


def trained(first: Any, rest: Any) -> Any:
    model = nn.Sequential(first, rest)
    inputs, labels = data()
    fit(model, inputs, labels, SCHEDULE, Entropy(4), Ledger())
    return model


def test_it_is_exactly_the_training_of_all_copies() -> None:
    layer, rest = layers()
    slow = copy.deepcopy(layer)
    trained(nn.Sequential(Repeat(), slow), copy.deepcopy(rest))
    summed = Summed(layer, 4)
    trained(summed, rest)
    assert 0.3 < summed.remainder.item() < 0.99
    summed.into(layer)
    assert torch.allclose(layer.weight, slow.weight, atol=1e-6)
    assert torch.allclose(layer.bias, slow.bias, atol=1e-6)


def test_answers_do_not_depend_on_what_is_left_of_the_start() -> None:
    values, _ = data()
    answers = []
    for remainder in (None, 0.0, 7.0):
        layer, _ = layers()
        summed = Summed(layer, 4)
        summed.into(layer, remainder)
        answers.append(layer(Repeat()(values)))
        assert torch.allclose(answers[-1], summed(values), atol=1e-5)
    weights = torch.unflatten(layer.weight, 1, (-1, 4))
    assert weights.std(dim=2).mean() > 1
    layer, _ = layers()
    Summed(layer, 4).into(layer, 0.0)
    assert torch.unflatten(layer.weight, 1, (-1, 4)).std(dim=2).max() < 1e-6


def test_inputs_come_in_whole_numbers_of_copies() -> None:
    with pytest.raises(ModelError, match="12 inputs are not 5 copies"):
        Summed(layers()[0], 5)


def test_the_convolutions_are_those_of_a_cifar_net() -> None:
    with pytest.raises(ModelError, match="those of a CifarNet"):
        train_copied(tiny_victim(), 0, digits())
