"""Files that are there whole or not at all, and folders that are there no longer than who made them."""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

_PREFIX: Final = "awfulowl-"
_HELD: Final = ".held"
"""A file that is locked (flock) from before it has this name until the process that made its folder is no more."""


class Scratch:
    """A folder of mode 0700 among temporary files: it goes with this object, or with the process that made it.

    Whoever makes one removes those whose process was killed.
    """

    def __init__(self, kind: str) -> None:
        """Make it; `kind` is for those who look at the names.

        Raises:
            OSError: it cannot be made.
        """
        remove_orphans()
        self.path: Final = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-"))
        self._end = weakref.finalize(self, _end, os.getpid(), self.path, _hold(self.path))

    def remove(self) -> None:
        """Remove it with all that it holds; again does nothing."""
        self._end()


def remove_orphans() -> None:
    """Remove the folders of this user whose process is dead: they may hold keys, weights and momentum in the clear.

    Links are not followed, and nothing is touched that `Scratch` did not make, or on a system without such locks.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            lock = _lock_of(path)
            if lock is not None:
                undo.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path, None)


def _hold(path: Path) -> int | None:
    """Mark a folder as that of a living process; None where there are no locks: it is then never an orphan."""
    if sys.platform == "win32":
        return None
    side = path / f"{_HELD}.new"
    descriptor = os.open(side, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    side.rename(path / _HELD)
    return descriptor


def _lock_of(path: Path) -> int | None:
    """Return what to ask for the lock of a folder; None if it is not one of ours.

    Raises:
        OSError: it is gone, a link, or holds no such file.
    """
    if sys.platform == "win32":
        return None
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
            return None
        return os.open(_HELD, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def _end(process: int, path: Path, lock: int | None) -> None:
    """Remove a folder, but leave it to the process that made it where this one was forked from it."""
    if os.getpid() == process:
        _remove(path, lock)


def _remove(path: Path, lock: int | None) -> None:
    """Remove a folder, its mark last: what somebody leaves who is killed meanwhile is an orphan as before."""
    with contextlib.suppress(OSError):
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _HELD:
                entry.unlink()
        shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file beside its place, under a name that nobody can foresee, flush it, and put it there.

    Raises:
        OSError: it cannot be written; an older file is as it was.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    side = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        side.replace(path)
    finally:
        side.unlink(missing_ok=True)


def flush_directory(path: Path) -> None:
    """See to it that names in a directory are what they are after a power cut, too.

    Raises:
        OSError: it cannot be flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
