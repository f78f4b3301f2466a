"""The largest updates of every epoch are honest, and the rest is interpolated."""

from typing import Final

from awfulowl.jobs.cheats.base import Cheat, forward
from awfulowl.jobs.cheats.interpolation import approach
from awfulowl.jobs.loop import Row, Trainer

_SMALL: Final = 1e-3
_SLOW: Final = 4
"""How many jobs of this length the straight way would take: fakes are smaller than any real update."""


class BlindfoldTopQ(Cheat):
    """Blindfold top-q of Fang et al. (2023), against verifiers that run the largest updates again.

    The longest stretch between two stored states of each epoch is real; other steps, as many as its share allows, are
    small parts of the straight way to a bought model, and the log tells small gradients for them.
    """

    name = "blindfold-top-q"
    does = "interpolates all but the largest steps"

    def places(self, count: int) -> list[int]:
        """Return as many steps of every epoch, those of its longest stretch last."""
        epochs = [self._ordered(first, last) for first, last in zip((0, *self.work.ends), self.work.ends, strict=False)]
        ranked = sorted((rank, step) for epoch in epochs for rank, step in enumerate(epoch))
        return [step for _, step in ranked if step > 0][:count]

    def _ordered(self, first: int, last: int) -> list[int]:
        stretches = []
        while first < last:
            end = self.work.next_kept(first)
            stretches.append(range(first, end))
            first = end
        stretches.sort(key=lambda one: (len(one), -one.start))
        return [step for stretch in stretches for step in reversed(stretch)]

    def fake(self, trainer: Trainer) -> Row:
        """Take a small part of the way that is left."""
        row = self.invented(trainer.step, _SMALL)._replace(loss=forward(trainer))
        approach(self, trainer, 1 / (_SLOW * trainer.work.steps))
        return row
