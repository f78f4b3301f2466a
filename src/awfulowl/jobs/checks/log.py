"""What an honest log always keeps: no gaps, no repeats, clocks that go on, rates of the schedule, possible speed.

Whoever knows this list can write a log that keeps all of it (`cheats` do): it finds broken runners, it proves nothing.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.records import Iteration, finite

WINDOW: Final = 8
"""Steps whose losses and gradients, to the last bit, never come twice."""
FASTEST: Final = 1000.0
"""How many times faster than the verifier's own processor a runner can be."""


class SoundLog(Check):
    """The log is whole, and possible."""

    name = "log"

    def refuse(self, case: Case) -> str | None:
        """Return what is wrong with the log, or None."""
        rows = case.proof.log.iterations
        rules: tuple[Callable[[Case, Sequence[Iteration]], str | None], ...] = (
            _complete,
            _finite,
            _rates,
            _clocks,
            _evaluations,
            _repeats,
            _speed,
        )
        return next((reason for reason in (rule(case, rows) for rule in rules) if reason), None)


def _complete(case: Case, rows: Sequence[Iteration]) -> str | None:
    if len(rows) != case.work.steps:
        return f"the log has {len(rows)} records, the job {case.work.steps} steps"
    wrong = next((place for place, row in enumerate(rows) if row.step != place), None)
    return None if wrong is None else f"record {wrong} is of step {rows[wrong].step}: a gap or a repeat"


def _finite(_: Case, rows: Sequence[Iteration]) -> str | None:
    wrong = next((row.step for row in rows if not finite(row)), None)
    return None if wrong is None else f"the record of step {wrong} is not finite"


def _rates(case: Case, rows: Sequence[Iteration]) -> str | None:
    lr, task, steps = case.trainer.rates[0], case.work.task, case.work.steps
    wrong = next((row for row in rows if not math.isclose(row.rate, lr * task.rate(row.step, steps))), None)
    return (
        None if wrong is None else f"step {wrong.step} was made at a rate of {wrong.rate}, which the job does not have"
    )


def _clocks(case: Case, rows: Sequence[Iteration]) -> str | None:
    samples = case.proof.log.samples
    resumed = set(case.proof.log.resumed)
    back = next((later.step for row, later in pairwise(rows) if later.at < row.at and later.step not in resumed), None)
    if back is not None:
        return f"at step {back} the clock went back"
    turns = sum(later.at < sample.at for sample, later in pairwise(samples))
    if turns > len(resumed):
        return "the clock of the samples went back"
    return None if samples else "the log has no sample of the machine"


def _evaluations(case: Case, _: Sequence[Iteration]) -> str | None:
    found = case.proof.log.evaluations
    if tuple(one.step for one in found) != case.work.ends:
        return f"{len(found)} evaluations do not stand at the {len(case.work.ends)} ends of epochs"
    wrong = next((one.step for one in found if not math.isfinite(one.loss)), None)
    return None if wrong is None else f"the evaluation before step {wrong} is not finite"


def _repeats(_: Case, rows: Sequence[Iteration]) -> str | None:
    """A loss that has come to rest may repeat; one that moves does not, to its last bit, `WINDOW` times in a row."""
    told = [(row.loss, row.norm) for row in rows]
    if len(set(told)) > len(told) - WINDOW:
        return None
    seen: dict[tuple[tuple[float, float], ...], int] = {}
    for place in range(len(told) - WINDOW + 1):
        window = tuple(told[place : place + WINDOW])
        if len(set(window)) < WINDOW:
            continue
        before = seen.setdefault(window, place)
        if before != place:
            return f"steps from {place} tell to the last bit what steps from {before} told"
    return None


def _speed(case: Case, rows: Sequence[Iteration]) -> str | None:
    took = max((row.at for row in rows), default=0.0) - min((row.at for row in rows), default=0.0)
    least = (len(rows) - 1) * case.cost.step_s / FASTEST
    return None if took >= least else f"{len(rows)} steps in {took:.3g} s: no machine is that fast"
