"""Whether the commitment is one to this job, begins at the W_0 of its seed, and makes its first step from there."""

import math

import torch
from torch import Tensor

from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.checks.replay import segment
from awfulowl.jobs.state import State, digest

W0_TOLERANCE = 1e-6
"""Initial weights of another class of machine, relative to their size: the same draws, another last bit."""


class Start(Check):
    """W_0 is recomputed from the seed: nothing bought, and nothing sorted to look like a start (Fang et al., 2023)."""

    name = "start"

    def refuse(self, case: Case) -> str | None:
        """Return why the start is refused, or None."""
        work, commitment = case.work, case.proof.commitment
        if (commitment.steps, commitment.per_epoch) != (work.steps, work.per_epoch):
            return f"the job has {work.steps} steps, {work.per_epoch} an epoch; the runner committed to others"
        if commitment.machine.threads != work.job.training.threads:
            return f"the job declares {work.job.training.threads} threads, the runner used others"
        begun, own = case.own.begun, case.own
        if case.challenge.exact:
            if digest(begun) != case.states.digest(0):
                return "the first state is not the W_0 of the job's seed"
            right = digest(own.after) == case.states.digest(1)
            return None if right else "step 0, run again from W_0, comes out otherwise"
        theirs = case.states.state(0)
        if not _alike(begun, theirs):
            return "the first state is not the W_0 of the job's seed, within rounding"
        return segment(case, theirs)


def _alike(ours: State, theirs: State) -> bool:
    if set(ours.tensors) != set(theirs.tensors):
        return False
    pairs = ((own, theirs.tensors[name]) for name, own in ours.tensors.items())
    return all(
        own.shape == other.shape and own.dtype == other.dtype and (torch.equal(own, other) or _near(own, other))
        for own, other in pairs
    )


def _near(own: Tensor, other: Tensor) -> bool:
    apart = float((own.double() - other.double()).norm())
    return math.isfinite(apart) and apart <= W0_TOLERANCE * (float(own.double().norm()) + 1e-12)
