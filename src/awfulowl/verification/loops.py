"""The loops of `compiled`, which read every number of a sample once. To be imported where numba is installed.

Arrays are (batch, channels), secrets (rows, channels). Three rows and several samples at a time: each would else be
fetched, and raised to float64, as often. Sums may be in any order; vectors need that, and few arrays in a loop: it has to
ask of each that it writes whether it overlaps another, and gives up beyond eight such pairs.
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
def _weigh_four(weights: Any, x: Any, b: int, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i], in float64, and the same of the next three samples."""
    rows, last = len(weights), len(x) - 1
    c, d, e = min(b + 1, last), min(b + 2, last), min(b + 3, last)
    x_b, x_c, x_d, x_e = x[b], x[c], x[d], x[e]
    for k in range(0, rows, 3):
        m, n = min(k + 1, rows - 1), min(k + 2, rows - 1)
        w_k, w_m, w_n = weights[k], weights[m], weights[n]
        kb, mb, nb, kc, mc, nc = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        kd, md, nd, ke, me, ne = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(x.shape[1]):
            of_k, of_m, of_n = w_k[i], w_m[i], w_n[i]
            of_b, of_c, of_d, of_e = np.float64(x_b[i]), np.float64(x_c[i]), np.float64(x_d[i]), np.float64(x_e[i])
            kb += of_k * of_b
            mb += of_m * of_b
            nb += of_n * of_b
            kc += of_k * of_c
            mc += of_m * of_c
            nc += of_n * of_c
            kd += of_k * of_d
            md += of_m * of_d
            nd += of_n * of_d
            ke += of_k * of_e
            me += of_m * of_e
            ne += of_n * of_e
        out[k, b], out[m, b], out[n, b] = kb, mb, nb
        out[k, c], out[m, c], out[n, c] = kc, mc, nc
        out[k, d], out[m, d], out[n, d] = kd, md, nd
        out[k, e], out[m, e], out[n, e] = ke, me, ne


@_compiled
def _square_four(weights: Any, x: Any, b: int, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i]², in float32, and the same of the next three samples."""
    rows, last, none = len(weights), len(x) - 1, np.float32(0)
    c, d, e = min(b + 1, last), min(b + 2, last), min(b + 3, last)
    if rows == 1:
        of_b, of_c, of_d, of_e = none, none, none, none
        for i in range(x.shape[1]):
            of_b += weights[0, i] * (x[b, i] * x[b, i])
            of_c += weights[0, i] * (x[c, i] * x[c, i])
            of_d += weights[0, i] * (x[d, i] * x[d, i])
            of_e += weights[0, i] * (x[e, i] * x[e, i])
        out[0, b], out[0, c], out[0, d], out[0, e] = of_b, of_c, of_d, of_e
        return
    for one in range(b, min(b + 4, len(x))):
        for k in range(0, rows, 3):
            m, n = min(k + 1, rows - 1), min(k + 2, rows - 1)
            of_k, of_m, of_n = none, none, none
            for i in range(x.shape[1]):
                square = x[one, i] * x[one, i]
                of_k += weights[k, i] * square
                of_m += weights[m, i] * square
                of_n += weights[n, i] * square
            out[k, one], out[m, one], out[n, one] = of_k, of_m, of_n


@_compiled
def weigh(weights: Any, x: Any, out: Any) -> None:
    """out[k, b] = Σ_i weights[k, i] x[b, i], in float64."""
    for b in range(0, len(x), 4):
        _weigh_four(weights, x, b, out)


@_compiled
def measure(weights: Any, spread: Any, x: Any, out: Any, energies: Any) -> None:
    """The same, and energies[k, b] = Σ_i spread[k, i] x[b, i]², in float32."""
    for b in range(0, len(x), 4):
        _weigh_four(weights, x, b, out)
        _square_four(spread, x, b, energies)


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
def _add_products(weighed: Any, k: int, b: int, samples: tuple[Any, Any, Any, Any], sums: Any) -> None:
    """sums[m _BLOCK + i] += Σ_b weighed[k + m, b] samples[b, i], for three rows m and four samples.

    Sums in one array, at distances that the compiler knows: it must not have to ask whether they overlap.
    """
    of_b, of_c, of_d, of_e = samples
    kb, kc, kd, ke = weighed[k, b], weighed[k, b + 1], weighed[k, b + 2], weighed[k, b + 3]
    mb, mc, md, me = weighed[k + 1, b], weighed[k + 1, b + 1], weighed[k + 1, b + 2], weighed[k + 1, b + 3]
    nb, nc, nd, ne = weighed[k + 2, b], weighed[k + 2, b + 1], weighed[k + 2, b + 2], weighed[k + 2, b + 3]
    for i in range(len(of_b)):
        one, two, three, four = np.float64(of_b[i]), np.float64(of_c[i]), np.float64(of_d[i]), np.float64(of_e[i])
        sums[i] += kb * one + kc * two + kd * three + ke * four
        sums[_BLOCK + i] += mb * one + mc * two + md * three + me * four
        sums[2 * _BLOCK + i] += nb * one + nc * two + nd * three + ne * four


@_compiled
def _add_squares(sizes: Any, p: int, b: int, samples: tuple[Any, Any, Any, Any], sums: Any) -> None:
    """sums[i] += Σ_b sizes[p, b] samples[b, i]², in float32, for four samples."""
    of_b, of_c, of_d, of_e = samples
    pb, pc, pd, pe = sizes[p, b], sizes[p, b + 1], sizes[p, b + 2], sizes[p, b + 3]
    for i in range(len(of_b)):
        sums[i] += (
            pb * (of_b[i] * of_b[i]) + pc * (of_c[i] * of_c[i]) + pd * (of_d[i] * of_d[i]) + pe * (of_e[i] * of_e[i])
        )


@_compiled
def _four(x: Any, b: int, start: int, stop: int) -> tuple[Any, Any, Any, Any]:
    """Some channels of four samples; the last sample stands for those beyond the batch."""
    last = len(x) - 1
    c, d, e = min(b + 1, last), min(b + 2, last), min(b + 3, last)
    return x[b, start:stop], x[c, start:stop], x[d, start:stop], x[e, start:stop]


@_compiled
def correlate(secret: Any, parts: Any, own: Any, other: Any, image: Any, energies: Any) -> None:
    """image[k] = Σ_b (secret own_b)[k] other_b in float64, energies[p] = Σ_b (parts own_b²)[p] other_b² in float32."""
    rows, some, batch, count = len(secret), len(parts), len(own), other.shape[1]
    # What lies beyond the batch, or the rows, counts for 0.
    weighed, sizes = np.zeros((rows + 2, batch + 3)), np.zeros((some, batch + 3), np.float32)
    measure(secret, parts, own, weighed[:rows], sizes)
    sums, squares = np.empty(3 * _BLOCK), np.empty(_BLOCK, np.float32)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        for k in range(0, rows, 3):
            sums[:] = 0
            for b in range(0, batch, 4):
                _add_products(weighed, k, b, _four(other, b, start, stop), sums)
            for m in range(min(3, rows - k)):
                image[k + m, start:stop] = sums[m * _BLOCK : m * _BLOCK + stop - start]
        for p in range(some):
            squares[:] = 0
            for b in range(0, batch, 4):
                _add_squares(sizes, p, b, _four(other, b, start, stop), squares)
            energies[p, start:stop] = squares[: stop - start]


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
