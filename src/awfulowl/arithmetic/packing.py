"""Integers in as few bytes as their bound allows, and back.

A number of 3 bytes travels as its low 2 and its high one, in two tensors; one of 5, 6 or 7 as 4 and the rest. Each part
is signed, and the parts add up to the number: y = low + 2^16 high. So whole tensors are converted from one type to
another, which processors do many at a time; taking 3 bytes of each 4 is three times slower than the link that it
spares.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from awfulowl.arithmetic import compiled

PARTS: Final[Mapping[int, tuple[torch.dtype, ...]]] = {
    1: (torch.int8,),
    2: (torch.int16,),
    3: (torch.int16, torch.int8),
    4: (torch.int32,),
    5: (torch.int32, torch.int8),
    6: (torch.int32, torch.int16),
    7: (torch.int32, torch.int16, torch.int8),
    8: (torch.int64,),
}
"""The types that numbers of so many bytes travel in, the low part first."""


def most(width: int) -> int:
    """Return the largest number whose parts fit `width` bytes, its negative too: the largest of each, added up."""
    total, shift = 0, 0
    for dtype in PARTS[width]:
        total += torch.iinfo(dtype).max << shift
        shift += 8 * dtype.itemsize
    return total


def pack(y: Tensor, width: int) -> list[Tensor]:
    """Return the parts of numbers modulo 2^(8 width), each of the shape of y, which is used up.

    Args:
        y: integers of any shape, at least `width` bytes wide; its memory may be the last part's, or hold anything.
        width: bytes of each number, 1 to 8.
    """
    *lower, last = PARTS[width]
    parts = []
    for dtype in lower:
        parts.append(y.to(dtype))
        bits = 8 * dtype.itemsize
        # What is left when the signed low part is taken away.
        y.add_(1 << (bits - 1)).bitwise_right_shift_(bits)
    return [*parts, y.to(last)]


def unpack(parts: Sequence[Tensor], width: int) -> Tensor:
    """Return the numbers that `pack` made parts of: int32 up to 4 bytes, int64 beyond.

    A single part may be returned.
    """
    if len(parts) == 1:
        return parts[0].to(torch.int32 if width <= 4 else torch.int64)
    total = torch.empty(parts[0].shape, dtype=torch.int32 if width <= 4 else torch.int64, device=parts[0].device)
    put(total, parts)
    return total


def put(total: Tensor, parts: Sequence[Tensor]) -> None:
    """Write the numbers that `pack` made parts of to wider ones of their shape; see `add`."""
    if not compiled.put(total, parts):
        total.copy_(parts[0])
        _add(total, parts[1:], shift=8 * parts[0].itemsize)


def add(total: Tensor, parts: Sequence[Tensor]) -> None:
    """Add the numbers that `pack` made parts of to wider ones in place, without making them first.

    Args:
        total: int32 or int64; float32 for a single part of floats.
        parts: of its shape, the lowest first.
    """
    if not compiled.add(total, parts):
        _add(total, parts)


def fold(total: Tensor, width: int) -> None:
    """Make numbers modulo 2^(8 width) signed ones of that many bytes, in place: sums of shares are known no better."""
    beyond = 8 * (total.itemsize - width)
    if beyond:
        total.bitwise_left_shift_(beyond).bitwise_right_shift_(beyond)


def _add(total: Tensor, parts: Sequence[Tensor], shift: int = 0) -> None:
    for part in parts:
        total.add_(part, alpha=1 << shift)
        shift += 8 * part.itemsize
