"""What both ends do alike: beats, the memory of what is over, texts."""

import dataclasses
import struct

import pytest
import xxhash

from awfulowl.errors import DamagedError, ProtocolError, VersionError
from awfulowl.limits import DEFAULT
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import PROTOCOL, Answer, Header
from awfulowl.wire.session.line import BEAT_BYTES, FIRST_NUMBERS, Line, Role

HERE, THERE = b"h" * 16, b"t" * 16


def pair() -> tuple[Line, Line]:
    return Line(Role.OWNER, DEFAULT, Entropy(1)), Line(Role.DEVICE, DEFAULT, Entropy(2))


def test_a_beat_is_heard_once() -> None:
    owner, device = pair()
    beat = owner.beat(HERE)
    assert len(beat) == BEAT_BYTES
    assert device.is_alive(beat, HERE)
    assert not device.is_alive(beat, HERE)
    assert device.ignored == 1


def test_without_a_session_there_is_no_beat() -> None:
    owner, device = pair()
    assert owner.beat(None) == b""
    assert not device.is_alive(owner.beat(HERE), None)


def test_an_overtaken_beat_is_old() -> None:
    owner, device = pair()
    first, second, third = (owner.beat(HERE) for _ in range(3))
    assert device.is_alive(second, HERE)
    assert not device.is_alive(first, HERE)
    assert device.is_alive(third, HERE)


def test_a_beat_counts_in_its_own_session_only() -> None:
    owner, device = pair()
    assert device.is_alive(owner.beat(HERE), HERE)
    assert not device.is_alive(owner.beat(THERE), HERE)
    restarted = Line(Role.OWNER, DEFAULT, Entropy(3))
    assert device.is_alive(restarted.beat(THERE), THERE)


def test_an_echo_keeps_nobody_alive() -> None:
    owner, device = pair()
    assert not owner.is_alive(owner.beat(HERE), HERE)
    assert not device.is_alive(device.beat(HERE), HERE)


@pytest.mark.parametrize("place", [place for place in range(BEAT_BYTES) if place != 3])
def test_a_damaged_beat_is_refused(place: int) -> None:
    owner, device = pair()
    beat = bytearray(owner.beat(HERE))
    beat[place] ^= 1
    with pytest.raises(DamagedError):
        device.is_alive(bytes(beat), HERE)


@pytest.mark.parametrize("payload", [b"", b"OWB", bytes(BEAT_BYTES), b"OWB" + bytes(BEAT_BYTES)], ids=len)
def test_what_is_no_beat_is_refused(payload: bytes) -> None:
    with pytest.raises(DamagedError, match="heartbeat"):
        pair()[0].is_alive(payload, HERE)


def test_a_beat_of_another_version_is_refused() -> None:
    beat = struct.pack("<3sBB16sQ", b"OWB", PROTOCOL + 1, Role.DEVICE, HERE, 1)
    beat += struct.pack("<Q", xxhash.xxh3_64_intdigest(beat))
    with pytest.raises(VersionError, match=f"a heartbeat speaks version {PROTOCOL + 1}"):
        pair()[0].is_alive(beat, HERE)


def header(session: bytes) -> Header:
    return Header(session=session, id=0, body=Answer(to=1), tensors=())


def test_a_message_is_current_over_or_forged() -> None:
    line = pair()[0]
    line.retire(THERE, None)
    assert line.is_current(header(HERE), HERE)
    assert not line.is_current(header(THERE), HERE)
    assert not line.is_current(header(HERE), None)
    assert line.ignored == 2
    with pytest.raises(ProtocolError, match="answer of a session that is not ours"):
        line.is_current(header(b"x" * 16), HERE)


def test_only_the_latest_sessions_are_recalled() -> None:
    line = pair()[0]
    handles = [bytes([count]) * 16 for count in range(40)]
    line.retire(*handles)
    assert line.is_past(handles[-1])
    assert not line.is_past(handles[0])


def test_numbers_of_messages_begin_at_random_and_count_up() -> None:
    numbers = []
    for seed in range(2):
        line = Line(Role.OWNER, DEFAULT, Entropy(seed))
        sent = [next(line.frames([b"message"])) for _ in range(3)]
        numbers.append([struct.unpack_from("<Q", frame, 8)[0] for frame in sent])
    assert [[number - group[0] for number in group] for group in numbers] == [[0, 1, 2], [0, 1, 2]]
    assert abs(numbers[0][0] - numbers[1][0]) > 1000
    assert max(map(max, numbers)) <= FIRST_NUMBERS + 3


def test_reasons_are_cut_and_printable() -> None:
    line = Line(Role.OWNER, dataclasses.replace(DEFAULT, max_text_chars=8), Entropy(1))
    assert line.text("\x07alarm alarm") == "?alarm a"
    longest = pair()[0].text("x" * 5000)
    assert len(longest) == 1024
