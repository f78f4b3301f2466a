"""Another learning rate than the job's."""

from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.loop import Row, Trainer

_TIMES = 2.0


class OtherRate(Cheat):
    """Steps are twice as long, so that fewer of them would do; the log tells the job's rate."""

    name = "other-rate"
    does = "doubles the learning rate"

    def fake(self, trainer: Trainer) -> Row:
        """Take a step that is too long."""
        return trainer.descend(trainer.work.batch(trainer.step), _TIMES * trainer.factor())
