"""The loop of training: one function for a model here and for one on a fleet, which differ in nothing else."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from awfulowl.errors import InputError
from awfulowl.models.data import Labelled
from awfulowl.owner.descents import decayed
from awfulowl.owner.optimizer import FleetOptimizer
from awfulowl.recipes.recipe import Recipe
from awfulowl.recipes.task import Batches, Task, evaluate, loss


class Evaluation(NamedTuple):
    """The figure on held-back data after so many steps."""

    step: int
    figure: float


class Progress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How far a training has come: a loss for every step, and the evaluations so far."""

    losses: list[float] = msgspec.field(default_factory=list)
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)


Between = Callable[[Progress], bool]
"""Called between two steps; training goes on if it returns True."""


class _Clipping(torch.optim.Optimizer):
    """What a fleet's optimizers have beside PyTorch's: clipping by the global norm."""

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale all gradients, so that together they are no longer than `max_norm`; return their length before."""
        own = [one for group in self.param_groups for one in group["params"]]
        return float(nn.utils.clip_grad_norm_(own, max_norm))


class PlainSGD(_Clipping, torch.optim.SGD):
    """`torch.optim.SGD` with what a fleet's has beside it: also decoupled decay."""

    def __init__(self, model: nn.Module, *, decoupled_weight_decay: bool = False, **options: Any) -> None:
        super().__init__(model.parameters(), **options)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = decoupled_weight_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; decoupled decay comes first, as in `torch.optim.AdamW`."""
        with decayed(self):
            found: float | None = super().step(closure)
            return found


class PlainAdam(_Clipping, torch.optim.Adam):
    """`torch.optim.Adam` with what a fleet's has beside it."""


Optimizer = PlainSGD | PlainAdam | FleetOptimizer


def plain_optimizer(model: nn.Module, recipe: Recipe) -> PlainSGD | PlainAdam:
    """Return the optimizer of a model that is trained here alone."""
    if recipe.optimizer == "adam":
        return PlainAdam(model.parameters(), **options(recipe))
    return PlainSGD(model, **options(recipe))


def options(recipe: Recipe) -> dict[str, Any]:
    """Return the options that a recipe gives to its optimizer, here or on a fleet."""
    found = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "decoupled_weight_decay": recipe.decoupled}
    if recipe.optimizer == "sgd":
        found |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    return found


def train(
    model: nn.Module, optimizer: Optimizer, task: Task, recipe: Recipe, progress: Progress, between: Between
) -> bool:
    """Train from where `progress` is to the end of the recipe, or until `between` says stop; return whether it is done.

    Random layers draw from PyTorch's global generator.

    Args:
        model: in training mode; here or on a fleet.
        optimizer: of its parameters.
        task: the data; its own model is not touched.
        recipe: how long and how.
        progress: what was done so far; it grows.
        between: called after every step and its evaluation.

    Raises:
        InputError: the loss, a gradient or an evaluation is not finite; nothing moved along it.
        UnavailableError: nothing honest is left that could answer.
    """
    batches = Batches(task.train, recipe.batch, recipe.seed)
    total = recipe.total(batches.per_epoch)
    schedule = _schedule(optimizer, recipe, total, progress.step)
    while progress.step < total:
        try:
            progress.losses.append(_step(model, optimizer, batches.at(progress.step), recipe))
            schedule.step()
            if progress.step == total or (recipe.eval_every and progress.step % recipe.eval_every == 0):
                progress.evaluations.append(Evaluation(progress.step, _finite(evaluate(model, task), "evaluation")))
        except InputError as error:
            raise InputError(
                f"after {progress.step} steps: {error}. If it diverged: lower lr ({recipe.lr:g}), set clip, or "
                "lengthen warmup; checkpoints are as they were"
            ) from error
        if not between(progress):
            return progress.step == total
    return True


def _schedule(optimizer: Optimizer, recipe: Recipe, total: int, step: int) -> LambdaLR:
    """Return a scheduler at a step; all of its state is that number."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = recipe.lr
    return LambdaLR(optimizer, lambda done: recipe.factor(done, total), last_epoch=step - 1)


def _step(model: nn.Module, optimizer: Optimizer, batch: Labelled, recipe: Recipe) -> float:
    """Take one step and return its loss."""
    optimizer.zero_grad()
    whole = 0.0
    for part in _parts(batch, recipe.micro_batches):
        value = loss(model, part) / recipe.micro_batches
        whole += _finite(value.item(), "loss")
        torch.autograd.backward(value)
    if recipe.clip is not None:
        optimizer.clip_grad_norm_(recipe.clip)
    optimizer.step()
    return whole


def _parts(batch: Labelled, count: int) -> Iterator[Labelled]:
    return map(Labelled, *(torch.chunk(tensor, count) for tensor in batch))


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise InputError(f"the {what} is {value}")
    return value
