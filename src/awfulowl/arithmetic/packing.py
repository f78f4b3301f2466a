"""Integers in as few bytes as their bound allows, and back."""

from typing import Final

import torch
from torch import Tensor

_WHOLE: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(y: Tensor, width: int) -> Tensor:
    """Keep the low `width` bytes of each number: as an integer type where there is one, else as bytes.

    Args:
        y: integers of any shape, at least `width` bytes wide.
        width: bytes of each number, 1 to 8.

    Returns:
        The shape of y; for 3, 5, 6 and 7 bytes uint8 with one more dimension of that length.
    """
    if width in _WHOLE:
        return y.to(_WHOLE[width])
    return y.contiguous().view(torch.uint8).view(*y.shape, y.itemsize)[..., :width].contiguous()


def unpack(packed: Tensor, width: int) -> Tensor:
    """Return the signed numbers that `pack` made: int32 up to 4 bytes, int64 beyond."""
    wide = torch.int32 if width <= 4 else torch.int64
    if width in _WHOLE:
        return packed.to(wide)
    # The bytes become the high ones, and shifting them down fills in the sign.
    room = packed.new_zeros(*packed.shape[:-1], wide.itemsize)
    room[..., wide.itemsize - width :] = packed
    return room.view(wide).squeeze(-1) >> 8 * (wide.itemsize - width)


def packed_type(width: int, shape: tuple[int, ...]) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return the type and shape that numbers of a shape travel as."""
    return (_WHOLE[width], shape) if width in _WHOLE else (torch.uint8, (*shape, width))
