"""The owner's end of the conversation with one device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from awfulowl.errors import GoneError, InputError, LimitError, ProtocolError
from awfulowl.limits import Limits
from awfulowl.randomness import Entropy, Seeded
from awfulowl.wire.codec import Buffer, decode, encode
from awfulowl.wire.messages import (
    PROTOCOL,
    Answer,
    Body,
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
from awfulowl.wire.session.events import (
    Answered,
    Evicted,
    Expired,
    Failed,
    Gone,
    Opened,
    OwnerEvent,
    Refused,
    Violation,
)
from awfulowl.wire.session.line import FIRST_NUMBERS, Line, Role
from awfulowl.wire.session.states import OWNER, Cue, OwnerState


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """How long silence may last, in seconds: heartbeat < silence <= lease."""

    lease_s: float = 30.0
    """The device drops its blocks."""
    heartbeat_s: float = 1.0
    """Either end says that it is there."""
    silence_s: float = 5.0
    """The owner takes the device for gone."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_s < self.silence_s <= self.lease_s <= 86400:
            raise InputError(f"{self}: expected 0 < heartbeat_s < silence_s <= lease_s <= 86400")


@dataclass(frozen=True, slots=True)
class _Open:
    """A request that has not ended."""

    deadline: float
    cost_bytes: int
    answer_tensors: int


