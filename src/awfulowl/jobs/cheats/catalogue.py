"""All runners that cheat, by name."""

from typing import Final

from awfulowl.errors import InputError
from awfulowl.jobs.cheats.altered_labels import AlteredLabels
from awfulowl.jobs.cheats.altered_pixels import AlteredPixels
from awfulowl.jobs.cheats.another_proof import AnotherProof
from awfulowl.jobs.cheats.base import Cheat
from awfulowl.jobs.cheats.blindfold import BlindfoldTopQ
from awfulowl.jobs.cheats.bought_model import BoughtModel
from awfulowl.jobs.cheats.fabricated_logs import FabricatedLogs
from awfulowl.jobs.cheats.fewer_epochs import FewerEpochs
from awfulowl.jobs.cheats.half_batches import HalfBatches
from awfulowl.jobs.cheats.interpolation import Interpolation
from awfulowl.jobs.cheats.low_precision import LowPrecision
from awfulowl.jobs.cheats.other_rate import OtherRate
from awfulowl.jobs.cheats.part_of_data import PartOfData
from awfulowl.jobs.cheats.reused_gradients import ReusedGradients
from awfulowl.jobs.cheats.smaller_model import SmallerModel


def catalogue(*kinds: type[Cheat]) -> dict[str, type[Cheat]]:
    """Return cheats by name.

    Raises:
        InputError: two share a name.
    """
    found = {kind.name: kind for kind in kinds}
    if len(found) < len(kinds):
        raise InputError("two cheats share a name")
    return found


CHEATS: Final = catalogue(
    FabricatedLogs,
    FewerEpochs,
    SmallerModel,
    OtherRate,
    HalfBatches,
    ReusedGradients,
    LowPrecision,
    BoughtModel,
    Interpolation,
    BlindfoldTopQ,
    PartOfData,
    AnotherProof,
    AlteredPixels,
    AlteredLabels,
)
