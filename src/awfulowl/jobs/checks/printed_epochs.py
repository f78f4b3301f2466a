"""Probabilistic epoch validation of the founding paper (Lab Apex, section 2.2), as printed."""

import statistics
from typing import Final

import torch

from awfulowl.jobs.checks.base import Case, Check
from awfulowl.jobs.loop import Trainer
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
        logged = case.logged()
        begun = 0
        for step in case.work.ends:
            losses = [logged[place].loss for place in range(begun, step) if place in logged]
            state = case.states.stored(step)
            if state is None or len(losses) < 2:
                return f"nothing to validate the epoch before step {step} with"
            case.trainer.load(state)
            apart = abs(statistics.fmean(losses) - _loss(case, case.trainer))
            if not apart < statistics.stdev(losses) * 100 / PERCENT:
                return f"the epoch before step {step}: losses are {apart:.3g} apart"
            begun = step
        return None


def _loss(case: Case, trainer: Trainer) -> float:
    work = case.work
    chosen = torch.tensor(SYSTEM.permutation(work.rows)[: max(1, work.rows * PERCENT // 100)])
    total = 0.0
    trainer.model.eval()
    with torch.no_grad():
        for numbers in torch.split(chosen, work.job.training.batch):
            batch = tuple(tensor[numbers] for tensor in work.examples)
            total += float(work.task.loss(trainer.model, batch).item()) * len(numbers)
    trainer.model.train()
    case.cost.examples += len(chosen)
    return total / len(chosen)
