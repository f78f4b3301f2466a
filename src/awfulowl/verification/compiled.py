"""What a check of many samples does, in loops that are compiled where numba is installed; None where no loop can.

PyTorch's float64 product of three rows is bound by its kernel, and takes its numbers raised to float64 from memory; a
loop that raises them as it goes takes a quarter of the time. And each small operation of PyTorch costs ten times what
it does alone where other processes share the cache: a loop that goes from answers to a verdict needs one.
Infinities and NaN come out as they should.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from awfulowl.arithmetic import compiled
from awfulowl.compiling import Loops

_INPUTS: Final = frozenset({torch.int8, torch.int16})
_ANSWERS: Final = frozenset({torch.int32, torch.int64})
_TYPES: Final = frozenset({torch.float32}) | _INPUTS | _ANSWERS


def _call_all() -> None:
    """Call each loop with each type that it will get."""
    secrets, some, sums = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64)
    weigh(secrets, some)
    for inputs in _INPUTS:
        add_up(sums, some.to(inputs))
    for answers in _ANSWERS:
        congruent(sums, some.to(answers), 1, sums)
    measure(secrets, some, some)
    judge(secrets, some, some, secrets, some, 1.0, Bounds(1.0, 1.0, 0.0, 0.0, 2.0))
    correlate(secrets, some, some, some)
    matrices, sizes = (
        (torch.ones(3, 4, dtype=torch.float64), torch.ones(4, 6, dtype=torch.float64)),
        torch.ones(8, 1, 1),
    )
    advance((1.0,) * 6, matrices, (1.0,) * 4, [secrets] * 4, secrets, some, sizes.double())
    spread(sizes.double(), 1.0)


_LOOPS: Final = Loops("awfulowl.verification.loops", _call_all)


def prepare() -> bool:
    """Compile these loops and those of `arithmetic`, and say whether numba is there; takes up to some seconds."""
    return compiled.prepare() and _LOOPS.prepare()


def can_weigh(x: Tensor) -> bool:
    """Say whether there is a loop for such numbers."""
    return _LOOPS.module is not None and x.dtype in _TYPES and _plain(x)


def weigh(weights: Tensor, x: Tensor) -> Tensor | None:
    """Return weights xᵀ: (rows, batch) float64.

    weights: (rows, channels) float64; x: (batch, channels) float32.
    """
    if not (_LOOPS.module and _are_float32(x) and _plain(weights, x) and _fit(weights, x)):
        return None
    out = torch.empty(len(weights), len(x), dtype=torch.float64)
    _LOOPS.module.weigh(weights.numpy(), x.detach().numpy(), out.numpy())
    return out


def measure(weights: Tensor, spread: Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return weights xᵀ, (k, batch) float64, and spread (x²)ᵀ, (m, batch) float32.

    weights: (k, channels) float64; spread: (m, channels) float32; x: (batch, channels) float32.
    """
    if not (_LOOPS.module and _are_float32(spread, x) and _plain(weights, spread, x) and _fit(weights, spread, x)):
        return None
    out, energies = torch.empty(len(weights), len(x), dtype=torch.float64), torch.empty(len(spread), len(x))
    _LOOPS.module.measure(weights.numpy(), spread.numpy(), x.detach().numpy(), out.numpy(), energies.numpy())
    return out, energies


class Bounds(NamedTuple):
    """What an answer is held to: |residue| <= z √(variance · energy) + at_least, if least < energies < most."""

    z: float
    variance: float
    at_least: float
    least: float
    most: float


def judge(
    r: Tensor, squares: Tensor, y: Tensor, product: Tensor, energy: Tensor, unit: float, bounds: Bounds
) -> tuple[Tensor, Tensor | None] | None:
    """Say for each sample whether r y is the product up to rounding, and whether that is sure: (batch,) bool each.

    It is not where energies are extreme; None if all is sure.

    Args:
        r: (k, outputs) float64.
        squares: those of r, (k or 1, outputs) float32.
        y: (batch, outputs) float32.
        product: (k, batch) float64.
        energy: that of the inputs in this unit, (k or 1, batch) float32.
        unit: of `energy`.
        bounds: what is allowed.
    """
    if not (_LOOPS.module and _are_float32(squares, y, energy) and _plain(r, squares, y) and _fit(r, squares, y)):
        return None
    if product.shape != (len(r), len(y)) or energy.shape != (len(squares), len(y)) or len(squares) not in (1, len(r)):
        return None
    verdicts = torch.empty(2, len(y), dtype=torch.bool)
    sure = _LOOPS.module.judge(
        r.numpy(),
        squares.numpy(),
        y.detach().numpy(),
        product.contiguous().numpy(),
        energy.contiguous().numpy(),
        unit,
        tuple(bounds),
        verdicts.numpy(),
    )
    return verdicts[0], None if sure else verdicts[1]


