"""Secrets for a convolution over positions that are known: those of the dense product that it is there.

With r over the channels of the outputs, s x takes k products for each tap and each input: 27 for three vectors and taps
of 3 x 3. With r over all outputs at all positions it takes k, and a lie is missed as rarely as in a dense product,
whatever its shape. The price is k numbers for each input and output of a sample in place of a channel's.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

from awfulowl.allocator import give_back
from awfulowl.arithmetic.pieces import in_pieces
from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import Kernel, backward, output_shape
from awfulowl.randomness import Entropy
from awfulowl.verification.vectors import STREAMED, Vectors

T = TypeVar("T")

_MOST_NUMBERS: Final = 3 << 18
"""Numbers in r and s, which take up to 9 MiB with all that is kept for each. More is checked by channels."""


class First(Generic[T]):
    """What is made for the first positions that inputs come with: once, whoever asks first."""

    def __init__(self) -> None:
        self._made: tuple[tuple[int, ...], T | None] | None = None
        self._making = threading.Lock()

    @property
    def kept(self) -> T | None:
        """What was made, if anything was."""
        return None if self._made is None else self._made[1]

    def get(self, space: tuple[int, ...], make: Callable[[tuple[int, ...]], T | None]) -> T | None:
        """Return what is made for these positions; None for a dense product, and for others than the first."""
        if not space:
            return None
        with self._making:
            if self._made is None:
                self._made = space, make(space)
            first, made = self._made
        return made if first == space else None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IntegerVectors:
    """Secrets in int64, modulo 2^64: r (k, outputs * positions), s (k, inputs * prod(space))."""

    r: Tensor
    s: Tensor

    @property
    def memory_bytes(self) -> int:
        """Bytes that they take."""
        return self.r.nbytes + self.s.nbytes


def fits(grid: Grid, space: tuple[int, ...], vectors: int) -> bool:
    """Say whether secrets for all inputs and outputs over these positions are few enough, and not none."""
    positions = _positions(grid, space)
    inputs, outputs = grid.inputs * prod(space), grid.outputs * prod(positions)
    return min(*positions, inputs, outputs) >= 1 and vectors * (inputs + outputs) <= _MOST_NUMBERS


@torch.no_grad()
def unroll(
    weights: Sequence[Tensor], grid: Grid, space: tuple[int, ...], entropy: Entropy, vectors: int
) -> Vectors | None:
    """Draw secrets for all inputs and all outputs of a panel's convolution.

    Args:
        weights: (outputs, inputs / groups, *size) each; together they have the outputs of the grid.
        grid: how the weights are cut.
        space: the spatial shape of the inputs.
        entropy: where the secrets come from.
        vectors: independent secret vectors, k.

    Returns:
        r (k, outputs * positions), s and v (k, inputs * prod(space)); None where there are too many of them, or none.
    """
    if not fits(grid, space, vectors):
        return None
    positions = _positions(grid, space)
    r = entropy.normal(vectors, grid.outputs * prod(positions))
    by_channel = r.view(vectors, grid.outputs, *positions)
    s, v = torch.zeros(2, vectors, grid.inputs, *space, dtype=torch.float64)
    for start, stop, weight in _slices(weights, grid):
        own = by_channel[:, start:stop]
        s += backward(grid.kernel, weight, own, space, grid.groups)
        v += backward(grid.kernel, weight.square(), own.square(), space, grid.groups)
    give_back()  # what convolutions in float64 took on the way
    unit = float(v.max()) or 1.0
    return Vectors(r, s.flatten(1), (v / unit).float().flatten(1), unit, r.square().float())


@torch.no_grad()
def unroll_integers(
    weights: Tensor, grid: Grid, space: tuple[int, ...], entropy: Entropy, vectors: int, bits: int
) -> IntegerVectors:
    """Draw secrets for all inputs and all outputs of a convolution of integers, as far as `fits` allows them.

    Args:
        weights: (outputs, inputs / groups, *size), integers of 8 or 16 bits.
        grid: how the weights are cut.
        space: the spatial shape of the inputs.
        entropy: where the secrets come from.
        vectors: independent secret vectors, k.
        bits: of each number in r, which is uniform in [-2^(bits-1), 2^(bits-1)).
    """
    positions = _positions(grid, space)
    r = entropy.integers(1 << bits, vectors, grid.outputs * prod(positions)) - (1 << (bits - 1))
    by_channel = r.view(vectors, grid.outputs, *positions)
    s = torch.zeros(vectors, grid.inputs, *space, dtype=torch.int64)
    for start, stop, weight in _slices([weights], grid):
        terms = (stop - start) // grid.groups * prod(grid.size)
        scatter = partial(_scatter, grid.kernel, space, grid.groups)
        s += in_pieces(scatter, by_channel[:, start:stop], weight, terms, x_bits=bits, w_bits=8 * weights.itemsize)
    give_back()
    return IntegerVectors(r, s.flatten(1))


def _scatter(kernel: Kernel, space: tuple[int, ...], groups: int, r: Tensor, weight: Tensor) -> Tensor:
    # Exact, as every sum of some of the products is: PyTorch convolves in float64 by gathering columns and multiplying
    # matrices. Algorithms that transform the operands (Winograd's, Fourier's) are for float32 and less.
    return backward(kernel, weight.double(), r.double(), space, groups)


def _positions(grid: Grid, space: tuple[int, ...]) -> tuple[int, ...]:
    return output_shape(grid.kernel, grid.outputs, grid.size, torch.Size((1, grid.inputs, *space)))[2:]


def _slices(weights: Sequence[Tensor], grid: Grid) -> Iterator[tuple[int, int, Tensor]]:
    """Yield weights as devices hold them, in float64, some outputs at a time; groups stay together."""
    start = 0
    for weight in weights if grid.groups == 1 else [torch.cat(list(weights))]:
        rows = max(1, STREAMED // weight[0].numel()) if grid.groups == 1 else len(weight)
        for some in torch.split(weight, rows):
            yield start, start + len(some), some.float().double()
            start += len(some)
