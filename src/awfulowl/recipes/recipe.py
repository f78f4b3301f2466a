"""What a training consists of, read from a TOML file or known by name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from msgspec import Meta

from awfulowl.errors import InputError
from awfulowl.limits import KIB
from awfulowl.models.archives import read_bounded

Data = Literal["digits", "cifar10", "cifar100", "text"]
Schedule = Literal["constant", "cosine"]
Augment = Literal["none", "flip", "crop"]

_MOST_BYTES: Final = 64 * KIB
_WHERE: Final = " - at `$."

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]
Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Count = Annotated[int, Meta(ge=1, le=10**8)]
Cadence = Annotated[int, Meta(ge=0, le=10**8)]
Size = Annotated[int, Meta(ge=1, le=65_536)]
Rate = Annotated[float, Meta(gt=0, le=1000)]
Decay = Annotated[float, Meta(ge=0, le=10)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training: the model, the data, and how the one learns from the other; everything that a seed repeats.

    Raises:
        InputError: fields contradict each other.
    """

    name: Name
    model: Text
    """convnet, characters, a reference model (digits, vgg16:10), or path/to/file.py:function, which is run."""
    data: Data
    path: Text | None = None
    """Where the data is; digits come with scikit-learn."""
    epochs: Count | None = None
    steps: Count | None = None
    """How long: one of the two."""
    batch: Size = 64
    micro_batches: Size = 1
    """A batch goes forward and backward in so many parts, whose gradients are added."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """adam: with decoupled, AdamW. What is proved of its steps is less (docs/threat-model.md)."""
    lr: Rate
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Decay = 0.0
    decoupled: bool = False
    """Weights decay by themselves, as in AdamW, and not through the gradient."""
    schedule: Schedule = "constant"
    warmup: Cadence = 0
    """Steps in which the learning rate rises from nearly nothing."""
    clip: Rate | None = None
    """The longest gradient that a step follows; None: any."""
    augment: Augment = "none"
    """flip: half of the pictures are mirrored; crop: they are moved by up to 4 pixels besides."""
    context: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Characters of text that the model sees at once."""
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 0
    """Of the fresh weights, of the order of the data, of what is held back of digits, and of random layers."""
    checkpoint_every: Cadence = 100
    """Steps between checkpoints; 0: none before the end."""
    eval_every: Cadence = 0
    """Steps between evaluations on data that is held back; 0: only at the end."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise InputError("epochs and steps: give one of the two")
        if self.batch % self.micro_batches:
            raise InputError(f"micro_batches: {self.micro_batches} do not divide a batch of {self.batch}")
        if self.optimizer == "adam" and self.momentum:
            raise InputError("momentum: Adam has its own, leave it out")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov: it looks ahead along the momentum, so momentum must be above 0")
        if self.augment != "none" and self.data not in {"cifar10", "cifar100"}:
            raise InputError(f"augment: {self.augment} is for pictures that may be mirrored, not for {self.data}")
        for field in ("lr", "momentum", "weight_decay", "clip"):
            value = getattr(self, field)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{field}: {value} is no finite number")

    def at(self, folder: Path) -> Self:
        """Return the recipe with paths that are relative to a folder, as those in a file are to the file's."""
        file, colon, function = self.model.rpartition(":")
        model = f"{folder / file}:{function}" if colon and file.endswith(".py") else self.model
        path = None if self.path is None else str(folder / self.path)
        return msgspec.structs.replace(self, model=model, path=path)

    def total(self, per_epoch: int) -> int:
        """Return the number of steps, of which an epoch has `per_epoch`."""
        return self.steps if self.steps is not None else per_epoch * (self.epochs or 0)

    def factor(self, step: int, total: int) -> float:
        """Return what the learning rate is multiplied by in a step, counted from 0: warm-up, then the schedule."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, total - self.warmup)))


BUILT_IN: Final[Mapping[str, Recipe]] = {
    "digits": Recipe(
        name="digits",
        model="digits",
        data="digits",
        epochs=12,
        batch=64,
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        warmup=20,
        checkpoint_every=50,
        eval_every=88,
    ),
    "cifar10": Recipe(
        name="cifar10",
        model="convnet",
        data="cifar10",
        epochs=12,
        batch=128,
        lr=0.05,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="cosine",
        warmup=400,
        augment="flip",
        checkpoint_every=100,
        eval_every=390,
    ),
    "text": Recipe(
        name="text",
        model="characters",
        data="text",
        steps=1000,
        batch=32,
        lr=1.0,
        momentum=0.9,
        schedule="cosine",
        warmup=100,
        clip=1.0,
        context=64,
        checkpoint_every=50,
        eval_every=500,
    ),
}
"""Recipes by name; cifar10 and text need to be told where the data is."""


def find_recipe(text: str) -> Recipe:
    """Return the recipe that a RECIPE argument means: a name of `BUILT_IN`, or the path of a TOML file.

    Raises:
        InputError: there is no such recipe, or the file is none.
    """
    if text in BUILT_IN:
        return BUILT_IN[text]
    path = Path(text)
    if path.suffix == ".toml" or path.exists():
        return read_recipe(path)
    raise InputError(f"no recipe {text!r}; there are {', '.join(BUILT_IN)}, and path/to/file.toml")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file; paths in it are relative to its folder, its name is the file's unless it says.

    Raises:
        InputError: it cannot be read, is no TOML, or a field is unknown, missing or out of range.
    """
    try:
        content = read_bounded(path, _MOST_BYTES)
        found = msgspec.toml.decode(content)
    except OSError as error:
        raise InputError(f"{path}: no readable recipe: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: no TOML: {error}") from error
    return _converted({"name": path.stem, **found}, str(path)).at(path.parent)


def changed(recipe: Recipe, **changes: object) -> Recipe:
    """Return a recipe with other values in some fields, which are checked; None leaves one as it is.

    Raises:
        InputError: a value is out of range, or contradicts another field.
    """
    given = {field: value for field, value in changes.items() if value is not None}
    both = {"epochs", "steps"}
    kept = {
        field: value
        for field, value in msgspec.to_builtins(recipe).items()
        if not (field in both and both & given.keys())
    }
    return _converted({**kept, **given}, f"recipe {recipe.name}")


def _converted(fields: Mapping[str, Any], where: str) -> Recipe:
    try:
        return msgspec.convert(fields, Recipe)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_sentence(str(error))}") from error


def _sentence(complaint: str) -> str:
    """Return what msgspec complains of with the field in front."""
    text, _, field = complaint.rpartition(_WHERE)
    if text:
        return f"{field.rstrip('`')}: {text[0].lower()}{text[1:]}"
    known = f"; there are {', '.join(Recipe.__struct_fields__)}" if "unknown field" in complaint else ""
    return f"{complaint[0].lower()}{complaint[1:]}{known}"