def add_up(weights: Tensor, x: Tensor) -> Tensor | None:
    """Return weights xᵀ modulo 2^64: (rows, batch) int64.

    weights: (rows, channels) int64; x: (batch, channels) int8 or int16.
    """
    if not (_LOOPS.module and x.dtype in _INPUTS and _plain(weights, x) and _fit(weights, x)):
        return None
    out = torch.empty(len(weights), len(x), dtype=torch.int64)
    _LOOPS.module.add_up(weights.numpy(), x.numpy(), out.numpy())
    return out


def congruent(r: Tensor, y: Tensor, bound: int, product: Tensor) -> Tensor | None:
    """Say for each sample whether r y is the product modulo 2^64, and no |y| beyond the bound: (batch,) bool.

    r: (k, outputs) int64; y: (batch, outputs) int32 or int64, at least one output; product: (k, batch) int64.
    """
    if not (_LOOPS.module and y.dtype in _ANSWERS and _plain(r, y) and _fit(r, y) and r.shape[1] > 0):
        return None
    if product.shape != (len(r), len(y)):
        return None
    accepted = torch.empty(len(y), dtype=torch.bool)
    _LOOPS.module.congruent(r.numpy(), y.numpy(), bound, product.contiguous().numpy(), accepted.numpy())
    return accepted


def correlate(secret: Tensor, parts: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return Σ_b (secret own_b) other_b, (k, channels) float64, and Σ_b (parts own_b²) other_b², float32.

    secret: (k, own channels) float64; parts: (p, own channels) float32; own, other: (batch, channels) float32 each.
    """
    if not (_LOOPS.module and _are_float32(parts, own, other) and _plain(secret, parts, own, other)):
        return None
    if not _fit(secret, parts, own) or other.dim() != 2 or len(other) != len(own):
        return None
    image = torch.empty(len(secret), other.shape[1], dtype=torch.float64)
    energies = torch.empty(len(parts), other.shape[1])
    operands = (tensor.detach().numpy() for tensor in (secret, parts, own, other))
    _LOOPS.module.correlate(*operands, image.numpy(), energies.numpy())
    return image, energies


Moved = tuple[Tensor, Tensor, Tensor]
"""Images of weights and momentum, and what is tracked; see `images.Side`."""


def advance(
    rule: tuple[float, float, float, float, float, float],
    carrying: tuple[Tensor, Tensor],
    gain: tuple[float, float, float, float],
    images: Sequence[Tensor],
    base: Tensor,
    spent: Tensor,
    tracked: Tensor,
) -> Moved | None:
    """Take a step of `images.Side`.

    Args:
        rule: the six numbers of a step.
        carrying: matrices (3, 4) for noise and (4, 6) for drag, float64.
        gain: factors of the noise that a step adds, the number of terms in each sum, and the least energy.
        images: those of weights, momentum and gradient, and where the weights started, (*size, parts * k, b) float64.
        base: energy where the weights started, (*size, parts, b) float64.
        spent: energy of the gradient's sums, (*size, parts, b) float32.
        tracked: (8, *size, parts, b) float64.
    """
    if not (_LOOPS.module and _plain(*images, base, spent, tracked) and _are_float32(spent)):
        return None
    weight, one = images[0], base.shape
    if any(image.shape != weight.shape for image in images) or spent.shape != one or tracked.shape != (8, *one):
        return None
    if weight.shape[:-2] != one[:-2] or weight.shape[-1] != one[-1] or weight.shape[-2] % one[-2]:
        return None
    moved, after = (torch.empty_like(weight), torch.empty_like(weight)), torch.empty_like(tracked)
    _LOOPS.module.advance(
        rule,
        (carrying[0].numpy(), carrying[1].numpy()),
        gain,
        tuple(map(_rows, images)),
        (_rows(base), _rows(spent), _rows(tracked, 3)),
        tuple(map(_rows, moved)),
        _rows(after, 3),
    )
    return *moved, after


def spread(tracked: Tensor, factor: float) -> tuple[Tensor, float] | None:
    """Return Σ_parts energy + factor (noise + drag²), (*size, 1, b) float32, and the largest, which is its unit.

    tracked: (8, *size, parts, b) float64, see `images.Side`.
    """
    if not (_LOOPS.module and _plain(tracked)):
        return None
    size, parts, b = tracked.shape[1:-2], tracked.shape[-2], tracked.shape[-1]
    out = torch.empty(*size, 1, b)
    rows = _rows(out)
    unit = _LOOPS.module.spread(tracked.view(8, -1, parts, b).numpy(), factor, np.empty(rows.shape), rows)
    return out, unit


def _rows(tensor: Tensor, dimensions: int = 2) -> Any:
    """Return a contiguous tensor as an array of so many dimensions, all taps of a convolution one after the other."""
    if tensor.dim() > dimensions:
        tensor = tensor.view(*tensor.shape[: dimensions - 2], -1, tensor.shape[-1])
    return tensor.numpy()


def _plain(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def _are_float32(*tensors: Tensor) -> bool:
    return all(tensor.dtype is torch.float32 for tensor in tensors)


def _fit(*tensors: Tensor) -> bool:
    """Say whether all are matrices of as many columns: loops look no further than they are told, and check nothing."""
    return len({tensor.shape[1:] for tensor in tensors}) == 1 and tensors[0].dim() == 2
