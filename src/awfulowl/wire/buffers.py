"""Memory for what arrives and what is made of it, used again once nobody looks at it any more.

Fresh memory costs more than the bytes that are written to it: the system gives it page by page, at the first touch of
each, and takes it back when it is freed.
"""

import threading
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from awfulowl.limits import KIB, MIB

Lease = np.ndarray[tuple[int], np.dtype[np.uint8]]

ALIGNMENT: Final = 64
"""What processors read at once, and PyTorch's own memory begins with."""

_LEAST_BYTES: Final = 64 * KIB
"""Smaller memory comes from what the allocator has at hand."""

_MOST_BYTES: Final = 64 * MIB
"""Kept by one thread, used or not. What is needed beyond is fresh."""

_LOOSEST: Final = 1.25
"""Blocks that are more than so many times larger are left for others: who keeps a result keeps its whole block."""


class _Block:
    """Memory, and whoever has it now. A view of a part of it keeps the whole lease alive."""

    def __init__(self, size: int) -> None:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self.memory: Final = raw[start : start + size]
        self._lease: weakref.ref[Lease] | None = None

    @property
    def is_free(self) -> bool:
        return self._lease is None or self._lease() is None

    def lend(self, size: int) -> memoryview:
        lease: Any = self.memory[:size]  # numpy does not say that arrays are buffers
        self._lease = weakref.ref(lease)
        return memoryview(lease)


class Buffers(threading.local):
    """Blocks of one thread, those used last at the end."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def take(self, size: int) -> memoryview:
        """Return uninitialised, writable memory of `size` bytes; it is free again when the last view of it is gone."""
        if size < _LEAST_BYTES:
            return memoryview(bytearray(size))
        for index, block in enumerate(self._blocks):
            if size <= len(block.memory) <= _LOOSEST * size and block.is_free:
                self._blocks.append(self._blocks.pop(index))
                return block.lend(size)
        block = _Block(size)
        if size <= _MOST_BYTES:
            self._keep(block)
        return block.lend(size)

    def _keep(self, block: _Block) -> None:
        self._blocks.append(block)
        total = sum(len(kept.memory) for kept in self._blocks)
        while total > _MOST_BYTES:
            total -= len(self._blocks.pop(0).memory)


BUFFERS: Final = Buffers()


def empty(shape: Sequence[int]) -> Tensor:
    """Return an uninitialised float32 tensor in such memory."""
    count = prod(shape)
    if 4 * count < _LEAST_BYTES:
        return torch.empty(tuple(shape), dtype=torch.float32)
    return torch.frombuffer(BUFFERS.take(4 * count), dtype=torch.float32).view(tuple(shape))
