"""What every check keeps: an honest proof passes, and there is a proof that it refuses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from awfulowl.jobs import proof
from awfulowl.jobs.challenge import Challenge
from awfulowl.jobs.checks import epochs
from awfulowl.jobs.checks.base import Case, Check, Own
from awfulowl.jobs.checks.catalogue import PRINTED, SOUND, chosen
from awfulowl.jobs.checks.log import SoundLog
from awfulowl.jobs.checks.printed_logs import PrintedMemory, PrintedUtilisation
from awfulowl.jobs.loop import EVALUATED_PARTS, Conduct, Row, Trainer, Work, repeatable
from awfulowl.jobs.proof import Proof
from awfulowl.jobs.records import Evaluation, Iteration, Log, Sample
from awfulowl.jobs.verify import _Rebuilt
from tests.unit.jobs.small import STEPS, everything, made, small_work

CHECKS = {check.name: check for check in (*SOUND, *PRINTED)}


@pytest.fixture(scope="module")
def work() -> Work:
    return small_work()


@pytest.fixture(scope="module")
def whole(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(work, tmp_path_factory.mktemp("whole") / "proof")


def refusal(
    check: Check, work: Work, directory: Path, change: Callable[[Proof], Proof] = lambda one: one
) -> str | None:
    """What a check says of a proof whose signed parts were changed after they were read."""
    found = change(proof.read(directory, work.job))
    wanted: Challenge = everything(work, directory)
    with repeatable(1):
        own = Own(work)
        return check.refuse(Case(own, found, wanted, _Rebuilt(own, found)))


def with_log(**changed: Any) -> Callable[[Proof], Proof]:
    return lambda one: one._replace(log=one.log._replace(**{name: make(one.log) for name, make in changed.items()}))


def rows(change: Callable[[Sequence[Iteration]], Sequence[Iteration]]) -> Callable[[Proof], Proof]:
    return with_log(iterations=lambda log: change(list(log.iterations)))


def samples(*values: tuple[float, float, int]) -> Callable[[Proof], Proof]:
    return with_log(samples=lambda _: [Sample(*value) for value in values])


def altered(row: Iteration, **changed: float) -> Iteration:
    fields = {"step": row.step, "loss": row.loss, "rate": row.rate, "norm": row.norm, "at": row.at, **changed}
    return Iteration(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CHECKS)
def test_an_honest_proof_passes(name: str, work: Work, whole: Path) -> None:
    plain = samples((1.0, 0.2, 100), (2.0, 0.9, 200), (3.0, 0.9, 200), (4.0, 0.9, 201))
    assert refusal(CHECKS[name], work, whole, plain) is None


def test_which_checks_are_made() -> None:
    assert list(chosen("sound")) == list(SOUND)
    assert list(chosen("printed")) == list(PRINTED)
    assert list(chosen("all")) == [*SOUND, *PRINTED]
    assert all(check.printed is (check in PRINTED) for check in CHECKS.values())
    assert len(CHECKS) == len(SOUND) + len(PRINTED)
    assert all(check.name.startswith("printed: ") is check.printed for check in CHECKS.values())


FAULTS: dict[str, Callable[[Proof], Proof]] = {
    "a record is missing": rows(lambda own: own[:-1]),
    "a record too many": rows(lambda own: [*own, own[-1]]),
    "a gap": rows(lambda own: [*own[:4], altered(own[4], step=9), *own[5:]]),
    "a repeat": rows(lambda own: [own[1], *own[1:]]),
    "not a number": rows(lambda own: [altered(own[0], loss=float("nan")), *own[1:]]),
    "another rate": rows(lambda own: [*own[:5], altered(own[5], rate=own[5].rate * 1.001), *own[6:]]),
    "the clock goes back": rows(lambda own: [altered(own[0], at=own[3].at), *own[1:]]),
    "told twice": rows(
        lambda own: [
            *own[:8],
            *(
                altered(own[place], step=place + 8, rate=own[place + 8].rate, at=own[place + 8].at)
                for place in range(8)
            ),
            *own[16:],
        ]
    ),
    "too fast": rows(lambda own: [altered(row, at=own[0].at) for row in own]),
    "no samples": with_log(samples=lambda _: []),
    "samples go back": samples((5.0, 0.5, 1), (4.0, 0.5, 1)),
    "an evaluation is missing": with_log(evaluations=lambda log: log.evaluations[:-1]),
    "an evaluation of another step": with_log(evaluations=lambda log: [Evaluation(5, 1.0), *log.evaluations[1:]]),
    "an evaluation of nothing": with_log(
        evaluations=lambda log: [*log.evaluations[:-1], Evaluation(STEPS, float("inf"))]
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_log(fault: str, work: Work, whole: Path) -> None:
    assert refusal(SoundLog(), work, whole) is None
    assert refusal(SoundLog(), work, whole, FAULTS[fault]) is not None


def test_clocks_may_go_back_where_a_runner_was_ended(work: Work, whole: Path) -> None:
    def resumed(one: Proof) -> Proof:
        own = list(one.log.iterations)
        later = [altered(row, at=row.at - 1e6) for row in own[8:]]
        return one._replace(log=one.log._replace(iterations=[*own[:8], *later], resumed=[8]))

    assert refusal(SoundLog(), work, whole, resumed) is None


def test_losses_at_rest_may_repeat(work: Work, whole: Path) -> None:
    still = rows(lambda own: [altered(row, loss=0.0, norm=0.0) for row in own])
    assert refusal(SoundLog(), work, whole, still) is None


@pytest.mark.parametrize(
    ("values", "passes"),
    [((0.9, 0.9, 0.9, 0.9), False), ((0.1, 0.9, 0.9, 0.9), True), ((0.0, 0.0, 0.0, 0.9), False), ((), False)],
)
def test_utilisation_as_printed(work: Work, whole: Path, values: tuple[float, ...], passes: bool) -> None:
    """A machine that is busy all the time is refused, one that idles half of the time is not."""
    series = samples(*((float(place), value, 1) for place, value in enumerate(values)))
    assert (refusal(PrintedUtilisation(), work, whole, series) is None) is passes


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ((1, 100, 100, 100), True),
        ((100, 100, 100, 100), False),
        ((1, 100, 100, 200), False),
        ((100,), False),
        ((), False),
    ],
)
def test_memory_as_printed(work: Work, whole: Path, values: tuple[int, ...], passes: bool) -> None:
    series = samples(*((float(place), 0.5, value) for place, value in enumerate(values)))
    assert (refusal(PrintedMemory(), work, whole, series) is None) is passes


def test_the_count_as_printed(work: Work, whole: Path) -> None:
    assert refusal(CHECKS["printed: N = E x I"], work, whole, rows(lambda own: own[1:])) is not None


def test_epochs_as_printed_only_fail_beyond_ten_deviations(work: Work, whole: Path) -> None:
    def moved(by: float) -> Callable[[Proof], Proof]:
        return rows(lambda own: [altered(row, loss=row.loss + by * (row.step < 6)) for row in own])

    check = CHECKS["printed: epochs"]
    assert refusal(check, work, whole, moved(0.2)) is None  # two thirds of what the loss falls in the whole job
    assert refusal(check, work, whole, moved(50.0)) is not None


class Jumps(Conduct):
    """Moves far at the end of each epoch."""

    def step(self, trainer: Trainer) -> Row:
        row = trainer.advance()
        if trainer.step % 6 == 5:
            with torch.no_grad():
                trainer.parameters[0].add_(5.0)
        return row


def test_the_largest_updates_as_printed(work: Work, tmp_path: Path) -> None:
    directory = made(work, tmp_path / "proof", Jumps())
    assert refusal(CHECKS["printed: largest updates"], work, directory) is not None


def test_evaluations_in_part_are_held_to_a_statistical_limit(work: Work, whole: Path) -> None:
    """All parts made again leave nothing to chance; fewer leave a limit, and honest ones stay within."""
    losses = [1.0, 1.2, 0.9, 1.1, 1.0, 1.3, 0.8, 1.05]
    assert epochs.limit(losses) == 0.0
    assert epochs.limit(losses[:4]) > epochs.limit(losses[:7]) > 0
    assert refusal(CHECKS["epochs"], work, whole, with_log(evaluations=lambda log: [])) is not None


def test_the_limit_alarms_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms, runs = 0, 4000
    for _ in range(runs):
        losses = torch.randn(EVALUATED_PARTS, generator=generator, dtype=torch.float64)
        some = losses[:5].tolist()
        alarms += abs(sum(some) / 5 - float(losses.mean())) > epochs.limit(some, false_alarm=0.05)
    assert abs(alarms - 0.05 * runs) < 5 * (0.05 * 0.95 * runs) ** 0.5


@pytest.mark.parametrize(("tail", "freedom", "value"), [(0.05, 10, 2.22814), (0.01, 3, 5.84091), (1e-6, 7, 15.7670)])
def test_students_t(tail: float, freedom: int, value: float) -> None:
    """Against tables; the last one against scipy.stats.t.isf(5e-7, 7)."""
    assert epochs.student(tail, freedom) == pytest.approx(value, rel=1e-3)


def test_a_log_has_what_checks_read() -> None:
    assert Log._fields == ("iterations", "samples", "evaluations", "resumed", "head")
