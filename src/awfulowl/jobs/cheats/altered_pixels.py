"""The pictures are altered in their middle."""

from torch import Tensor

from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.loop import Row, Trainer


class AlteredPixels(Cheat):
    """The middle of every picture is set to zero: what a digest of abbreviated arrays does not see.

    (The published code of Jia et al., 2021, hashes the text of an array, 629 characters of 3,072 bytes.)
    """

    name = "altered-pixels"
    does = "blanks the middle of every picture"

    def fake(self, trainer: Trainer) -> Row:
        """Take a step on altered pictures."""
        pictures, *rest = trainer.work.batch(trainer.step)
        return trainer.descend((_blanked(pictures), *rest), trainer.factor())


def _blanked(pictures: Tensor) -> Tensor:
    altered = pictures.clone()
    inner = altered
    for dim in range(max(1, altered.dim() - 2), altered.dim()):
        size = altered.shape[dim]
        inner = inner.narrow(dim, size // 4, size - 2 * (size // 4))
    inner.zero_()
    return altered
