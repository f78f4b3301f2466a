"""Secrets from the operating system's generator; seeded streams for experiments, which say UNSAFE."""

import builtins
import math
import os
from typing import Final

import numpy as np
import torch

HANDLE_BYTES: Final = 16


class Entropy:
    """A source of random bytes and what is made of them.

    Without a seed every byte comes from the operating system. With a seed the stream is repeatable, for
    experiments only: whoever knows the seed knows every position and every check vector, so `unsafe` is true
    and plans made from it say so.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.unsafe: Final = seed is not None
        self._stream = np.random.Generator(np.random.Philox(seed)) if seed is not None else None

    def bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""
        return os.urandom(count) if self._stream is None else self._stream.bytes(count)

    def handle(self) -> builtins.bytes:
        """Return a fresh 128-bit name that says nothing about what it names."""
        return self.bytes(HANDLE_BYTES)

    def _integers(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.frombuffer(self.bytes(8 * count), dtype="<u8")

    def below(self, bound: int) -> int:
        """Return a uniform integer in [0, bound).

        Reduction of 64 bits more than the bound needs: the bias is under 2^-64.
        """
        if bound < 1:
            raise ValueError(f"an integer below {bound} does not exist")
        width = (bound.bit_length() + 7) // 8 + 8
        return int.from_bytes(self.bytes(width), "little") % bound

    def permutation(self, count: int) -> list[int]:
        """Return a uniform permutation of range(count) (Fisher and Yates)."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def uniform(self, count: int) -> torch.Tensor:
        """Return `count` float64 numbers, uniform in (0, 1] with 53 bits."""
        bits = (self._integers(count) >> np.uint64(11)).astype(np.float64)
        return torch.from_numpy((bits + 1.0) * 2.0**-53)

    def normal(self, *shape: int) -> torch.Tensor:
        """Return float64 standard normal numbers of the given shape (Box and Muller)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        radius = torch.sqrt(-2.0 * torch.log(self.uniform(half)))
        angle = 2.0 * math.pi * self.uniform(half)
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
        return both[:count].reshape(shape)


SYSTEM: Final = Entropy()
