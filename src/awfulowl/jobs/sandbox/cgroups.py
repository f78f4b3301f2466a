"""Bounds on memory and processes that the kernel keeps: control groups, version 2, else version 1.

A group below our own, so that bounds on us hold inside too. Version 2 gives a group controllers only where its parent
holds no processes of its own, so the first ancestor that may be written to and passes them on is taken (under systemd
the user's slice). Where neither works the caller watches instead. Source: Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/ of Linux.
"""

import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

_NAME: Final = "awfulowl-{}-{}"
_OURS: Final = re.compile(r"awfulowl-(\d+)-[0-9a-f]+")
_TRIES: Final = 50
_PAUSE_S: Final = 0.02


class Places(NamedTuple):
    """Where control groups are, so that tests can put them elsewhere."""

    mounts: Path = Path("/proc/self/mountinfo")
    own: Path = Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """The files of one controller in one version."""

    controller: str
    limit: str
    swap: str
    events: str
    event: str


_V2: Final = (
    _Files("memory", "memory.max", "memory.swap.max", "memory.events", "oom_kill"),
    _Files("pids", "pids.max", "", "pids.events", "max"),
)
_V1: Final = (
    _Files("memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control", "oom_kill"),
    _Files("pids", "pids.max", "", "pids.events", "max"),
)
_PEAKS: Final = ("memory.peak", "memory.max_usage_in_bytes")


class Groups:
    """The control groups of one sandbox: none, one or two; `close` removes them.

    Args:
        folders: by controller, the folder of the group and its files.
    """

    def __init__(self, folders: dict[str, tuple[Path, _Files]]) -> None:
        self._folders = folders

    @classmethod
    def make(cls, memory_bytes: int, processes: int, places: Places | None = None) -> Self:
        """Make groups with these bounds, as far as that is possible here."""
        name = _NAME.format(os.getpid(), os.urandom(4).hex())
        bounds = {"memory": memory_bytes, "pids": processes}
        return cls(
            {which: made for which, bound in bounds.items() if (made := _make(which, bound, name, places or Places()))}
        )

    @property
    def controllers(self) -> frozenset[str]:
        """Which bounds the kernel keeps: memory, pids, both or none."""
        return frozenset(self._folders)

    def add(self, process: int) -> None:
        """Put a process and all that it will start into the groups.

        Raises:
            OSError: it has ended.
        """
        for folder, _ in self._folders.values():
            (folder / "cgroup.procs").write_text(str(process))

    def exceeded(self) -> str | None:
        """Return which bound was reached, if one was."""
        for which, (folder, files) in self._folders.items():
            with contextlib.suppress(OSError):
                found = re.search(rf"^{files.event} (\d+)$", (folder / files.events).read_text(), re.MULTILINE)
                if found is not None and int(found[1]):
                    return which
        return None

    def peak_bytes(self) -> int | None:
        """Return the most memory that was in use at once, where the kernel says."""
        folder, _ = self._folders.get("memory", (None, None))
        for name in _PEAKS:
            if folder is not None and (folder / name).is_file():
                return int((folder / name).read_text())
        return None

    def kill(self) -> None:
        """End every process in the groups."""
        for folder, _ in self._folders.values():
            with contextlib.suppress(OSError):
                for process in (folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), 9)

    def close(self) -> None:
        """Remove the groups, once what was in them has ended."""
        for folder, _ in self._folders.values():
            for _ in range(_TRIES):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                if not folder.exists():
                    break
                self.kill()
                time.sleep(_PAUSE_S)


def _make(controller: str, bound: int, name: str, places: Places) -> tuple[Path, _Files] | None:
    for parent, files in _parents(controller, places):
        _sweep(parent)
        folder = parent / name
        try:
            folder.mkdir(exist_ok=True)
            (folder / files.limit).write_text(str(bound))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        if files.swap:
            # Where swap is not counted there is no such file, and mostly no swap.
            with contextlib.suppress(OSError):
                (folder / files.swap).write_text("0" if files in _V2 else str(bound))
        return folder, files
    return None


def _parents(controller: str, places: Places) -> Sequence[tuple[Path, _Files]]:
    """Return where a group with a controller could be made, the best place first."""
    try:
        own = [line.split(":", 2) for line in places.own.read_text().splitlines()]
        mounts = [line.split() for line in places.mounts.read_text().splitlines()]
    except OSError:
        return []
    found: list[tuple[Path, _Files]] = []
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        for _, names, path in own:
            place = _within(Path(fields[4]), fields[3], path)
            if place is None:
                continue
            if kind == "cgroup2" and not names:
                found[:0] = [(one, _files(_V2, controller)) for one in _passing_on(place, Path(fields[4]), controller)]
            elif kind == "cgroup" and controller in options and controller in names.split(","):
                found.append((place, _files(_V1, controller)))
    return found


def _files(version: Sequence[_Files], controller: str) -> _Files:
    return next(files for files in version if files.controller == controller)


def _within(mount: Path, root: str, path: str) -> Path | None:
    """Return our group below a mount point that shows the hierarchy from `root` down."""
    if not Path(path).is_relative_to(root):
        return None
    return mount / Path(path).relative_to(root)


def _passing_on(group: Path, top: Path, controller: str) -> Sequence[Path]:
    """Return the groups from `group` upwards whose children get the controller."""
    candidates = [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return [one for one in candidates if controller in _words(one / "cgroup.subtree_control")]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _sweep(parent: Path) -> None:
    """Remove groups of processes like this one that were killed."""
    for folder in parent.glob("awfulowl-*"):
        made = _OURS.fullmatch(folder.name)
        if made is not None and not Path("/proc", made[1]).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
