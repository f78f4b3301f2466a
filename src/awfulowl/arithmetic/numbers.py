"""The number systems that a layer can be multiplied in.

In float32 every machine rounds in its own order, so answers differ in their last bits. Exact integers have one
right answer: weights and inputs are rounded once, at the owner, and their product is computed without any
error, so that it is the same bits on every machine. Shares of integers live in a ring Z_2^b, where a sum with a
uniform number is uniform.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
import torch

from awfulowl.arithmetic.packing import PARTS, most
from awfulowl.errors import InputError

FLOAT32: Final = "float32"


class Integers(msgspec.Struct, frozen=True):
    """Symmetric integers: weights and inputs in [-largest, largest], products and shares in Z_2^(8 ring_bytes).

    `largest` of 16 bits is 127 * 256 + 127, the largest that two signed digits of 8 bits hold.
    """

    name: str
    largest: int
    dtype: torch.dtype
    ring: torch.dtype

    @property
    def ring_bytes(self) -> int:
        """Bytes of a share; an answer to shares has as many as the sum of all answers needs."""
        return self.ring.itemsize

    @property
    def most_terms(self) -> int:
        """How many products an output may add up, whatever the numbers are: largest² terms < 2^(8 ring_bytes - 1)."""
        return int((2 ** (8 * self.ring_bytes - 1) - 1) // self.largest**2)


INTEGERS: Final[Mapping[str, Integers]] = {
    "int8": Integers("int8", 127, torch.int8, torch.int32),
    "int16": Integers("int16", 127 * 257, torch.int16, torch.int64),
}

NAMES: Final = (FLOAT32, *INTEGERS)


def integers(name: str) -> Integers | None:
    """Return the integers of that name, or None for float32.

    Raises:
        InputError: there is no such arithmetic.
    """
    if name not in NAMES:
        raise InputError(f"arithmetic {name!r} is none of {', '.join(NAMES)}")
    return INTEGERS.get(name)


def fewest_bytes(bound: int) -> int:
    """Return in how few bytes numbers from -bound to bound travel (`packing`), 1 to 8.

    Raises:
        InputError: they do not fit 8.
    """
    width = next((width for width in PARTS if bound <= most(width)), None)
    if width is None:
        raise InputError(f"numbers up to {bound} do not fit 8 bytes")
    return width
