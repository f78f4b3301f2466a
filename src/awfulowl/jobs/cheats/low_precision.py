"""bf16 in place of fp32."""

from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.loop import Row, Trainer


class LowPrecision(Cheat):
    """Products are made in bfloat16, which is several times faster where the hardware knows it."""

    name = "low-precision"
    does = "computes in bf16 instead of fp32"

    def fake(self, trainer: Trainer) -> Row:
        """Take a step in bfloat16."""
        return trainer.descend(trainer.work.batch(trainer.step), trainer.factor(), "bfloat16")
