"""Lay out what a convolution sees, one row for each output position, in any type of number."""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from awfulowl.blocks.kernels import Convolution, output_shape


def patches(kernel: Convolution, size: Sequence[int], x: Tensor) -> Tensor:
    """Unfold inputs (Chellapilla, Puri and Simard, 2006): a product of its rows with weights is the convolution.

    Args:
        kernel: stride, padding and dilation.
        size: taps along each axis.
        x: (batch, channels, *space).

    Returns:
        (batch, positions, taps * channels), channels fastest.
    """
    batch, channels, *space = x.shape
    padded = x.new_zeros(
        batch, *(length + 2 * pad for length, pad in zip(space, kernel.padding, strict=True)), channels
    )
    inner = tuple(slice(pad, pad + length) for length, pad in zip(space, kernel.padding, strict=True))
    padded[:, *inner] = x.movedim(1, -1)
    lengths = output_shape(kernel, 1, tuple(size), x.shape)[2:]
    steps = padded.stride()[1:-1]
    windows = padded.as_strided(
        (batch, *lengths, *size, channels),
        (
            padded.stride(0),
            *(step * stride for step, stride in zip(steps, kernel.stride, strict=True)),
            *(step * spread for step, spread in zip(steps, kernel.dilation, strict=True)),
            1,
        ),
    )
    return windows.reshape(batch, prod(lengths), prod(size) * channels)
