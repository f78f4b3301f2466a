"""The demonstration of training does what it says to devices, and judges what came of it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest
import torch
from PIL import Image
from rich.console import Console

from awfulowl.cli import training_demo, training_demo_report
from awfulowl.cli.demo_report import Happening, versions
from awfulowl.cli.training_demo import Troubles, compare
from awfulowl.cli.training_demo_report import TrainingDemonstration, Trouble
from awfulowl.errors import BrokerError, UnavailableError
from awfulowl.fleet.local import LocalFleet
from awfulowl.models.digits import DigitsNet
from awfulowl.owner.ledger import Event
from awfulowl.owner.policy import Policy
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan
from awfulowl.placement.summary import summarise
from awfulowl.recipes.loop import Evaluation
from awfulowl.recipes.recipe import BUILT_IN
from awfulowl.recipes.run import Outcome, Trained
from tests.unit.cli.conftest import Owl

STEPS = 80


class FakeFleet:
    """Notes what is done to it; whoever is bad is found out, and who is dead is missed, two steps later."""

    _KINDS: ClassVar = {"corrupt": "quarantined", "lead astray": "quarantined", "kill": "gone", "restart": "opened"}

    def __init__(self, of: Plan, notices: bool = True) -> None:
        self.done: list[tuple[int, tuple[Any, ...]]] = []
        self.events: list[Event] = []
        self._of = of
        self._notices = notices
        for device in of.devices:
            self._event("opened", device.name)

    def _note(self, *what: Any) -> None:
        self.done.append((self._step, what))

    def _event(self, kind: str, name: str) -> None:
        self.events.append(Event(time.monotonic(), kind, name, ""))

    _step = 0

    @property
    def step(self) -> int:
        """The step that was just taken."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        for then, (what, name, *_) in self.done:
            if self._notices and then + 2 == step:
                self._event(self._KINDS[what], name)

    def corrupt(self, name: str, kind: str, size: float) -> None:
        self._note("corrupt", name, kind, size)

    def lead_astray(self, name: str, kind: str) -> None:
        self._note("lead astray", name, kind)

    def kill(self, name: str) -> None:
        self._note("kill", name)

    def restart(self, name: str) -> None:
        self._note("restart", name)


@pytest.fixture(scope="module")
def made() -> Plan:
    torch.manual_seed(0)
    return plan(DigitsNet(), torch.rand(1, 1, 8, 8), devices=8)


class Later:
    """A timer whose time comes when the test says so."""

    waiting: ClassVar[list["Later"]] = []

    def __init__(self, seconds: float, work: Callable[[str], None], arguments: list[str]) -> None:
        assert 3 < seconds < Policy().return_s, "noticed before, and waited for"
        self._work, self._arguments = work, arguments

    def start(self) -> None:
        self.waiting.append(self)

    def cancel(self) -> None:
        if self in self.waiting:
            self.waiting.remove(self)

    def join(self) -> None:
        assert self not in self.waiting

    @classmethod
    def come(cls) -> None:
        while cls.waiting:
            later = cls.waiting.pop()
            later._work(*later._arguments)


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    Later.waiting.clear()
    monkeypatch.setattr(training_demo, "Timer", Later)


def after_all(fleet: FakeFleet, made: Plan) -> Troubles:
    troubles = Troubles(cast("LocalFleet", fleet), made, STEPS)
    for step in range(1, STEPS + 1):
        fleet.step = step
        troubles.happen(step)
        if step % 25 == 0:
            Later.come()
    return troubles


def test_troubles_come_when_they_are_due(made: Plan) -> None:
    fleet = FakeFleet(made)
    after_all(fleet, made)
    names = [what[1] for _, what in fleet.done]
    liar, stray, first, second = dict.fromkeys(names)
    assert fleet.done == [
        (10, ("corrupt", liar, "random", 0.01)),
        (20, ("lead astray", stray, "skipped")),
        (40, ("kill", first)),
        (50, ("restart", first)),
        (60, ("kill", second)),
        (75, ("restart", second)),
    ]
    work = {device.name: device.flops for device in summarise(made).devices}
    assert work[liar] == max(work.values())


def test_it_is_written_down_when_they_were_noticed(made: Plan) -> None:
    found = after_all(FakeFleet(made), made).found
    assert [(one.kind, one.step, one.noticed_after_steps, one.returned_after_steps) for one in found.values()] == [
        ("lied", 10, 2, None),
        ("skipped its steps", 20, 2, None),
        ("died", 40, 2, 12),
        ("died", 60, 2, 17),
    ]
    assert all(one.device == name for name, one in found.items())
    assert all(one.noticed_after_s is not None for one in found.values())


