"""The bubblewrap command line: what the code inside sees of the machine, which is as little as PyTorch needs.

Attacks: code that reads the user's files, talks to the network or to other processes, gains rights, writes where others
read, or stays when its time is over. It gets namespaces of its own for users, processes, network, IPC, host name and
cgroups; no capability, and uid 65534; the system's libraries and this Python, read-only; empty folders in memory to
write to, and those that are given to it; a session of its own, so that it cannot type into the terminal; a filter on
system calls (`seccomp`); and it ends with its parent.

Not stopped: holes in the kernel that the filter leaves open, and what one can learn from shared hardware (caches,
clocks, power).
"""

import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import awfulowl
from awfulowl.errors import SandboxError

SCRATCH: Final = "/tmp"  # noqa: S108  inside the sandbox, where it is nobody else's
_NOBODY: Final = "65534"
_OLDEST: Final = (0, 7)
"""The first bubblewrap that bounds its file systems in memory (`--size`)."""

_SYSTEM: Final = ("/bin", "/lib", "/lib32", "/lib64", "/sbin")
_READ: Final = ("/usr", "/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system/cpu", "/sys/devices/system/node")
_PACKAGE: Final = Path(awfulowl.__file__).resolve().parent


def find_bubblewrap() -> str | None:
    """Return the path of bubblewrap, None where it is not installed.

    Raises:
        SandboxError: it is too old.
    """
    found = shutil.which("bwrap")
    if found is None:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    numbers = re.search(r"(\d+)\.(\d+)", said)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
        raise SandboxError(f"{found} is {said.strip()[:80]!r}; version {_OLDEST[0]}.{_OLDEST[1]} or newer is needed")
    return found


def bubblewrap(
    program: str,
    arguments: Sequence[str],
    *,
    threads: int,
    scratch_bytes: int,
    read: Sequence[Path],
    write: Sequence[Path],
    descriptors: tuple[int, int, int],
) -> list[str]:
    """Return the command that runs `arguments` in a sandbox.

    Args:
        program: bubblewrap.
        arguments: a program inside, and its arguments.
        threads: of the mathematical libraries.
        scratch_bytes: room in each of the two folders in memory.
        read: folders or files that may be read; inside they are where they are outside.
        write: folders that may be written to, likewise.
        descriptors: where the filter is read from, where bubblewrap says what it started, and what it waits for.
    """
    seccomp, info, block = map(str, descriptors)
    size = str(scratch_bytes)
    words = [program, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
    words += ["--uid", _NOBODY, "--gid", _NOBODY, "--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv"]
    for name, value in environment(threads).items():
        words += ["--setenv", name, value]
    words += _system()
    # Where root starts it, its user inside has root's number outside, and settings of the kernel are root's files.
    words += ["--proc", "/proc", "--remount-ro", "/proc"]
    words += ["--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    words += ["--size", size, "--tmpfs", SCRATCH]
    words += _this_python()  # after the folder in memory, which would hide a Python that is installed below it
    for kind, places in (("--ro-bind", read), ("--bind", write)):
        for place in map(str, places):
            words += [kind, place, place]
    words += ["--remount-ro", "/", "--chdir", SCRATCH]
    words += ["--seccomp", seccomp, "--info-fd", info, "--block-fd", block, "--", *arguments]
    return words


def environment(threads: int) -> dict[str, str]:
    """Return all variables that the code inside finds."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "PATH": "/usr/bin:/bin",
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "USER": "nobody",
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(map(str, [_PACKAGE.parent, *_sites()])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }


def python(module: str) -> list[str]:
    """Return how this Python runs a module that the sandbox shows to it."""
    return [sys.executable, "-P", "-s", "-m", module]


def _system() -> Iterator[str]:
    """Yield what shows the system's libraries, read-only."""
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), name)
        elif path.is_dir():
            yield from ("--ro-bind", name, name)
    for name in _READ:
        yield from ("--ro-bind-try", name, name)


def _this_python() -> Iterator[str]:
    """Yield what shows this Python and its packages, read-only."""
    for path in _pythons():
        if not path.is_relative_to("/usr"):
            yield from ("--ro-bind", str(path), str(path))


def _pythons() -> list[Path]:
    """Return the folders of this Python, those first that contain others."""
    found = {Path(place).absolute() for place in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    found |= {_PACKAGE, Path(sys.executable).absolute().parent, *_sites()}
    outer = [
        path
        for path in found
        if path.is_dir() and not any(path != other and path.is_relative_to(other) for other in found)
    ]
    for path in outer:
        if Path(SCRATCH).is_relative_to(path):
            raise SandboxError(
                f"this Python lies in {path} itself: a sandbox that shows it would show everything there"
            )
    return sorted(outer)


def _sites() -> list[Path]:
    """Return where packages are installed."""
    places: list[str] = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        places.append(site.getusersitepackages())
    return [Path(place).absolute() for place in places if os.access(place, os.R_OK)]
