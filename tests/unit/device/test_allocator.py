"""Memory that is kept: in a process of its own, for it cannot be undone."""

import subprocess
import sys

import pytest

from awfulowl.device import allocator

FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from awfulowl.device.allocator import keep_memory
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
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.delattr("ctypes.CDLL")
    allocator.keep_memory()
