"""What a training leaves in its directory: the plan, checkpoints on the way, and the trained weights at the end."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from awfulowl.errors import CheckpointError, InputError
from awfulowl.files import write_whole
from awfulowl.owner.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from awfulowl.recipes.loop import Progress
from awfulowl.recipes.recipe import Recipe

MODEL: Final = "model.safetensors"
PLAN: Final = "plan.owl"
CHECKPOINTS: Final = "checkpoints"

_FREE: Final = frozenset({"name", "path", "checkpoint_every", "eval_every"})
"""Fields of a recipe that may change when a training is resumed: they move no weight."""


class Extra(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint of a recipe holds beside model and optimizer; the schedule and the data's place follow."""

    recipe: Recipe
    data: str
    progress: Progress


class Home(msgspec.Struct, frozen=True):
    """The directory of one training."""

    path: Path

    @property
    def model(self) -> Path:
        """The trained weights, which are there once it is finished."""
        return self.path / MODEL

    @property
    def plan(self) -> Path:
        """The plan file: who saw what, and in which order sums are added."""
        return self.path / PLAN

    @property
    def checkpoints(self) -> Path:
        """The directory of its checkpoints."""
        return self.path / CHECKPOINTS

    def prepare(self, *, resume: bool) -> None:
        """Make the directory, or see that it is what `resume` says.

        Raises:
            CheckpointError: there is nothing to resume, or there is something and it is not to be resumed.
            InputError: the directory cannot be made or written to.
        """
        if self.model.exists():
            raise CheckpointError(f"{self.path} holds a finished training ({MODEL}): name another directory")
        begun = newest_checkpoint(self.checkpoints)
        if resume and begun is None:
            raise CheckpointError(f"{self.path} holds no checkpoint to go on from: begin without --resume")
        if begun is not None and not resume:
            raise CheckpointError(f"{self.path} holds checkpoints: go on with --resume, or name another directory")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be made: {error.strerror}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(f"{self.path}: nothing may be written there")

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Write the trained weights, whole or not at all.

        Raises:
            InputError: they cannot be written.
        """
        try:
            write_whole(self.model, save({name: tensor.contiguous() for name, tensor in state.items()}))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.model} cannot be written: {error}") from error


def extra_of(recipe: Recipe, data: str, progress: Progress) -> dict[str, Any]:
    """Return what a checkpoint needs to be resumed from."""
    found: dict[str, Any] = msgspec.to_builtins(Extra(recipe=recipe, data=data, progress=progress))
    return found


class Resumed(NamedTuple):
    """A checkpoint of a recipe, and how far it had come."""

    checkpoint: Checkpoint
    progress: Progress


def read(directory: Path, recipe: Recipe, data: str) -> Resumed:
    """Return the newest checkpoint of a recipe.

    Args:
        directory: of its checkpoints.
        recipe: what is to be resumed.
        data: the digest of its data.

    Raises:
        CheckpointError: it is none, damaged, or of another recipe or other data.
    """
    path = newest_checkpoint(directory) or directory
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; without {path} --resume goes on from the one before, if there is one"
        ) from error
    try:
        extra = msgspec.convert(found.extra, Extra)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: this checkpoint was not made of a recipe: {error}") from error
    other = [field for field in Recipe.__struct_fields__ if field not in _FREE and _differ(extra.recipe, recipe, field)]
    if other:
        was = ", ".join(f"{field} was {getattr(extra.recipe, field)}" for field in other)
        raise CheckpointError(f"{path}: this checkpoint is of another recipe: {was}")
    if extra.data != data:
        raise CheckpointError(f"{path}: this checkpoint was trained on other data than is given now")
    if extra.progress.step != found.facts.step:
        raise CheckpointError(f"{path}: {found.facts.step} steps, of which {extra.progress.step} losses are told")
    return Resumed(found, extra.progress)


def _differ(left: Recipe, right: Recipe, field: str) -> bool:
    return bool(getattr(left, field) != getattr(right, field))
