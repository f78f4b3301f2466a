"""A distilled or bought model takes the place of the trained one."""

import torch

from awfulowl.jobs.cheats.base import Tail, forward, named
from awfulowl.jobs.loop import Row, Trainer

_NOISE = 1e-4


class BoughtModel(Tail):
    """From some step on the states are those of a model that was trained by others, shaken so that they differ.

    Its losses and evaluations are true, and better than those of the training that was ordered.
    """

    name = "bought-model"
    does = "puts in a model that others trained"

    def fake(self, trainer: Trainer) -> Row:
        """Put the bought weights in, with noise."""
        row = self.invented(trainer.step)._replace(loss=forward(trainer))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + trainer.step)
        with torch.no_grad():
            for name, parameter in named(trainer).items():
                bought = self.elsewhere.final[name]
                noise = torch.randn(bought.shape, generator=generator)
                parameter.copy_(bought + _NOISE * bought.abs().mean() * noise)
        trainer.step += 1
        return row
