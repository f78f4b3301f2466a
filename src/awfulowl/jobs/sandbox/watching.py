"""What a sandbox uses, read from /proc and from its folders: for bounds that no control group keeps."""

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_ENTRY_BYTES: Final = 4096
"""What an empty file is counted as: it costs its file system about that much in the end."""

_MEMORY: Final = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)
_THREADS: Final = re.compile(r"^Threads:\s+(\d+)$", re.MULTILINE)


class Use(NamedTuple):
    """What a family of processes uses together."""

    memory_bytes: int
    """Anonymous and shared memory; what a fork shares with its parent counts twice."""
    tasks: int
    """Processes and their threads."""


def family(root: int) -> set[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  thousands of names, as text
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name of the program, in parentheses, may hold anything.
                fields = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
                parents[int(entry)] = int(fields[1])
    found = {root}
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found


def use(processes: Iterable[int]) -> Use:
    """Return what some processes use together; those that have ended use nothing."""
    memory = tasks = 0
    for process in processes:
        try:
            status = Path("/proc", str(process), "status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        memory += 1024 * sum(map(int, _MEMORY.findall(status)))
        threads = _THREADS.search(status)
        tasks += int(threads[1]) if threads else 0
    return Use(memory, tasks)


def unlinked_bytes(processes: Iterable[int], folders: Iterable[Path]) -> int:
    """Return how much some processes hold in files without a name, on the file systems of some folders.

    Attack: a file that is opened and removed is in no folder, and fills the disk all the same.
    """
    devices = {folder.stat().st_dev for folder in folders}
    held: dict[tuple[int, int], int] = {}
    for process in processes:
        with contextlib.suppress(OSError):
            for descriptor in Path("/proc", str(process), "fd").iterdir():
                with contextlib.suppress(OSError):
                    status = descriptor.stat()
                    if status.st_nlink == 0 and stat.S_ISREG(status.st_mode) and status.st_dev in devices:
                        held[status.st_dev, status.st_ino] = 512 * status.st_blocks
    return sum(held.values())


def disk_bytes(folders: Iterable[Path], enough: int) -> int:
    """Return how much is stored below some folders, or a number above `enough` as soon as it is more.

    A folder that cannot be looked into, because its path is too long or it forbids it, holds more than enough.
    """
    total, waiting = 0, list(folders)
    while waiting and total <= enough:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        total += max(512 * status.st_blocks, _ENTRY_BYTES)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(Path(entry.path))
                    if total > enough:
                        break
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return enough + 1
    return total
