"""Read the wanted files of a data archive or folder into memory, within bounds; nothing goes to disk."""

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

from awfulowl.errors import InputError
from awfulowl.limits import MIB

Key = Callable[[PurePosixPath], str | None]
"""The name under which a file is wanted, or None when it is not."""

_PACKED: Final[dict[bytes, type[gzip.GzipFile] | type[lzma.LZMAFile]]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"\xfd7": lzma.LZMAFile,
}
_DAMAGE: Final = (EOFError, OSError, RecursionError, tarfile.TarError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveLimits:
    """Bounds on one archive or folder; a bomb is refused before it fills the memory."""

    member_bytes: int = 256 * MIB
    """One file. The training set of CIFAR-100 has 148 MiB."""
    total_bytes: int = 512 * MIB
    """The whole archive, unpacked. The official ones have 178 MiB, CIFAR-10 as JPEG files about 120 MiB."""
    members: int = 100_000
    """Files and folders. CIFAR-10 as JPEG files has 60,022."""


DEFAULT: Final = ArchiveLimits()


def read_members(path: Path, key: Key, limits: ArchiveLimits = DEFAULT) -> dict[str, bytes]:
    """Return the wanted files of a .tar.gz, a .tar.xz or a folder, under the names that `key` gives them.

    Raises:
        InputError: nothing is there; it is no such archive, is damaged or truncated, is over a limit, holds
            links or names that lead outside it; or two files are wanted under one name.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; data is never downloaded, give the path of a copy")
    found: dict[str, bytes] = {}
    try:
        for name, content in _folder(path, key, limits) if path.is_dir() else _archive(path, key, limits):
            if name in found:
                raise InputError(f"{path}: {name} is there twice; keep one of them")
            found[name] = content
    except _DAMAGE as error:
        raise InputError(f"{path}: unreadable, truncated or damaged ({error}); get it again") from error
    return found


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: it has more than `most` bytes.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path}: more than the {most} bytes that are read at most")
    return content


def _folder(path: Path, key: Key, limits: ArchiveLimits) -> Iterator[tuple[str, bytes]]:
    total = 0
    for count, file in enumerate(path.rglob("*"), 1):
        if count > limits.members:
            raise InputError(f"{path}: more than {limits.members} files; give the folder of the data itself")
        name = key(PurePosixPath(file.relative_to(path).as_posix()))
        if name is None or not file.is_file():
            continue
        content = read_bounded(file, limits.member_bytes)
        total += len(content)
        if total > limits.total_bytes:
            raise InputError(f"{path}: the files have more than the {limits.total_bytes} bytes that are read at most")
        yield name, content


def _archive(path: Path, key: Key, limits: ArchiveLimits) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        magic = file.read(2)
    if magic not in _PACKED:
        raise InputError(f"{path}: neither a folder nor a tar archive packed with gzip or xz")
    # A stream and not a seekable file: every byte is unpacked once, and counted before tarfile sees it.
    with (
        _PACKED[magic](path) as packed,
        _Bounded(packed, path, limits.total_bytes) as stream,
    ):
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as tar:
            for count, member in enumerate(tar, 1):
                if count > limits.members:
                    raise InputError(f"{path}: more than the {limits.members} files that are read at most")
                _check(member, path, limits)
                name = key(PurePosixPath(member.name))
                content = tar.extractfile(member) if name is not None else None
                if name is not None and content is not None:
                    yield name, content.read()
        stream.drain()


def _check(member: tarfile.TarInfo, path: Path, limits: ArchiveLimits) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"{path}: {member.name!r} leads outside the archive; this is not the official one")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise InputError(f"{path}: {member.name!r} is neither a file nor a folder; this is not the official archive")
    if member.size > limits.member_bytes:
        raise InputError(f"{path}: {member.name!r} claims {member.size} bytes, the limit is {limits.member_bytes}")


class _Bounded(io.RawIOBase):
    """An unpacked stream that ends in an error after `most` bytes."""

    def __init__(self, stream: io.BufferedIOBase, path: Path, most: int) -> None:
        super().__init__()
        self._stream, self._path, self._most, self._count = stream, path, most, 0

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes, as many as one step of unpacking gives."""
        content = self._stream.read(size)
        self._count += len(content)
        if self._count > self._most:
            raise InputError(f"{self._path}: unpacks to more than the {self._most} bytes that are read at most")
        return content

    def drain(self) -> None:
        """Read to the end, so that the checksum at the end of the packed file is verified."""
        while self.read(MIB):
            pass
