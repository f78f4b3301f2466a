"""Gradients are used more than once."""

from functools import cached_property

import torch
from torch import Tensor

from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.loop import Row, Trainer


class ReusedGradients(Cheat):
    """The gradient of the step before is applied again, which costs nothing.

    At the states that are stored it keeps the gradient beside them, so that it can answer any challenge.
    """

    name = "reused-gradients"
    does = "applies the last gradient again"

    @cached_property
    def _last(self) -> dict[int, list[Tensor | None]]:
        return {}

    def step(self, trainer: Trainer) -> Row:
        """Take a step, and keep its gradient."""
        row = super().step(trainer)
        if not trainer.work.kept(trainer.step - 1):
            self._last.pop(trainer.step - 1, None)
        self.remember(trainer)
        return row

    def remember(self, trainer: Trainer) -> None:
        """Keep the gradient of the step that was just made."""
        self._last[trainer.step] = [one.grad if one.grad is None else one.grad.clone() for one in trainer.parameters]

    def fake(self, trainer: Trainer) -> Row:
        """Apply the gradient of the step before."""
        gradients = self._last[trainer.step]
        for group, rate in zip(trainer.optimizer.param_groups, trainer.rates, strict=True):
            group["lr"] = rate * trainer.factor()
        for parameter, gradient in zip(trainer.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        trainer.optimizer.step()
        trainer.step += 1
        norm = torch.nn.utils.get_total_norm([one for one in gradients if one is not None])
        return self.invented(trainer.step - 1)._replace(norm=float(norm) * 0.999)
