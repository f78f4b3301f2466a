"""A fleet in one function: products are computed here, with the true weights, and counted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.blocks.adapters import Product, scatterable
from awfulowl.blocks.kernels import product
from awfulowl.blocks.surgery import substitute


class Call(NamedTuple):
    """One product that was asked for."""

    layer: str
    product: str
    x: Tensor


class Scattered(NamedTuple):
    """A model whose products are computed by `multiply_locally`."""

    model: Any
    calls: list[Call]


def multiply_locally(layer: str, made: Product, calls: list[Call]) -> Callable[[Tensor], Tensor]:
    """Return the product with the true weights, which takes notes."""

    def multiply(x: Tensor) -> Tensor:
        assert (x.dtype, x.device.type) == (torch.float32, "cpu")
        assert not torch.is_autocast_enabled("cpu")
        calls.append(Call(layer, made.name, x))
        return product(made.kernel, torch.cat([weight.float() for weight in made.weights]), x, made.groups)

    return multiply


def scatter_locally(model: nn.Module, *, unfold: bool = False, train: bool = False) -> Scattered:
    """Scatter all that can be scattered."""
    calls: list[Call] = []
    replacements = {}
    for target in scatterable(model).targets:
        made = target.products(unfold=unfold)
        multiply = {each.name: multiply_locally(target.name, each, calls) for each in made}
        replacements[target.module] = target.replace(multiply, unfold=unfold, train=train)
    return Scattered(substitute(model, replacements, tensors="same" if train else "frozen"), calls)
