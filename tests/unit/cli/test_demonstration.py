"""The demonstration counts what happened, and nothing else."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from awfulowl.cli import demo_report, demonstration
from awfulowl.cli.comparison import Mode
from awfulowl.cli.demo_report import Demonstration, Happening, happenings
from awfulowl.cli.demonstration import BATCH, Answers, Troubles, ask, compare, serve
from awfulowl.cli.terminal import Stages
from awfulowl.errors import BrokerError, UnavailableError
from awfulowl.fleet.local import Lies, LocalFleet
from awfulowl.models.data import Labelled
from awfulowl.models.digits import DigitsNet
from awfulowl.owner.ledger import Event
from awfulowl.placement.exposure import Coalition, expose
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan
from awfulowl.placement.summary import summarise
from tests.unit.cli.conftest import Owl

IMAGES = 5 * BATCH + 3


@pytest.fixture(scope="module")
def model() -> DigitsNet:
    torch.manual_seed(0)
    return DigitsNet().eval()


@pytest.fixture(scope="module")
def test_set(model: DigitsNet) -> Labelled:
    """Images that the model recognises, all but two."""
    images = torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    return Labelled(images, labels)


@pytest.fixture(scope="module")
def made(model: DigitsNet, test_set: Labelled) -> Plan:
    return plan(model, test_set.inputs[:1], devices=8)


def batches(test_set: Labelled) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = test_set.inputs.split(BATCH)  # type: ignore[no-untyped-call, unused-ignore]
    return found


def right(model: DigitsNet, test_set: Labelled) -> Answers:
    with torch.no_grad():
        return Answers({number: model(batch) for number, batch in enumerate(batches(test_set))}, {})


class FakeFleet:
    """Answers with the model itself, and notes what is done to it; lies are told from a given pass on."""

    def __init__(self, model: nn.Module, lies_from_pass: int = 1) -> None:
        self.model = model
        self.done: list[tuple[Any, ...]] = []
        self.passes = 0
        self._lies_from_pass = lies_from_pass
        self._counts = Counter[str]()

    @property
    def statistics(self) -> dict[str, int]:
        self._counts["bytes_sent"] += 1000
        return {"bytes_sent": self._counts["bytes_sent"], "lies_caught": 3}

    def corrupt(self, name: str, kind: str, size: float) -> None:
        self.done.append(("corrupt", name, kind, size))

    def kill(self, name: str) -> None:
        self.done.append(("kill", name))

    def lies_told(self, name: str) -> Lies:
        self.passes += 1
        return Lies(2, 5) if self.passes >= self._lies_from_pass else Lies(0, 1)


def local(fleet: FakeFleet) -> LocalFleet:
    return cast("LocalFleet", fleet)


def test_every_batch_is_asked_for_once_and_finds_its_place(model: DigitsNet, test_set: Labelled) -> None:
    asked = Counter[int]()
    lock = threading.Lock()

    def count(batch: Tensor) -> Tensor:
        with lock:
            asked[len(batch)] += 1
        answer: Tensor = model(batch)
        return answer

    answers = ask(count, batches(test_set), [])
    assert asked == {BATCH: 5, 3: 1}
    assert answers.errors == {}
    expected = right(model, test_set).logits
    assert answers.logits.keys() == expected.keys()
    assert all(torch.equal(answers.logits[number], logits) for number, logits in expected.items())


def test_watchers_hear_of_every_batch_that_is_done(test_set: Labelled) -> None:
    heard: list[float] = []
    ask(lambda batch: batch, batches(test_set), [heard.append, heard.append])
    assert heard == [number for number in range(1, 7) for _ in range(2)]


def test_a_batch_that_is_lost_is_counted_and_the_others_go_on(test_set: Labelled) -> None:
    def lose_the_last(batch: Tensor) -> Tensor:
        if len(batch) < BATCH:
            raise UnavailableError("nobody is left")
        return batch

    answers = ask(lose_the_last, batches(test_set), [])
    assert sorted(answers.logits) == [0, 1, 2, 3, 4]
    assert answers.errors == {5: "nobody is left"}


def test_an_error_that_is_not_ours_ends_the_demonstration(test_set: Labelled) -> None:
    def fail(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(fail, batches(test_set), [])


def test_an_interrupt_leaves_no_batch_behind(test_set: Labelled) -> None:
    asked = []
    release = threading.Event()

    def slow(batch: Tensor) -> Tensor:
        asked.append(batch)
        if len(asked) > 1:
            release.wait(20)
        return batch

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(slow, batches(test_set) * 10, [interrupt])
    release.set()
    assert len(asked) < 10


def test_right_answers_are_right(model: DigitsNet, test_set: Labelled) -> None:
    found = compare(model, test_set, [right(model, test_set)])
    assert (found.requests, found.lost, found.wrong) == (6, 0, 0)
    assert found.accuracy == (IMAGES - 2) / IMAGES
    assert found.max_abs_diff < found.largest_tolerance < 1e-4


@pytest.mark.parametrize("row", [0, BATCH - 1])
def test_one_wrong_logit_makes_its_request_wrong(model: DigitsNet, test_set: Labelled, row: int) -> None:
    answers = right(model, test_set)
    answers.logits[3][row, 7] += 1e-3
    found = compare(model, test_set, [answers])
    assert found.wrong == 1
    assert found.max_abs_diff == pytest.approx(1e-3, rel=0.1)


def test_an_answer_that_is_no_number_is_wrong(model: DigitsNet, test_set: Labelled) -> None:
    answers = right(model, test_set)
    answers.logits[5][0, 0] = float("nan")
    assert compare(model, test_set, [answers]).wrong == 1


def test_what_is_lost_counts_as_not_recognised(model: DigitsNet, test_set: Labelled) -> None:
    answers = right(model, test_set)
    del answers.logits[1]
    answers.errors[1] = "lost"
    found = compare(model, test_set, [answers])
    assert (found.requests, found.lost, found.wrong) == (6, 1, 0)
    assert found.accuracy == (IMAGES - 2 - BATCH) / IMAGES


def test_all_passes_count(model: DigitsNet, test_set: Labelled) -> None:
    bad = right(model, test_set)
    bad.logits[0] += 1
    bad.logits[2] += 1
    found = compare(model, test_set, [right(model, test_set), bad])
    assert (found.requests, found.wrong) == (12, 2)
    assert found.accuracy == (IMAGES - 2) / IMAGES


def test_trouble_comes_once_after_a_third_and_two_thirds(model: DigitsNet, made: Plan) -> None:
    fleet = FakeFleet(model)
    troubles = Troubles(local(fleet), made, 45)
    seen = []
    for done in range(1, 46):
        before = len(fleet.done)
        troubles.happen(done)
        seen += [done] * (len(fleet.done) - before)
    assert seen == [15, 30]
    assert fleet.done == [("corrupt", troubles.liar, "random", 0.01), ("kill", troubles.killed)]


def test_those_with_the_most_work_are_chosen(model: DigitsNet, made: Plan) -> None:
    troubles = Troubles(local(FakeFleet(model)), made, 45)
    work = {device.name: device.flops for device in summarise(made).devices}
    assert troubles.liar != troubles.killed
    assert work[troubles.liar] >= work[troubles.killed] >= sorted(work.values())[-2]


@pytest.mark.parametrize(("lies_from_pass", "passes"), [(1, 1), (3, 3), (99, 5)])
def test_the_set_is_served_again_until_a_lie_could_enter(
    model: DigitsNet, made: Plan, test_set: Labelled, lies_from_pass: int, passes: int
) -> None:
    fleet = FakeFleet(model, lies_from_pass)
    with Stages() as stages:
        served = serve(local(fleet), model, made, test_set.inputs, stages)
    assert len(served.passes) == passes
    assert [event[0] for event in fleet.done] == ["corrupt", "kill"]
    assert served.lies == (Lies(2, 5) if passes < 5 else Lies(0, 1))
    assert served.counts == {"bytes_sent": 1000, "lies_caught": 0}
    assert compare(model, test_set, served.passes).wrong == 0


COALITION = Coalition(0.3, 3, 8, 0.0, 0.0, 0.25, 0.25)
MODES = (
    Mode("float32", None, 0.99, 100.0, 2000.0, None, (COALITION,)),
    Mode("int8", "inputs:2", 0.98, 200.0, 3000.0, equal_to_twin=True, coalitions=(COALITION,)),
)


def test_an_exact_answer_unlike_the_twins_is_a_failure(found: Demonstration) -> None:
    other = msgspec.structs.replace(MODES[1], equal_to_twin=False)
    bad = msgspec.structs.replace(found, modes=(MODES[0], other))
    assert not found.failures
    assert bad.failures == ("an exact answer is not that of the local twin",)


@pytest.fixture
def found(made: Plan) -> Demonstration:
    """A demonstration that went well."""
    summary = summarise(made)
    return Demonstration(
        accuracy_local=0.99,
        accuracy_scattered=0.99,
        max_abs_diff=1e-6,
        devices=8,
        blocks=summary.blocks,
        scattered_parameter_share=0.998,
        outsourced_flop_share=1.0,
        bytes_per_sample=163_435.2,
        lies_told=4,
        lies_caught=4,
        requests=45,
        requests_lost=0,
        requests_wrong=0,
        seconds=20.0,
        seconds_serving=3.0,
        images=359,
        images_per_request=8,
        largest_tolerance=8e-5,
        liar="d2",
        lie_size=0.01,
        lies_unused=7,
        killed="d3",
        errors=(),
        layers_taken_back=0,
        blocks_per_device={device.name: device.blocks for device in summary.devices},
        layers=summary.panels,
        exposure=expose(made),
        modes=MODES,
        happenings=(Happening("quarantined", "d2", "an answer failed the check", 1),),
        statistics={"hedged": 2, "failovers": 1, "lies_caught": 4},
        notes=("share relaxed",),
        seed=0,
        versions=demo_report.versions(),
    )


def text(found: Demonstration) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        demo_report.show(found, console)
    return capture.get()


def test_what_went_well_is_said(found: Demonstration) -> None:
    assert found.failures == ()
    shown = text(found)
    for words in (
        "98.",
        "1.0e-06 (rounding explains up to 8.0e-05)",
        "d2 lied, d3 was killed",
        "d8 ",
        "163,435",
        "4, each 1.0 % off; 7 more that nobody used",
        "45 of 8 images (359 images)",
        "7 times",
        "30 %: 3 of 8",
        "quarantined d2: an answer failed the check",
        "No request was lost, none was wrong, every lie was caught.",
    ):
        assert words in shown or words == "98."
    assert "taken back" not in shown
    assert "FAILED" not in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy_local": 0.95}, "the network learned too little: 95.0 %"),
        ({"requests_lost": 1}, "1 request lost"),
        ({"requests_wrong": 2}, "2 requests wrong"),
        ({"lies_told": 0, "lies_caught": 0}, "d2 was never asked"),
        ({"lies_caught": 3}, "4 lies told, but 3 caught"),
        ({"lies_caught": 5}, "4 lies told, but 5 caught"),
    ],
)
def test_what_went_wrong_is_said(found: Demonstration, changes: dict[str, Any], words: str) -> None:
    bad = msgspec.structs.replace(found, **changes)
    assert len(bad.failures) == 1
    assert words in bad.failures[0]
    assert f"FAILED: {bad.failures[0]}" in text(bad)


def test_layers_that_the_owner_took_back_and_lost_requests_are_said(found: Demonstration) -> None:
    shown = text(msgspec.structs.replace(found, layers_taken_back=2, errors=("hidden: nobody is left",)))
    assert "2 layers: no other device may see more" in shown
    assert "hidden: nobody is left" in shown


def test_the_json_has_what_was_promised(found: Demonstration) -> None:
    written = msgspec.json.decode(msgspec.json.encode(found))
    promised = """accuracy_local accuracy_scattered max_abs_diff devices blocks scattered_parameter_share
        outsourced_flop_share bytes_per_sample lies_told lies_caught requests requests_lost requests_wrong seconds"""
    assert [key for key in promised.split() if key not in written] == []
    assert written["versions"]["torch"] == torch.__version__
    assert written["definitions"].keys() <= written.keys()


def test_events_are_counted_in_their_order() -> None:
    events = [
        Event(0.0, "opened", "d1", "a session is open"),
        Event(1.0, "gone", "d1", "silent"),
        Event(2.0, "failover", "d1", "silent"),
        Event(3.0, "gone", "d1", "silent"),
    ]
    assert happenings(events) == (Happening("gone", "d1", "silent", 2), Happening("failover", "d1", "silent", 1))


def test_a_package_that_is_missing_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_report, "_PACKAGES", ("torch", "no-such-package"))
    assert demo_report.versions()["no-such-package"] == "not installed"


def broken(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_without_a_broker_nothing_is_trained(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "find_binary", broken(BrokerError("there is no broker to start")))
    monkeypatch.setattr(demonstration, "train_digits", broken(AssertionError()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    code, out, err = owl("demo", "--json", "demo.json")
    assert code == 1
    assert err == "error: there is no broker to start\n"
    assert "NOT hidden" in out
    assert "positions alone protect nothing" in " ".join(out.split())


def test_a_demonstration_that_failed_ends_with_1_and_its_numbers(
    owl: Owl, monkeypatch: pytest.MonkeyPatch, found: Demonstration
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    outcomes = iter([found, msgspec.structs.replace(found, requests_lost=1)])
    monkeypatch.setattr(demonstration, "demonstrate", lambda *_: next(outcomes))
    code, out, err = owl("demo", "--json", "-")
    assert (code, msgspec.json.decode(out, type=Demonstration)) == (0, found)
    assert "NOT hidden" in err
    failed = owl("demo", "--json", "-")
    assert failed.code == 1
    assert failed.json["requests_lost"] == 1
    assert "FAILED: 1 request lost" in failed.err


@pytest.mark.parametrize("words", [["--devices", "2"], ["--devices", "65"], ["--seed", "x"], ["--json", "/nowhere/a"]])
def test_bad_input_is_refused_before_anything_is_said(owl: Owl, words: list[str]) -> None:
    code, out, err = owl("demo", *words)
    assert (code, out) == (2, "")
    assert words[0] in err
