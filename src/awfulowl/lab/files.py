"""Files of the lab: whole or not at all."""

import os
import tempfile
from pathlib import Path

from awfulowl.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and put it there; folders are made.

    Raises:
        InputError: it cannot be written (a full disk, a folder that is not ours); an older file is as it was.
    """
    side: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        side = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        side.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if side is not None:
            side.unlink(missing_ok=True)
