"""What a device does with a weight rectangle and an input slice: a dense product, or a convolution."""

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.errors import ModelError


class Dense(msgspec.Struct, frozen=True, tag="dense", forbid_unknown_fields=True):
    """y = x Wᵀ, with x of shape (batch, in) and W of shape (out, in)."""


class Convolution(msgspec.Struct, frozen=True, tag="convolution", forbid_unknown_fields=True):
    """Cross-correlation over one or two dimensions with zero padding; `groups` belongs to the weights.

    Raises:
        ModelError: no such convolution exists. A decoder that meets one refuses the message.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __post_init__(self) -> None:
        dimensions = len(self.stride)
        if dimensions not in _CONVOLVE or {len(self.padding), len(self.dilation)} != {dimensions}:
            raise ModelError(f"{self} is no convolution over one or two dimensions")
        if min(*self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ModelError(f"{self} is no convolution: its steps are 1 or more, its padding 0 or more")


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
        (batch, out) for `Dense` — any leading dimensions will do — or (batch, out, *space').
    """
    if isinstance(kernel, Dense):
        return functional.linear(x, weight)
    convolve = _CONVOLVE[len(kernel.stride)]
    return convolve(x, weight, stride=kernel.stride, padding=kernel.padding, dilation=kernel.dilation, groups=groups)


def output_shape(kernel: Kernel, outputs: int, size: tuple[int, ...], x_shape: torch.Size) -> tuple[int, ...]:
    """Return the shape of `product` for `outputs` rows, kernels of `size`, and inputs of `x_shape`.

    A dimension is below 1 where the kernel is larger than the padded input.
    """
    if isinstance(kernel, Dense):
        return (*x_shape[:-1], outputs)
    space = (
        (length + 2 * pad - spread * (taps - 1) - 1) // step + 1
        for length, pad, spread, taps, step in zip(
            x_shape[2:], kernel.padding, kernel.dilation, size, kernel.stride, strict=True
        )
    )
    return (x_shape[0], outputs, *space)


def backward(kernel: Kernel, weight: Tensor, dy: Tensor, space: tuple[int, ...] = (), groups: int = 1) -> Tensor:
    """Multiply gradients of outputs by the transpose of a rectangle of weights.

    Args:
        kernel: the kind of product.
        weight: (out, in) for `Dense`, (out, in / groups, *size) for `Convolution`.
        dy: (batch, out) or (batch, out, *space').
        space: the spatial shape of the inputs, which dy does not always tell.
        groups: groups of a convolution.

    Returns:
        dx: (batch, in) or (batch, in, *space).
    """
    if isinstance(kernel, Dense):
        return dy @ weight
    shape = (dy.shape[0], weight.shape[1] * groups, *space)
    return _differentiate(kernel, dy, dy.new_empty(1).expand(shape), weight, groups, (True, False))[0]


def gradient(kernel: Kernel, size: tuple[int, ...], x: Tensor, dy: Tensor, groups: int = 1) -> Tensor:
    """Return the gradient of a rectangle of weights: (out, in / groups, *size).

    Args:
        kernel: the kind of product.
        size: of a convolution's kernel.
        x: (batch, in) or (batch, in, *space).
        dy: (batch, out) or (batch, out, *space').
        groups: groups of a convolution.
    """
    if isinstance(kernel, Dense):
        return dy.T @ x
    shape = (dy.shape[1], x.shape[1] // groups, *size)
    return _differentiate(kernel, dy, x, dy.new_empty(1).expand(shape), groups, (False, True))[1]


def _differentiate(
    kernel: Convolution, dy: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Return dx and dW of a convolution, those that are wanted; of the other's operand only the shape is looked at."""
    grads = torch.ops.aten.convolution_backward(
        dy,
        x,
        weight,
        None,
        kernel.stride,
        kernel.padding,
        kernel.dilation,
        False,  # noqa: FBT003  not a transposed convolution; the operator takes no names
        [0] * len(kernel.stride),
        groups,
        [*wanted, False],
    )
    return grads[0], grads[1]
