"""Verification of the largest updates (Lab Apex, section 2.3, after Jia et al., 2021), as printed."""

from itertools import pairwise

from awfulowl.errors import ProofError
from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.proof import STATES
from awfulowl.jobs.state import MODEL, State


class PrintedLargest(Check):
    """|W_(t+k) - W'_(t+k)| < mean gradient norm, for the stretch of k steps of each epoch that moves furthest.

    Whoever makes those stretches honestly, and invents the rest, passes (blindfold top-q, Fang et al., 2023); and the
    limit, a gradient's norm, is larger than what most stretches move.
    """

    name = "printed: largest updates"
    printed = True

    def refuse(self, case: Case) -> str | None:
        """Return the stretch that ends elsewhere, or None."""
        work = case.work
        steps = [0, *(step for step in range(1, work.steps + 1) if work.kept(step))]
        for first, last in zip((0, *work.ends), work.ends, strict=False):
            own = [(start, end) for start, end in pairwise(steps) if first <= start and end <= last]
            moves = {pair: _moved(case, *pair) for pair in own}
            start, end = max(moves, key=lambda pair: moves[pair])
            apart, allowed = _replayed(case, start, end)
            if not apart < allowed:
                return f"steps {start} to {end} end {apart:.3g} away, {allowed:.3g} is allowed"
        return None


def _state(case: Case, step: int) -> State:
    found = case.own.begun if step == 0 else case.states.stored(step)
    if found is None:
        raise ProofError(f"the state before step {step} is not in {STATES}")
    return found


def _moved(case: Case, start: int, end: int) -> float:
    return _distance(_state(case, start).copy(), _state(case, end))


def _distance(one: State, other: State) -> float:
    square = 0.0
    for name, tensor in one.tensors.items():
        if name.startswith(MODEL) and tensor.is_floating_point() and name in other.tensors:
            square += float((tensor - other.tensors[name]).square().sum())
    return float(square**0.5)


def _replayed(case: Case, start: int, end: int) -> tuple[float, float]:
    """Return how far the runner's end is from ours, and the mean norm of the gradients on the way."""
    case.trainer.load(_state(case, start))
    norms = []
    while case.trainer.step < end:
        norms.append(case.advance().norm)
    return _distance(case.trainer.state(), _state(case, end)), sum(norms) / len(norms)
