"""Opening, silence, lease and goodbye: both ends, linked, in every order that somebody could think of."""

from collections.abc import Callable, Sequence

import pytest

from awfulowl.errors import (
    GoneError,
    ProtocolError,
    VersionError,
)
from awfulowl.limits import DEFAULT
from awfulowl.randomness import Entropy
from awfulowl.wire.codec import decode
from awfulowl.wire.frames import FRAME_HEADER_BYTES, Frame
from awfulowl.wire.messages import (
    PROTOCOL,
    Answer,
    DeviceHello,
    OwnerHello,
)
from awfulowl.wire.session import (
    Answered,
    Closed,
    DeviceState,
    Evicted,
    Expired,
    Failed,
    Gone,
    LeaseExpired,
    Opened,
    OwnerSession,
    OwnerState,
    Repeat,
    Requested,
)
from tests.unit.wire.linked import APPLY, OTHER, SLICE, STEP, Linked, X, asked, forged, violation


def test_a_device_calls_and_its_owner_opens_a_session() -> None:
    linked = Linked()
    linked.to_owner += linked.device.hello(linked.now)
    (opened,) = linked.hear_device()
    assert isinstance(opened, Opened)
    assert opened.fresh
    assert (opened.hello.name, opened.hello.memory_bytes, opened.hello.threads) == ("device-1", 2**30, 2)
    (at_device,) = linked.hear_owner()
    assert isinstance(at_device, Opened)
    assert at_device.fresh
    assert at_device.hello.lease_s == linked.timing.lease_s
    assert at_device.hello.credit_bytes == DEFAULT.credit_bytes
    assert linked.owner.is_open
    assert linked.device.is_open
    assert linked.owner.handle == linked.device.handle is not None
    assert linked.owner.boot == linked.device.boot != linked.device.handle


def test_before_the_session_nothing_is_open() -> None:
    linked = Linked()
    assert (linked.owner.state, linked.device.state) == (OwnerState.WAITING, DeviceState.CALLING)
    assert linked.owner.handle is linked.device.handle is linked.owner.boot is None
    assert linked.owner.beat(0.0) == linked.device.beat(0.0) == b""
    assert linked.owner.tick(1e6) == []
    assert linked.device.evict([SLICE], "") == []
    with pytest.raises(GoneError, match="device device-1 has no open session"):
        linked.ask(APPLY)


def test_a_lost_greeting_is_repeated_because_the_device_calls_again() -> None:
    linked = Linked()
    linked.to_owner += linked.device.hello(linked.now)
    (first,) = linked.hear_device()
    linked.to_device.clear()
    assert linked.tick(0.5)[1] == []
    (repeat,) = linked.tick(0.6)[1]
    assert isinstance(repeat, Repeat)
    linked.to_owner += repeat.frames
    (second,) = linked.hear_device()
    assert isinstance(first, Opened)
    assert isinstance(second, Opened)
    assert (first.fresh, second.fresh) == (True, False)
    (opened,) = linked.hear_owner()
    assert isinstance(opened, Opened)
    assert opened.fresh
    assert linked.device.handle == linked.owner.handle


def test_a_device_with_a_session_is_quiet() -> None:
    linked = Linked().opened()
    for _ in range(100):
        assert linked.tick(0.9) == ([], [])
        linked.beat()


def test_a_doubled_greeting_opens_nothing_anew() -> None:
    linked = Linked().opened()
    linked.ask(STEP)
    request = asked(linked)
    linked.to_owner += linked.device.hello(linked.now)
    linked.hear_device()
    (again,) = linked.hear_owner()
    assert isinstance(again, Opened)
    assert not again.fresh
    linked.to_owner += linked.device.answer(request.id, [])
    assert [type(event) for event in linked.hear_device()] == [Answered]


