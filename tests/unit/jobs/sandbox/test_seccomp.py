"""The filter on system calls, run by an interpreter of BPF of our own, for both machines."""

import errno
import struct

import pytest

from awfulowl.errors import SandboxError
from awfulowl.jobs.sandbox.seccomp import NETWORK_ERROR, REFUSED, program

ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}
NUMBERS = {
    "x86_64": {
        "read": 0,
        "mmap": 9,
        "clone": 56,
        "fork": 57,
        "execve": 59,
        "socket": 41,
        "socketpair": 53,
        "prctl": 157,
    },
    "aarch64": {"read": 63, "mmap": 222, "clone": 220, "execve": 221, "socket": 198, "socketpair": 199, "prctl": 167},
}
MACHINES = pytest.mark.parametrize("machine", AUDIT)


def run(code: bytes, data: bytes) -> int:
    """Run a filter on a `struct seccomp_data`: the four instructions that it is made of, as linux/filter.h has them."""
    instructions = [struct.unpack_from("<HBBI", code, place) for place in range(0, len(code), 8)]
    place, accumulator = 0, 0
    while True:
        kind, yes, no, value = instructions[place]
        place += 1
        if kind == 0x06:
            return int(value)
        if kind == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[kind]
            place += yes if holds else no


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the filter of a machine says to a call."""
    six = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    return run(program(machine), struct.pack("<IIQ6Q", number, audit or AUDIT[machine], 0, *six))


@MACHINES
def test_what_training_needs_is_allowed(machine: str) -> None:
    for name in ("read", "mmap", "execve", "prctl"):
        assert verdict(machine, NUMBERS[machine][name]) == ALLOW


@MACHINES
def test_what_is_refused_fails_with_an_error(machine: str) -> None:
    numbers = [row[COLUMN[machine]] for row in REFUSED.values() if row[COLUMN[machine]] is not None]
    assert len(set(numbers)) == len(numbers) > 50
    assert {verdict(machine, number) for number in numbers if number is not None} == {ERROR | errno.EPERM}


@MACHINES
def test_calls_of_another_architecture_end_the_process(machine: str) -> None:
    for audit in (0x40000003, 0x40000028, 0):
        assert verdict(machine, 1, audit=audit or 1) == KILL


@MACHINES
def test_calls_that_nobody_judged_are_not_there(machine: str) -> None:
    for number in (451, 1000, 0x40000000, 0x40000029, 0xFFFFFFFF):  # x32 has its numbers from 2^30 on
        assert verdict(machine, number) == ERROR | errno.ENOSYS
    assert verdict(machine, 435) == ERROR | errno.ENOSYS  # clone3: its flags cannot be seen


@MACHINES
def test_threads_and_processes_may_be_made_but_no_namespaces(machine: str) -> None:
    clone = NUMBERS[machine]["clone"]
    assert verdict(machine, clone, 0x3D0F00) == ALLOW  # as glibc makes a thread
    assert verdict(machine, clone, 0x1200011) == ALLOW  # as it forks
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, flag | 17) == ERROR | errno.EPERM


@MACHINES
def test_only_local_sockets_may_be_made(machine: str) -> None:
    for name in ("socket", "socketpair"):
        number = NUMBERS[machine][name]
        assert verdict(machine, number, 1) == ALLOW
        for family in (0, 2, 10, 16, 17, 40, (1 << 32) - 1):
            assert verdict(machine, number, family) == ERROR | NETWORK_ERROR


def test_there_is_no_filter_for_other_machines() -> None:
    with pytest.raises(SandboxError, match="riscv64"):
        program("riscv64")


@MACHINES
def test_all_jumps_land_inside(machine: str) -> None:
    code = program(machine)
    assert len(code) % 8 == 0
    assert len(code) // 8 < 4096  # BPF_MAXINSNS
    for place in range(0, len(code), 8):
        kind, yes, no, _ = struct.unpack_from("<HBBI", code, place)
        assert kind == 0x06 or place // 8 + 1 + max(yes, no) < len(code) // 8
