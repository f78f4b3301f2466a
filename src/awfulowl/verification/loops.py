"""The loops of `compiled`, which read every number of a sample once. To be imported where numba is installed.

Arrays are (batch, channels), secrets (rows, channels). Three rows, or several samples, at a time: each would else be
fetched as often. Sums may be in any order; vectors need that.
"""

import math
from typing import Any, Final

import numpy as np

from awfulowl.compiling import loop

_BLOCK: Final = 512
"""Channels at a time where sums are over samples: they stay in the first cache."""


_compiled: Final = loop("reassoc", "contract", "nsz")
"""Not `nnan` and `ninf`: whoever answers with those must not be accepted."""


@_compiled
def _weigh_two(weights: Any, x: Any, b: int, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i], in float64, and the same of the next sample."""
    rows, c = len(weights), min(b + 1, len(x) - 1)
    for k in range(0, rows, 3):
        m, n = min(k + 1, rows - 1), min(k + 2, rows - 1)
        kb, mb, nb, kc, mc, nc = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(x.shape[1]):
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
def _square_two(weights: Any, x: Any, b: int, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i]², in float32, and the same of the next sample."""
    rows, none = len(weights), np.float32(0)
    for d in (b, min(b + 1, len(x) - 1)):
        for k in range(0, rows, 3):
            m, n = min(k + 1, rows - 1), min(k + 2, rows - 1)
            of_k, of_m, of_n = none, none, none
            for i in range(x.shape[1]):
                square = x[d, i] * x[d, i]
                of_k += weights[k, i] * square
                of_m += weights[m, i] * square
                of_n += weights[n, i] * square
            out[k, d], out[m, d], out[n, d] = of_k, of_m, of_n


@_compiled
def weigh(weights: Any, x: Any, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i], in float64."""
    for b in range(0, len(x), 2):
        _weigh_two(weights, x, b, out)


@_compiled
def measure(weights: Any, spread: Any, x: Any, out: Any, energies: Any) -> None:
    """The same, and energies[k, b] = Σ_i spread[k, i] x[b, i]², in float32."""
    for b in range(0, len(x), 2):
        _weigh_two(weights, x, b, out)
        _square_two(spread, x, b, energies)


@_compiled
def judge(
    r: Any,
    squares: Any,
    y: Any,
    product: Any,
    spent: Any,
    unit: float,
    limits: tuple[float, float, float, float, float],
    verdicts: Any,
) -> bool:
    """verdicts[0, b]: |r y - product| <= z (variance (unit spent + squares y²))^.5 + at_least, for every row.

    verdicts[1, b]: all energies are numbers within (least, most). Returned is whether that holds for every b.
    """
    z, variance, at_least, least, most = limits
    rows, some, batch = len(r), len(squares), len(y)
    ours, own = np.empty((rows, batch)), np.empty((some, batch), np.float32)
    measure(r, squares, y, ours, own)
    all_within = True
    for b in range(batch):
        right, within = True, True
        for k in range(rows):
            m = k if some > 1 else 0
            within = within and least < spent[m, b] < most and least < own[m, b] < most
            total = unit * np.float64(spent[m, b]) + np.float64(own[m, b])
            tolerance = z * math.sqrt(variance * total) + at_least
            right = right and abs(ours[k, b] - product[k, b]) <= tolerance < math.inf
        verdicts[0, b], verdicts[1, b] = right and within, within
        all_within = all_within and within
    return all_within


@_compiled
def _add_four(weights: Any, x: Any, b: int, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i] modulo 2^64, in int64, which wraps around; and of the next three samples.

    Four at a time, as one row of long weights does not stay in the first cache.
    """
    last = len(x) - 1
    c, d, e = min(b + 1, last), min(b + 2, last), min(b + 3, last)
    for k in range(len(weights)):
        of_b, of_c, of_d, of_e = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for i in range(x.shape[1]):
            weight = weights[k, i]
            of_b += weight * np.int64(x[b, i])
            of_c += weight * np.int64(x[c, i])
            of_d += weight * np.int64(x[d, i])
            of_e += weight * np.int64(x[e, i])
        out[k, b], out[k, c], out[k, d], out[k, e] = of_b, of_c, of_d, of_e