def test_a_device_that_started_anew_holds_nothing_and_its_requests_fail() -> None:
    linked = Linked().opened()
    before = linked.owner.handle
    requests = [linked.ask(STEP), linked.ask(APPLY)]
    linked.device = linked.new_device(3)
    linked.to_owner += linked.device.hello(linked.now)
    first, second, opened = linked.hear_device()
    reason = "the device started anew"
    assert [first, second] == [Failed(request_id, reason) for request_id in requests]
    assert isinstance(opened, Opened)
    assert opened.fresh
    assert linked.owner.handle != before
    with pytest.raises(GoneError, match="not of the open session"):
        linked.ask(STEP, repeat_of=requests[0])


def test_a_restarted_owner_opens_a_new_session_and_the_device_must_drop_its_blocks() -> None:
    linked = Linked().opened()
    linked.ask(STEP)
    request = asked(linked)
    boot, before = linked.device.boot, linked.device.handle
    linked.owner = OwnerSession("device-1", DEFAULT, Entropy(9), linked.timing)
    (called,) = linked.tick(6.0)[1]
    assert isinstance(called, Repeat)
    assert linked.device.is_open
    linked.to_owner += called.frames
    (opened,) = linked.hear_device()
    assert isinstance(opened, Opened)
    assert opened.fresh
    (at_device,) = linked.hear_owner()
    assert isinstance(at_device, Opened)
    assert at_device.fresh
    assert linked.device.boot == boot
    assert linked.device.handle == linked.owner.handle != before
    assert linked.device.answer(request.id, []) == []
    linked.ask(APPLY)
    assert isinstance(asked(linked).body, type(APPLY))


def test_a_late_greeting_of_the_owner_before_does_not_lead_back() -> None:
    linked = Linked()
    linked.to_owner += linked.device.hello(linked.now)
    linked.hear_device()
    greeting = list(linked.to_device)
    linked.hear_owner()
    linked.owner = OwnerSession("device-1", DEFAULT, Entropy(9), linked.timing)
    linked.opened()
    current = linked.device.handle
    handle = decode(greeting[0][FRAME_HEADER_BYTES:], DEFAULT)[0].session
    boot = linked.device.boot
    old = OwnerHello(protocol=PROTOCOL, boot=boot, lease_s=30.0, heartbeat_s=1.0, credit_bytes=0)
    assert linked.device.receive(forged(handle, old), linked.now) == []
    assert linked.device.ignored == 1
    assert linked.device.handle == current


def test_late_greetings_of_sessions_that_are_over_open_nothing() -> None:
    linked = Linked()
    linked.to_owner += linked.device.hello(linked.now)
    old_hello = list(linked.device.hello(linked.now))
    (opened,) = linked.hear_device()
    assert isinstance(opened, Opened)
    old_greeting = linked.owner.receive(old_hello[0], linked.now)
    linked.hear_owner()
    linked.tick(31.0)
    linked.opened()
    current = linked.owner.handle
    late = list(old_greeting)
    assert isinstance(late[0], Opened)
    for frame in late[0].frames_to_send:
        assert linked.device.receive(frame, linked.now) == []
    assert linked.device.ignored == 1
    again = forged(opened.hello.boot, opened.hello, number=77)
    assert linked.owner.receive(again, linked.now) == []
    assert linked.owner.ignored == 1
    assert linked.owner.handle == linked.device.handle == current


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"protocol": PROTOCOL + 1}, VersionError, f"device device-1 speaks version {PROTOCOL + 1}"),
        ({"name": "device-2"}, ProtocolError, "names another device"),
        ({"boot": OTHER}, ProtocolError, "names another device or session"),
    ],
)
def test_an_owner_refuses_a_wrong_hello(changed: dict[str, object], error: type[ProtocolError], said: str) -> None:
    linked = Linked()
    good = DeviceHello(name="device-1", protocol=PROTOCOL, boot=linked.device.boot, memory_bytes=1, threads=1)
    bad = DeviceHello(**{field: getattr(good, field) for field in good.__struct_fields__} | changed)
    refused = violation(linked.owner.receive(forged(good.boot, bad), linked.now))
    assert isinstance(refused, error)
    assert said in str(refused)
    assert linked.owner.state is OwnerState.WAITING


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"protocol": PROTOCOL + 1}, f"the owner speaks version {PROTOCOL + 1}"),
        ({"boot": OTHER}, "another boot of this device"),
    ],
)
def test_a_device_refuses_a_wrong_hello(changed: dict[str, object], said: str) -> None:
    linked = Linked()
    good = OwnerHello(protocol=PROTOCOL, boot=linked.device.boot, lease_s=9.0, heartbeat_s=1.0, credit_bytes=1)
    bad = OwnerHello(**{field: getattr(good, field) for field in good.__struct_fields__} | changed)
    refused = violation(
        [event for event in linked.device.receive(forged(OTHER, bad), 100.0) if event != Repeat([])][1:]
    )
    assert isinstance(refused, VersionError)
    assert said in str(refused)
    assert linked.device.state is DeviceState.CALLING


