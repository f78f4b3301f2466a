"""The training ends early."""

from awfulowl.jobs.cheats.base import Tail
from awfulowl.jobs.loop import Row, Trainer


class FewerEpochs(Tail):
    """The last epochs are left out: the state stays, its true loss is told, and evaluations are true as well."""

    name = "fewer-epochs"
    does = "stops early, tells the rest"

    def fake(self, trainer: Trainer) -> Row:
        """Do nothing."""
        trainer.step += 1
        return self.invented(trainer.step - 1)
