"""Files of the lab: whole or not at all."""

from pathlib import Path

from awfulowl import files
from awfulowl.errors import UnwritableError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and put it there; folders are made.

    Raises:
        UnwritableError: it cannot be written; an older file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, content)
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written: {error.strerror or error}") from error