@_compiled
def add_up(weights: Any, x: Any, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i] modulo 2^64, in int64."""
    for b in range(0, len(x), 4):
        _add_four(weights, x, b, out)


@_compiled
def congruent(r: Any, y: Any, bound: int, product: Any, accepted: Any) -> None:
    """accepted[b]: r y is product modulo 2^64, for every row, and |y| <= bound."""
    rows, batch = len(r), len(y)
    ours = np.empty((rows, batch), np.int64)
    for b in range(batch):
        if b % 4 == 0:
            _add_four(r, y, b, ours)
        least, most = y[b, 0], y[b, 0]
        for i in range(y.shape[1]):
            least, most = min(least, y[b, i]), max(most, y[b, i])
        right = -bound <= least and most <= bound
        for k in range(rows):
            right = right and ours[k, b] == product[k, b]
        accepted[b] = right


@_compiled
def correlate(secret: Any, parts: Any, own: Any, other: Any, image: Any, energies: Any) -> None:
    """image[k] = Σ_b (secret own_b)[k] other_b in float64, energies[p] = Σ_b (parts own_b²)[p] other_b² in float32."""
    rows, some, batch, count = len(secret), len(parts), len(own), other.shape[1]
    weighed, sizes = np.zeros((rows, batch + 3)), np.zeros((some, batch + 3), np.float32)
    measure(secret, parts, own, weighed, sizes)
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


@_compiled
def _move(rule: tuple[float, ...], images: tuple[Any, ...], moved: tuple[Any, Any], n: int, squares: Any) -> None:
    """What a step makes of images n; squares are the means of what was, of momentum, gradient and change, squared."""
    a, b, c, d, e, f = rule
    squares[:] = 0
    before, momenta, gradients, changes = squares[0], squares[1], squares[2], squares[3]
    vectors = images[0].shape[1]
    for k in range(vectors):
        weight, momentum, gradient, start = images[0][n, k], images[1][n, k], images[2][n, k], images[3][n, k]
        new_weight, new_momentum = moved[0][n, k], moved[1][n, k]
        for i in range(len(weight)):
            own, along = weight[i], a * momentum[i] + b * weight[i] + c * gradient[i]
            after = own + d * own + e * along + f * gradient[i]
            new_weight[i], new_momentum[i] = after, along
            before[i] += own * own / vectors
            momenta[i] += along * along / vectors
            gradients[i] += gradient[i] * gradient[i] / vectors
            changes[i] += (after - start[i]) * (after - start[i]) / vectors


@_compiled
def _row(matrix: tuple[float, ...], start: int, of: tuple[float, float, float, float, float, float]) -> float:
    """A row of a matrix with six columns, which starts there, times a vector."""
    w, v, m, weight, momentum, along = of
    return (
        matrix[start] * w
        + matrix[start + 1] * v
        + matrix[start + 2] * m
        + matrix[start + 3] * weight
        + matrix[start + 4] * momentum
        + matrix[start + 5] * along
    )


@_compiled
def advance(
    rule: tuple[float, ...],
    errors: tuple[float, ...],
    kept: tuple[float, ...],
    gain: tuple[float, float, float, float],
    images: tuple[Any, Any, Any, Any],
    sizes: tuple[Any, Any, Any, Any, Any, Any],
    moved: tuple[Any, Any],
    after: tuple[Any, Any, Any, Any],
) -> None:
    """`images.Side.move`, number by number: images (n, k, b), sizes (n, b), with what devices may have strayed."""
    a, b, c = abs(rule[0]), abs(rule[1]), abs(rule[2])
    each, one_sided, terms, least = gain
    squares = np.empty((4, images[0].shape[2]))
    before, momenta, gradients, changes = squares[0], squares[1], squares[2], squares[3]
    for n in range(len(images[0])):
        _move(rule, images, moved, n, squares)
        base, known, reach, spent = sizes[0][n], sizes[1][n], sizes[4][n], sizes[5][n]
        of_weight, of_both, of_momentum = sizes[2][0, n], sizes[2][1, n], sizes[2][2, n]
        alone, slow, fast = sizes[3][0, n], sizes[3][1, n], sizes[3][2, n]
        to_weight, to_both, to_momentum = after[0][0, n], after[0][1, n], after[0][2, n]
        to_alone, to_slow, to_fast = after[1][0, n], after[1][1, n], after[1][2, n]
        reaches, energies = after[2][n], after[3][n]
        for i in range(len(base)):
            size, of_sums = gradients[i], np.float64(spent[i])
            gained = each * (of_sums + size) + one_sided * min(size / max(of_sums, least), terms) * size
            w, x, m = of_weight[i], of_both[i], of_momentum[i]
            to_weight[i] = errors[0] * w + errors[1] * x + errors[2] * m + errors[3] * gained
            to_both[i] = errors[4] * w + errors[5] * x + errors[6] * m + errors[7] * gained
            to_momentum[i] = errors[8] * w + errors[9] * x + errors[10] * m + errors[11] * gained
            length, along = math.sqrt(known[i]), math.sqrt(size)
            far = a * reach[i] + b * length + c * along
            long, quick = max(math.sqrt(before[i]), length / 2), max(math.sqrt(momenta[i]), far / 8)
            bounds = alone[i], slow[i], fast[i], long, quick, along
            to_alone[i] = min(_row(kept, 0, bounds), _row(kept, 6, bounds))
            to_slow[i], to_fast[i] = _row(kept, 12, bounds), _row(kept, 18, bounds)
            reaches[i], energies[i] = far, 2 * (base[i] + changes[i])
