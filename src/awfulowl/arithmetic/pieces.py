"""Exact products of integers in float64, which every processor multiplies fast: in pieces of at most 53 bits.

A float64 holds every integer up to 2^53. With |x_j| <= 2^(a-1) and |w_j| <= 2^(b-1) a sum of n products stays within
that, whatever the order of summation, if a + b - 2 + ⌈log2 n⌉ <= 53: so does each partial sum, and nothing is ever
rounded. Wider numbers are cut into digits x = Σ x_i 2^(a i), each of a bits with its sign; the products of digits are
exact, and are shifted and added in int64, which wraps around at 2^64 as the ring does.
"""

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

EXACT_BITS: Final = 53

Bilinear = Callable[[Tensor, Tensor], Tensor]
"""(x, w) -> sums of products of their numbers, which it raises to float64 if they are of another type."""


def in_pieces(
    bilinear: Bilinear, x: Tensor, weight: Tensor, terms: int, *, x_bits: int | None = None, w_bits: int | None = None
) -> Tensor:
    """Return bilinear(x, weight) modulo 2^64, exactly.

    Args:
        bilinear: what is computed.
        x: integers, of any type that holds them.
        weight: the same.
        terms: how many products each output adds up.
        x_bits: bits of the numbers in x with their sign; None: those of its type.
        w_bits: the same for the weights.

    Returns:
        int64.
    """
    x_bits, w_bits = x_bits or 8 * x.itemsize, w_bits or 8 * weight.itemsize
    size_x, size_w = digit_sizes(x_bits, w_bits, terms)
    digits = list(_digits(weight, size_w, w_bits))
    total: Tensor | None = None
    for shift_x, of_x in _digits(x, size_x, x_bits):
        for shift_w, of_weight in digits:
            if shift_x + shift_w < 64:
                part = bilinear(of_x, of_weight).to(torch.int64)
                if shift_x + shift_w:
                    part <<= shift_x + shift_w
                total = part if total is None else total.add_(part)
    if total is None:
        raise ValueError("numbers without digits")
    return total


def digit_sizes(x_bits: int, w_bits: int, terms: int) -> tuple[int, int]:
    """Return the bits of a digit of x and of the weights: as large as is exact, x as whole as possible."""
    budget = EXACT_BITS + 2 - max(0, terms - 1).bit_length()
    size_x = min(x_bits, max(budget // 2, budget - w_bits))
    return size_x, min(w_bits, budget - size_x)


def _digits(x: Tensor, size: int, bits: int) -> Iterator[tuple[int, Tensor]]:
    """Yield shifts and digits in [-2^(size-1), 2^(size-1)], lowest first; x itself where one digit holds it."""
    if bits <= size:
        yield 0, x
        return
    rest = x.to(torch.int64)
    half, low_bits = 1 << (size - 1), (1 << size) - 1
    for shift in range(0, bits, size):
        if shift + size >= bits:
            yield shift, rest
            return
        low = ((rest + half) & low_bits) - half
        yield shift, low
        rest = (rest - low) >> size
