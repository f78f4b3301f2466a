"""Files that only their owner may read: written whole or not at all, and read with distrust."""

import os
import stat
from pathlib import Path

from awfulowl.errors import InputError
from awfulowl.files import write_whole


def write_private(path: Path, content: bytes) -> None:
    """Write `content` with mode 0600 beside `path` and rename it there: nobody ever sees half of it."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def read_private(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a plain file of at most `limit_bytes` that nobody else may read or write.

    Raises:
        InputError: there is no such file, it is a link, somebody else has access to it, or it is too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        _check_access(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit_bytes:
        raise InputError(f"{path} is larger than {limit_bytes} bytes: it is another kind of file")
    return content


def _check_access(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is no plain file")
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise InputError(f"{path} is open to others; if nobody can have read it: chmod 600 {path}")
