"""Two linked machines: an owner's session and a device's, and everything that is under way between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.kernels import Dense
from awfulowl.errors import ProtocolError
from awfulowl.limits import DEFAULT, Limits
from awfulowl.randomness import Entropy
from awfulowl.wire.codec import encode
from awfulowl.wire.frames import Frame, frames
from awfulowl.wire.messages import (
    Apply,
    ApplyTransposed,
    Body,
    Commit,
    Fetch,
    Freeze,
    Load,
    Measure,
    Release,
    Request,
    Step,
)
from awfulowl.wire.parts import Sheet, Term
from awfulowl.wire.session import (
    DeviceEvent,
    DeviceSession,
    Opened,
    OwnerEvent,
    OwnerSession,
    Repeat,
    Requested,
    Timing,
    Violation,
)

ROW, SLICE, OTHER = b"r" * 16, b"s" * 16, b"o" * 16
TERM = Term(rows=(ROW,), slices=(SLICE,))
APPLY = Apply(slices=(SLICE,), terms=(TERM,))
STEP = Step(terms=(TERM,), step=1, jobs=(7,), rule=Descent.sgd(0.1))
RELEASE = Release(slices=(SLICE,))
FETCH = Fetch(rows=(ROW,), slices=(SLICE,))
COMMIT = Commit(rows=(ROW,), slices=(SLICE,))
TRANSPOSED = ApplyTransposed(rows=(ROW,), slices=(SLICE,), terms=(TERM,), job=7)
MEASURE = Measure(rows=(ROW,), slices=(SLICE,), jobs=(7,))
FREEZE = Freeze(terms=(TERM,), number=4)
LOAD = Load(sheets=(Sheet(rows=(ROW,), row_sizes=(2,), slices=(SLICE,), slice_sizes=(3,), kernel=Dense()),))
X = torch.arange(6.0).reshape(2, 3)


def tensors_for(body: Request) -> Sequence[Tensor]:
    """Tensors that suit the requests of these tests."""
    if isinstance(body, ApplyTransposed):
        return [X, X[:, :1]]
    return [X] if isinstance(body, Apply | Load) else []


def forged(
    session: bytes, body: Body, request_id: int = 0, *, number: int = 1, tensors: Sequence[Tensor] = ()
) -> bytes:
    """One frame with whatever somebody likes to say."""
    (frame,) = frames(encode(session, request_id, body, tensors, DEFAULT), number, DEFAULT.chunk_bytes)
    return frame


@dataclass
class Linked:
    """Both ends, and what was sent and not yet delivered; time passes by hand."""

    limits: Limits = DEFAULT
    timing: Timing = field(default_factory=Timing)
    now: float = 100.0
    to_device: list[bytes] = field(default_factory=list)
    to_owner: list[bytes | Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner = OwnerSession("device-1", self.limits, Entropy(1), self.timing)
        self.device = self.new_device(2)

    def new_device(self, seed: int) -> DeviceSession:
        return DeviceSession("device-1", self.limits, Entropy(seed), memory_bytes=2**30, threads=2)

    def opened(self) -> "Linked":
        """Both ends, once a session is open."""
        self.to_owner += self.device.hello(self.now)
        self.settle()
        return self

    def hear_owner(self) -> list[DeviceEvent]:
        """Deliver to the device all that is under way; what it repeats is on its way back."""
        events = [event for frame in self.to_device for event in self.device.receive(frame, self.now)]
        self.to_device.clear()
        for event in events:
            if isinstance(event, Repeat):
                self.to_owner += event.frames
        return events

    def hear_device(self) -> list[OwnerEvent]:
        """Deliver to the owner all that is under way; its greetings are on their way back."""
        events = [event for frame in self.to_owner for event in self.owner.receive(bytes(frame), self.now)]
        self.to_owner.clear()
        for event in events:
            if isinstance(event, Opened):
                self.to_device += event.frames_to_send
        return events

    def settle(self) -> tuple[list[OwnerEvent], list[DeviceEvent]]:
        """Deliver everything, and what follows from it."""
        at_owner: list[OwnerEvent] = []
        at_device: list[DeviceEvent] = []
        while self.to_owner or self.to_device:
            at_owner += self.hear_device()
            at_device += self.hear_owner()
        return at_owner, at_device

    def ask(self, body: Request, *, repeat_of: int | None = None, wait_s: float = 2.0) -> int:
        """Send a request."""
        request_id, sent = self.owner.request(body, tensors_for(body), deadline=self.now + wait_s, repeat_of=repeat_of)
        self.to_device += sent
        return request_id

    def tick(self, seconds: float) -> tuple[list[OwnerEvent], list[DeviceEvent]]:
        """Let time pass."""
        self.now += seconds
        return self.owner.tick(self.now), self.device.tick(self.now)

    def beat(self) -> None:
        """Exchange a heartbeat."""
        beats = self.owner.beat(self.now), self.device.beat(self.now)
        self.device.receive_beat(beats[0], self.now)
        self.owner.receive_beat(beats[1], self.now)


def asked(linked: Linked) -> Requested:
    """The only event at the device after hearing the owner: a request."""
    (event,) = linked.hear_owner()
    assert isinstance(event, Requested)
    return event


def violation(events: Sequence[OwnerEvent | DeviceEvent]) -> ProtocolError:
    """The error of the only event, which is a violation."""
    (event,) = events
    assert isinstance(event, Violation)
    return event.error
