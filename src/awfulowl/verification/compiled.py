"""What a check of many samples does, in loops that are compiled where numba is installed; None where no loop can.

PyTorch's float64 product of three rows is bound by its kernel, and takes its numbers raised to float64 from memory; a
loop that raises them as it goes takes a quarter of the time. And each small operation of PyTorch costs ten times what
it does alone where other processes share the cache: a loop that goes from answers to a verdict needs one.
Infinities and NaN come out as they should.
"""

import contextlib
from types import ModuleType
from typing import Final, NamedTuple

import torch
from torch import Tensor

WORTH_COMPILING: Final = 1 << 22
"""Weights of a model from which the seconds that loading numba takes are worth it."""

_TYPES: Final = frozenset({torch.float32, torch.int8, torch.int32, torch.int64})

_loops: list[ModuleType] = []


def prepare() -> bool:
    """Compile the loops, if numba is installed, or load them from where they were kept; takes up to some seconds."""
    if not _loops:
        with contextlib.suppress(ImportError):
            from awfulowl.verification import loops  # noqa: PLC0415 - an extra, and a second to load

            _loops.append(loops)
            _call_all()
    return bool(_loops)


def _call_all() -> None:
    """Call each loop with each type that it will get."""
    secrets, some, sums = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64)
    for dtype in _TYPES:
        weigh(secrets, some.to(dtype))
    for integers in (torch.int32, torch.int64):
        equal(secrets, some.to(integers), sums)
    energy(some, some)
    judge(secrets, some, some, secrets, some, 1.0, Bounds(1.0, 1.0, 0.0, 0.0, 2.0))
    correlate(secrets, some, some, some)


def can_weigh(x: Tensor) -> bool:
    """Say whether there is a loop for such numbers."""
    return bool(_loops) and x.dtype in _TYPES and _plain(x)


def weigh(weights: Tensor, x: Tensor) -> Tensor | None:
    """Return weights xᵀ: (rows, batch) float64.

    weights: (rows, channels) float64; x: (batch, channels).
    """
    if not (can_weigh(x) and _plain(weights) and _fit(weights, x)):
        return None
    out = torch.empty(len(weights), len(x), dtype=torch.float64)
    _loops[0].weigh(weights.numpy(), x.detach().numpy(), out.numpy())
    return out


def energy(weights: Tensor, x: Tensor) -> Tensor | None:
    """Return weights (x²)ᵀ: (rows, batch) float32.

    weights: (rows, channels) float32; x: (batch, channels).
    """
    if not (_loops and _are_float32(weights, x) and _plain(weights, x) and _fit(weights, x)):
        return None
    out = torch.empty(len(weights), len(x))
    _loops[0].energy(weights.numpy(), x.detach().numpy(), out.numpy())
    return out


class Bounds(NamedTuple):
    """What an answer is held to: |residue| <= z √(variance · energy) + at_least, if least < energies < most."""

    z: float
    variance: float
    at_least: float
    least: float
    most: float


def judge(
    r: Tensor, squares: Tensor, y: Tensor, product: Tensor, energy: Tensor, unit: float, bounds: Bounds
) -> Tensor | None:
    """Say for each sample whether r y is the product up to rounding: (batch,) bool. None where energies are extreme.

    Args:
        r: (k, outputs) float64.
        squares: those of r, (k or 1, outputs) float32.
        y: (batch, outputs) float32.
        product: (k, batch) float64.
        energy: that of the inputs in this unit, (k or 1, batch) float32.
        unit: of `energy`.
        bounds: what is allowed.
    """
    if not (_loops and _are_float32(squares, y, energy) and _plain(r, squares, y) and _fit(r, squares, y)):
        return None
    if product.shape != (len(r), len(y)) or energy.shape != (len(squares), len(y)) or len(squares) not in (1, len(r)):
        return None
    accepted = torch.empty(len(y), dtype=torch.bool)
    sure = _loops[0].judge(
        r.numpy(),
        squares.numpy(),
        y.detach().numpy(),
        product.contiguous().numpy(),
        energy.contiguous().numpy(),
        unit,
        tuple(bounds),
        accepted.numpy(),
    )
    return accepted if sure else None


def equal(r: Tensor, y: Tensor, product: Tensor) -> Tensor | None:
    """Say for each sample whether r y is the product: (batch,) bool. No sum may be beyond what float64 holds exactly.

    r: (k, outputs) float64; y: (batch, outputs) int32 or int64; product: (k, batch) int64.
    """
    if not (_loops and y.dtype in (torch.int32, torch.int64) and _plain(r, y) and _fit(r, y)):
        return None
    if product.shape != (len(r), len(y)):
        return None
    accepted = torch.empty(len(y), dtype=torch.bool)
    _loops[0].equal(r.numpy(), y.numpy(), product.contiguous().numpy(), accepted.numpy())
    return accepted


def correlate(secret: Tensor, parts: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return Σ_b (secret own_b) other_b, (k, channels) float64, and Σ_b (parts own_b²) other_b², float32.

    secret: (k, own channels) float64; parts: (p, own channels) float32; own, other: (batch, channels) float32 each.
    """
    if not (_loops and _are_float32(parts, own, other) and _plain(secret, parts, own, other)):
        return None
    if not _fit(secret, parts, own) or other.dim() != 2 or len(other) != len(own):
        return None
    image = torch.empty(len(secret), other.shape[1], dtype=torch.float64)
    energies = torch.empty(len(parts), other.shape[1])
    operands = (tensor.detach().numpy() for tensor in (secret, parts, own, other))
    _loops[0].correlate(*operands, image.numpy(), energies.numpy())
    return image, energies


def _plain(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def _are_float32(*tensors: Tensor) -> bool:
    return all(tensor.dtype is torch.float32 for tensor in tensors)


def _fit(*tensors: Tensor) -> bool:
    """Say whether all are matrices of as many columns: loops look no further than they are told, and check nothing."""
    return len({tensor.shape[1:] for tensor in tensors}) == 1 and tensors[0].dim() == 2
