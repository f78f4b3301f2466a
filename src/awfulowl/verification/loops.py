"""The loops of `compiled`, which read every number of a sample once. To be imported where numba is installed.

Arrays are (batch, channels), secrets (rows, channels). Three rows and several samples at a time: each would else be
fetched, and raised to float64, as often. Sums may be in any order; vectors need that, and few arrays in a loop: it has
to ask of each that it writes whether it overlaps another, and LLVM gives up beyond eight such pairs. What lies in one
array at distances that are known needs no asking.
"""

import math
from typing import Any, Final

import numpy as np

from awfulowl.compiling import loop

_BLOCK: Final = 512
"""Channels at a time where sums are over samples, numbers at a time in a step: what is summed stays in a near cache."""

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
        bk, bm, bn, ck, cm, cn = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        dk, dm, dn, ek, em, en = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(x.shape[1]):
            of_k, of_m, of_n = w_k[i], w_m[i], w_n[i]
            of_b, of_c, of_d, of_e = np.float64(x_b[i]), np.float64(x_c[i]), np.float64(x_d[i]), np.float64(x_e[i])
            bk += of_k * of_b
            bm += of_m * of_b
            bn += of_n * of_b
            ck += of_k * of_c
            cm += of_m * of_c
            cn += of_n * of_c
            dk += of_k * of_d
            dm += of_m * of_d
            dn += of_n * of_d
            ek += of_k * of_e
            em += of_m * of_e
            en += of_n * of_e
        out[k, b], out[m, b], out[n, b] = bk, bm, bn
        out[k, c], out[m, c], out[n, c] = ck, cm, cn
        out[k, d], out[m, d], out[n, d] = dk, dm, dn
        out[k, e], out[m, e], out[n, e] = ek, em, en


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
    """sums[m _BLOCK + i] += Σ_b weighed[k + m, b] samples[b, i], for three rows m and four samples."""
    of_b, of_c, of_d, of_e = samples
    bk, ck, dk, ek = weighed[k, b], weighed[k, b + 1], weighed[k, b + 2], weighed[k, b + 3]
    bm, cm, dm, em = weighed[k + 1, b], weighed[k + 1, b + 1], weighed[k + 1, b + 2], weighed[k + 1, b + 3]
    bn, cn, dn, en = weighed[k + 2, b], weighed[k + 2, b + 1], weighed[k + 2, b + 2], weighed[k + 2, b + 3]
    for i in range(len(of_b)):
        one, two, three, four = np.float64(of_b[i]), np.float64(of_c[i]), np.float64(of_d[i]), np.float64(of_e[i])
        sums[i] += bk * one + ck * two + dk * three + ek * four
        sums[_BLOCK + i] += bm * one + cm * two + dm * three + em * four
        sums[2 * _BLOCK + i] += bn * one + cn * two + dn * three + en * four


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
    measure(secret, parts, own, weighed, sizes)
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
def _move(rule: tuple[float, ...], images: tuple[Any, ...], moved: tuple[Any, Any], share: float, buffer: Any) -> None:
    """What a step makes of some numbers of an image; rows of the buffer gain a share of squares.

    Of what was, of momentum, gradient and change, in this order; the next two rows are for what comes out.
    """
    a, b, c, d, e, f = rule
    weight, momentum, gradient, start = images
    count = len(weight)
    for i in range(count):
        own = weight[i]
        along = a * momentum[i] + b * own + c * gradient[i]
        after = own + d * own + e * along + f * gradient[i]
        change = after - start[i]
        buffer[i] += share * (own * own)
        buffer[_BLOCK + i] += share * (along * along)
        buffer[2 * _BLOCK + i] += share * (gradient[i] * gradient[i])
        buffer[3 * _BLOCK + i] += share * (change * change)
        buffer[4 * _BLOCK + i], buffer[5 * _BLOCK + i] = after, along
    moved[0][:], moved[1][:] = buffer[4 * _BLOCK : 4 * _BLOCK + count], buffer[5 * _BLOCK : 5 * _BLOCK + count]


