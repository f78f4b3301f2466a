"""What an honest log always keeps: no gaps, no repeats, clocks that go on, rates of the schedule, possible speed.

Whoever knows this list can write a log that keeps all of it (`cheats` do): it finds broken runners, it proves nothing.
"""

import math
from collections import deque
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Final

from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.records import Iteration, finite

Iterations = Collection[Iteration]
"""In the order of the log; they may be too many to be kept."""

WINDOW: Final = 8
"""Steps whose losses and gradients, to the last bit, never come twice."""
KEPT: Final = 1 << 16
"""Windows that are remembered."""
FASTEST: Final = 1000.0
"""How many times faster than the verifier's own processor a runner can be."""


class SoundLog(Check):
    """The log is whole, and possible."""

    name = "log"

    def refuse(self, case: Case) -> str | None:
        """Return what is wrong with the log, or None."""
        rows = case.proof.log.iterations
        rules: tuple[Callable[[Case, Iterations], str | None], ...] = (
            _complete,
            _finite,
            _rates,
            _clocks,
            _evaluations,
            _repeats,
            _speed,
        )
        return next((reason for reason in (rule(case, rows) for rule in rules) if reason), None)


def _complete(case: Case, rows: Iterations) -> str | None:
    if len(rows) != case.work.steps:
        return f"the log has {len(rows)} records, the job {case.work.steps} steps"
    wrong = next(((place, row.step) for place, row in enumerate(rows) if row.step != place), None)
    return None if wrong is None else f"record {wrong[0]} is of step {wrong[1]}: a gap or a repeat"


def _finite(_: Case, rows: Iterations) -> str | None:
    wrong = next((row.step for row in rows if not finite(row)), None)
    return None if wrong is None else f"the record of step {wrong} is not finite"


def _rates(case: Case, rows: Iterations) -> str | None:
    lr, task, steps = case.trainer.rates[0], case.work.task, case.work.steps
    wrong = next((row for row in rows if not math.isclose(row.rate, lr * task.rate(row.step, steps))), None)
    return (
        None if wrong is None else f"step {wrong.step} was made at a rate of {wrong.rate}, which the job does not have"
    )


def _clocks(case: Case, rows: Iterations) -> str | None:
    samples, resumed = case.proof.log.samples, iter(case.proof.log.resumed)
    ended = next(resumed, None)
    for row, later in pairwise(rows):
        while ended is not None and ended < later.step:
            ended = next(resumed, None)
        if later.at < row.at and later.step != ended:
            return f"at step {later.step} the clock went back"
    turns = sum(later.at < sample.at for sample, later in pairwise(samples))
    if turns > len(case.proof.log.resumed):
        return "the clock of the samples went back"
    return None if samples else "the log has no sample of the machine"


def _evaluations(case: Case, _: Iterations) -> str | None:
    found, ends = case.proof.log.evaluations, case.work.ends
    if len(found) != len(ends) or any(one.step != end for one, end in zip(found, ends, strict=True)):
        return f"{len(found)} evaluations do not stand at the {len(ends)} ends of epochs"
    wrong = next((one.step for one in found if not math.isfinite(one.loss)), None)
    return None if wrong is None else f"the evaluation before step {wrong} is not finite"


def _repeats(_: Case, rows: Iterations) -> str | None:
    """A loss that has come to rest may repeat; one that moves does not, to its last bit, `WINDOW` times in a row.

    Of a long log only every k-th window is kept: then a stretch that was told twice is found if it is longer by k.
    """
    every = -(-len(rows) // KEPT)
    seen: dict[int, int] = {}
    window: deque[tuple[float, float]] = deque(maxlen=WINDOW)
    for place, row in enumerate(rows):
        window.append((row.loss, row.norm))
        if len(set(window)) < WINDOW:
            continue
        named = hash(tuple(window))
        if named in seen:
            return f"steps up to {place} tell to the last bit what steps up to {seen[named]} told"
        if place % every == 0:
            seen[named] = place
    return None


def _speed(case: Case, rows: Iterations) -> str | None:
    first, last = math.inf, -math.inf
    for row in rows:
        first, last = min(first, row.at), max(last, row.at)
    least = (len(rows) - 1) * case.cost.step_s / FASTEST
    return None if last - first >= least else f"{len(rows)} steps in {last - first:.3g} s: no machine is that fast"
