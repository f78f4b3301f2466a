"""Data as the lab uses it: what victims learn from, what pirates have, and what only the report sees."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.lab.files import write_whole
from awfulowl.limits import GIB
from awfulowl.models.data import DataSet, Labelled, read_cifar10, read_cifar100, scaled
from awfulowl.models.digits import read_digits

DIGITS: Final = "digits"
_SPLIT_SEED: Final = 0
"""Of what is held back: the same for all victims, so that a pirate's images are in no network's training."""
_MOST_BYTES: Final = 4 * GIB


class Sizes(NamedTuple):
    """How many images of a training set the victim never sees: the pirate's, to learn from and to choose by."""

    public: int
    validation: int


_DIGITS: Final = Sizes(300, 100)
_CIFAR: Final = Sizes(5000, 1000)
_SHARES: Final = (0.2, 0.05)
"""Public and validation images of a user's own data."""
_TEST_SHARE: Final = 0.2


class Split(NamedTuple):
    """Images and labels in four parts that share none; `train` may be uint8 (see `models.data.scaled`).

    `train` teaches victims; `public` and `validation` are the pirate's; `test` is for the report only. `digest` names
    the whole.
    """

    train: Labelled
    public: Labelled
    validation: Labelled
    test: Labelled
    classes: int
    digest: str


def some(images: Labelled, count: int, seed: int) -> Labelled:
    """Return `count` images drawn by a seed, or all: archives are sorted by class, so the first ones will not do."""
    if count >= len(images.labels):
        return images
    chosen = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))[:count]
    return Labelled(images.inputs[chosen], images.labels[chosen])


def cache_folder() -> Path:
    """Return where trained victims and decoded data are kept: the user's folder of caches."""
    return platformdirs.user_cache_path("awfulowl")


def read_split(text: str, cache: Path | None = None) -> Split:
    """Return the data that a DATA argument means, split.

    Args:
        text: digits; a path of CIFAR-10, or cifar10:PATH, cifar100:PATH; or a .safetensors file with `inputs`
            (n, ...) and int64 `labels` (n,), and `test_inputs` and `test_labels` if they are not to be drawn.
        cache: folder in which decoded pictures are kept; None: nowhere.

    Raises:
        InputError: it is unreadable, damaged, too little, or no such data.
    """
    if text == DIGITS:
        return split(read_digits(0), _DIGITS)
    kind, colon, rest = text.partition(":")
    if colon and kind in _ARCHIVES:
        return _archive(kind, Path(rest), cache)
    path = Path(text)
    if path.suffix == ".safetensors":
        return _own(path)
    if not path.exists():
        raise InputError(f"no data {text!r}; give digits, the path of CIFAR-10, cifar100:PATH, or a .safetensors file")
    return _archive("cifar10", path, cache)


def split(data: DataSet, sizes: Sizes) -> Split:
    """Hold the pirate's images back from a training set; pixels of theirs and of the test become float32.

    Raises:
        InputError: less than half of the training set would be left.
    """
    total, held = len(data.train.labels), sizes.public + sizes.validation
    if 2 * held > total:
        raise InputError(f"of {total} images to train on, {held} cannot be held back for the pirate")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    public, validation, train = order[: sizes.public], order[sizes.public : held], order[held:]
    return Split(
        train=_some(data.train, train),
        public=_floats(_some(data.train, public)),
        validation=_floats(_some(data.train, validation)),
        test=_floats(data.test),
        classes=len(data.classes),
        digest=digest([*data.train, *data.test]),
    )


