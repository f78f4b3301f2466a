"""Let a child process live no longer than its parent, however the parent ends (Linux; elsewhere it just starts).

This file is also the program that does it: between fork and exec no Python may run safely in a process with threads,
so the child starts this first, which ties itself and then becomes the command.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""Linux, prctl(2). The signal comes when the *thread* that started the child ends."""


def tethered(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` as a child of this process and dies with the thread that starts it."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _main(parent: str, *command: str) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(f"the process {parent} that started this is gone")
    os.execv(command[0], command)  # noqa: S606  the argument list of `tethered`, no shell


if __name__ == "__main__":
    _main(*sys.argv[1:])
