"""The sums of a check over many samples: r y − s x in float64, v x² + r² y² in float32.

Samples go through in chunks, whose float64 copies stay near the core, and through buffers that are used again: on
large batches memory is what a check waits for. Energies set the size of the tolerance, for which 24 bits are plenty
unless squares leave the range of float32: samples where that could matter are done again in float64.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.blocks.kernels import Convolution, Dense, Kernel
from awfulowl.verification import compiled
from awfulowl.verification.vectors import Vectors

_CHUNK: Final = 1 << 18
"""Inputs or outputs at a time; 2 MiB in float64. Smaller chunks cost calls, larger ones leave the cache."""

_QUICK: Final = 1 << 20
"""Inputs whose sums take .2 ms in compiled loops."""

_LEAST_ENERGY: Final = 2.0**-90
"""Squares below 2^-126 lose bits in float32; 2^30 of them are nothing beside this."""

_MOST_ENERGY: Final = 2.0**120


class Transposed(NamedTuple):
    """The transpose of a product: gradients of outputs go in, gradients of inputs come out."""

    of: Kernel


AnyKernel = Kernel | Transposed


class Expected(NamedTuple):
    """What the inputs alone tell: s x as `product` (k, B, *space') float64, and v x² in units of `unit` (k, B)."""

    kernel: AnyKernel
    secrets: Vectors
    x: Tensor
    spread: Tensor
    product: Tensor
    energy: Tensor


class Sums(NamedTuple):
    """What a check of B samples with k vectors compares: (k, B) float64 each.

    `residue` is |r y − s x|, over the positions of a convolution the root of the sum of its squares.
    `energy` is v x² + r² y².
    """

    residue: Tensor
    energy: Tensor


def is_quick(kernel: AnyKernel, x: Tensor) -> bool:
    """Say whether `expect` takes about as little as a hop to another thread, so that it can be left for later."""
    return isinstance(kernel, Dense) and x.numel() <= _QUICK and compiled.can_weigh(x)


@torch.no_grad()
def expect(kernel: AnyKernel, secrets: Vectors, x: Tensor, positions: Sequence[int]) -> Expected:
    """Do what can be done before there is an answer: the larger half of the work for a convolution.

    Args:
        kernel: the product that y should be.
        secrets: those of the rows in y and of the columns in x.
        x: (batch, inputs) or (batch, inputs, *space), any floating type. It must not change until the comparison.
        positions: space', empty for a dense product.
    """
    spread = _spread(kernel, secrets.v, x.shape[2:], positions)
    found = compiled.measure(secrets.s, spread, x) if x.dim() == 2 else None
    if found is not None:
        return Expected(kernel, secrets, x, spread, *found)
    # Both at once, while the chunk is near the core.
    pairs = [(multiply(kernel, secrets.s, chunk, positions), _energy_of_inputs(spread, chunk)) for chunk in chunks(x)]
    product, energy = map(joined, zip(*pairs, strict=True))
    return Expected(kernel, secrets, x, spread, product, energy)


@torch.no_grad()
def compare(expected: Expected, y: Tensor) -> Sums:
    """Compare an answer with what was expected.

    y: (batch, outputs) or (batch, outputs, *space').
    """
    if expected.product.dim() == 2:
        y = y.flatten(1)  # of a convolution that was unrolled
    secrets, answers = expected.secrets, chunks(y)
    parts = torch.split(expected.product, len(answers[0]), dim=1)
    pairs = [
        (_residue(secrets.r, chunk, part), _energy_of_outputs(secrets.r_squared, chunk))
        for chunk, part in zip(answers, parts, strict=True)
    ]
    residue, of_outputs = map(joined, zip(*pairs, strict=True))
    energy = torch.stack([expected.energy, of_outputs]).double()
    if not _within(energy):
        safe = ((energy > _LEAST_ENERGY) & (energy < _MOST_ENERGY)).all(dim=1).all(dim=0)
        again = (~safe).nonzero()[:, 0]
        energy[0, :, again] = _energy_of_inputs(expected.spread.double(), expected.x[again].double())
        energy[1, :, again] = _energy_of_outputs(secrets.r_squared.double(), y[again].double())
    return Sums(residue, secrets.unit * energy[0] + energy[1])


def judge(
    expected: Expected, y: Tensor, variance: float, z: float, at_least: float
) -> tuple[Tensor, Tensor | None] | None:
    """Say for each sample whether residue <= z √(variance · energy) + at_least, and whether that is sure.

    (batch,) bool each, None if all is sure. Where squares are extreme it takes `compare` to tell, and where there is
    no loop for such numbers: None for both.
    """
    if expected.product.dim() != 2:
        return None
    bounds = compiled.Bounds(z, variance, at_least, _LEAST_ENERGY, _MOST_ENERGY)
    r, squares, unit = expected.secrets.r, expected.secrets.r_squared, expected.secrets.unit
    return compiled.judge(r, squares, y.flatten(1), expected.product, expected.energy, unit, bounds)


def _within(energy: Tensor) -> bool:
    """Say whether all energies are of a size that float32 adds up without loss."""
    if energy.numel() == 0:
        return True
    least, most = torch.aminmax(energy)
    return float(least) > _LEAST_ENERGY and float(most) < _MOST_ENERGY


def chunks(x: Tensor) -> Sequence[Tensor]:
    """Split a batch so that a chunk in float64 stays near the core; loops that raise numbers as they go need it not."""
    if x.dim() == 2 and compiled.can_weigh(x):
        return (x,)
    return torch.split(x, max(1, _CHUNK // max(1, prod(x.shape[1:]))))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Put what was computed of chunks together again, along dimension 1."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _energy_of_inputs(spread: Tensor, x: Tensor) -> Tensor:
    """Return v x² in units of `unit`: (k, batch), in the precision of `spread` (k, inputs * positions)."""
    squares = torch.square(x.to(spread.dtype), out=BUFFERS.take(spread.dtype, x.shape))
    return spread @ squares.flatten(1).T


def _energy_of_outputs(r_squared: Tensor, y: Tensor) -> Tensor:
    """Return r² y²: (k, batch), in the precision of r_squared (k, outputs)."""
    if y.dim() == 2:
        powers = torch.square(y.to(r_squared.dtype), out=BUFFERS.take(r_squared.dtype, y.shape))
    else:
        powers = torch.linalg.vector_norm(y.to(r_squared.dtype).flatten(2), dim=2).square_()
    return r_squared @ powers.T


def multiply(kernel: AnyKernel, s: Tensor, x: Tensor, positions: Sequence[int]) -> Tensor:
    """Return s x: (k, batch, *space'), float64, for s (*size, k, inputs) float64 and x (batch, inputs, *space)."""
    return weigh(s, x) if x.dim() == 2 else _convolve(kernel, s, x, positions)


def _residue(r: Tensor, y: Tensor, product: Tensor) -> Tensor:
    difference = weigh(r, y) - product
    if y.dim() == 2:
        return difference.abs_()
    length: Tensor = torch.linalg.vector_norm(difference.flatten(2), dim=2)
    return length


def weigh(weights: Tensor, x: Tensor) -> Tensor:
    """Multiply channels by rows of weights, at each position alike: (rows, batch, *space), float64.

    weights: (rows, channels) float64; x: (batch, channels, *space).
    """
    if x.dim() == 2:
        found = compiled.weigh(weights, x)
        if found is not None:
            return found
        return weights @ BUFFERS.take(weights.dtype, x.shape).copy_(x).T
    first = x.transpose(0, 1)
    matrix = BUFFERS.take(weights.dtype, first.shape).copy_(first).flatten(1)
    return torch.mm(weights, matrix).view(len(weights), *first.shape[1:])


def _convolve(kernel: AnyKernel, weights: Tensor, x: Tensor, positions: Sequence[int]) -> Tensor:
    """Convolve with k rows of weights.

    One product over the channels for all taps, then a sum of k shifted rows, is several times faster than PyTorch's
    float64 convolutions, which copy the input once for each tap.

    Args:
        kernel: stride, padding and dilation.
        weights: (*size, k, channels) float64.
        x: (batch, channels, *space).
        positions: space'.

    Returns:
        (k, batch, *space').
    """
    *size, k, _ = weights.shape
    by_tap = weigh(weights.flatten(0, -2), x).view(prod(size), k, len(x), *x.shape[2:])
    out = by_tap.new_zeros(k, len(x), *positions)
    for weighed, (targets, sources) in zip(by_tap, taps(kernel, size, x.shape[2:], positions), strict=True):
        out[:, :, *targets] += weighed[:, :, *sources]
    return out


def _spread(kernel: AnyKernel, v: Tensor, space: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Return the weight of each input at each position in the energy: (k, inputs * positions).

    v: (*size, k, inputs); an input counts once for every tap through which some output position sees it.
    """
    if not space:
        return v
    *size, k, inputs = v.shape
    seen = v.new_zeros(prod(size), *space)
    for mask, (_, sources) in zip(seen, taps(kernel, size, space, positions), strict=True):
        mask[*sources] = 1
    return (v.reshape(-1, k * inputs).T @ seen.flatten(1)).view(k, -1)


def taps(
    kernel: AnyKernel, size: Sequence[int], space: Sequence[int], positions: Sequence[int]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield, tap by tap, the positions of results that see an operand through it, and the positions that they see.

    Args:
        kernel: a convolution, or the transpose of one.
        size: of its kernel.
        space: the spatial shape of what goes in.
        positions: that of what comes out.
    """
    if isinstance(kernel, Transposed):
        yield from ((sources, targets) for targets, sources in taps(kernel.of, size, positions, space))
        return
    if isinstance(kernel, Dense):
        yield (), ()
        return
    axes = [
        [_overlap(kernel, axis, tap, space[axis], positions[axis]) for tap in range(taps)]
        for axis, taps in enumerate(size)
    ]
    for tap in product(*axes):
        yield tuple(target for target, _ in tap), tuple(source for _, source in tap)


def _overlap(kernel: Convolution, axis: int, tap: int, inputs: int, outputs: int) -> tuple[slice, slice]:
    step, offset = kernel.stride[axis], tap * kernel.dilation[axis] - kernel.padding[axis]
    first = max(0, -(offset // step))
    last = min(outputs - 1, (inputs - 1 - offset) // step)
    count = max(0, last - first + 1)
    start = max(0, first * step + offset)
    return slice(first, first + count), slice(start, start + count * step, step)


class _Buffers(threading.local):
    """Memory of a thread that chunks go through: asking for fresh memory would cost more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.dtype, str], Tensor] = {}

    def take(self, dtype: torch.dtype, shape: Sequence[int], place: str = "") -> Tensor:
        """Return uninitialised memory, good until the next call with this type and place."""
        count = prod(shape)
        if count > _CHUNK:
            return torch.empty(*shape, dtype=dtype)  # one large sample: not worth keeping
        held = self._held.get((dtype, place))
        if held is None or held.numel() < count:
            # A buffer made in inference mode could not be written outside of it.
            with torch.inference_mode(mode=False):
                held = self._held[dtype, place] = torch.empty(count, dtype=dtype)
        return held[:count].view(shape)


BUFFERS: Final = _Buffers()
"""Of this thread."""
