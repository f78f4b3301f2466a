"""Probabilistic epoch validation, sound: the evaluation that was logged for a state is made again with that state."""

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.failures import Blamed
from awfulowl.jobs.loop import EVALUATED_PARTS

FALSE_ALARM: Final = 1e-6
"""How often an honest evaluation is refused where only some of its parts are made again."""
ROUNDING: Final = 1e-4
"""Relative difference of the same loss on machines of two classes."""

_PIECES: Final = 2000


class Epochs(Check):
    """The logged loss of the state at the end of an epoch against the loss of that state.

    Two things are otherwise than the founding paper prints it. The loss is that of one state on stated examples, and no
    running mean over an epoch in which the state moved. And the limit is the standard error of the recomputed mean with
    the correction for a finite population (Cochran, "Sampling techniques", 1977, equation 2.20) at a stated rate of
    false alarms; where all parts are made again it is rounding alone, and in one class of machines 0. It says that the
    log belongs to the states; that the states were trained, only `Replay` says.
    """

    name = "epochs"

    def refuse(self, case: Case) -> str | None:
        """Return which epoch's evaluation is another, or None."""
        wanted = set(case.challenge.epochs)
        told = {one.step: one.loss for one in case.proof.log.evaluations if one.step in wanted}
        parts = case.challenge.parts
        for step in case.challenge.epochs:
            if step not in told or step not in case.work.ends:
                return f"no evaluation was logged before step {step}"
            case.trainer.load(case.states.state(step))
            with Blamed(step):
                losses = case.trainer.evaluate(case.work.epoch(step - 1), parts)
            case.cost.examples += case.work.job.training.batch * len(parts) // EVALUATED_PARTS
            if not math.isfinite(sum(losses)):
                return f"the state before step {step} has a loss that is not finite"
            found = sum(losses) / len(losses)
            allowed = limit(losses) + (0.0 if case.challenge.exact else ROUNDING * (abs(found) + ROUNDING))
            if abs(told[step] - found) > allowed:
                return f"the state before step {step} has a loss of {found:.6g}, logged was {told[step]:.6g}"
        return None


def limit(losses: Sequence[float], of: int = EVALUATED_PARTS, false_alarm: float = FALSE_ALARM) -> float:
    """Return how far the mean of some of `of` losses may be from the mean of all of them."""
    n = len(losses)
    if n >= of:
        return 0.0
    error = statistics.stdev(losses) * math.sqrt((1 - n / of) / n)
    return student(false_alarm, n - 1) * error


@lru_cache(maxsize=64)
def student(tail: float, freedom: int) -> float:
    """Return what Student's t exceeds in absolute value with probability `tail`.

    With t = sqrt(freedom) tan(a) the density is proportional to cos(a)^(freedom - 1).
    """
    whole = _cosines(0.0, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cosines(middle, freedom) / whole > tail else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _cosines(start: float, freedom: int) -> float:
    """Integrate cos^(freedom - 1) from `start` to a right angle (Simpson)."""
    width = (math.pi / 2 - start) / _PIECES
    values = [math.cos(start + place * width) ** (freedom - 1) for place in range(_PIECES + 1)]
    return width / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
