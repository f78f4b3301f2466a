"""The loops of `compiled`, which read every number of a sample once. To be imported where numba is installed.

Arrays are (batch, channels), secrets (rows, channels). Three rows, or several samples, at a time: each would else be
fetched as often. Sums may be in any order; vectors need that.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit

_BLOCK: Final = 512
"""Channels at a time where sums are over samples: they stay in the first cache."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Not `nnan` and `ninf`: whoever answers with those must not be accepted.
    allowed = {"reassoc", "contract", "nsz"}
    try:
        return njit(nogil=True, fastmath=allowed, cache=True)(function)
    except RuntimeError:  # nowhere to keep what is compiled
        return njit(nogil=True, fastmath=allowed, cache=False)(function)


@_compiled
def weigh(weights: Any, x: Any, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i], in float64."""
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


@_compiled
def energy(weights: Any, x: Any, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i]², in float32."""
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


@_compiled
def judge(
    r: Any,
    squares: Any,
    y: Any,
    product: Any,
    spent: Any,
    unit: float,
    limits: tuple[float, float, float, float, float],
    accepted: Any,
) -> bool:
    """accepted[b]: |r y - product| <= z (variance (unit spent + squares y²))^.5 + at_least, for every row.

    False, and nothing of use in `accepted`, where an energy is not within (least, most), or not a number.
    """
    z, variance, at_least, least, most = limits
    rows, some, batch = len(r), len(squares), len(y)
    ours, own = np.empty((rows, batch)), np.empty((some, batch), np.float32)
    weigh(r, y, ours)
    energy(squares, y, own)
    for b in range(batch):
        right = True
        for k in range(rows):
            m = k if some > 1 else 0
            if not (least < spent[m, b] < most and least < own[m, b] < most):
                return False
            total = unit * np.float64(spent[m, b]) + np.float64(own[m, b])
            tolerance = z * math.sqrt(variance * total) + at_least
            right = right and abs(ours[k, b] - product[k, b]) <= tolerance < math.inf
        accepted[b] = right
    return True


@_compiled
def equal(r: Any, y: Any, product: Any, accepted: Any) -> None:
    """accepted[b]: r y is product, for every row, of integers that float64 holds."""
    rows, batch = len(r), len(y)
    ours = np.empty((rows, batch))
    weigh(r, y, ours)
    for b in range(batch):
        right = True
        for k in range(rows):
            right = right and np.int64(ours[k, b]) == product[k, b]
        accepted[b] = right


@_compiled
def correlate(secret: Any, parts: Any, own: Any, other: Any, image: Any, energies: Any) -> None:
    """image[k] = Σ_b (secret own_b)[k] other_b in float64, energies[p] = Σ_b (parts own_b²)[p] other_b² in float32."""
    rows, some, batch, count = len(secret), len(parts), len(own), other.shape[1]
    weighed, sizes = np.zeros((rows, batch + 3)), np.zeros((some, batch + 3), np.float32)
    weigh(secret, own, weighed)
    energy(parts, own, sizes)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        for k in range(rows):
            image[k, start:stop] = 0
        for p in range(some):
            energies[p, start:stop] = 0
        for b in range(0, batch, 4):  # beyond the batch they count for 0
            c, d, e = min(b + 1, batch - 1), min(b + 2, batch - 1), min(b + 3, batch - 1)
            of_b, of_c = other[b, start:stop], other[c, start:stop]
            of_d, of_e = other[d, start:stop], other[e, start:stop]
            for k in range(rows):
                sums = image[k, start:stop]
                wb, wc, wd, we = weighed[k, b], weighed[k, b + 1], weighed[k, b + 2], weighed[k, b + 3]
                for i in range(stop - start):
                    sums[i] += (
                        wb * np.float64(of_b[i])
                        + wc * np.float64(of_c[i])
                        + wd * np.float64(of_d[i])
                        + we * np.float64(of_e[i])
                    )
            for p in range(some):
                squares = energies[p, start:stop]
                sb, sc, sd, se = sizes[p, b], sizes[p, b + 1], sizes[p, b + 2], sizes[p, b + 3]
                for i in range(stop - start):
                    squares[i] += (
                        sb * (of_b[i] * of_b[i])
                        + sc * (of_c[i] * of_c[i])
                        + sd * (of_d[i] * of_d[i])
                        + se * (of_e[i] * of_e[i])
                    )
