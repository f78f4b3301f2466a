"""A folder of code as one string of bytes: plain ustar without compression, and no other form of it.

Attacks: archives whose members leave the folder (`..`, absolute names), point elsewhere (links), are devices, are
there twice so that two readers see two files, claim more bytes than there are, or are too many to hold. The reader
takes only what the writer writes, byte for byte (POSIX.1-1988 headers of plain files, names ascending): each set of
files has exactly one archive, so its digest is the digest of the code. Nothing is ever written to a disk.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from awfulowl.errors import InputError
from awfulowl.limits import MIB
from awfulowl.models.archives import ArchiveLimits

CODE: Final = ArchiveLimits(member_bytes=8 * MIB, total_bytes=32 * MIB, members=1000)
"""Bounds on a job's code: scripts and small tables. Weights and examples are data."""

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_NAME_BYTES: Final = 100
_DEPTH: Final = 16
_PART: Final = re.compile(r"[A-Za-z0-9_+@-][A-Za-z0-9_.+@ -]*")
_SIZE: Final = slice(124, 136)
_SUM: Final = slice(148, 156)
_KIND: Final = 156
_KINDS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder on its own",
    b"6": "a pipe",
}
_SKIPPED: Final = "__pycache__"


def pack(files: Mapping[str, bytes], limits: ArchiveLimits = CODE) -> bytes:
    """Return the archive of some files, by their names with `/` between folders.

    Raises:
        InputError: a name is none that may be packed, or the files are over a limit.
    """
    parts: list[bytes] = []
    held = _Held(limits)
    for name in sorted(files):
        content = files[name]
        held.take(name, len(content))
        parts += [_header(name, len(content)), content, bytes(-len(content) % _BLOCK)]
    return b"".join([*parts, _END])


def unpack(archive: bytes, limits: ArchiveLimits = CODE) -> dict[str, bytes]:
    """Return the files of an archive that `pack` wrote, and of no other.

    Raises:
        InputError: it is truncated or altered, over a limit, or holds what no packed folder holds.
    """
    files: dict[str, bytes] = {}
    for name, start, size in _members(memoryview(archive), limits):
        files[name] = archive[start : start + size]
    return files


def read_folder(folder: Path, limits: ArchiveLimits = CODE) -> dict[str, bytes]:
    """Return the files below a folder; those with a dot in front and `__pycache__` are left out.

    Raises:
        InputError: it cannot be read, is over a limit, or holds links, devices or names that cannot be packed.
    """
    held = _Held(limits)
    try:
        return {name: _content(path, name, held) for name, path in sorted(_walk(folder, folder, limits))}
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


class _Held:
    """What was taken so far, and whether one more may be."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._names: set[str] = set()
        self._folders: set[str] = set()
        self._last = ""

    def take(self, name: str, size: int) -> None:
        """Count one more file.

        Raises:
            InputError: it may not be there.
        """
        check_name(name)
        folders = {name[: place.start()] for place in re.finditer("/", name)}
        if name <= self._last:
            raise InputError(f"the file {name!r} is there twice, or out of order")
        if folders & self._names or name in self._folders:
            raise InputError(f"{name!r} would be in a folder that is also a file")
        if size > self._limits.member_bytes:
            raise InputError(f"{name!r} has {size} bytes, and a file may have {self._limits.member_bytes}")
        self._last = name
        self._bytes += size
        self._names.add(name)
        self._folders |= folders
        if len(self._names) > self._limits.members:
            raise InputError(f"more than {self._limits.members} files of code")
        if self._bytes > self._limits.total_bytes:
            raise InputError(f"the files have more than {self._limits.total_bytes} bytes together")


def check_name(name: str) -> str:
    """Return `name` if a file of code may bear it: relative, inside its folder, plain characters.

    Raises:
        InputError: it may not.
    """
    parts = name.split("/")
    fits = len(name.encode(errors="replace")) <= _NAME_BYTES and len(parts) <= _DEPTH
    if not fits or not all(_PART.fullmatch(part) for part in parts):
        raise InputError(
            f"{name[:_NAME_BYTES]!r} is no name for a file of code: relative, without '..', of letters, digits and "
            f"_.+@ -, at most {_NAME_BYTES} bytes in {_DEPTH} folders"
        )
    return name


def _members(view: memoryview, limits: ArchiveLimits) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each file; nothing is copied before its header was checked."""
    held, place = _Held(limits), 0
    while bytes(view[place : place + len(_END)]) != _END:
        header = bytes(view[place : place + _BLOCK])
        name, size = _read_header(header)
        held.take(name, size)
        start = place + _BLOCK
        place = start + size + -size % _BLOCK
        if place > len(view):
            raise InputError(f"the archive of the code ends inside {name!r}: it was cut short")
        if any(view[start + size : place]):
            raise InputError(f"something is hidden behind {name!r} in the archive of the code")
        yield name, start, size
    if place + len(_END) != len(view):
        raise InputError("something is hidden behind the end of the archive of the code")


def _read_header(header: bytes) -> tuple[str, int]:
    if len(header) < _BLOCK:
        raise InputError("the archive of the code has no end: it was cut short")
    kind = header[_KIND : _KIND + 1]
    raw = header[:_NAME_BYTES].rstrip(b"\0")
    if kind in _KINDS:
        raise InputError(f"{raw!r} in the archive of the code is {_KINDS[kind]}: only plain files are taken")
    size = header[_SIZE][:-1]
    if kind != b"0" or not re.fullmatch(rb"[0-7]{11}", size):
        raise InputError("the archive of the code holds a header that is none of a plain file")
    name = check_name(raw.decode("ascii", "replace"))
    if header != _header(name, int(size, 8)):
        raise InputError(f"the header of {name!r} in the archive of the code was altered")
    return name, int(size, 8)


def _header(name: str, size: int) -> bytes:
    """Return the header of a plain file of nobody, of mode 0644, of no time (POSIX.1-1988, ustar)."""
    block = bytearray(_BLOCK)
    block[0 : len(name)] = name.encode()
    block[100:124] = b"0000644\x000000000\x000000000\0"
    block[_SIZE] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[_SUM] = b" " * 8
    block[_KIND] = ord("0")
    block[257:265] = b"ustar\x0000"
    block[_SUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def _walk(folder: Path, top: Path, limits: ArchiveLimits) -> Iterator[tuple[str, Path]]:
    found = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            found += 1
            if found > limits.members:
                raise InputError(f"{folder} holds more than {limits.members} files; name the folder of the code itself")
            if entry.name.startswith(".") or entry.name == _SKIPPED:
                continue
            path = folder / entry.name
            name = path.relative_to(top).as_posix()
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                raise InputError(f"{path} is a link or a device: only plain files can be packed; copy it there")
            check_name(name)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path, top, limits)
            else:
                yield name, path


def _content(path: Path, name: str, held: _Held) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no plain file")
        held.take(name, status.st_size)
        content = file.read(status.st_size + 1)
    if len(content) != status.st_size:
        raise InputError(f"{path} changes while it is read; pack again when it is still")
    return content
