"""The filter on system calls that the kernel runs in the sandbox: classic BPF, assembled here.

Attack: code that escapes through a hole in the kernel. What training needs none of is refused: other namespaces and
mounts, tracing and other processes' memory, modules, keys, BPF, io_uring, performance counters, memory that no limit
counts (shared segments, memfd), every socket but local ones, and every call newer than this list. A deny-list and not
an allow-list: PyTorch and its libraries use what they find, and Docker's list has the same shape for the same reason.

Refused calls answer with an error, so that code fails where it errs; calls of another architecture (32 bits on a
64-bit machine, whose numbers mean other calls) end the process. Source: seccomp(2), linux/filter.h, linux/audit.h;
numbers of asm/unistd_64.h for x86-64, asm-generic/unistd.h for aarch64.
"""

import errno
import platform
import struct
from typing import Final, NamedTuple

from awfulowl.errors import SandboxError

_INSTRUCTION: Final = struct.Struct("<HBBI")
_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06

_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_FIRST_ARGUMENT_AT: Final = 16
"""Bytes into `struct seccomp_data`; of an argument the low half, all that the calls below look at."""

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERROR: Final = 0x00050000

_LOCAL: Final = 1
"""AF_UNIX."""
_NEW_NAMESPACES: Final = 0x7E020000
"""CLONE_NEW* of clone(2)."""
_NEWEST: Final = 450
"""The newest call that was judged; both architectures number alike from 424 on."""

NETWORK_ERROR: Final = errno.ENETDOWN
"""What a socket to the world outside fails with."""


class _Machine(NamedTuple):
    audit: int
    column: int
    clone: int
    clone3: int
    socket: int
    socketpair: int


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 0, 56, 435, 41, 53),
    "aarch64": _Machine(0xC00000B7, 1, 220, 435, 198, 199),
}

REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
}
"""Calls that fail with EPERM, and their numbers on x86-64 and aarch64; None: there is no such call."""


def program(machine: str | None = None) -> bytes:
    """Return the filter for a machine, by default this one, as an array of `struct sock_filter`.

    Raises:
        SandboxError: there is no filter for it.
    """
    machine = platform.machine() if machine is None else machine
    if machine not in _MACHINES:
        raise SandboxError(f"no filter on system calls for {machine}; there is one for {', '.join(_MACHINES)}")
    its = _MACHINES[machine]
    refused = sorted(numbers[its.column] or 0 for numbers in REFUSED.values() if numbers[its.column] is not None)
    load_number = (_LOAD, 0, 0, _NUMBER_AT)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, its.audit),
        (_RETURN, 0, 0, _KILL),
        load_number,
        (_JUMP_GREATER, 0, 1, _NEWEST),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        # Its flags lie behind a pointer that no filter can follow; libc falls back to clone.
        (_JUMP_EQUAL, 0, 1, its.clone3),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 4, its.clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQUAL, 1, 0, its.socket),
        (_JUMP_EQUAL, 0, 4, its.socketpair),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_EQUAL, 1, 0, _LOCAL),
        (_RETURN, 0, 0, _ERROR | NETWORK_ERROR),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for number in refused:
        code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)
