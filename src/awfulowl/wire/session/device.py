"""A device's end of the conversation with its owner."""

from collections.abc import Sequence
from typing import Final

import msgspec
from torch import Tensor

from awfulowl.errors import InputError, ProtocolError, VersionError
from awfulowl.limits import Limits
from awfulowl.randomness import Entropy, Seeded
from awfulowl.wire.codec import Buffer, decode, encode
from awfulowl.wire.frames import Frame
from awfulowl.wire.messages import (
    PROTOCOL,
    Answer,
    Bye,
    Cancel,
    DeviceHello,
    Error,
    Evict,
    Header,
    OwnerHello,
    Refuse,
    Request,
    check_version,
    verb,
)
from awfulowl.wire.parts import Handle
from awfulowl.wire.session.events import (
    Cancelled,
    Closed,
    DeviceEvent,
    LeaseExpired,
    Opened,
    Repeat,
    Requested,
    Violation,
)
from awfulowl.wire.session.line import Line, Role
from awfulowl.wire.session.replay import Replay
from awfulowl.wire.session.states import DEVICE, Cue, DeviceState

HELLO_EVERY_S: Final = 1.0
"""How often a device calls when it has no session."""

QUIET_BEATS: Final = 5
"""Missed heartbeats after which a device with a session calls: an owner that restarted does not know of it."""


