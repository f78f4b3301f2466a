"""The way to a bought model is cut into updates so small that no distance shows them."""

import torch

from awfulowl.jobs.cheats.base import Cheat, Tail, forward, named
from awfulowl.jobs.loop import Row, Trainer

_SMALL = 0.05


class Interpolation(Tail):
    """The infinitesimal update attack (Fang et al., "Proof-of-Learning is Currently More Broken Than You Think", 2023).

    A straight line to a bought model. Their sorting of a W_0 that looks drawn is of no use here, where W_0 follows from
    the seed, and so is a tiny learning rate, which the job fixes; the line itself is theirs.
    """

    name = "interpolation"
    does = "walks straight to a bought model"

    def fake(self, trainer: Trainer) -> Row:
        """Take an equal part of the way that is left."""
        row = self.invented(trainer.step, _SMALL)._replace(loss=forward(trainer))
        approach(self, trainer, 1.0 / (trainer.work.steps - trainer.step))
        return row


def approach(cheat: Cheat, trainer: Trainer, share: float) -> None:
    """Go a share of the way that is left to the bought model."""
    with torch.no_grad():
        for name, parameter in named(trainer).items():
            parameter.lerp_(cheat.elsewhere.final[name], share)
    trainer.step += 1
