"""Exact products of wide integers out of products of bytes, which processors multiply fastest of all.

A number of b bytes is Σ d_i 256^i with signed digits d_i in [-128, 127]. Adding 0x80 to every byte but the last
carries into the next where a digit would be too large, and flipping those bits again leaves the digits, in
two's complement. So x w is Σ 256^(i + j) x_i w_j, of which those with i + j below the bytes of the answer
count: the others are multiples of its modulus. Of random 32-bit numbers times bytes that is four products, of
random 32-bit numbers both sides ten.

Sums of products of bytes are exact in the 32 bits of the processor's accumulators up to 2^17 terms; where the
answer has 32 bits itself any number of terms will do, since both wrap around alike.
"""

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

DIGIT: Final = 8
EXACT_TERMS: Final = (2**31 - 1) // 2**14

Multiply8 = Callable[[Tensor, Tensor], Tensor]
"""(x (M, K) int8, w (N, K) int8) -> x wᵀ (M, N) int32, modulo 2^32."""


def split(x: Tensor) -> Tensor:
    """Return the digits of integers, lowest first: (bytes, *shape) int8, equal to x modulo 256^bytes."""
    count = x.itemsize
    if count == 1:
        return x[None]
    bias = sum(0x80 << (DIGIT * place) for place in range(count - 1))
    flipped = (x + bias).bitwise_xor_(bias)
    return torch.stack([(flipped >> (DIGIT * place)).to(torch.int8) for place in range(count)])


def join(planes: Tensor) -> Tensor:
    """Return the integers that digits stand for, modulo 256^digits, in a type of as many bytes."""
    wide = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[len(planes)]
    total = torch.zeros(planes.shape[1:], dtype=wide, device=planes.device)
    for place, plane in enumerate(planes):
        total += plane.to(wide) << (DIGIT * place)
    return total


def carries(x: Tensor) -> bool:
    """Say whether some number needs one digit more than it has bytes: `split` is then right modulo 256^bytes only."""
    if x.itemsize == 1 or x.numel() == 0:
        return False
    largest = sum(0x7F << (DIGIT * place) for place in range(x.itemsize))
    return int(x.max()) > largest


def multiply(multiply8: Multiply8, x: Tensor, planes: Tensor, width: int) -> Tensor:
    """Return x wᵀ, modulo 256^width.

    Args:
        multiply8: what multiplies bytes.
        x: (digits, M, K) int8, from `split`.
        planes: (digits, N, K) int8, from `split`.
        width: bytes of the answer.

    Returns:
        (M, N), int32 for at most 4 bytes, int64 beyond.
    """
    rows, terms = x.shape[1:]
    ring = torch.int32 if width <= 4 else torch.int64
    if ring is torch.int32 and len(x) == len(planes) == 1:
        return multiply8(x[0], planes[0])
    step = terms if ring is torch.int32 else min(terms, EXACT_TERMS)
    total = torch.zeros(rows, planes.shape[1], dtype=ring, device=x.device)
    for start in range(0, terms, step):
        span = slice(start, min(start + step, terms))
        for shift, sums in _by_digits(multiply8, x[:, :, span], planes[:width, :, span], width):
            total.add_(sums, alpha=1 << (DIGIT * shift))
    return total


def _by_digits(multiply8: Multiply8, x: Tensor, planes: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the products of digits that count, and the places of their digits together."""
    rows, outputs = x.shape[1], planes.shape[1]
    if len(x) == 1:
        sums = multiply8(x[0], planes.reshape(-1, planes.shape[2]))
        yield from enumerate(torch.split(sums, outputs, dim=1))
        return
    for place, plane in enumerate(planes):
        # One product with all digits of x that count: the weights are what takes time to read.
        used = min(len(x), width - place)
        sums = multiply8(x[:used].reshape(used * rows, -1), plane)
        yield from ((place + other, part) for other, part in enumerate(sums.view(used, rows, -1)))
