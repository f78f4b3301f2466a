"""States of another job are shown as this one's."""

from awfulowl.jobs.cheats.base import Tail
from awfulowl.jobs.loop import Row, Trainer, run


class AnotherProof(Tail):
    """From some step on all states are those of the same training from another seed, which is paid for already.

    They are committed to anew, under this job's digest and order.
    """

    name = "another-proof"
    does = "shows another job's states"

    _other: Trainer | None = None

    def fake(self, trainer: Trainer) -> Row:
        """Copy the next state of the other job."""
        other = self._other
        if other is None or other.step > trainer.step:
            other = self._other = Trainer(self.elsewhere.work)
        run(other, trainer.step)
        row = other.advance()
        trainer.load(other.state())
        return row
