"""The conversation of an owner with one device, at both ends: bytes and times in, events and bytes out.

No I/O and no clock: `now` is passed in, in seconds of any monotonic clock, the same one for all calls of a
session. Nothing that a peer sends raises; a fault of the peer becomes a `Violation`. What each state accepts and
where it leads stands in `states`.

Rules of trust and order:

- A message counts only in the session it names. Those of a session that is known to be over are late: ignored
  and counted. Those of a session that never was are forged: a `Violation`.
- A request is done at most once: the device keeps a window of seen ids. Asked again, a change (`load`, `step`,
  `freeze`, `release`) gets its kept answer again, anything else is ignored.
- A request ends once at the owner: answered, refused, failed or expired, or cancelled by the owner itself. What
  comes after that is ignored and counted.
- Any message or beat of the session is a sign of life. The owner takes a silent device for gone after
  `Timing.silence_s`; the device drops its blocks after `Timing.lease_s`.
"""

from awfulowl.wire.session.device import DeviceSession
from awfulowl.wire.session.events import (
    Answered,
    Cancelled,
    Closed,
    DeviceEvent,
    Evicted,
    Expired,
    Failed,
    Gone,
    LeaseExpired,
    Opened,
    OwnerEvent,
    Refused,
    Repeat,
    Requested,
    Violation,
)
from awfulowl.wire.session.owner import OwnerSession, Timing
from awfulowl.wire.session.states import DeviceState, OwnerState

__all__ = [
    "Answered",
    "Cancelled",
    "Closed",
    "DeviceEvent",
    "DeviceSession",
    "DeviceState",
    "Evicted",
    "Expired",
    "Failed",
    "Gone",
    "LeaseExpired",
    "Opened",
    "OwnerEvent",
    "OwnerSession",
    "OwnerState",
    "Refused",
    "Repeat",
    "Requested",
    "Timing",
    "Violation",
]
