"""Whether freed memory stays with the process, for the next request, or goes back to the system."""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Numbers of mallopt(3)."""

_MAPPED_BYTES: Final = 1 << 25
"""What is larger is mapped; the most that mallopt(3) allows."""

_KEPT_BYTES: Final = 1 << 30

_PRIVATE: Final = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform != "win32" else {}


def keep_memory() -> None:
    """Let the allocator of this process keep what is freed; does nothing but under glibc.

    For processes that are devices or runners of jobs and nothing else: they get and give megabytes for every request or
    step, and faults on fresh pages were a tenth of the time of a batch, and a seventh of a step.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES):  # or the others would only turn off what adapts by itself
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Give what is free in the allocator back to the system; does nothing but under glibc.

    For the end of something large that will not come again soon, such as the loading of a model.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def mapped(shape: Sequence[int]) -> Tensor:
    """Return a float32 tensor of zeros whose memory goes back to the system as soon as it is freed."""
    count = prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=torch.float32)
    memory = mmap.mmap(-1, 4 * count, **_PRIVATE)
    return torch.frombuffer(memory, dtype=torch.float32).view(tuple(shape))
