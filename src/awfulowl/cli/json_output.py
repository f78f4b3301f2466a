"""Numbers as JSON, for programs: whole or not at all."""

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from awfulowl.errors import InputError
from awfulowl.files import write_whole

_STANDARD_OUTPUT: Final = Path("-")


def is_standard_output(target: Path) -> bool:
    """Say whether `target` stands for standard output."""
    return target == _STANDARD_OUTPUT


def check_target(target: Path | None) -> None:
    """Refuse a place that cannot be written to, before the work is done whose numbers would go there.

    Raises:
        InputError: its folder is not there or not writable, or it is a folder itself.
    """
    if target is None or is_standard_output(target):
        return
    folder = target.resolve().parent
    if target.is_dir():
        raise InputError(f"--json {target} is a folder; name a file in it, or - for standard output")
    if not folder.is_dir():
        raise InputError(f"--json {target}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--json {target}: nothing may be written in {folder}")


def write(value: msgspec.Struct | Sequence[msgspec.Struct], target: Path | None) -> None:
    """Write a value or a list: beside an older file and then in its place, or to standard output. None: nowhere.

    Raises:
        InputError: it cannot be written; an older file is as it was.
    """
    if target is None:
        return
    content = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    if is_standard_output(target):
        sys.stdout.write(content.decode())
        sys.stdout.flush()
        return
    try:
        _replace(target.resolve(), content)
    except OSError as error:
        raise InputError(f"--json {target} cannot be written: {error.strerror}") from error


def _replace(target: Path, content: bytes) -> None:
    if target.exists() and not target.is_file():
        target.write_bytes(content)  # a device or a pipe: there is nothing to replace
        return
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
    write_whole(target, content, mode)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
