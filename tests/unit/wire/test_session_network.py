"""Both ends over a network that loses, doubles, reorders and damages whatever it likes, as random walks.

What must hold on every walk:

- nothing that arrives raises;
- no request is begun twice at a device, so no step is done twice;
- every request ends exactly once at the owner: answered, refused, failed or expired, or cancelled by the owner;
- an honest device is not blamed: the owner sees no violation but damaged bytes;
- when the network behaves again, the two find each other within a lease and a request is answered.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from awfulowl.errors import DamagedError, GoneError, LimitError
from awfulowl.limits import DEFAULT
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import Request
from awfulowl.wire.session import (
    Answered,
    Cancelled,
    DeviceEvent,
    DeviceSession,
    Expired,
    Failed,
    Opened,
    OwnerEvent,
    OwnerSession,
    Refused,
    Repeat,
    Requested,
    Timing,
    Violation,
)
from tests.unit.wire.linked import APPLY, LOAD, RELEASE, SLICE, STEP, X, tensors_for

LIMITS = dataclasses.replace(
    DEFAULT, chunk_bytes=256, max_in_flight=6, remembered_replies=3, max_partial_messages=5, remembered_messages=50
)
INDEX = st.integers(0, 10**6)
ItemT = TypeVar("ItemT")


def chosen(items: Sequence[ItemT], index: int) -> ItemT:
    return items[index % len(items)]


class Conversation(RuleBasedStateMachine):
    """A walk: the network is two bags of frames from which anything may be taken, any number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.seeds = 0
        self.to_device: list[bytes] = []
        self.to_owner: list[bytes] = []
        self.open: set[int] = set()
        self.changes: dict[int, Request] = {}
        self.begun: Counter[int] = Counter()
        self.work: list[Requested] = []
        self.owner_restarted = False
        self.owner = self.new_owner()
        self.device = self.new_device()
        self.to_owner += self.device.hello(self.now)
        self.deliver_all()

    def entropy(self) -> Entropy:
        self.seeds += 1
        return Entropy(self.seeds)

    def new_owner(self) -> OwnerSession:
        return OwnerSession("device-1", LIMITS, self.entropy(), Timing())

    def new_device(self) -> DeviceSession:
        return DeviceSession("device-1", LIMITS, self.entropy(), memory_bytes=1, threads=1)

    def at_owner(self, events: Sequence[OwnerEvent], *, damaged: bool = False) -> None:
        for event in events:
            match event:
                case Opened():
                    self.to_device += event.frames_to_send
                case Answered() | Refused() | Failed() | Expired():
                    assert event.id in self.open, "ended twice, or never asked"
                    self.open.remove(event.id)
                case Violation(error):
                    late = self.owner_restarted and "not ours" in str(error)
                    assert damaged or late, f"an honest device is blamed: {error}"
                case _:
                    pass

    def at_device(self, events: Sequence[DeviceEvent], *, damaged: bool = False) -> None:
        for event in events:
            match event:
                case Requested():
                    self.begun[event.id] += 1
                    assert self.begun[event.id] == 1, "done twice"
                    self.work.append(event)
                case Cancelled():
                    assert any(request.id == event.id for request in self.work)
                case Repeat():
                    self.to_owner += event.frames
                case Violation(error):
                    stray = "not ours" in str(error) or "another boot" in str(error)
                    assert damaged or stray or isinstance(error, LimitError), error
                case _:
                    pass

    def deliver_all(self) -> None:
        while self.to_owner or self.to_device:
            frames, self.to_owner = self.to_owner, []
            for frame in frames:
                self.at_owner(self.owner.receive(frame, self.now))
            frames, self.to_device = self.to_device, []
            for frame in frames:
                self.at_device(self.device.receive(frame, self.now))

    # --- what the two ends do ---

    @precondition(lambda self: self.owner.is_open and len(self.open) < LIMITS.max_in_flight)
    @rule(body=st.sampled_from([APPLY, LOAD, STEP, STEP, RELEASE]), wait_s=st.sampled_from([0.5, 4.0, 60.0]))
    def ask(self, body: Request, wait_s: float) -> None:
        request_id, frames = self.owner.request(body, tensors_for(body), deadline=self.now + wait_s)
        assert request_id not in self.open
        self.open.add(request_id)
        self.to_device += frames
        if body.changes:
            self.changes[request_id] = body

    @precondition(lambda self: self.owner.is_open and self.changes and len(self.open) < LIMITS.max_in_flight)
    @rule(index=INDEX)
    def ask_again(self, index: int) -> None:
        request_id, body = chosen(list(self.changes.items()), index)
        try:
            _, frames = self.owner.request(body, tensors_for(body), deadline=self.now + 4.0, repeat_of=request_id)
        except GoneError:
            return  # of a session that is over
        self.open.add(request_id)
        self.to_device += frames

    @precondition(lambda self: self.open)
    @rule(index=INDEX)
    def cancel(self, index: int) -> None:
        request_id = chosen(sorted(self.open), index)
        self.to_device += self.owner.cancel(request_id)
        self.open.discard(request_id)

    @precondition(lambda self: self.work)
    @rule(index=INDEX, outcome=st.sampled_from(["answer", "answer", "refuse", "error"]))
    def finish(self, index: int, outcome: str) -> None:
        request = self.work.pop(index % len(self.work))
        if outcome == "answer":
            tensors = [torch.cat([X] * 20)] * request.body.answer_tensors()
            self.to_owner += map(bytes, self.device.answer(request.id, tensors))
        else:
            self.to_owner += map(bytes, getattr(self.device, outcome)(request.id, "because"))

    @rule()
    def evict(self) -> None:
        self.to_owner += self.device.evict([SLICE], "full")

    @rule(lost=st.sampled_from(["none", "none", "owner's", "device's"]))
    def beat(self, lost: str) -> None:
        beats = self.owner.beat(self.now), self.device.beat(self.now)
        if beats[0] and lost != "owner's":
            self.at_device(self.device.receive_beat(beats[0], self.now))
        if beats[1] and lost != "device's":
            self.at_owner(self.owner.receive_beat(beats[1], self.now))

    @rule(seconds=st.sampled_from([0.1, 1.1, 3.0, 6.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.at_owner(self.owner.tick(self.now))
        self.at_device(self.device.tick(self.now))

    @rule()
    def restart_device(self) -> None:
        """The connection of the one before is gone, and with it what was under way on it."""
        self.device = self.new_device()
        self.to_device.clear()
        self.to_owner = self.device.hello(self.now)

    @rule()
    def restart_owner(self) -> None:
        self.owner = self.new_owner()
        self.owner_restarted = True
        self.open.clear()
        self.changes.clear()
        self.to_device.clear()

    # --- what the network does ---

    @rule()
    def deliver_everything(self) -> None:
        self.deliver_all()

    @precondition(lambda self: self.to_device)
    @rule(index=INDEX, keep=st.booleans())
    def deliver_to_device(self, index: int, keep: bool) -> None:
        frame = chosen(self.to_device, index)
        if not keep:
            self.to_device.remove(frame)
        self.at_device(self.device.receive(frame, self.now))

    @precondition(lambda self: self.to_owner)
    @rule(index=INDEX, keep=st.booleans())
    def deliver_to_owner(self, index: int, keep: bool) -> None:
        frame = chosen(self.to_owner, index)
        if not keep:
            self.to_owner.remove(frame)
        self.at_owner(self.owner.receive(frame, self.now))

    @precondition(lambda self: self.to_device or self.to_owner)
    @rule(index=INDEX)
    def lose(self, index: int) -> None:
        bag = chosen([bag for bag in (self.to_device, self.to_owner) if bag], index)
        del bag[index % len(bag)]

    @precondition(lambda self: self.to_device or self.to_owner)
    @rule(index=INDEX, place=INDEX, flip=st.integers(1, 255))
    def damage(self, index: int, place: int, flip: int) -> None:
        bag = chosen([bag for bag in (self.to_device, self.to_owner) if bag], index)
        frame = bytearray(chosen(bag, index))
        frame[place % len(frame)] ^= flip
        if bag is self.to_device:
            self.at_device(self.device.receive(bytes(frame), self.now), damaged=True)
        else:
            self.at_owner(self.owner.receive(bytes(frame), self.now), damaged=True)

    # --- how every walk ends ---

    def teardown(self) -> None:
        """A late hello may lead a restarted owner astray, until the device's lease has run out."""
        self.pass_time(100.0)
        assert self.open == set(), "requests that never ended"
        assert self.owner.free_credit_bytes == LIMITS.credit_bytes
        for _ in range(9):
            self.pass_time(4.0)
            self.deliver_all()
            self.beat("none")
            while self.work:
                self.finish(0, "error")
        request_id, frames = self.owner.request(STEP, [], deadline=self.now + 1.0)
        self.to_device += frames
        self.deliver_all()
        self.to_owner += map(bytes, self.device.answer(request_id, []))
        (event,) = self.owner.receive(self.to_owner[-1], self.now)
        assert isinstance(event, Answered)
        assert self.begun[request_id] == 1


TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def test_damage_is_what_a_network_may_do() -> None:
    walk = Conversation()
    walk.ask(APPLY, 4.0)
    frame = bytearray(walk.to_device[0])
    frame[-1] ^= 1
    (event,) = walk.device.receive(bytes(frame), walk.now)
    assert isinstance(event, Violation)
    assert isinstance(event.error, DamagedError)
