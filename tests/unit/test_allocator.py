"""Memory that is kept: in a process of its own, for it cannot be undone."""

import subprocess
import sys

import psutil
import pytest
import torch

from awfulowl import allocator
from awfulowl.limits import MIB

FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from awfulowl.allocator import keep_memory
    keep_memory()
import numpy as np
def work():
    for _ in range(20):
        np.ones(1 << 20)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_freed_memory_is_used_again_without_faults() -> None:
    assert faults("keep") < 100


def test_another_c_library_or_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    allocator.keep_memory()
    allocator.give_back()
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.delattr("ctypes.CDLL")
    allocator.keep_memory()
    allocator.give_back()


@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 5), (4, 3, 2)])
def test_mapped_tensors_are_like_others(shape: tuple[int, ...]) -> None:
    tensor = allocator.mapped(shape)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, torch.float32, True)
    tensor.fill_(2.0)
    assert float(tensor.sum()) == 2 * tensor.numel()


def test_mapped_memory_goes_back_at_once() -> None:
    process = psutil.Process()
    tensor = allocator.mapped((16 * MIB,)).fill_(1.0)
    held = process.memory_info().rss
    row = tensor[:10]
    del tensor
    assert process.memory_info().rss > held - 32 * MIB
    del row
    assert process.memory_info().rss < held - 32 * MIB


def test_giving_back_may_be_done_at_any_time() -> None:
    allocator.give_back()
    assert float(torch.ones(1 << 20).sum()) == 1 << 20
