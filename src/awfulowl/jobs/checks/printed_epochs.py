"""Probabilistic epoch validation of the founding paper (Lab Apex, section 2.2), as printed."""

import math
from typing import Final

import torch

from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.failures import Blamed
from awfulowl.jobs.loop import Trainer, evaluating
from awfulowl.randomness import SYSTEM

PERCENT: Final = 10
"""N: of the data, recomputed for every checkpoint."""


class PrintedEpochs(Check):
    """|L_e - L'_e| < sigma_e x 100 / N, with L_e the mean training loss of epoch e and L'_e that of its checkpoint.

    For N = 10 the limit is ten standard deviations of the losses of single steps, so it cannot fail; sigma_e holds the
    trend of the epoch besides; and a bought checkpoint has a right loss too. `Epochs` is the sound form.
    """

    name = "printed: epochs"
    printed = True

    def refuse(self, case: Case) -> str | None:
        """Return the epoch whose losses are further apart than ten standard deviations, or None."""
        logged = _moments(case)
        for step in case.work.ends:
            state, (count, mean, squares) = case.states.stored(step), logged[case.work.epoch(step - 1)]
            if state is None or count < 2:
                return f"nothing to validate the epoch before step {step} with"
            case.trainer.load(state)
            with Blamed(step):
                apart = abs(mean - _loss(case, case.trainer))
            if not apart < math.sqrt(squares / (count - 1)) * 100 / PERCENT:
                return f"the epoch before step {step}: losses are {apart:.3g} apart"
        return None


def _moments(case: Case) -> list[tuple[int, float, float]]:
    """Return how many losses of each epoch are logged, their mean, and the sum of squares about it (Welford, 1962)."""
    found = [(0, 0.0, 0.0)] * len(case.work.ends)
    for row in case.proof.log.iterations:
        if row.step < case.work.steps:
            count, mean, squares = found[case.work.epoch(row.step)]
            away = row.loss - mean
            mean += away / (count + 1)
            found[case.work.epoch(row.step)] = count + 1, mean, squares + away * (row.loss - mean)
    return found


def _loss(case: Case, trainer: Trainer) -> float:
    work = case.work
    chosen = torch.tensor(SYSTEM.permutation(work.rows)[: max(1, work.rows * PERCENT // 100)])
    total = 0.0
    with evaluating(trainer.model):
        for numbers in torch.split(chosen, work.job.training.batch):
            batch = tuple(tensor[numbers] for tensor in work.examples)
            total += float(work.task.loss(trainer.model, batch).item()) * len(numbers)
    case.cost.examples += len(chosen)
    return total / len(chosen)
