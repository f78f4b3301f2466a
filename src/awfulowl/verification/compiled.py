"""Loops that read every number of a sample once: what a check of many samples does, compiled where numba is installed.

PyTorch's float64 product of three rows is bound by its kernel, and takes its numbers raised to float64 from memory; a
loop that raises them as it goes takes a quarter of the time. Sums may be in any order: vectors need that. Infinities
and NaN come out as they should.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

WORTH_COMPILING: Final = 1 << 20
"""Weights of a layer from which the seconds that loading numba takes are worth it."""

_TYPES: Final = frozenset({torch.float32, torch.int32, torch.int64})


class Loops(NamedTuple):
    """See `_weigh`, `_energy`."""

    weigh: Callable[[Any, Any, Any], None]
    energy: Callable[[Any, Any, Any], None]


_loops: list[Loops] = []


def prepare() -> bool:
    """Compile the loops, if numba is installed, or load them from where they were kept; takes up to some seconds."""
    if not _loops:
        with contextlib.suppress(ImportError):
            _loops.append(_compile())
    return bool(_loops)


def _compile() -> Loops:
    from numba import njit  # noqa: PLC0415 - an extra, and a second to load

    def compiled(*, cache: bool) -> Loops:
        # Not `nnan` and `ninf`: whoever answers with those must not be accepted.
        quickly = njit(nogil=True, cache=cache, fastmath={"reassoc", "contract", "nsz"})
        return Loops(quickly(_weigh), quickly(_energy))

    try:
        loops = compiled(cache=True)
    except RuntimeError:  # nowhere to keep what is compiled
        loops = compiled(cache=False)
    one, some = np.zeros((1, 1)), np.zeros((1, 1), np.float32)
    for x in (some, some.astype(np.int32), some.astype(np.int64)):
        loops.weigh(one, x, one)
    loops.energy(some, some, some)
    return loops


def weigh(weights: Tensor, x: Tensor) -> Tensor | None:
    """Return weights xᵀ: (rows, batch) float64; None where no loop can.

    weights: (rows, channels) float64; x: (batch, channels).
    """
    if not (_loops and x.dtype in _TYPES and _plain(x) and _plain(weights)):
        return None
    out = torch.empty(len(weights), len(x), dtype=torch.float64)
    _loops[0].weigh(weights.numpy(), x.detach().numpy(), out.numpy())
    return out


def energy(weights: Tensor, x: Tensor) -> Tensor | None:
    """Return weights (x²)ᵀ: (rows, batch) float32; None where no loop can.

    weights: (rows, channels) float32; x: (batch, channels).
    """
    if not (_loops and x.dtype is torch.float32 is weights.dtype and _plain(x) and _plain(weights)):
        return None
    out = torch.empty(len(weights), len(x))
    _loops[0].energy(weights.numpy(), x.detach().numpy(), out.numpy())
    return out


def _plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous()


def _weigh(weights: Any, x: Any, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i]; three rows and two samples at a time, or each is fetched often."""
    rows, batch, count = len(weights), len(x), x.shape[1]
    for b in range(0, batch, 2):
        c = min(b + 1, batch - 1)
        for k in range(0, rows, 3):
            m, n = min(k + 1, rows - 1), min(k + 2, rows - 1)
            kb, mb, nb, kc, mc, nc = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for i in range(count):
                one, other = np.float64(x[b, i]), np.float64(x[c, i])
                kb += weights[k, i] * one
                mb += weights[m, i] * one
                nb += weights[n, i] * one
                kc += weights[k, i] * other
                mc += weights[m, i] * other
                nc += weights[n, i] * other
            out[k, b], out[m, b], out[n, b] = kb, mb, nb
            out[k, c], out[m, c], out[n, c] = kc, mc, nc


def _energy(weights: Any, x: Any, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i]²."""
    rows, count = len(weights), x.shape[1]
    for b in range(len(x)):
        for k in range(0, rows, 3):
            m, n = min(k + 1, rows - 1), min(k + 2, rows - 1)
            of_k, of_m, of_n = np.float32(0), np.float32(0), np.float32(0)
            for i in range(count):
                square = x[b, i] * x[b, i]
                of_k += weights[k, i] * square
                of_m += weights[m, i] * square
                of_n += weights[n, i] * square
            out[k, b], out[m, b], out[n, b] = of_k, of_m, of_n
