"""Lay out what a convolution sees, one row for each output position, in any type of number."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final, NamedTuple

from torch import Tensor

from awfulowl.blocks.kernels import Convolution, output_shape

CHUNK_BYTES: Final = 1 << 22
"""Patches that are laid out at a time, or those of one position of the first axis: what was just written is read from
the cache."""


class Patches(NamedTuple):
    """What the outputs of some samples see, at some positions along the first axis of space'.

    `rows` is (samples * positions, taps * channels), channels fastest; a product of it with weights in that
    order is the convolution (Chellapilla, Puri and Simard, 2006). `where` indexes the samples and the
    positions.
    """

    rows: Tensor
    where: tuple[slice, slice]


def patches(kernel: Convolution, size: Sequence[int], x: Tensor) -> Iterator[Patches]:
    """Unfold inputs, some at a time: all patches together are as many times as large as there are taps.

    Args:
        kernel: stride, padding and dilation.
        size: taps along each axis.
        x: (batch, channels, *space).
    """
    windows = _windows(kernel, size, x)
    batch, first, *lengths = windows.shape[: 1 + len(size)]
    each = prod(lengths) * prod(windows.shape[1 + len(size) :]) * x.itemsize
    positions = min(first, max(1, CHUNK_BYTES // max(1, each)))
    samples = max(1, CHUNK_BYTES // max(1, each * first)) if positions == first else 1
    for start in range(0, batch, samples):
        for at in range(0, first, positions):
            where = slice(start, min(start + samples, batch)), slice(at, min(at + positions, first))
            chunk = windows[where]
            yield Patches(chunk.reshape(prod(chunk.shape[: 1 + len(size)]), -1), where)


def padded_size(kernel: Convolution, x: Sequence[int]) -> int:
    """Return how many numbers an input of this shape has with its padding."""
    return prod(x[:2]) * prod(length + 2 * pad for length, pad in zip(x[2:], kernel.padding, strict=True))


def _windows(kernel: Convolution, size: Sequence[int], x: Tensor) -> Tensor:
    """Return (batch, *space', *taps, channels): a view of the padded inputs."""
    batch, channels, *space = x.shape
    padded = x.new_zeros(
        batch, *(length + 2 * pad for length, pad in zip(space, kernel.padding, strict=True)), channels
    )
    inner = tuple(slice(pad, pad + length) for length, pad in zip(space, kernel.padding, strict=True))
    padded[:, *inner] = x.movedim(1, -1)
    steps = padded.stride()[1:-1]
    return padded.as_strided(
        (batch, *output_shape(kernel, 1, tuple(size), x.shape)[2:], *size, channels),
        (
            padded.stride(0),
            *(step * stride for step, stride in zip(steps, kernel.stride, strict=True)),
            *(step * spread for step, spread in zip(steps, kernel.dilation, strict=True)),
            1,
        ),
    )
