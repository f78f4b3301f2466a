"""A recipe from its first step to its last: here, or on a fleet with checkpoints on the way."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from torch import Tensor, nn

from awfulowl.errors import AwfulOwlError
from awfulowl.fleet.fleet import Fleet
from awfulowl.models.seeding import seeded
from awfulowl.owner.optimizer import FleetOptimizer
from awfulowl.placement.plan import Plan
from awfulowl.recipes import saving
from awfulowl.recipes.loop import Between, Evaluation, Progress, options, plain_optimizer, train
from awfulowl.recipes.recipe import Recipe
from awfulowl.recipes.task import Metric, Task
from awfulowl.results import versions

_KEPT: Final = 2
"""Checkpoints: the newest, and one more should that be damaged."""

Report = Callable[[str], None]
"""Called with what a person should know and go on from."""


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a recipe; of a resumed one, seconds and statistics are of the last process alone.

    `figure` is that of the last evaluation, None where there was none. `drift` is for each layer how far devices may
    have moved its weights unseen since the first step, relative to their length.
    """

    recipe: Recipe
    plain: bool
    finished: bool
    steps: int
    resumed_at: int
    metric: Metric
    figure: float | None
    losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    seconds: float
    statistics: dict[str, int]
    drift: dict[str, float]
    versions: dict[str, str]


class Outcome(NamedTuple):
    """What came of a recipe, and the weights: a plain state_dict."""

    trained: Trained
    state: dict[str, Tensor]


def go_on(_: Progress) -> bool:
    """Say that training is to go on."""
    return True


def train_here(recipe: Recipe, task: Task, between: Between = go_on) -> Outcome:
    """Train the task's model itself, on this machine alone, with PyTorch's own optimizer.

    Raises:
        InputError: the loss is not finite.
    """
    started, progress = time.perf_counter(), Progress()
    with seeded(recipe.seed):
        optimizer = plain_optimizer(task.model, recipe)
        finished = train(task.model, optimizer, task, recipe, progress, between)
    trained = _trained(recipe, task, progress, (0, started, finished))
    return Outcome(trained, {name: tensor.detach() for name, tensor in task.model.state_dict().items()})


class FleetRun(NamedTuple):
    """How a recipe is run on a fleet.

    `home` is where checkpoints go, None: nowhere. `resumed` is where to go on (`saving.read`), None: from the start.
    `on_change` is told of every change of the plan before it happens, `report` of checkpoints that failed.
    """

    fleet: Fleet
    plan: Plan
    home: saving.Home | None = None
    resumed: saving.Resumed | None = None
    on_change: Callable[[Plan], None] | None = None
    report: Report = lambda _: None


class Writer:
    """Writes the checkpoints of a run, one after the other, beside its steps."""

    def __init__(self, run: FleetRun, recipe: Recipe, data: str) -> None:
        """Prepare to write: `data` is the digest of the recipe's data."""
        self._run, self._recipe, self._data = run, recipe, data
        self._pending: Future[Path] | None = None
        self._step = -1

    def write(self, scattered: nn.Module, optimizer: FleetOptimizer, progress: Progress) -> None:
        """Begin a checkpoint between two steps, once the one before is written; one that fails is reported."""
        if self._run.home is None or self._step == progress.step:
            return
        self.settle()
        self._step = progress.step
        try:
            self._pending = self._run.fleet.checkpoint(
                scattered,
                optimizer,
                self._run.home.checkpoints,
                extra=saving.extra_of(self._recipe, self._data, progress),
                keep=_KEPT,
            )
        except AwfulOwlError as error:
            self._complain(error)

    def settle(self) -> None:
        """Wait for the checkpoint that is under way."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except AwfulOwlError as error:
            self._complain(error)

    def _complain(self, error: AwfulOwlError) -> None:
        self._step = -1
        self._run.report(f"a checkpoint failed, the one before is as it was, and the next will be tried: {error}")


def train_on_fleet(recipe: Recipe, task: Task, run: FleetRun, between: Between = go_on) -> Outcome:
    """Train a copy of the task's model on a fleet; when `between` says stop, after a last checkpoint.

    Raises:
        CheckpointError: what is to be resumed is of another model.
        InputError: the loss is not finite.
        UnavailableError: nothing honest is left that could answer.
    """
    started, fleet = time.perf_counter(), run.fleet
    checkpoint, progress = run.resumed or (None, Progress())
    began, before = progress.step, fleet.statistics
    writer = Writer(run, recipe, "" if run.home is None else task.digest())
    with seeded(recipe.seed):
        scattered = fleet.scatter(task.model, run.plan, train=True, checkpoint=checkpoint, on_change=run.on_change)
        optimizer = fleet.optimizer(scattered, algorithm=recipe.optimizer, **options(recipe))
        if checkpoint is None:
            writer.write(scattered, optimizer, progress)
        else:
            optimizer.load(checkpoint)
            checkpoint.restore_random_state()

        def pause(now: Progress) -> bool:
            if recipe.checkpoint_every and now.step % recipe.checkpoint_every == 0:
                writer.write(scattered, optimizer, now)
            return between(now)

        try:
            finished = train(scattered, optimizer, task, recipe, progress, pause)
            if not finished:
                writer.write(scattered, optimizer, progress)
        except AwfulOwlError:
            writer.settle()
            raise
        writer.settle()
    trained = _trained(recipe, task, progress, (began, started, finished))
    state = fleet.gather(scattered) if finished else {}
    counts = {name: number - before[name] for name, number in fleet.statistics.items()}
    trained = msgspec.structs.replace(trained, plain=False, statistics=counts, drift=fleet.drift(scattered))
    return Outcome(trained, state)


def _trained(recipe: Recipe, task: Task, progress: Progress, how: tuple[int, float, bool]) -> Trained:
    began, started, finished = how
    return Trained(
        recipe=recipe,
        plain=True,
        finished=finished,
        steps=progress.step,
        resumed_at=began,
        metric=task.metric,
        figure=progress.evaluations[-1].figure if progress.evaluations else None,
        losses=tuple(progress.losses),
        evaluations=tuple(progress.evaluations),
        seconds=time.perf_counter() - started,
        statistics={},
        drift={},
        versions=versions(),
    )
