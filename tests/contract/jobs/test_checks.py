"""What every check keeps: an honest proof passes, and there is a proof that it refuses."""

import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import ProofError
from awfulowl.jobs import proof
from awfulowl.jobs.challenge import Challenge, draw
from awfulowl.jobs.checks import epochs, log, printed_epochs
from awfulowl.jobs.checks.base import Case, Check, Own, States
from awfulowl.jobs.checks.catalogue import PRINTED, SOUND, chosen
from awfulowl.jobs.checks.log import SoundLog
from awfulowl.jobs.checks.printed_logs import PrintedMemory, PrintedUtilisation
from awfulowl.jobs.loop import EVALUATED_PARTS, Conduct, Row, Trainer, Work, repeatable
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.proof import Proof
from awfulowl.jobs.records import Evaluation, Iteration, Log, Sample
from awfulowl.jobs.task import Batch
from awfulowl.jobs.verify import _Rebuilt
from tests.unit.jobs.small import STEPS, Small, everything, made, small_work

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
    def change(one: Proof) -> Proof:
        whole = one.log._replace(evaluations=list(one.log.evaluations))
        return one._replace(log=whole._replace(**{name: make(whole) for name, make in changed.items()}))

    return change


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


class Evaluated(Small):
    """Raises where it is evaluated, if it is told to."""

    broken = False

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        model.get_submodule("1").eval()
        if self.broken and not model.training:
            raise ArithmeticError
        return super().loss(model, batch)


def test_modes_are_put_back_after_epochs_as_printed(tmp_path: Path) -> None:
    """Batch norm is held still from the start of every step."""
    task = Evaluated()
    work = small_work(task)
    found = proof.read(made(work, tmp_path / "proof"), work.job)
    with repeatable(1):
        own = Own(work)
        case = Case(own, found, everything(work, tmp_path / "proof"), _Rebuilt(own, found))
        before = [module.training for module in own.trainer.model.modules()]
        assert sorted(set(before)) == [False, True]
        for task.broken in (False, True):
            if task.broken:
                with pytest.raises(ProofError, match="ArithmeticError"):
                    CHECKS["printed: epochs"].refuse(case)
            else:
                assert CHECKS["printed: epochs"].refuse(case) is None
            assert [module.training for module in own.trainer.model.modules()] == before


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


class Flow(Collection[Any]):
    """Records that are made one by one, and count how many of them are alive."""

    alive = 0
    most = 0

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __contains__(self, value: object) -> bool:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return (Counted(self._make(place)) for place in range(self._count))


class Counted:
    def __init__(self, value: object) -> None:
        self._value = value
        Flow.alive += 1
        Flow.most = max(Flow.most, Flow.alive)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._value, name)

    def __del__(self) -> None:
        Flow.alive -= 1


def long_log(count: int, ends: Sequence[int], lr: float) -> Log:
    return Log(
        Flow(count, lambda step: Iteration(step, 1.0 / (step + 1), lr, 1.0, float(step))),
        Flow(count, lambda place: Sample(float(place), 0.5 + 0.4 * (place % 2), 100 + 100 * (place > 0))),
        Flow(len(ends), lambda place: Evaluation(ends[place], 1.0)),
        Flow(0, lambda _: 0),
        b"",
    )


def test_no_check_keeps_the_log_in_memory(whole: Path) -> None:
    """By construction, whatever the length: only a few records are alive at any time."""
    steps = 3000
    work = small_work(Level(), steps=steps)
    found = proof.read(whole, small_work().job)
    found = found._replace(
        job=work.job,
        commitment=msgspec.structs.replace(found.commitment, steps=steps),
        log=long_log(steps, work.ends, work.job.training.lr),
    )
    Flow.most = 0
    wanted = draw(found, this_machine(1))
    assert len(wanted.largest) == found.job.proving.largest
    assert Flow.most <= found.job.proving.largest + 3
    with repeatable(1):
        case = Case(Own(work), found, wanted, cast("States", None))
    logs = [SoundLog(), *(check for check in PRINTED if type(check).__module__.endswith("printed_logs"))]
    assert len(logs) == 4
    Flow.most = 0
    assert [check.refuse(case) for check in logs] == [None] * len(logs)
    assert len(printed_epochs._moments(case)) == len(work.ends)
    assert 0 < Flow.most <= 8
    told = case.told()
    assert set(told) == set(case.challenged)
    assert Flow.alive == len(told) < 100


class Level(Small):
    """At one rate from the first step to the last."""

    def rate(self, step: int, steps: int) -> float:
        return 1.0


@pytest.mark.parametrize(("kept", "twice", "found"), [(1 << 16, 8, True), (200, 8, False), (200, 40, True)])
def test_of_a_long_log_stretches_told_twice_are_found_all_the_same(
    monkeypatch: pytest.MonkeyPatch, kept: int, twice: int, found: bool
) -> None:
    """With 3,000 records and 200 windows kept every 15th is: 8 records told twice slip through, 40 do not."""
    monkeypatch.setattr(log, "KEPT", kept)
    rows = [Iteration(step, 1.0 / (step + 1), 1.0, 1.0, 0.0) for step in range(3000)]
    assert log._repeats(cast("Case", None), rows) is None
    rows[2001 : 2001 + twice] = [altered(row, step=2001 + place) for place, row in enumerate(rows[1001 : 1001 + twice])]
    assert (log._repeats(cast("Case", None), rows) is not None) is found


@pytest.mark.parametrize("losses", [[1.0], [1.0, 3.0], [2.5, 2.5, 2.5], [1e6 + place for place in range(100)]])
def test_moments_are_those_of_statistics(work: Work, whole: Path, losses: list[float]) -> None:
    found = proof.read(whole, work.job)
    rows = [Iteration(0, loss, 1.0, 1.0, 0.0) for loss in losses]
    found = found._replace(log=found.log._replace(iterations=rows))
    with repeatable(1):
        case = Case(Own(work), found, everything(work, whole), cast("States", None))
    count, mean, squares = printed_epochs._moments(case)[0]
    assert count == len(losses)
    assert mean == pytest.approx(statistics.fmean(losses))
    assert squares == pytest.approx(statistics.pvariance(losses) * len(losses))


def test_a_log_has_what_checks_read() -> None:
    assert Log._fields == ("iterations", "samples", "evaluations", "resumed", "head")