def digest(tensors: list[Tensor]) -> str:
    """Return BLAKE2b of the shapes and bytes of some tensors, as hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        state.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        state.update(tensor.contiguous().numpy().data)
    return state.hexdigest()


def _some(examples: Labelled, chosen: Tensor) -> Labelled:
    return Labelled(examples.inputs[chosen], examples.labels[chosen])


def _floats(examples: Labelled) -> Labelled:
    return Labelled(as_float(examples.inputs), examples.labels)


def as_float(inputs: Tensor) -> Tensor:
    """Return pixels in [-1, 1] for uint8, and anything else as it is."""
    return scaled(inputs) if inputs.dtype is torch.uint8 else inputs


_ARCHIVES: Final[Mapping[str, Callable[[Path], DataSet]]] = {"cifar10": read_cifar10, "cifar100": read_cifar100}


def _archive(kind: str, path: Path, cache: Path | None) -> Split:
    """Return an archive's pictures; decoding tens of thousands takes long, so they are kept."""
    try:
        facts = path.resolve().stat()
    except OSError as error:
        raise InputError(f"{path}: no readable data: {error.strerror}") from error
    name = repr((kind, str(path.resolve()), facts.st_size, facts.st_mtime_ns)).encode()
    kept = (
        None
        if cache is None
        else cache / "data" / f"{kind}-{hashlib.blake2b(name, digest_size=12).hexdigest()}.safetensors"
    )
    found = None if kept is None else _kept(kept)
    if found is None:
        found = _ARCHIVES[kind](path)
        if kept is not None:
            tensors = {
                f"{part}_{what}": tensor
                for part, examples in (("train", found.train), ("test", found.test))
                for what, tensor in zip(("inputs", "labels"), examples, strict=True)
            }
            write_whole(kept, save(tensors, metadata={"classes": "\n".join(found.classes)}))
    return split(found, _CIFAR)


def _kept(path: Path) -> DataSet | None:
    """Return what was decoded before, or None where nothing is kept or the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            classes = tuple(file.metadata()["classes"].split("\n"))
            parts = {
                name: file.get_tensor(name) for name in ("train_inputs", "train_labels", "test_inputs", "test_labels")
            }
    except (OSError, SafetensorError, KeyError):
        return None
    return DataSet(
        train=Labelled(parts["train_inputs"], parts["train_labels"]),
        test=Labelled(parts["test_inputs"], parts["test_labels"]),
        classes=classes,
    )


def _own(path: Path) -> Split:
    """Read a user's own data."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: more than {_MOST_BYTES // GIB} GiB; cut it down")
        parts = load_file(path)
    except OSError as error:
        raise InputError(f"{path}: no readable data: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path}: no safetensors file: {error}") from error
    known = {"inputs", "labels", "test_inputs", "test_labels"}
    if not {"inputs", "labels"} <= parts.keys() <= known or len(parts) == 3:
        raise InputError(
            f"{path} holds {', '.join(sorted(parts))}; it must hold inputs and labels, and test_inputs and test_labels "
            "if they are not to be drawn"
        )
    train = _checked(Labelled(parts["inputs"], parts["labels"]), path)
    if "test_inputs" in parts:
        test = _checked(Labelled(parts["test_inputs"], parts["test_labels"]), path)
    else:
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        tests = round(_TEST_SHARE * len(order))
        train, test = _some(train, order[tests:]), _some(train, order[:tests])
    classes = 1 + int(torch.cat([train.labels, test.labels]).max())
    public, validation = (round(share * len(train.labels)) for share in _SHARES)
    if min(len(test.labels), public, validation) < classes:
        raise InputError(
            f"{path}: {len(train.labels)} images to train on and {len(test.labels)} to test with are too few"
        )
    return split(DataSet(train, test, tuple(map(str, range(classes)))), Sizes(public, validation))


def _checked(examples: Labelled, path: Path) -> Labelled:
    inputs, labels = examples
    if inputs.dtype not in {torch.float32, torch.uint8} or labels.dtype != torch.int64:
        raise InputError(
            f"{path}: inputs are {inputs.dtype} and labels {labels.dtype}, not float32 (or uint8) and int64"
        )
    if labels.dim() != 1 or inputs.dim() < 2 or len(inputs) != len(labels) or not len(labels):
        raise InputError(
            f"{path}: inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} do not belong together"
        )
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        raise InputError(f"{path}: inputs with numbers that are not finite")
    if int(labels.min()) < 0:
        raise InputError(f"{path}: label {int(labels.min())}; labels are numbers from 0")
    return examples