def test_a_death_during_which_no_step_is_taken_is_noticed_all_the_same(made: Plan) -> None:
    fleet = FakeFleet(made)
    troubles = Troubles(cast("LocalFleet", fleet), made, STEPS)
    troubles.happen(STEPS // 2)
    Later.come()
    (_, (_, name)), restarted = fleet.done
    assert restarted == (0, ("restart", name))
    fleet._event("gone", name)
    fleet._event("opened", name)
    troubles.happen(STEPS // 2 + 1)
    found = troubles.found[name]
    assert (found.noticed_after_steps, found.returned_after_steps) == (1, 1)


def test_what_a_device_did_before_its_trouble_does_not_count(made: Plan) -> None:
    fleet = FakeFleet(made)
    for device in made.devices:
        fleet._event("gone", device.name)
        fleet._event("opened", device.name)
    troubles = Troubles(cast("LocalFleet", fleet), made, STEPS)
    troubles.happen(STEPS // 2)
    troubles.happen(STEPS // 2 + 1)
    (found,) = troubles.found.values()
    assert (found.noticed_after_steps, found.returned_after_steps) == (None, None)


def test_who_cannot_be_started_again_stays_away(
    made: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = FakeFleet(made)

    def fails(name: str) -> None:
        raise UnavailableError(f"{name} does not start")

    monkeypatch.setattr(fleet, "restart", fails)
    troubles = Troubles(cast("LocalFleet", fleet), made, STEPS)
    troubles.happen(STEPS // 2)
    Later.come()
    (name,) = troubles.found
    fleet._event("gone", name)
    troubles.happen(STEPS // 2 + 3)
    found = troubles.found[name]
    assert (found.noticed_after_steps, found.returned_after_steps) == (3, None)
    assert "could not be started again" in caplog.text


def test_nobody_is_started_again_when_the_training_has_ended(made: Plan) -> None:
    fleet = FakeFleet(made)
    troubles = Troubles(cast("LocalFleet", fleet), made, STEPS)
    troubles.happen(STEPS // 2)
    troubles.close()
    Later.come()
    assert [what[0] for _, what in fleet.done] == ["kill"]


def test_what_is_not_noticed_is_not_said_to_be(made: Plan) -> None:
    found = after_all(FakeFleet(made, notices=False), made).found
    assert [one.noticed_after_steps for one in found.values()] == [None] * 4


def outcome(*, plain: bool, figure: float, losses: tuple[float, ...], weight: torch.Tensor) -> Outcome:
    trained = Trained(
        recipe=BUILT_IN["digits"],
        plain=plain,
        finished=True,
        steps=len(losses),
        resumed_at=0,
        metric="accuracy",
        figure=figure,
        losses=losses,
        evaluations=(Evaluation(len(losses), figure),),
        seconds=2.0,
        statistics={} if plain else {"checks": 1000},
        drift={} if plain else {"a": 1e-6},
        versions={},
    )
    return Outcome(trained, {"weight": weight, "bias": torch.zeros(2)})


def test_what_was_trained_there_is_held_against_what_was_trained_here() -> None:
    here = outcome(plain=True, figure=0.98, losses=(2.0, 1.0), weight=torch.tensor([1.0, -3.0]))
    there = outcome(plain=False, figure=0.97, losses=(2.0, 1.25), weight=torch.tensor([1.5, -3.0]))
    found = compare(here, there)
    assert (found.accuracy_plain, found.accuracy_scattered) == (0.98, 0.97)
    assert (found.max_loss_difference, found.max_weight_difference, found.largest_weight) == (0.25, 0.5, 3.0)
    assert (found.steps, found.batch, found.seed) == (2, 64, 0)
    assert found.statistics == {"checks": 1000}


@pytest.fixture
def found() -> TrainingDemonstration:
    """A demonstration that went well."""
    return TrainingDemonstration(
        accuracy_plain=0.986,
        accuracy_scattered=0.986,
        losses_plain=(2.3, 1.0, 0.02),
        losses_scattered=(2.3, 1.0, 0.02),
        max_loss_difference=2.4e-7,
        max_weight_difference=6.6e-7,
        largest_weight=0.94,
        devices=8,
        steps=176,
        batch=64,
        troubles=(
            Trouble(kind="lied", device="d4", step=22, noticed_after_steps=1, noticed_after_s=0.2),
            Trouble(kind="skipped its steps", device="d5", step=44, noticed_after_steps=2, noticed_after_s=0.5),
            Trouble(
                kind="died", device="d7", step=88, noticed_after_steps=1, noticed_after_s=4.3, returned_after_steps=11
            ),
        ),
        quarantined=("d4", "d5"),
        drift={"conv1": 9e-6, "head": 1e-6},
        seconds=45.0,
        seconds_plain=3.0,
        seconds_scattered=31.5,
        happenings=(Happening("quarantined", "d4", "an answer failed the check", 1),),
        statistics={"replayed": 619, "checks": 844778, "checks_failed": 5579, "bytes_sent": 1, "bytes_received": 1},
        notes=("share relaxed",),
        seed=0,
        versions=versions(),
    )


def text(found: TrainingDemonstration) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        training_demo_report.show(found, console)
    return capture.get()


def test_what_went_well_is_said(found: TrainingDemonstration) -> None:
    assert found.failures == ()
    shown = text(found)
    for words in (
        "98.6 %",
        "2.4e-07",
        "6.6e-07 (weights up to 0.94)",
        "at most 9.0e-06 of a layer's weights",
        "176 of 64 images, on 8 devices",
        "619, to rebuild blocks",
        "45.0 s; training 3.0 s here, 31.5 s on devices",
        "skipped its steps",
        "2 steps  0.5 s",
        "11 steps",
        "quarantined d4: an answer failed the check",
        "share relaxed",
        "Every liar was caught",
    ):
        assert words in shown
    assert "FAILED" not in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy_plain": 0.951, "accuracy_scattered": 0.951}, "the network learned too little: 95.1 %"),
        ({"accuracy_scattered": 0.98}, "accuracies differ: 98.6 % here, 98.0 % there"),
        ({"accuracy_scattered": 0.992}, "accuracies differ"),
        ({"quarantined": ("d4",)}, "d5 skipped its steps and was not caught"),
        ({"quarantined": ("d5",)}, "d4 lied and was not caught"),
        ({"quarantined": ("d4", "d5", "d7", "d1")}, "honest, and quarantined: d1, d7"),
    ],
)
def test_what_went_wrong_is_said(found: TrainingDemonstration, changes: dict[str, Any], words: str) -> None:
    bad = msgspec.structs.replace(found, **changes)
    assert len(bad.failures) == 1
    assert words in bad.failures[0]
    assert f"FAILED: {bad.failures[0]}" in text(bad)


def test_a_difference_within_half_a_point_is_none(found: TrainingDemonstration) -> None:
    assert msgspec.structs.replace(found, accuracy_scattered=0.982).failures == ()


def test_what_was_never_noticed_is_said(found: TrainingDemonstration) -> None:
    trouble = Trouble(kind="lied", device="d4", step=22)
    assert "never" in text(msgspec.structs.replace(found, troubles=(trouble,)))


def test_the_definitions_are_of_what_is_there(found: TrainingDemonstration) -> None:
    written = msgspec.json.decode(msgspec.json.encode(found))
    names = {field for trouble in written["troubles"] for field in trouble} | written.keys()
    assert written["definitions"].keys() - {"plain"} <= names


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")


def test_the_command_shows_writes_draws_and_ends_with_its_verdict(
    owl: Owl, monkeypatch: pytest.MonkeyPatch, found: TrainingDemonstration
) -> None:
    asked: list[tuple[int, int]] = []
    outcomes = iter([found, msgspec.structs.replace(found, quarantined=())])

    def demonstrate(devices: int, seed: int, *_: object) -> TrainingDemonstration:
        asked.append((devices, seed))
        return next(outcomes)

    monkeypatch.setattr(training_demo, "demonstrate", demonstrate)
    code, out, err = owl("demo", "train", "--seed", "3", "--curve", "loss.png", "--json", "-")
    assert (code, msgspec.json.decode(out, type=TrainingDemonstration)) == (0, found)
    assert "NOT hidden" in err
    assert "learns from" in err
    with Image.open("loss.png") as picture:
        assert picture.format == "PNG"
    failed = owl("demo", "train", "--devices", "6")
    assert failed.code == 1
    assert "FAILED: d4 lied and was not caught; d5 skipped its steps and was not caught" in failed.out
    assert asked == [(8, 3), (6, 0)]


def test_without_a_broker_nothing_is_trained(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BrokerError("there is no broker to start")

    monkeypatch.setattr(training_demo, "find_binary", fail)
    code, _, err = owl("demo", "train")
    assert code == 1
    assert err == "error: there is no broker to start\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "--devices", "5"], "--devices 5: two lie, two die"),
        (["--curve", "loss.png"], "without train there is no curve"),
        (["serve", "--curve", "loss.png"], "without train there is no curve"),
        (["train", "--curve", "/nowhere/loss.png"], "no file can be written there"),
        (["train", "--curve", "."], "no file can be written there"),
        (["dance"], "'dance' is not one of 'serve', 'train'"),
        (["train", "--json", "/nowhere/a"], "there is no folder"),
    ],
)
def test_bad_input_is_refused(owl: Owl, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str) -> None:
    monkeypatch.setattr(training_demo, "demonstrate", lambda *_: pytest.fail("it began"))
    code, _, err = owl("demo", *words)
    assert code == 2
    assert complaint in err.splitlines()[-1]


def test_without_pillow_there_is_no_curve(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = owl("demo", "train", "--curve", "loss.png")
    assert code == 2
    assert "pip install 'awfulowl[data]'" in err
    assert not Path("loss.png").exists()