class OwnerSession:
    """The owner's end of the conversation with one device."""

    def __init__(self, device: str, limits: Limits, entropy: Entropy, timing: Timing) -> None:
        self.device: Final = device
        self.state = OwnerState.WAITING
        self.handle: bytes | None = None
        self.hello: DeviceHello | None = None
        self._limits = limits
        self._entropy = entropy
        self._timing = timing
        self._line = Line(Role.OWNER, limits, entropy)
        self._open: dict[int, _Open] = {}
        self._owed: dict[int, int] = {}  # answers that may still come, by request, the oldest first
        self._late = 0
        self._next_id = self._first_id = 1 + entropy.below(FIRST_NUMBERS)
        self._heard_at = 0.0

    @property
    def boot(self) -> bytes | None:
        """The handle of the device's boot that the session is with."""
        return None if self.hello is None else self.hello.boot

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self.state is OwnerState.OPEN

    @property
    def ignored(self) -> int:
        """Messages and beats that were well-formed, but late, doubled or of a session that is over."""
        return self._line.ignored

    @property
    def unasked(self) -> int:
        """Those of `ignored` that are no late answers: one for each time that a request was sent, and not answered."""
        return self._line.ignored - self._late

    @property
    def free_credit_bytes(self) -> int:
        """Bytes that may still be put under way; below 0 after a single request larger than the credit."""
        return self._limits.credit_bytes - sum(request.cost_bytes for request in self._open.values())

    def receive(self, frame: Buffer, now: float) -> list[OwnerEvent]:
        """Take a frame of the device and return what it means."""
        if self.state is OwnerState.CLOSED:
            return []
        try:
            message = self._line.message(frame)
            return [] if message is None else self._take(*decode(message, self._limits), now)
        except ProtocolError as error:
            return [Violation(error)]

    def receive_beat(self, payload: Buffer, now: float) -> list[OwnerEvent]:
        """Take a heartbeat of the device; it is news only when the device was silent."""
        try:
            alive = self._line.is_alive(payload, self.handle)
        except ProtocolError as error:
            return [Violation(error)]
        return self._advance(Cue.BEAT, now) if alive else []

    def beat(self, now: float) -> bytes:  # noqa: ARG002 - time is passed in everywhere
        """Return a heartbeat to send every `Timing.heartbeat_s`, empty when there is no session."""
        return self._line.beat(self.handle)

    def request(
        self,
        body: Request,
        tensors: Sequence[Tensor | Seeded],
        *,
        deadline: float,
        answer_bytes: int = 0,
        repeat_of: int | None = None,
    ) -> tuple[int, Iterator[bytes]]:
        """Return the id of a request and its frames, each made when it is asked for.

        The caller waits for `free_credit_bytes`; a request is not held back here.

        Args:
            body: what is to be done.
            tensors: as the verb says; they must not change until the last frame is made.
            deadline: the time at which the request expires.
            answer_bytes: size of the expected answer, which counts against the credit.
            repeat_of: id of a change (`load`, `step`, `freeze`, `release`) of this session that is asked for again,
                with the same body: if it was done, its answer is repeated.

        Raises:
            GoneError: the session is not open, or `repeat_of` belongs to one before.
            InputError: the tensors do not suit the verb, or `repeat_of` repeats what changes nothing.
            LimitError: the message is too large, or too many requests are open.
        """
        if self.handle is None or not self.is_open:
            raise GoneError(f"device {self.device} has no open session; ask another one")
        request_id = self._next_id if repeat_of is None else self._repeated(repeat_of, body)
        if request_id not in self._open and len(self._open) >= self._limits.max_in_flight:
            raise LimitError(f"device {self.device}: max_in_flight of {self._limits.max_in_flight} reached")
        message = encode(self.handle, request_id, body, tensors, self._limits)
        cost = sum(map(len, message)) + answer_bytes
        self._open[request_id] = _Open(deadline, cost, body.answer_tensors())
        self._next_id = max(self._next_id, request_id + 1)
        self._owed[request_id] = self._owed.get(request_id, 0) + 1
        if len(self._owed) > self._limits.replay_window:
            del self._owed[next(iter(self._owed))]
        return request_id, self._line.frames(message)

    def cancel(self, request_id: int) -> list[bytes]:
        """Forget a request and return the frames that tell the device; none if it has ended."""
        if self._open.pop(request_id, None) is None:
            return []
        return self._line.say(self.handle, Cancel(target=request_id))

    def bye(self, reason: str) -> list[bytes]:
        """End the conversation for good and return the frames that tell the device; no event follows."""
        frames = self._line.say(self.handle, Bye(reason=self._line.text(reason)))
        self._open.clear()
        self._end_session(Cue.LEAVE)
        return frames

    def tick(self, now: float) -> list[OwnerEvent]:
        """Return what happened by the passing of time alone."""
        late = [request_id for request_id, request in self._open.items() if now > request.deadline]
        for request_id in late:
            del self._open[request_id]
        events: list[OwnerEvent] = [Expired(request_id) for request_id in late]
        if self.is_open and now - self._heard_at > self._timing.silence_s:
            self.state = OWNER[self.state][Cue.SILENCE]
            reason = f"silent for more than {self._timing.silence_s:g} s"
            events += [*self._fail_all(reason), Gone(reason)]
        return events

    def _take(self, header: Header, tensors: list[Tensor], now: float) -> list[OwnerEvent]:
        body = header.body
        if type(body) not in OWNER[self.state]:
            raise ProtocolError(f"{verb(body)} is not for a device to say")
        if isinstance(body, DeviceHello):
            return self._greeted(header.session, body, now)
        if not self._line.is_current(header, self.handle):
            return []
        if isinstance(body, Bye):
            return self._left(body)
        return [*self._advance(type(body), now), *self._told(body, tensors)]

    def _greeted(self, session: bytes, hello: DeviceHello, now: float) -> list[OwnerEvent]:
        check_version(f"device {self.device}", hello.protocol)
        if hello.name != self.device or session != hello.boot:
            raise ProtocolError(f"a hello from device {self.device} that names another device or session")
        if self._line.is_past(hello.boot):
            self._line.ignored += 1
            return []
        fresh = hello.boot != self.boot
        failed = self._fail_all("the device started anew") if fresh else []
        if fresh:
            self._line.retire(self.handle, self.boot)
            self.handle = self._entropy.handle()
            self._first_id = self._next_id
            self._owed.clear()
        self.hello = hello
        self.state, self._heard_at = OWNER[self.state][DeviceHello], now
        return [*failed, Opened(hello, fresh, self._line.say(self.handle, self._greeting(hello)))]

    def _greeting(self, hello: DeviceHello) -> OwnerHello:
        return OwnerHello(
            protocol=PROTOCOL,
            boot=hello.boot,
            lease_s=float(self._timing.lease_s),
            heartbeat_s=float(self._timing.heartbeat_s),
            credit_bytes=self._limits.credit_bytes,
        )

    def _advance(self, cue: object, now: float) -> list[OwnerEvent]:
        """Note a sign of life; after a silence, say that the session goes on."""
        before, self.state = self.state, OWNER[self.state][cue]
        self._heard_at = now
        if before is self.state or self.hello is None:
            return []
        return [Opened(self.hello, fresh=False, frames_to_send=self._line.say(self.handle, self._greeting(self.hello)))]

    def _left(self, bye: Bye) -> list[OwnerEvent]:
        reason = self._line.text(bye.reason)
        gone: list[OwnerEvent] = [Gone(reason)] if self.is_open else []
        self._end_session(Bye)
        return [*self._fail_all(reason), *gone]

    def _told(self, body: Body, tensors: list[Tensor]) -> list[OwnerEvent]:
        if isinstance(body, Evict):
            return [Evicted(body.slices, self._line.text(body.reason))]
        if not isinstance(body, Answer | Refuse | Error):
            return []
        request, owed = self._open.pop(body.to, None), self._owed.pop(body.to, 0)
        if owed > 1:
            self._owed[body.to] = owed - 1
        if request is None:
            self._line.ignored += 1
            self._late += owed > 0
            return []
        if isinstance(body, Refuse):
            return [Refused(body.to, self._line.text(body.reason))]
        if isinstance(body, Error):
            return [Failed(body.to, self._line.text(body.reason))]
        if request.answer_tensors != len(tensors):
            fault = f"an answer of {len(tensors)} tensors where {request.answer_tensors} were asked for"
            return [Violation(ProtocolError(fault)), Failed(body.to, fault)]
        return [Answered(body.to, tensors)]

    def _repeated(self, request_id: int, body: Request) -> int:
        if not body.changes:
            raise InputError(f"{verb(body)} changes nothing: ask again under a new id")
        if not self._first_id <= request_id < self._next_id:
            raise GoneError(f"request {request_id} is not of the open session of device {self.device}")
        return request_id

    def _fail_all(self, reason: str) -> list[OwnerEvent]:
        failed: list[OwnerEvent] = [Failed(request_id, reason) for request_id in self._open]
        self._open.clear()
        return failed

    def _end_session(self, cue: object) -> None:
        self.state = OWNER[self.state].get(cue, self.state)
        self._line.retire(self.handle, self.boot)
        self.handle = self.hello = None
