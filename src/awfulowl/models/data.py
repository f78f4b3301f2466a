"""Data sets from files that the user has: CIFAR-10, CIFAR-100 and text. Nothing is ever downloaded."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.limits import MIB
from awfulowl.models.archives import read_bounded, read_members
from awfulowl.models.unpickling import StoredArray, unpickle_batch

_IMAGE: Final = (3, 32, 32)
_MOST_TEXT_BYTES: Final = 256 * MIB


class Labelled(NamedTuple):
    """Inputs (n, ...) and their int64 labels (n,)."""

    inputs: Tensor
    labels: Tensor


class DataSet(NamedTuple):
    """Examples to train on, examples never trained on, and the names of the labels."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]


class Text(NamedTuple):
    """A text as int64 token numbers (n,), each the place of a character in the sorted `alphabet`."""

    tokens: Tensor
    alphabet: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pickled:
    """The names inside one official archive."""

    title: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


_CIFAR10: Final = _Pickled(
    title="CIFAR-10",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels=b"labels",
    names=b"label_names",
)
_CIFAR100: Final = _Pickled(
    title="CIFAR-100",
    train=("train",),
    test="test",
    meta="meta",
    labels=b"fine_labels",
    names=b"fine_label_names",
)


def read_cifar10(path: Path) -> DataSet:
    """Read CIFAR-10 from the official python archive, or from one of JPEG files; packed or as a folder.

    The JPEG form has `train/CLASS/NAME.jpg` and `test/CLASS/NAME.jpg`, needs pillow, and is slightly lossy.

    Returns:
        uint8 inputs (n, 3, 32, 32) with red, green and blue from 0 to 255: see `scaled`.

    Raises:
        InputError: missing, truncated, damaged, hostile or another archive; or pillow is not installed.
    """
    found = read_members(path, lambda name: _pickled_key(_CIFAR10, name) or _jpeg_key(name))
    pictures = {name: content for name, content in found.items() if "/" in name}
    if pictures and len(pictures) == len(found):
        return _pictures(pictures, path)
    return _pickled(_CIFAR10, found, path)


def read_cifar100(path: Path) -> DataSet:
    """Read CIFAR-100, with its 100 fine labels, from the official python archive (.tar.gz or its folder).

    Returns:
        uint8 inputs (n, 3, 32, 32) with red, green and blue from 0 to 255: see `scaled`.

    Raises:
        InputError: missing, truncated, damaged, hostile or another archive.
    """
    return _pickled(_CIFAR100, read_members(path, lambda name: _pickled_key(_CIFAR100, name)), path)


def scaled(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [-1, 1], of the same shape."""
    return pixels.to(torch.float32).div(127.5).sub(1.0)


def read_text(path: Path) -> Text:
    """Read a UTF-8 text for a character language model.

    Raises:
        InputError: the file is missing, empty, too large, or not UTF-8.
    """
    try:
        text = read_bounded(path, _MOST_TEXT_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable UTF-8 text: {error}") from error
    if not text:
        raise InputError(f"{path}: an empty text")
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    alphabet, tokens = np.unique(points, return_inverse=True)
    return Text(torch.from_numpy(tokens), "".join(map(chr, alphabet)))


def _pickled_key(form: _Pickled, name: PurePosixPath) -> str | None:
    return name.name if name.name in form.files else None


def _jpeg_key(name: PurePosixPath) -> str | None:
    parts = name.parts[-3:]
    wanted = len(parts) == 3 and parts[0] in {"train", "test"} and name.suffix == ".jpg"
    return "/".join(parts) if wanted else None


def _pickled(form: _Pickled, found: Mapping[str, bytes], path: Path) -> DataSet:
    missing = [name for name in form.files if name not in found]
    if missing:
        raise InputError(f"{path}: not a whole {form.title} archive: it lacks {', '.join(missing)}")
    names = unpickle_batch(found[form.meta], f"{path}: {form.meta}").get(form.names)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes) for name in names):
        raise InputError(f"{path}: {form.meta} has no list of class names; get the official archive")
    batches = [_batch(form, found[name], f"{path}: {name}", len(names)) for name in form.train]
    return DataSet(
        train=Labelled(*map(torch.cat, zip(*batches, strict=True))),
        test=_batch(form, found[form.test], f"{path}: {form.test}", len(names)),
        classes=tuple(name.decode("ascii", "replace") for name in names),
    )


def _batch(form: _Pickled, raw: bytes, where: str, classes: int) -> Labelled:
    batch = unpickle_batch(raw, where)
    stored, labels = batch.get(b"data"), batch.get(form.labels)
    if not isinstance(stored, StoredArray) or not isinstance(labels, list):
        raise InputError(f"{where}: no images and labels of {form.title}; get the official archive")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise InputError(f"{where}: a label that is no number below {classes}; get the official archive")
    pixels = stored.tensor()
    if pixels.shape != (len(labels), 3 * 32 * 32):
        raise InputError(f"{where}: images of shape {tuple(pixels.shape)} with {len(labels)} labels")
    return Labelled(pixels.reshape(-1, *_IMAGE), torch.tensor(labels, dtype=torch.int64))


def _pictures(found: Mapping[str, bytes], path: Path) -> DataSet:
    parts = {name: PurePosixPath(name).parts for name in sorted(found)}
    classes = tuple(sorted({part[1] for part in parts.values()}))
    if len(classes) != 10:
        raise InputError(f"{path}: CIFAR-10 has 10 classes, these are {len(classes)}: {', '.join(classes[:20])}")
    numbers = {name: number for number, name in enumerate(classes)}

    def half(which: str) -> Labelled:
        chosen = [name for name, part in parts.items() if part[0] == which]
        if not chosen:
            raise InputError(f"{path}: no pictures under {which}/")
        labels = torch.tensor([numbers[parts[name][1]] for name in chosen])
        return Labelled(torch.stack([*_decoded(chosen, found, path)]), labels)

    return DataSet(train=half("train"), test=half("test"), classes=classes)


def _decoded(names: list[str], found: Mapping[str, bytes], path: Path) -> Iterator[Tensor]:
    try:
        from PIL import Image  # noqa: PLC0415 - an extra: only this form of the data needs it
    except ImportError as error:
        raise InputError("JPEG files need pillow, which is not installed: pip install 'awfulowl[data]'") from error
    for name in names:
        try:
            with Image.open(io.BytesIO(found[name]), formats=["JPEG"]) as picture:
                # The size stands in the header: a huge picture is refused before it is decoded.
                if picture.size != (32, 32):
                    raise InputError(f"{path}: {name} is {picture.size[0]} x {picture.size[1]}, not 32 x 32")
                raw = bytearray(picture.convert("RGB").tobytes())
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: {name} is no readable JPEG file: {error}") from error
        yield torch.frombuffer(raw, dtype=torch.uint8).reshape(32, 32, 3).permute(2, 0, 1)