@_compiled
def _measure_step(
    rule: tuple[float, ...],
    gain: tuple[float, float, float, float],
    known: tuple[Any, Any, Any, Any],
    reaches: Any,
    energies: Any,
    buffer: Any,
) -> None:
    """From squares in the buffer to lengths of weights, momentum and gradient, and the noise that a gradient adds.

    known: base, energy, reach, and energy of the gradient's sums.
    """
    a, b, c = abs(rule[0]), abs(rule[1]), abs(rule[2])
    each, one_sided, terms, least = gain
    base, energy, reach, spent = known
    count = len(base)
    for i in range(count):
        size, of_sums = buffer[2 * _BLOCK + i], np.float64(spent[i])
        length, along = math.sqrt(energy[i]), math.sqrt(size)
        far = a * reach[i] + b * length + c * along
        buffer[4 * _BLOCK + i], buffer[5 * _BLOCK + i] = far, 2 * (base[i] + buffer[3 * _BLOCK + i])
        buffer[3 * _BLOCK + i] = each * (of_sums + size) + one_sided * min(size / max(of_sums, least), terms) * size
        buffer[i] = max(math.sqrt(buffer[i]), length / 2)
        buffer[_BLOCK + i] = max(math.sqrt(buffer[_BLOCK + i]), far / 8)
        buffer[2 * _BLOCK + i] = along
    reaches[:], energies[:] = buffer[4 * _BLOCK : 4 * _BLOCK + count], buffer[5 * _BLOCK : 5 * _BLOCK + count]


@_compiled
def _carry_noise(row: Any, noise: tuple[Any, Any, Any], buffer: Any, target: Any) -> None:
    """A row of a matrix, times noise and what a gradient adds to it."""
    of_weight, of_both, of_momentum = noise
    p, q, r, s = row[0], row[1], row[2], row[3]
    for i in range(len(target)):
        target[i] = p * of_weight[i] + q * of_both[i] + r * of_momentum[i] + s * buffer[3 * _BLOCK + i]


@_compiled
def _carry_drag(row: Any, drag: tuple[Any, Any, Any], buffer: Any, target: Any) -> None:
    """A row of a matrix, times drag and lengths."""
    alone, slow, fast = drag
    p, q, r, s, t, u = row[0], row[1], row[2], row[3], row[4], row[5]
    for i in range(len(target)):
        lengths = s * buffer[i] + t * buffer[_BLOCK + i] + u * buffer[2 * _BLOCK + i]
        target[i] = p * alone[i] + q * slow[i] + r * fast[i] + lengths


@_compiled
def advance(
    rule: tuple[float, ...],
    carrying: tuple[Any, Any],
    gain: tuple[float, float, float, float],
    images: tuple[Any, Any, Any, Any],
    sizes: tuple[Any, Any, Any],
    moved: tuple[Any, Any],
    after: Any,
) -> None:
    """`images.Side.move`, some numbers at a time: images (n k, b), tracked (8, n, b), other sizes (n, b)."""
    (errors, kept), (base, spent, tracked) = carrying, sizes
    count, vectors = base.shape[1], len(images[0]) // len(base)
    buffer, other = np.empty(6 * _BLOCK), np.empty(_BLOCK)
    for n in range(len(base)):
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            buffer[: 4 * _BLOCK] = 0
            for k in range(n * vectors, (n + 1) * vectors):
                own = images[0][k, start:stop], images[1][k, start:stop], images[2][k, start:stop]
                new = moved[0][k, start:stop], moved[1][k, start:stop]
                _move(rule, (*own, images[3][k, start:stop]), new, 1 / vectors, buffer)
            reach, energy = tracked[6, n, start:stop], tracked[7, n, start:stop]
            known = base[n, start:stop], energy, reach, spent[n, start:stop]
            _measure_step(rule, gain, known, after[6, n, start:stop], after[7, n, start:stop], buffer)
            noise = tracked[0, n, start:stop], tracked[1, n, start:stop], tracked[2, n, start:stop]
            drag = tracked[3, n, start:stop], tracked[4, n, start:stop], tracked[5, n, start:stop]
            for row in range(3):
                _carry_noise(errors[row], noise, buffer, after[row, n, start:stop])
                _carry_drag(kept[row + 1], drag, buffer, after[row + 3, n, start:stop])
            _carry_drag(kept[0], drag, buffer, other[: stop - start])
            least = after[3, n, start:stop]
            for i in range(stop - start):
                least[i] = min(least[i], other[i])


@_compiled
def spread(tracked: Any, factor: float, sums: Any, out: Any) -> float:
    """out[n] = Σ_p energy + factor (noise + drag²), in units of the largest, which is returned; 1 where all are 0.

    Of tracked (8, n, p, b), see `images.Side`; sums (n, b) are left in float64.
    """
    most = 0.0
    for n in range(len(sums)):
        own = sums[n]
        own[:] = 0
        for p in range(tracked.shape[2]):
            noise, drag, energy = tracked[0, n, p], tracked[3, n, p], tracked[7, n, p]
            for i in range(len(own)):
                own[i] += energy[i] + factor * (noise[i] + drag[i] * drag[i])
        for i in range(len(own)):
            most = max(most, own[i])
    unit = most if most > 0 else 1.0
    for n in range(len(sums)):
        for i in range(sums.shape[1]):
            out[n, i] = np.float32(sums[n, i] / unit)
    return unit
