"""Write pickles as Python 2 and its numpy wrote them for CIFAR, and archives around them."""

import io
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"


@dataclass
class Table:
    """An array of bytes; the fields are what a forger would change."""

    raw: bytes
    shape: tuple[int, ...]
    code: bytes = b"u1"
    transposed: bool = False


def table(array: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> Table:
    return Table(array.tobytes(), array.shape)


def written(value: object) -> bytes:
    """The instructions that leave `value` on the stack."""
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case None:
            return b"N"
        case int() if 0 <= value < 256:
            return b"K" + bytes([value])
        case int():
            return b"J" + struct.pack("<i", value)
        case bytes() if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case list():
            return b"](" + b"".join(map(written, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(written, value)) + b"t"
        case dict():
            return b"}(" + b"".join(written(key) + written(item) for key, item in value.items()) + b"u"
        case Table():
            kind = DTYPE + written((value.code, 0, 1)) + b"R"
            kind += written((3, b"|", None, None, None, -1, -1, 0)) + b"b"
            empty = RECONSTRUCT + b"(" + NDARRAY + written((0,)) + written(b"b") + b"tR"
            state = b"(" + written(1) + written(value.shape) + kind + written(value.transposed)
            return empty + state + written(value.raw) + b"tb"
        case _:
            raise TypeError(type(value))


def dumps(value: object) -> bytes:
    return b"\x80\x02" + written(value) + b"."


def tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    """Write an archive; an entry with a name that ends in / is a folder."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            archive.addfile(member, io.BytesIO(content))
    return path


def folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        file = path / name
        if name.endswith("/"):
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path
