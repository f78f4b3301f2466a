"""Secrets from the operating system's generator; seeded streams for experiments, which say UNSAFE."""

import builtins
import hashlib
import math
import os
from typing import Final, NamedTuple

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HANDLE_BYTES: Final = 16
SEED_BYTES: Final = 32

_ZEROS: Final = bytes(1 << 20)


class Seeded(NamedTuple):
    """Numbers that a seed stands for: who has the seed has the numbers, and for everybody else they are uniform.

    The keystream of AES-256 in counter mode under a key that is used once (NIST SP 800-38A): to tell it from uniform
    bits is to break AES. OpenSSL computes it with the processor's instructions, several GB/s on one core. The seed is
    in no repr.
    """

    seed: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Seeded({self.dtype}, {self.shape})"

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def expand(self) -> torch.Tensor:
        """Return the numbers, in memory of their own."""
        numbers = torch.empty(self.shape, dtype=self.dtype)
        if numbers.numel():
            keystream(self.seed, numbers.reshape(-1).view(torch.uint8).numpy().data)
        return numbers


def expanded(numbers: torch.Tensor | Seeded) -> torch.Tensor:
    """Return numbers themselves, whichever way they are given."""
    return numbers.expand() if isinstance(numbers, Seeded) else numbers


def keystream(seed: bytes, into: memoryview) -> None:
    """Fill bytes with the keystream of a seed of 32 bytes."""
    encryptor = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    for start in range(0, len(into), len(_ZEROS)):
        part = into[start : start + len(_ZEROS)]
        encryptor.update_into(_ZEROS[: len(part)] if len(part) < len(_ZEROS) else _ZEROS, part)


def derive(key: bytes, *numbers: int) -> bytes:
    """Return the seed that belongs to some numbers under a key: keyed BLAKE2b, so others tell nothing of it."""
    message = b"".join(number.to_bytes(8, "little") for number in numbers)
    return hashlib.blake2b(message, key=key, digest_size=SEED_BYTES).digest()


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

    def seed(self) -> builtins.bytes:
        """Return a fresh seed for `Seeded`."""
        return self.bytes(SEED_BYTES)

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

    def integers(self, bound: int, *shape: int) -> torch.Tensor:
        """Return int64 numbers of the given shape, uniform in [0, bound), for a bound that is a power of two.

        Raises:
            ValueError: the bound is no power of two up to 2^62.
        """
        if bound < 1 or bound & (bound - 1) or bound > 1 << 62:
            raise ValueError(f"a bound of {bound} is no power of two up to 2^62")
        bits = self._integers(math.prod(shape)) & np.uint64(bound - 1)
        return torch.from_numpy(bits.astype(np.int64)).reshape(shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """Return float64 standard normal numbers of the given shape (Box and Muller)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        radius = torch.sqrt(-2.0 * torch.log(self.uniform(half)))
        angle = 2.0 * math.pi * self.uniform(half)
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
        return both[:count].reshape(shape)


SYSTEM: Final = Entropy()
