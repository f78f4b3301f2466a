"""All checks, in the order in which a verifier makes them: what is cheap comes first."""

from collections.abc import Sequence
from typing import Final, Literal

from awfulowl.jobs.checks.base import Check
from awfulowl.jobs.checks.epochs import Epochs
from awfulowl.jobs.checks.final import Final as FinalState
from awfulowl.jobs.checks.log import SoundLog
from awfulowl.jobs.checks.printed_epochs import PrintedEpochs
from awfulowl.jobs.checks.printed_largest import PrintedLargest
from awfulowl.jobs.checks.printed_logs import PrintedCount, PrintedMemory, PrintedUtilisation
from awfulowl.jobs.checks.replay import Replay
from awfulowl.jobs.checks.start import Start

Which = Literal["sound", "printed", "all"]
"""sound: what decides. printed: the founding paper's, alone. all: both; the sound ones decide."""

SOUND: Final[tuple[Check, ...]] = (Start(), FinalState(), SoundLog(), Replay(), Epochs())
PRINTED: Final[tuple[Check, ...]] = (
    PrintedCount(),
    PrintedUtilisation(),
    PrintedMemory(),
    PrintedEpochs(),
    PrintedLargest(),
)


def chosen(which: Which) -> Sequence[Check]:
    """Return the checks that are made."""
    return {"sound": SOUND, "printed": PRINTED, "all": (*SOUND, *PRINTED)}[which]
