"""ReLUs whose gradient sees units that are off."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from awfulowl.lab.sites.softened import Softened

FORMS = {
    "function": torch.relu,
    "functional": functional.relu,
    "functional in place": lambda x: functional.relu(x, inplace=True),
    "in place": lambda x: x.relu_(),
    "method": lambda x: x.relu(),
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
}
EVERY = pytest.mark.parametrize("relu", FORMS.values(), ids=list(FORMS))


@EVERY
@pytest.mark.parametrize("leak", [0.0, 0.5, 1.0])
def test_values_stay_and_gradients_leak(relu: Any, leak: float) -> None:
    x = torch.tensor([-2.0, -0.0, 3.0], requires_grad=True)
    with Softened(leak):
        y = relu(x)
    assert y.tolist() == [0.0, 0.0, 3.0]
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.tolist() == [leak, leak, 1.0]


@EVERY
def test_what_goes_in_is_not_overwritten(relu: Any) -> None:
    x = torch.tensor([-1.0, 2.0])
    with Softened(0.5):
        relu(x)
    assert x.tolist() == [-1.0, 2.0]


def test_it_ends_with_its_block() -> None:
    with Softened(1.0):
        pass
    x = torch.tensor([-1.0], requires_grad=True)
    assert torch.autograd.grad(torch.relu(x).sum(), x)[0].item() == 0


def test_other_functions_are_as_they_were() -> None:
    x = torch.tensor([-1.0, 1.0], requires_grad=True)
    with Softened(1.0):
        y = torch.tanh(x) + functional.leaky_relu(x, 0.1)
    expected = torch.tanh(x) + functional.leaky_relu(x, 0.1)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])
