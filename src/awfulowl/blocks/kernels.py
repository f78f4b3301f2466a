"""What a device does with a weight rectangle and an input slice: a dense product, or a convolution."""

import msgspec
import torch
from torch import Tensor
from torch.nn import functional


class Dense(msgspec.Struct, frozen=True, tag="dense", forbid_unknown_fields=True):
    """y = x Wᵀ, with x of shape (batch, in) and W of shape (out, in)."""


class Convolution(msgspec.Struct, frozen=True, tag="convolution", forbid_unknown_fields=True):
    """Cross-correlation over one or two dimensions with zero padding; `groups` belongs to the weights."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


Kernel = Dense | Convolution

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d}


def product(kernel: Kernel, weight: Tensor, x: Tensor, groups: int = 1) -> Tensor:
    """Multiply inputs by a rectangle of weights.

    Args:
        kernel: the kind of product.
        weight: (out, in) for `Dense`, (out, in / groups, *size) for `Convolution`.
        x: (batch, in) or (batch, in, *space).
        groups: groups of a convolution.

    Returns:
        (batch, out) or (batch, out, *space').
    """
    if isinstance(kernel, Dense):
        return functional.linear(x, weight)
    convolve = _CONVOLVE[len(kernel.stride)]
    return convolve(
        x, weight, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation, groups=groups
    )


def output_shape(kernel: Kernel, outputs: int, size: tuple[int, ...], x_shape: torch.Size) -> tuple[int, ...]:
    """Return the shape of `product` for `outputs` rows, kernels of `size`, and inputs of `x_shape`."""
    if isinstance(kernel, Dense):
        return (*x_shape[:-1], outputs)
    space = (
        (length + 2 * pad - spread * (taps - 1) - 1) // step + 1
        for length, pad, spread, taps, step in zip(
            x_shape[2:], kernel.padding, kernel.dilation, size, kernel.stride, strict=True
        )
    )
    return (x_shape[0], outputs, *space)
