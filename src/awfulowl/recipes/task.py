"""From a recipe to a fresh model, batches in an order that only the seed decides, and a figure on held-back data."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.errors import InputError
from awfulowl.models.catalogue import load_example
from awfulowl.models.convnet import ConvNet
from awfulowl.models.data import DataSet, Labelled, Text, read_cifar10, read_cifar100, read_text, scaled
from awfulowl.models.digits import read_digits
from awfulowl.models.seeding import seeded
from awfulowl.models.transformer import Transformer, TransformerConfig
from awfulowl.randomness import derive
from awfulowl.recipes.recipe import Augment, Recipe

Metric = Literal["accuracy", "nats"]
"""Share of right answers, or mean cross-entropy of the next character."""

_KEY: Final = b"awfulowl recipe"
_ORDER, _CHANCE = 0, 1
_EVALUATED_AT_ONCE: Final = 256
_FAR: Final = 4
_HELD_BACK: Final = 0.1
"""Of a text: its end."""


class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...

    def take(self, numbers: Tensor, chance: torch.Generator | None) -> Labelled:
        """Return some examples; what is random in them comes from `chance`, and without it nothing is."""

    def tensors(self) -> Iterable[Tensor]:
        """Return what the examples are made of."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pictures:
    """Labelled pictures (n, channels, height, width), uint8 or float32, and what is done to them by chance."""

    examples: Labelled
    augment: Augment = "none"

    def __len__(self) -> int:
        return len(self.examples.labels)

    def take(self, numbers: Tensor, chance: torch.Generator | None) -> Labelled:
        """Return some pictures as float32, and their labels."""
        inputs = self.examples.inputs[numbers]
        inputs = scaled(inputs) if inputs.dtype is torch.uint8 else inputs
        if self.augment != "none" and chance is not None:
            mirrored = torch.rand(len(numbers), generator=chance) < 0.5
            inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
            inputs = moved(inputs, chance) if self.augment == "crop" else inputs
        return Labelled(inputs, self.examples.labels[numbers])

    def tensors(self) -> Iterable[Tensor]:
        """Return pictures and labels."""
        return self.examples


def moved(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Return pictures (n, channels, height, width), each moved by chance by at most `_FAR` pixels; zeros come in."""
    count, channels, height, width = pictures.shape
    larger = functional.pad(pictures, (_FAR,) * 4)
    top, left = torch.randint(2 * _FAR + 1, (2, count, 1), generator=chance)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    every, colours = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return larger[every, colours, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Windows:
    """Pieces of a text, `context` characters each; the label of a character is the next one."""

    tokens: Tensor
    context: int

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - self.context) // self.context)

    def take(self, numbers: Tensor, chance: torch.Generator | None) -> Labelled:
        """Return some pieces, each moved by chance by less than its length, and the same one character on."""
        starts = numbers * self.context
        if chance is not None:
            starts = starts + torch.randint(self.context, starts.shape, generator=chance)
        places = starts[:, None] + torch.arange(self.context)
        return Labelled(self.tokens[places], self.tokens[places + 1])

    def tensors(self) -> Iterable[Tensor]:
        """Return the text."""
        return (self.tokens,)


class Batches:
    """The batches of a training by the number of the step: a pure function of the seed, so that nothing is stored."""

    def __init__(self, source: Source, batch: int, seed: int) -> None:
        """Prepare to draw batches.

        Raises:
            InputError: there are fewer examples than a batch has.
        """
        self.per_epoch = len(source) // batch
        if not self.per_epoch:
            raise InputError(f"batch: {batch} is more than the {len(source)} examples that there are to train on")
        self._source, self._batch, self._seed = source, batch, seed
        self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Labelled:
        """Return the batch of a step, counted from 0; the last examples of an epoch that fill none are left out."""
        epoch, position = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, torch.randperm(len(self._source), generator=_generator(self._seed, _ORDER, epoch))
        numbers = self._order[1][position * self._batch :][: self._batch]
        return self._source.take(numbers, _generator(self._seed, _CHANCE, epoch, position))


def _generator(seed: int, *numbers: int) -> torch.Generator:
    mixed = int.from_bytes(derive(_KEY, seed, *numbers)[:8], "little") >> 1
    return torch.Generator().manual_seed(mixed)


class Task(NamedTuple):
    """What a recipe trains, on what, and by which figure on held-back data it is judged."""

    model: nn.Module
    train: Source
    test: Source
    metric: Metric

    @property
    def example(self) -> Tensor:
        """One sample of the model's input."""
        return self.test.take(torch.zeros(1, dtype=torch.int64), None).inputs

    def digest(self) -> str:
        """Return what tells this data from other data."""
        state = hashlib.sha256()
        for tensor in (*self.train.tensors(), *self.test.tensors()):
            state.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.contiguous().numpy().data)
        return state.hexdigest()


