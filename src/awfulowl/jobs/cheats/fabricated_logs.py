"""Nothing is trained; the log is invented."""

from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.loop import Row, Trainer


class FabricatedLogs(Cheat):
    """Steps are told and never made; evaluations at the end of faked stretches are invented with them."""

    name = "fabricated-logs"
    does = "makes no step, invents its record"

    def fake(self, trainer: Trainer) -> Row:
        """Do nothing."""
        trainer.step += 1
        return self.invented(trainer.step - 1)

    def evaluate(self, trainer: Trainer, epoch: int) -> float:
        """Return a loss that fits the invented ones."""
        if trainer.step - 1 not in self.faked:
            return super().evaluate(trainer, epoch)
        return self.invented(trainer.step).loss