def test_a_request_expires_after_its_deadline_and_its_late_answer_is_ignored() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY, wait_s=2.0)
    linked.hear_owner()
    assert linked.tick(2.0)[0] == []
    assert linked.tick(0.1)[0] == [Expired(request_id)]
    assert linked.tick(0.1)[0] == []
    linked.to_owner += linked.device.answer(request_id, [X])
    assert linked.hear_device() == []
    assert linked.owner.ignored == 1


def test_a_silent_device_is_gone_and_its_requests_fail() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY, wait_s=100.0)
    assert linked.tick(5.0)[0] == []
    reason = "silent for more than 5 s"
    assert linked.tick(0.1)[0] == [Failed(request_id, reason), Gone(reason)]
    assert linked.owner.state is OwnerState.SILENT
    assert not linked.owner.is_open
    assert linked.tick(10.0)[0] == []
    with pytest.raises(GoneError):
        linked.ask(APPLY)


@pytest.mark.parametrize("sign", ["beat", "evict", "hello", "late answer"])
def test_any_sign_of_life_brings_a_silent_device_back_with_what_it_held(sign: str) -> None:
    linked = Linked().opened()
    handle = linked.owner.handle
    request_id = linked.ask(APPLY)
    linked.hear_owner()
    linked.tick(6.0)
    if sign == "beat":
        events = linked.owner.receive_beat(linked.device.beat(linked.now), linked.now)
    else:
        says: dict[str, Callable[[], Sequence[bytes | Frame]]] = {
            "evict": lambda: linked.device.evict([SLICE], ""),
            "hello": lambda: linked.device.hello(linked.now),
            "late answer": lambda: linked.device.answer(request_id, [X]),
        }
        linked.to_owner += says[sign]()
        events = linked.hear_device()
    opened = events[0]
    assert isinstance(opened, Opened)
    assert not opened.fresh
    assert [type(event) for event in events[1:]] == ([Evicted] if sign == "evict" else [])
    assert linked.owner.handle == handle
    linked.to_device = list(opened.frames_to_send)
    (at_device,) = linked.hear_owner()
    assert isinstance(at_device, Opened)
    assert not at_device.fresh
    linked.ask(APPLY)
    asked(linked)


def test_beats_keep_both_ends_alive() -> None:
    linked = Linked().opened()
    for _ in range(50):
        linked.beat()
        assert linked.tick(1.0) == ([], [])


def test_requests_and_answers_are_signs_of_life_as_well() -> None:
    linked = Linked().opened()
    for _ in range(20):
        request_id = linked.ask(APPLY, wait_s=9.0)
        linked.hear_owner()
        linked.to_owner += linked.device.answer(request_id, [X])
        linked.hear_device()
        assert linked.tick(4.0) == ([], [])


def test_refused_messages_are_no_sign_of_life() -> None:
    linked = Linked().opened()
    for number in range(5):
        linked.now += 1.1
        linked.owner.receive(forged(OTHER, Answer(to=1), number=number), linked.now)
        linked.owner.receive_beat(b"", linked.now)
    assert [type(event) for event in linked.tick(0.0)[0]] == [Gone]


