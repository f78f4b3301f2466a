"""What a session refuses, and the tables that say so."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from awfulowl.errors import (
    DamagedError,
    InputError,
    ProtocolError,
)
from awfulowl.limits import DEFAULT
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import (
    Answer,
    Body,
    Bye,
    Cancel,
    DeviceBody,
    DeviceHello,
    Error,
    Evict,
    OwnerBody,
    OwnerHello,
    Refuse,
    Request,
)
from awfulowl.wire.session import (
    DeviceSession,
    DeviceState,
    OwnerState,
    Timing,
)
from awfulowl.wire.session.states import DEVICE, OWNER, Cue
from tests.unit.wire.linked import APPLY, OTHER, RELEASE, STEP, Linked, asked, forged, violation

BYE = Bye(reason="enough")


@pytest.mark.parametrize("body", [Answer(to=1), Refuse(to=1, reason=""), Evict(slices=(), reason=""), BYE], ids=repr)
def test_messages_of_another_session_are_refused_by_the_owner(body: Body) -> None:
    linked = Linked().opened()
    error = violation(linked.owner.receive(forged(OTHER, body), linked.now))
    assert "of a session that is not ours" in str(error)
    assert linked.owner.is_open


@pytest.mark.parametrize("body", [STEP, RELEASE, Cancel(target=1), BYE], ids=repr)
def test_messages_of_another_session_are_refused_by_the_device(body: Body) -> None:
    linked = Linked().opened()
    frame = forged(OTHER, body, 1 if isinstance(body, Request) else 0)
    assert "of a session that is not ours" in str(violation(linked.device.receive(frame, linked.now)))
    assert linked.device.is_open


@pytest.mark.parametrize(
    "body",
    [OwnerHello(protocol=1, boot=OTHER, lease_s=1.0, heartbeat_s=1.0, credit_bytes=1), STEP, Cancel(target=1)],
    ids=repr,
)
def test_a_device_does_not_say_an_owners_verbs(body: Body) -> None:
    linked = Linked().opened()
    handle = linked.owner.handle
    assert handle is not None
    frame = forged(handle, body, 1 if isinstance(body, Request) else 0)
    assert "is not for a device to say" in str(violation(linked.owner.receive(frame, linked.now)))


@pytest.mark.parametrize(
    "body",
    [
        DeviceHello(name="a", protocol=1, boot=OTHER, memory_bytes=1, threads=1),
        Answer(to=1),
        Error(to=1, reason=""),
        Evict(slices=(), reason=""),
    ],
    ids=repr,
)
def test_an_owner_does_not_say_a_devices_verbs(body: Body) -> None:
    linked = Linked().opened()
    handle = linked.owner.handle
    assert handle is not None
    assert "is not for an owner to say" in str(violation(linked.device.receive(forged(handle, body), linked.now)))


@pytest.mark.parametrize("junk", [b"", b"x", bytes(64), bytes(65), b"OWF" + bytes(100), b"\xff" * 1000], ids=len)
def test_junk_is_a_violation_at_both_ends_and_changes_nothing(junk: bytes) -> None:
    linked = Linked().opened()
    for end in (linked.owner, linked.device):
        assert isinstance(violation(end.receive(junk, linked.now)), ProtocolError)
        assert isinstance(violation(end.receive_beat(junk, linked.now)), DamagedError)
    linked.ask(APPLY)
    asked(linked)


def test_a_frame_damaged_on_the_way_is_told_apart() -> None:
    linked = Linked().opened()
    linked.ask(APPLY)
    frame = bytearray(linked.to_device.pop())
    frame[200] ^= 1
    assert isinstance(violation(linked.device.receive(bytes(frame), linked.now)), DamagedError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_s": 0.0},
        {"heartbeat_s": 6.0},
        {"silence_s": 31.0},
        {"lease_s": float("nan")},
        {"lease_s": 1e6},
        {"silence_s": float("inf"), "lease_s": float("inf")},
    ],
    ids=str,
)
def test_times_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected 0 < heartbeat_s < silence_s <= lease_s"):
        Timing(**wrong)


@pytest.mark.parametrize(
    ("name", "memory_bytes", "threads"),
    [("", 1, 1), ("a b", 1, 1), ("a\n", 1, 1), ("x" * 65, 1, 1), ("-a", 1, 1), ("a", -1, 1), ("a", 1, 0)],
)
def test_a_device_that_no_owner_would_accept_is_not_made(name: str, memory_bytes: int, threads: int) -> None:
    with pytest.raises(InputError, match="cannot introduce itself"):
        DeviceSession(name, DEFAULT, Entropy(1), memory_bytes, threads)


def test_whole_numbers_of_seconds_will_do() -> None:
    linked = Linked(timing=Timing(lease_s=30, heartbeat_s=1, silence_s=5)).opened()
    assert linked.device.is_open
    assert linked.device.heartbeat_s == 1.0


def test_every_verb_has_its_place_in_the_tables() -> None:
    sides: list[tuple[Mapping[Any, Mapping[object, Enum]], Enum, Any]] = [
        (OWNER, OwnerState.CLOSED, DeviceBody),
        (DEVICE, DeviceState.CLOSED, OwnerBody),
    ]
    for table, closed, body in sides:
        for state, row in table.items():
            verbs = {cue for cue in row if not isinstance(cue, Cue)}
            assert verbs == (set() if state is closed else set(body.__args__))


@pytest.mark.parametrize(
    ("table", "start", "closed"),
    [(OWNER, OwnerState.WAITING, OwnerState.CLOSED), (DEVICE, DeviceState.CALLING, DeviceState.CLOSED)],
    ids=["owner", "device"],
)
def test_every_state_can_be_reached_and_only_goodbye_is_final(
    table: Mapping[Any, Mapping[object, Enum]], start: Enum, closed: Enum
) -> None:
    reached = {start}
    for _ in table:
        reached |= {following for state in reached for following in table[state].values()}
    assert reached == set(table)
    assert [state for state, row in table.items() if set(row.values()) <= {state}] == [closed]
