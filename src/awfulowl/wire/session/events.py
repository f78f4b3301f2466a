"""What a session tells the code around it. Tensors stay out of the texts: they may be a client's data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from awfulowl.errors import ProtocolError
from awfulowl.randomness import Seeded
from awfulowl.wire.messages import DeviceHello, OwnerHello, Request
from awfulowl.wire.parts import Handle

HelloT = TypeVar("HelloT", DeviceHello, OwnerHello)


@dataclass(frozen=True, slots=True)
class Opened(Generic[HelloT]):
    """A session is open.

    `fresh` says that the device holds nothing: at the owner, what was loaded before is lost; at the device, what
    is still here must be dropped. Without it the session goes on, and nothing was lost.
    """

    hello: HelloT
    fresh: bool
    frames_to_send: Sequence[bytes] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer sent something that was refused; `DamagedError` may be the network's doing."""

    error: ProtocolError


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """Request `id` was done. The tensors are views: never write to them."""

    id: int
    tensors: list[Tensor] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """The device will not do request `id`."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Request `id` failed at the device, or the device is gone; a change may have been done all the same."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Expired:
    """Request `id` was not answered before its deadline; a change may have been done all the same."""

    id: int


@dataclass(frozen=True, slots=True)
class Evicted:
    """The device no longer holds these slices."""

    slices: tuple[Handle, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The device is silent or said goodbye; if it comes back, `Opened` says what it still holds."""

    reason: str


OwnerEvent = Opened[DeviceHello] | Answered | Refused | Failed | Expired | Evicted | Gone | Violation


@dataclass(frozen=True, slots=True, eq=False)
class Requested:
    """The owner wants `body` done, once. The tensors are views of the message: never write to them.

    Seeds are expanded when the request's turn comes: many that wait take no memory for what they stand for.
    """

    id: int
    body: Request
    tensors: list[Tensor | Seeded] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The answer to request `id`, which is not given yet, is no longer wanted."""

    id: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """Something is to be sent again: hello, or the kept answer to a change that was asked for again."""

    frames: Sequence[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """The owner was silent for longer than the lease: all blocks must be dropped."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The owner said goodbye: all blocks must be dropped."""

    reason: str


DeviceEvent = Opened[OwnerHello] | Requested | Cancelled | Repeat | LeaseExpired | Closed | Violation