def make_task(recipe: Recipe) -> Task:
    """Read a recipe's data and make its model, fresh from the seed.

    Raises:
        InputError: the data is missing, or not what the recipe says; there is no such model, or it does not take this
            data.
    """
    if recipe.data == "text":
        text = read_text(_path(recipe))
        train, test = _windows(recipe, text)
        task = Task(_model(recipe, text.alphabet), train, test, "nats")
        classes = len(text.alphabet)
    else:
        found = _pictures(recipe)
        task = Task(
            _model(recipe, found.classes),
            Pictures(examples=found.train, augment=recipe.augment),
            Pictures(examples=found.test),
            "accuracy",
        )
        classes = len(found.classes)
    _check(recipe, task, classes)
    return task


def _path(recipe: Recipe) -> Path:
    if recipe.path is None:
        raise InputError(f"recipe {recipe.name}: where is the data ({recipe.data})? Give its path with --data")
    return Path(recipe.path)


def _pictures(recipe: Recipe) -> DataSet:
    if recipe.data == "digits":
        if recipe.path is not None:
            raise InputError("path: digits come with scikit-learn, there is no file to name")
        return read_digits(recipe.seed)
    return read_cifar10(_path(recipe)) if recipe.data == "cifar10" else read_cifar100(_path(recipe))


def _windows(recipe: Recipe, text: Text) -> tuple[Windows, Windows]:
    end = len(text.tokens) - int(_HELD_BACK * len(text.tokens))
    train, test = (Windows(tokens=part, context=recipe.context) for part in (text.tokens[:end], text.tokens[end:]))
    if not len(train) or not len(test):
        raise InputError(f"{recipe.path}: too short for pieces of {recipe.context} characters, a tenth held back")
    return train, test


def _model(recipe: Recipe, classes: str | tuple[str, ...]) -> nn.Module:
    with seeded(recipe.seed):
        if recipe.model == "convnet":
            return ConvNet(len(classes))
        if recipe.model == "characters":
            return Transformer(
                TransformerConfig(
                    vocabulary=len(classes), context=recipe.context, width=128, depth=2, heads=4, causal=True
                )
            )
    return load_example(recipe.model, seed=recipe.seed).model.train()


def _check(recipe: Recipe, task: Task, classes: int) -> None:
    """Refuse a model that does not take the data, before anything is sent anywhere."""
    sample = task.test.take(torch.zeros(1, dtype=torch.int64), None)
    try:
        with torch.no_grad():
            logits = task.model.eval()(sample.inputs)
    except (RuntimeError, IndexError, InputError) as error:
        raise InputError(f"model: {recipe.model} does not take examples of {recipe.data}: {error}") from error
    finally:
        task.model.train()
    if not isinstance(logits, Tensor) or logits.shape[:-1] != sample.labels.shape or logits.shape[-1] < classes:
        what = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        wanted = (*sample.labels.shape, classes)
        raise InputError(f"model: {recipe.model} answers {what}, and {recipe.data} needs logits of shape {wanted}")


def loss(model: nn.Module, batch: Labelled) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return functional.cross_entropy(model(batch.inputs).flatten(0, -2), batch.labels.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, task: Task) -> float:
    """Return the figure of a model on all held-back data, and leave the model as it was."""
    training = model.training
    model.eval()
    total = count = 0.0
    try:
        for numbers in torch.split(torch.arange(len(task.test)), _EVALUATED_AT_ONCE):
            batch = task.test.take(numbers, None)
            logits = model(batch.inputs)
            if task.metric == "accuracy":
                total += float((logits.argmax(-1) == batch.labels).sum())
            else:
                total += float(
                    functional.cross_entropy(logits.flatten(0, -2), batch.labels.flatten(), reduction="sum").double()
                )
            count += batch.labels.numel()
    finally:
        model.train(training)
    return total / count
