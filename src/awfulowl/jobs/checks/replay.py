"""Re-execution: each challenged step is run again from its committed state, and must lead to the next one."""

import math
from typing import Final

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import segments
from awfulowl.jobs.challenge import segment_end
from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.state import State, digest

LOSS_TOLERANCE: Final = 1e-3
"""Relative difference of losses of one state on one batch, on machines of two classes: bf16 alone is beyond it."""


class Replay(Check):
    """A runner that fakes a share phi of its steps passes m challenges with probability (1 - phi)^m or less.

    The steps are drawn after the commitment, so that nobody can make just those honestly, unlike the largest steps
    that the founding paper verifies (the attack: blindfold top-q, Fang et al., 2023). The loss that the log tells for
    the step is recomputed as well.
    """

    name = "replay"

    def refuse(self, case: Case) -> str | None:
        """Return which step came out otherwise, or None."""
        logged = case.told()
        for step in case.challenged:
            reason = self._step(case, step) if step else None
            told = logged.get(step)
            if reason is None and (told is None or not _same_loss(case, step, told.loss, told.norm)):
                reason = (
                    f"step {step}: the log tells a loss of {told.loss if told else None}, it is {case.rows[step].loss}"
                )
            if reason is not None:
                return reason
        return None

    @staticmethod
    def _step(case: Case, step: int) -> str | None:
        begun = case.states.state(step)
        try:
            return _exactly(case, begun) if case.challenge.exact else segment(case, begun)
        except ProofError:
            raise
        except InputError as error:
            return f"step {step}, run again: {error}"


def _exactly(case: Case, begun: State) -> str | None:
    step = begun.step
    case.trainer.load(begun)
    case.rows[step] = case.advance()
    same = digest(case.trainer.state()) == case.states.digest(step + 1)
    return None if same else f"step {step}, run again, comes out otherwise"


def segment(case: Case, begun: State) -> str | None:
    """Run a stretch again from its committed start, and return why its end is refused, or None.

    Where it comes out otherwise there are second looks (`segments.looks`). What the log tells of its first step is
    held against the look that was accepted.
    """
    step, bound = begun.step, case.work.job.proving.tolerance
    if bound is None:
        return "runner and verifier are of two classes, and the job gives no tolerance"
    end = segment_end(case.work, case.challenge, step)
    theirs, least = case.states.state(end), float("inf")
    most = min(segments.LOOKS, case.looks)
    for look in segments.looks(case.trainer, begun, end, case.entropy, case.advance, most):
        found = segments.error(begun, look.end, theirs, case.trainer.layout.still)
        least = min(least, found)
        if found <= bound:
            case.rows[step] = look.row
            case.looks -= look.number
            return None
    case.looks -= most
    return (
        f"steps {step} to {end - 1}, run again {most + 1} times from states within rounding of the committed "
        f"one, are {least:.1e} of their movement apart or more; {bound:.1e} is allowed"
    )


def _same_loss(case: Case, step: int, loss: float, norm: float) -> bool:
    row = case.rows[step]
    if case.challenge.exact:
        return loss == row.loss and norm == row.norm
    return all(
        math.isclose(told, found, rel_tol=LOSS_TOLERANCE, abs_tol=LOSS_TOLERANCE**2)
        for told, found in ((loss, row.loss), (norm, row.norm))
    )