def test_after_the_lease_a_device_drops_its_blocks_and_calls_under_a_new_boot() -> None:
    linked = Linked().opened()
    boot, handle = linked.device.boot, linked.device.handle
    linked.ask(APPLY)
    request = asked(linked)
    expired, repeat = linked.tick(30.1)[1]
    assert expired == LeaseExpired()
    assert isinstance(repeat, Repeat)
    assert linked.device.boot != boot
    assert linked.device.handle is None
    assert linked.device.answer(request.id, [X]) == []
    linked.owner.tick(linked.now)
    linked.to_owner += repeat.frames
    opened = linked.hear_device()[-1]
    assert isinstance(opened, Opened)
    assert opened.fresh
    assert linked.owner.handle != handle


@pytest.mark.parametrize("way", ["message", "beat"])
def test_a_lease_that_ran_out_unnoticed_has_run_out(way: str) -> None:
    """A machine that slept wakes up with the owner's latest bytes in its buffer."""
    linked = Linked().opened()
    linked.ask(APPLY)
    beat = linked.owner.beat(linked.now)
    linked.now += 31.0
    events = linked.hear_owner() if way == "message" else linked.device.receive_beat(beat, linked.now)
    assert events[0] == LeaseExpired()
    assert not any(isinstance(event, Requested) for event in events)
    assert linked.device.handle is None


def test_requests_that_overtake_the_greeting_are_ignored() -> None:
    linked = Linked()
    linked.to_owner += linked.device.hello(linked.now)
    linked.hear_device()
    greeting = list(linked.to_device)
    linked.to_device.clear()
    linked.ask(APPLY)
    overtaken = list(linked.to_device)
    linked.to_device = overtaken + greeting
    assert [type(event) for event in linked.hear_owner()] == [Opened]
    assert linked.device.ignored == 1


def test_an_owner_says_goodbye_and_the_device_is_free_for_another() -> None:
    linked = Linked().opened()
    boot = linked.device.boot
    linked.ask(APPLY)
    linked.to_device += linked.owner.bye("all\ndone")
    assert linked.owner.state is OwnerState.CLOSED
    request, closed = linked.hear_owner()
    assert isinstance(request, Requested)
    assert closed == Closed("all?done")
    assert linked.device.state is DeviceState.CALLING
    assert linked.device.boot != boot
    assert linked.device.answer(request.id, [X]) == []
    linked.owner = OwnerSession("device-1", DEFAULT, Entropy(8), linked.timing)
    assert linked.opened().device.is_open


def test_a_device_calls_at_once_when_its_session_has_ended() -> None:
    linked = Linked().opened()
    linked.to_device += linked.owner.bye("")
    linked.hear_owner()
    assert [type(event) for event in linked.device.tick(linked.now)] == [Repeat]


def test_a_device_says_goodbye() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY)
    linked.hear_owner()
    late = linked.device.answer(request_id, [X])
    linked.to_owner += linked.device.bye("going\thome")
    assert linked.hear_device() == [Failed(request_id, "going?home"), Gone("going?home")]
    assert linked.owner.state is OwnerState.WAITING
    linked.to_owner += late
    assert linked.hear_device() == []
    assert linked.device.state is DeviceState.CLOSED
    linked.device = linked.new_device(4)
    assert linked.opened().owner.is_open


def test_the_goodbye_of_a_silent_device_is_no_news() -> None:
    linked = Linked().opened()
    linked.tick(6.0)
    linked.to_owner += linked.device.bye("")
    assert linked.hear_device() == []
    assert linked.owner.state is OwnerState.WAITING


def test_after_goodbye_nothing_is_said_or_heard() -> None:
    linked = Linked().opened()
    linked.ask(APPLY)
    answer, request = linked.device.evict([SLICE], ""), list(linked.to_device)
    linked.owner.bye("")
    linked.device.bye("")
    for frame in (*answer, b"", b"junk"):
        assert linked.owner.receive(frame, linked.now) == []
    for frame in (*request, b"", b"junk"):
        assert linked.device.receive(frame, linked.now) == []
    assert linked.tick(100.0) == ([], [])
    assert linked.owner.bye("") == linked.device.bye("") == linked.device.hello(linked.now) == []
    assert linked.owner.beat(linked.now) == linked.device.beat(linked.now) == b""
    assert linked.owner.state is OwnerState.CLOSED
    assert linked.device.state is DeviceState.CLOSED
