"""The labels are altered."""

from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.loop import Row, Trainer


class AlteredLabels(Cheat):
    """Every label is moved to the next class: a model that is wrong on purpose, with a falling loss."""

    name = "altered-labels"
    does = "moves every label to the next class"

    def fake(self, trainer: Trainer) -> Row:
        """Take a step on altered labels."""
        *rest, labels = trainer.work.batch(trainer.step)
        classes = int(trainer.work.examples[-1].max()) + 1
        return trainer.descend((*rest, (labels + 1) % classes), trainer.factor())
