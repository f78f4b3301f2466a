"""What happened: counters, and a bounded list of events in words."""

import logging
from collections import deque
from dataclasses import dataclass, field, fields
from typing import Final, NamedTuple

_log = logging.getLogger(__name__)

_LOUD: Final = frozenset({"kept"})
"""Kinds of events that are warned of: from then on a model is not where its plan says."""


class Event(NamedTuple):
    """Something that a person should know."""

    time_s: float
    kind: str
    device: str
    text: str


@dataclass(slots=True)
class Ledger:
    """Counts over the life of a fleet. Written by the loop's thread only; reading from others is harmless."""

    requests: int = 0
    """Products asked for by the model."""
    requests_lost: int = 0
    """Products that ended in an error."""
    parts: int = 0
    samples: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    hedged: int = 0
    """Times that a replica was asked because a device was slow."""
    failovers: int = 0
    """Times that another device was asked because one failed."""
    replaced: int = 0
    """Cells that were loaded onto another device."""
    restored: int = 0
    """Devices that came back and got their blocks again."""
    repeated: int = 0
    """Changes that were asked for again because nothing was heard of them."""
    kept: int = 0
    """Layers that the owner had to take back because no placement was allowed."""
    given_out: int = 0
    """Layers among these that devices hold again."""
    checks: int = 0
    """Samples checked."""
    checks_failed: int = 0
    """Samples whose total was rejected."""
    lies_caught: int = 0
    """Answers of single devices that were rejected."""
    steps: int = 0
    """Steps of training that panels took."""
    replayed: int = 0
    """Steps of single devices that were taken again, to rebuild blocks."""
    behind: int = 0
    """Times that a device had not taken a step, and was rebuilt."""
    snapshots: int = 0
    """States of panels that were fetched, verified and kept."""
    reworked: int = 0
    """Blocks that the owner rebuilt itself, to see whether Adam moved them as it should."""
    damaged: int = 0
    """Frames whose check sum was wrong: the network's doing, or somebody's on the way."""
    violations: int = 0
    """Frames that the decoder or the session refused."""
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=1000))

    def note(self, time_s: float, kind: str, device: str, text: str) -> None:
        """Record an event, and log it."""
        self.events.append(Event(time_s, kind, device, text))
        _log.log(logging.WARNING if kind in _LOUD else logging.INFO, "%s %s: %s", kind, device, text)

    def counts(self) -> dict[str, int]:
        """Return the counters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "events"}
