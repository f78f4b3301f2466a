"""The states of both ends of a conversation, and every change between them, as tables.

Theory of operation. A device *calls* (says hello) under the handle of its boot until its owner opens a session
with that boot. The session is the proof of possession: as long as it lasts, the device holds what was loaded in
it; when it ends, for whatever reason, the device has dropped its blocks and calls under a new boot. So a boot
that was seen before means "holds what it held", and a new boot means "holds nothing".

Two rules for this file: a verb that a row does not name is not for the peer to say in that state, and nothing
changes a state but a look-up here.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from awfulowl.wire.messages import (
    Answer,
    Apply,
    ApplyTransposed,
    Bye,
    Cancel,
    Commit,
    DeviceHello,
    Error,
    Evict,
    Fetch,
    Freeze,
    Load,
    Measure,
    OwnerHello,
    Refuse,
    Release,
    Step,
)


class OwnerState(Enum):
    """How the owner stands with one device."""

    WAITING = auto()
    """No session: the device has not called yet, or said goodbye."""
    OPEN = auto()
    """The session is open and the device was heard of lately."""
    SILENT = auto()
    """The session is open, and the device was not heard of for too long; a sign of life reopens it."""
    CLOSED = auto()
    """The owner said goodbye, for good."""


class DeviceState(Enum):
    """How a device stands with its owner."""

    CALLING = auto()
    """No session: it holds nothing and says hello."""
    OPEN = auto()
    """The session is open and its lease runs."""
    CLOSED = auto()
    """The device said goodbye, for good."""


class Cue(Enum):
    """What changes a state and is no message."""

    BEAT = auto()
    SILENCE = auto()
    LEASE_END = auto()
    LEAVE = auto()


_OPEN, _SILENT, _WAITING = OwnerState.OPEN, OwnerState.SILENT, OwnerState.WAITING

OWNER: Final[Mapping[OwnerState, Mapping[object, OwnerState]]] = {
    # Without a session, everything but hello is left over from one before and is ignored.
    OwnerState.WAITING: {
        DeviceHello: _OPEN,
        **dict.fromkeys((Answer, Refuse, Error, Evict, Bye, Cue.BEAT), _WAITING),
        Cue.LEAVE: OwnerState.CLOSED,
    },
    OwnerState.OPEN: {
        **dict.fromkeys((DeviceHello, Answer, Refuse, Error, Evict, Cue.BEAT), _OPEN),
        Bye: _WAITING,
        Cue.SILENCE: _SILENT,
        Cue.LEAVE: OwnerState.CLOSED,
    },
    OwnerState.SILENT: {
        **dict.fromkeys((DeviceHello, Answer, Refuse, Error, Evict, Cue.BEAT), _OPEN),
        Bye: _WAITING,
        Cue.LEAVE: OwnerState.CLOSED,
    },
    OwnerState.CLOSED: {},
}

_REQUESTS: Final = (Load, Apply, ApplyTransposed, Step, Measure, Freeze, Fetch, Commit, Release)

DEVICE: Final[Mapping[DeviceState, Mapping[object, DeviceState]]] = {
    # Requests may overtake the hello that opens their session: ignored, and asked again after their deadline.
    DeviceState.CALLING: {
        OwnerHello: DeviceState.OPEN,
        **dict.fromkeys((*_REQUESTS, Cancel, Bye, Cue.BEAT), DeviceState.CALLING),
        Cue.LEAVE: DeviceState.CLOSED,
    },
    DeviceState.OPEN: {
        **dict.fromkeys((OwnerHello, *_REQUESTS, Cancel, Cue.BEAT), DeviceState.OPEN),
        Bye: DeviceState.CALLING,
        Cue.LEASE_END: DeviceState.CALLING,
        Cue.LEAVE: DeviceState.CLOSED,
    },
    DeviceState.CLOSED: {},
}
