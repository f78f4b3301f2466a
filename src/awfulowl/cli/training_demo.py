"""The demonstration of training: real images, devices that lie, stray, die and come back, beside the same run here."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from threading import Timer
from typing import Final

import msgspec

from awfulowl.cli import curve
from awfulowl.cli.curve import Curve, Mark
from awfulowl.cli.demo_report import happenings, versions
from awfulowl.cli.terminal import Stages
from awfulowl.cli.training_demo_report import TrainingDemonstration, Trouble, TroubleKind
from awfulowl.errors import AwfulOwlError, InputError
from awfulowl.fabric.broker_binary import find_binary, verify_binary
from awfulowl.fleet.local import LocalFleet, local_fleet
from awfulowl.owner.ledger import Event
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan
from awfulowl.placement.summary import summarise
from awfulowl.recipes.loop import Progress
from awfulowl.recipes.recipe import BUILT_IN, changed
from awfulowl.recipes.run import FleetRun, Outcome, train_here, train_on_fleet
from awfulowl.recipes.task import make_task

_log = logging.getLogger(__name__)

_EPOCHS: Final = 8
_LIE_SIZE: Final = 0.01
_POLICY: Final = Policy(
    silence_s=3.0,
    # Bad devices get old inputs until the end, and rebuilding replays at most so many steps.
    cover_s=(3600.0, 3601.0),
    snapshot_after=50,
)
_AWAY_S: Final = 5.0
"""Until a device that was killed is started again. Not counted in steps: where nobody may stand in for it, none is
taken before it is back."""


class Troubles:
    """What is done to a fleet while it trains, and when the owner noticed.

    After an eighth of the steps the device with the most work lies in its answers, after a quarter the next one skips
    its steps, after a half and after three quarters the next two are killed, and started again some seconds later.
    """

    def __init__(self, fleet: LocalFleet, of: Plan, steps: int) -> None:
        by_work = sorted(summarise(of).devices, key=lambda device: device.flops, reverse=True)
        liar, stray, *killed = (device.name for device in by_work[:4])
        self._fleet = fleet
        self._due: dict[int, tuple[TroubleKind, str]] = {
            steps // 8: ("lied", liar),
            steps // 4: ("skipped its steps", stray),
            steps // 2: ("died", killed[0]),
            3 * steps // 4: ("died", killed[1]),
        }
        self._began: dict[str, float] = {}
        self._revivals: list[Timer] = []
        self.found: dict[str, Trouble] = {}
        """Troubles by device, in the order in which they came."""

    def happen(self, step: int) -> None:
        """Called after every step: see what was noticed, then make more trouble."""
        events = self._fleet.events
        for name, trouble in self.found.items():
            self.found[name] = self._seen(trouble, events, step - trouble.step)
        if step in self._due:
            kind, name = self._due[step]
            self.found[name] = Trouble(kind=kind, device=name, step=step)
            self._began[name] = time.monotonic()
            self._make(kind, name)

    def _seen(self, trouble: Trouble, events: Sequence[Event], steps: int) -> Trouble:
        """Add what the owner noticed of a trouble in the steps since it began."""
        began, died = self._began[trouble.device], trouble.kind == "died"
        of_it = (event for event in reversed(events) if event.device == trouble.device and event.time_s >= began)
        first = {event.kind: event.time_s - began for event in of_it}
        noticed_s = first.get("gone" if died else "quarantined")
        if trouble.noticed_after_steps is None and noticed_s is not None:
            trouble = msgspec.structs.replace(trouble, noticed_after_steps=steps, noticed_after_s=noticed_s)
        if trouble.returned_after_steps is None and died and "opened" in first:
            trouble = msgspec.structs.replace(trouble, returned_after_steps=steps)
        return trouble

    def _make(self, kind: TroubleKind, name: str) -> None:
        if kind == "lied":
            self._fleet.corrupt(name, "random", _LIE_SIZE)
        elif kind == "died":
            self._fleet.kill(name)
            self._revivals.append(Timer(_AWAY_S, self._revive, [name]))
            self._revivals[-1].start()
        else:
            self._fleet.lead_astray(name, "skipped")

    def _revive(self, name: str) -> None:
        try:
            self._fleet.restart(name)
        except AwfulOwlError as error:  # it stays away, as the report will say
            _log.warning("%s could not be started again: %s", name, error)

    def close(self) -> None:
        """Start nobody again from now on."""
        for timer in self._revivals:
            timer.cancel()
        for timer in self._revivals:
            timer.join()


def demonstrate(devices: int, seed: int, stages: Stages, started: float) -> TrainingDemonstration:
    """Train here, train on a fleet in trouble, and compare.

    Args:
        devices: device processes.
        seed: of the training; positions come from the operating system.
        stages: where progress is shown.
        started: when that was, by `time.perf_counter`.

    Raises:
        InputError: scikit-learn is not installed.
        BrokerError: there is no broker to start, or it does not start.
        UnavailableError: the devices cannot be started, or nothing honest is left.
    """
    verify_binary(find_binary())  # before a minute is spent on half of it
    recipe = changed(BUILT_IN["digits"], epochs=_EPOCHS, seed=seed)
    task = make_task(recipe)
    steps = _EPOCHS * (len(task.train) // recipe.batch)
    with stages.stage("training here alone", steps) as advance:

        def beside(now: Progress) -> bool:
            advance(now.step)
            return True

        plain = train_here(recipe, make_task(recipe), beside)
    with stages.stage(f"starting a broker and {devices} device processes"):
        fleet = local_fleet(devices, policy=_POLICY)
    with fleet:
        made = plan(task.model, task.example, devices=fleet, replicas=2)
        stage = stages.stage("training on devices that lie, skip steps, die and come back", steps)
        with closing(Troubles(fleet, made, steps)) as troubles, stage as advance:

            def between(now: Progress) -> bool:
                advance(now.step)
                troubles.happen(now.step)
                return True

            scattered = train_on_fleet(recipe, task, FleetRun(fleet, made), between)
        standing, events = fleet.standing, happenings(fleet.events)
        with stages.stage("ending the fleet"):
            fleet.close()
    found = compare(plain, scattered)
    return msgspec.structs.replace(
        found,
        devices=devices,
        troubles=tuple(troubles.found.values()),
        quarantined=tuple(name for name, one in standing.items() if one is Standing.QUARANTINED),
        seconds=time.perf_counter() - started,
        happenings=events,
        notes=made.notes,
    )


def compare(plain: Outcome, scattered: Outcome) -> TrainingDemonstration:
    """Hold what was trained on a fleet against what was trained here."""
    here, there = plain.trained, scattered.trained
    return TrainingDemonstration(
        accuracy_plain=here.figure or 0.0,
        accuracy_scattered=there.figure or 0.0,
        losses_plain=here.losses,
        losses_scattered=there.losses,
        max_loss_difference=max(abs(one - other) for one, other in zip(here.losses, there.losses, strict=True)),
        max_weight_difference=max(
            float((weight - scattered.state[name]).abs().max()) for name, weight in plain.state.items()
        ),
        largest_weight=max(float(weight.abs().max()) for weight in plain.state.values()),
        devices=0,
        steps=there.steps,
        batch=there.recipe.batch,
        troubles=(),
        quarantined=(),
        drift=there.drift,
        seconds=0.0,
        seconds_plain=here.seconds,
        seconds_scattered=there.seconds,
        happenings=(),
        statistics=there.statistics,
        notes=(),
        seed=there.recipe.seed,
        versions=versions(),
    )


def check_curve(path: Path | None) -> None:
    """Refuse a place for a picture before the work is done.

    Raises:
        InputError: pillow is not installed, or there is no such folder.
    """
    if path is None:
        return
    if not curve.can_draw():
        raise InputError("--curve needs pillow, which is not installed: pip install 'awfulowl[data]'")
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--curve {path}: no file can be written there")


def draw(found: TrainingDemonstration, path: Path | None) -> None:
    """Draw both curves and what happened on the way; None: nowhere."""
    if path is None:
        return
    marks = [Mark(one.step, f"{one.device} {one.kind}") for one in found.troubles]
    both = [Curve("here alone", found.losses_plain), Curve("on devices", found.losses_scattered)]
    curve.draw(path, f"digits, seed {found.seed}", both, marks)
