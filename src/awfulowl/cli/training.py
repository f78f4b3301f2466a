"""A training from the command line: where it is kept, on what it runs, and what is shown of it meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from awfulowl.cli import curve, planning
from awfulowl.cli.curve import Curve
from awfulowl.cli.interruption import in_order
from awfulowl.cli.options import parse_devices
from awfulowl.cli.terminal import Stages, warn
from awfulowl.cli.training_report import figure_text
from awfulowl.errors import InputError, UnavailableError
from awfulowl.fleet.local import local_fleet
from awfulowl.owner.checkpoint import newest_checkpoint
from awfulowl.placement import store
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from awfulowl.recipes import saving
from awfulowl.recipes.loop import Between, Progress
from awfulowl.recipes.recipe import Recipe
from awfulowl.recipes.run import FleetRun, Outcome, Trained, train_here, train_on_fleet
from awfulowl.recipes.saving import Home
from awfulowl.recipes.task import Batches, Task, make_task

CURVE: Final = "loss.png"
_DEVICES: Final = "4"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to train, on what, and where it is kept."""

    recipe: Recipe
    devices: str | None
    replicas: int | None
    output: Path | None
    resume: bool
    plain: bool
    key: Path


def run(request: Request, stages: Stages) -> Trained:
    """Train, keep what is to be kept, and say what came of it.

    Raises:
        CheckpointError: there is nothing to resume, or something that is not to be.
        InputError: data or model are not what the recipe says, or the loss is not finite.
        PlanError: the plan in the directory is damaged, of another key, or does not fit.
        UnavailableError: devices do not start, or nothing honest is left.
    """
    home = None if request.output is None else Home(request.output)
    if home is not None:
        home.prepare(resume=request.resume)
        if not curve.can_draw():
            warn("no loss curve will be drawn: that needs pillow, pip install 'awfulowl[data]'")
    recipe = request.recipe
    with stages.stage(f"reading the data of {recipe.name}"):
        task = make_task(recipe)
    if request.plain:
        outcome = _watched(recipe, task, stages, lambda between: train_here(recipe, task, between))
    else:
        outcome = _on_devices(request, home, task, stages)
    if home is not None and outcome.trained.finished:
        home.save(outcome.state)
        if curve.can_draw():
            name = "here alone" if request.plain else "on devices"
            losses = [Curve(name, outcome.trained.losses)]
            curve.draw(home.path / CURVE, f"{recipe.name}, seed {recipe.seed}", losses)
    return outcome.trained


def _on_devices(request: Request, home: Home | None, task: Task, stages: Stages) -> Outcome:
    resumed = None
    if request.resume and home is not None:
        with stages.stage("reading the newest checkpoint"):
            resumed = saving.read(home.checkpoints, request.recipe, task.digest())
    plan = _plan(request, home, task)
    with stages.stage(f"starting a broker and {len(plan.devices)} device processes"):
        fleet = local_fleet(plan.devices)
    with fleet:
        run = FleetRun(
            fleet=fleet,
            plan=plan,
            home=home,
            resumed=resumed,
            on_change=None if home is None else partial(_remember, home.plan, request.key),
            report=lambda text: stages.say(f"warning: {text}"),
        )
        try:
            outcome = _watched(
                request.recipe, task, stages, lambda between: train_on_fleet(request.recipe, task, run, between)
            )
        except UnavailableError as error:
            kept = None if home is None else newest_checkpoint(home.checkpoints)
            hint = "" if kept is None else f"; {kept.name} is kept: go on with --resume"
            raise UnavailableError(f"{error}{hint}") from error
        with stages.stage("ending the fleet"):
            fleet.close()
    return outcome


def _plan(request: Request, home: Home | None, task: Task) -> Plan:
    """Return the plan of the directory, so that sums are added in the same order as before; a new one if there is none.

    Raises:
        InputError: the plan there is for other devices.
    """
    if home is not None and home.plan.exists():
        plan = planning.load(home.plan, request.key, task.model)
        if request.devices is not None and not _same(plan.devices, parse_devices(request.devices)):
            names = ",".join(device.name for device in plan.devices)
            raise InputError(f"--devices: the plan in {home.path} is for {names}; leave the option out")
        if request.replicas not in {None, plan.rules.replicas}:
            raise InputError(f"--replicas: the plan in {home.path} has {plan.rules.replicas}; leave the option out")
        return plan
    options = Options(replicas=request.replicas or 1)
    plan = plan_model(task.model, task.example, parse_devices(request.devices or _DEVICES), options)
    if home is not None:
        planning.save(plan, home.plan, request.key)
    return plan


def _same(left: tuple[Device, ...], right: tuple[Device, ...]) -> bool:
    return set(left) == set(right)


def _remember(path: Path, key: Path, plan: Plan) -> None:
    """Write down who is about to see what, before it happens."""
    store.save(plan, path, planning.open_key(key))


def _watched(recipe: Recipe, task: Task, stages: Stages, work: Callable[[Between], Outcome]) -> Outcome:
    """Train with a bar that moves, and a line for every evaluation; the first Ctrl-C ends it in order."""
    total = recipe.total(Batches(task.train, recipe.batch, recipe.seed).per_epoch)

    def notice() -> None:
        stages.say("ending after this step; Ctrl-C again ends at once")

    with in_order(notice) as asked, stages.stage(f"training {recipe.name}", total) as advance:

        def between(now: Progress) -> bool:
            place = f"step {now.step} of {total}: loss {now.losses[-1]:.3g}"
            advance(now.step)
            stages.describe(f"training {recipe.name}, {place}")
            if now.evaluations and now.evaluations[-1].step == now.step:
                stages.say(f"{place}, {figure_text(task.metric, now.evaluations[-1].figure)}")
            return not asked()

        return work(between)