class DeviceSession:
    """A device's end of the conversation with its owner."""

    def __init__(self, name: str, limits: Limits, entropy: Entropy, memory_bytes: int, threads: int) -> None:
        self.state = DeviceState.CALLING
        self.handle: bytes | None = None
        self._limits = limits
        self._entropy = entropy
        self._line = Line(Role.DEVICE, limits, entropy)
        self._replay = Replay(limits)
        self._terms: OwnerHello | None = None
        self._heard_at = 0.0
        self._called_at = float("-inf")
        self._hello = _valid(
            DeviceHello(
                name=name,
                protocol=PROTOCOL,
                boot=entropy.handle(),
                memory_bytes=memory_bytes,
                threads=threads,
            )
        )

    @property
    def boot(self) -> bytes:
        """The handle under which the device calls; a new one whenever it has dropped its blocks."""
        return self._hello.boot

    @property
    def is_open(self) -> bool:
        """Whether an owner may ask."""
        return self.state is DeviceState.OPEN

    @property
    def heartbeat_s(self) -> float:
        """Seconds from one heartbeat to the next, or from one hello to the next when there is no session."""
        return HELLO_EVERY_S if self._terms is None else self._terms.heartbeat_s

    @property
    def ignored(self) -> int:
        """Messages and beats that were well-formed, but late, doubled or of a session that is over."""
        return self._line.ignored

    def hello(self, now: float) -> list[bytes]:
        """Return the frames of a hello; `tick` repeats it as long as no owner answers."""
        if self.state is DeviceState.CLOSED:
            return []
        self._called_at = now
        return self._line.say(self.boot, self._hello)

    def receive(self, frame: Buffer, now: float) -> list[DeviceEvent]:
        """Take a frame of the owner and return what it means.

        A lease that ran out unnoticed, as in a machine that slept, has run out before the frame counts.
        """
        events = self.tick(now)
        if self.state is DeviceState.CLOSED:
            return events
        try:
            message = self._line.message(frame)
            return events if message is None else events + self._take(*decode(message, self._limits, seeds=True), now)
        except ProtocolError as error:
            return [*events, Violation(error)]

    def receive_beat(self, payload: Buffer, now: float) -> list[DeviceEvent]:
        """Take a heartbeat of the owner, which renews the lease."""
        events = self.tick(now)
        try:
            alive = self._line.is_alive(payload, self.handle)
        except ProtocolError as error:
            return [*events, Violation(error)]
        if alive:
            self.state, self._heard_at = DEVICE[self.state][Cue.BEAT], now
        return events

    def beat(self, now: float) -> bytes:  # noqa: ARG002 - time is passed in everywhere
        """Return a heartbeat to send every `heartbeat_s`, empty when there is no session."""
        return self._line.beat(self.handle)

    def answer(self, request_id: int, tensors: Sequence[Tensor]) -> list[Frame]:
        """Return the frames of an answer, none when nobody waits for it any more; the tensors must not change again.

        Raises:
            InputError: a tensor is of a type that does not travel; nothing was answered yet.
            LimitError: the answer is too large; nothing was answered yet.
        """
        return self._finish(request_id, Answer(to=request_id), tensors)

    def refuse(self, request_id: int, reason: str) -> list[Frame]:
        """Return the frames that say why a request will not be done, none when nobody waits for it any more."""
        return self._finish(request_id, Refuse(to=request_id, reason=self._line.text(reason)), ())

    def error(self, request_id: int, reason: str) -> list[Frame]:
        """Return the frames that say why a request failed, none when nobody waits for it any more."""
        return self._finish(request_id, Error(to=request_id, reason=self._line.text(reason)), ())

    def evict(self, slices: Sequence[Handle], reason: str) -> list[bytes]:
        """Return the frames that say which slices are held no longer."""
        return self._line.say(self.handle, Evict(slices=tuple(slices), reason=self._line.text(reason)))

    def bye(self, reason: str) -> list[bytes]:
        """End the conversation for good and return the frames that tell the owner; no event follows."""
        frames = self._line.say(self.handle, Bye(reason=self._line.text(reason)))
        self._end_session(Cue.LEAVE)
        return frames

    def tick(self, now: float) -> list[DeviceEvent]:
        """Return what happened by the passing of time alone."""
        events: list[DeviceEvent] = []
        if self._terms is not None and now - self._heard_at > self._terms.lease_s:
            self._end_session(Cue.LEASE_END)
            events.append(LeaseExpired())
        if self._should_call(now):
            events.append(Repeat(self.hello(now)))
        return events

    def _should_call(self, now: float) -> bool:
        if self.state is DeviceState.CLOSED or now - self._called_at < HELLO_EVERY_S:
            return False
        return self._terms is None or now - self._heard_at > QUIET_BEATS * self._terms.heartbeat_s

    def _take(self, header: Header, tensors: list[Tensor | Seeded], now: float) -> list[DeviceEvent]:
        body = header.body
        if type(body) not in DEVICE[self.state]:
            raise ProtocolError(f"{verb(body)} is not for an owner to say")
        if isinstance(body, OwnerHello):
            return self._greeted(header.session, body, now)
        if not self._line.is_current(header, self.handle):
            return []
        self._heard_at = now
        if isinstance(body, Bye):
            self._end_session(Bye)
            return [Closed(self._line.text(body.reason))]
        if isinstance(body, Cancel):
            return [Cancelled(body.target)] if self._replay.cancel(body.target) else []
        if isinstance(body, Request):
            return self._requested(header.id, body, tensors)
        return []

    def _greeted(self, session: bytes, hello: OwnerHello, now: float) -> list[DeviceEvent]:
        check_version("the owner", hello.protocol)
        if self._line.is_past(hello.boot) or self._line.is_past(session):
            self._line.ignored += 1
            return []
        if hello.boot != self.boot:
            raise VersionError("the owner's hello names another boot of this device; call again")
        fresh = session != self.handle
        if fresh:
            self._line.retire(self.handle)
            self._replay = Replay(self._limits)
        self.state, self.handle = DEVICE[self.state][OwnerHello], session
        self._terms, self._heard_at = hello, now
        return [Opened(hello, fresh)]

    def _requested(self, request_id: int, body: Request, tensors: list[Tensor | Seeded]) -> list[DeviceEvent]:
        if self._replay.admit(request_id, changes=body.changes):
            return [Requested(request_id, body, tensors)]
        kept = self._replay.kept(request_id)
        if kept is None:
            self._line.ignored += 1
            return []
        return [Repeat(list(self._line.frames([kept])))]

    def _finish(self, request_id: int, body: Answer | Refuse | Error, tensors: Sequence[Tensor]) -> list[Frame]:
        if self.handle is None or not self._replay.is_in_progress(request_id):
            return []
        message = encode(self.handle, 0, body, tensors, self._limits)
        self._replay.finish(request_id, message)
        return self._line.in_pieces(message)

    def _end_session(self, cue: object) -> None:
        self.state = DEVICE[self.state].get(cue, self.state)
        self._line.retire(self.handle, self.boot)
        self.handle = self._terms = None
        self._hello = msgspec.structs.replace(self._hello, boot=self._entropy.handle())
        self._called_at = float("-inf")


def _valid(hello: DeviceHello) -> DeviceHello:
    """Refuse at once what the owner's decoder would refuse later, out of sight."""
    try:
        return msgspec.convert(msgspec.to_builtins(hello), DeviceHello)
    except msgspec.ValidationError as error:
        raise InputError(f"device {hello.name!r} cannot introduce itself: {error}") from None
