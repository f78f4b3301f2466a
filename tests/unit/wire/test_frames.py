"""Frames: any message in any order of frames arrives whole or not at all, at a bounded cost."""

import dataclasses
import random
import struct
import tracemalloc
from collections.abc import Callable

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import DamagedError, LimitError, ProtocolError, VersionError
from awfulowl.limits import DEFAULT, MIB
from awfulowl.wire.buffers import ALIGNMENT
from awfulowl.wire.codec import decode, encode
from awfulowl.wire.frames import FRAME_HEADER_BYTES, Assembler, Frame, frames, in_pieces
from awfulowl.wire.messages import PROTOCOL, Answer

HEAD = struct.Struct("<3sBIQQQ")


def cut(message: bytes, number: int = 1, piece: int = 8) -> list[bytes]:
    return list(frames([message], number, FRAME_HEADER_BYTES + piece))


def fed(assembler: Assembler, *received: bytes) -> list[bytes]:
    """The messages that these frames complete."""
    messages = [assembler.feed(frame) for frame in received]
    return [bytes(message) for message in messages if message is not None]


def sealed(
    payload: bytes,
    *,
    number: int = 1,
    total: int | None = None,
    offset: int = 0,
    piece: int = 8,
    version: int = PROTOCOL,
    zeros: bytes = bytes(24),
) -> bytes:
    """A frame that says what it likes under a right digest."""
    total = len(payload) if total is None else total
    head = HEAD.pack(b"OWF", version, piece, number, total, offset)
    digest = xxhash.xxh3_64_intdigest(payload, seed=xxhash.xxh3_64_intdigest(head))
    return head + struct.pack("<Q", digest) + zeros + payload


def test_the_frame_of_the_tests_is_that_of_the_code() -> None:
    assert cut(b"12345678") == [sealed(b"12345678")]
    assert cut(b"0123456789", number=7)[1] == sealed(b"89", number=7, total=10, offset=8)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 100])
def test_a_message_arrives_from_its_frames(length: int) -> None:
    message = bytes(range(length))
    sent = cut(message)
    assert len(sent) == -(-length // 8)
    assert all(len(frame) <= FRAME_HEADER_BYTES + 8 for frame in sent)
    assert fed(Assembler(DEFAULT), *sent) == [message]


@given(
    pieces=st.lists(st.binary(max_size=40), min_size=1, max_size=6).filter(any),
    piece=st.integers(1, 64),
    order=st.randoms(use_true_random=False),
)
def test_any_pieces_in_any_order_with_doubles(pieces: list[bytes], piece: int, order: random.Random) -> None:
    sent = list(frames(pieces, 3, FRAME_HEADER_BYTES + piece))
    received = sent + order.sample(sent, len(sent) // 2)
    order.shuffle(received)
    assert fed(Assembler(DEFAULT), *received) == [b"".join(pieces)]


@given(pieces=st.lists(st.binary(max_size=40), min_size=1, max_size=6).filter(any), piece=st.integers(1, 64))
def test_frames_in_pieces_are_the_frames(pieces: list[bytes], piece: int) -> None:
    joined = list(frames(pieces, 3, FRAME_HEADER_BYTES + piece))
    apart = list(in_pieces(pieces, 3, FRAME_HEADER_BYTES + piece))
    assert [bytes(frame) for frame in apart] == joined
    assert [len(frame) for frame in apart] == [len(frame) for frame in joined]
    assert all(map(len, (part for frame in apart for part in frame.parts)))


def test_pieces_are_views_of_the_message() -> None:
    """A frame that is joined later has what the message has then: so nothing of it may change."""
    message = bytearray(b"some bytes")
    (apart,), (joined,) = in_pieces([message], 1, 200), frames([message], 1, 200)
    assert bytes(apart) == joined
    message[:4] = b"more"
    assert bytes(apart)[FRAME_HEADER_BYTES:] == b"more bytes"
    assert joined[FRAME_HEADER_BYTES:] == b"some bytes"


def test_pieces_of_nothing_have_no_length() -> None:
    assert len(Frame(())) == 0
    assert bytes(Frame((b"", b""))) == b""


def test_several_messages_may_arrive_mixed() -> None:
    sent = [(bytes([number]) * 30, cut(bytes([number]) * 30, number)) for number in range(5)]
    mixed = [frame for group in zip(*(parts for _, parts in sent), strict=True) for frame in group]
    assert fed(Assembler(DEFAULT), *mixed) == [message for message, _ in sent]


def test_a_message_of_one_frame_is_a_view_of_the_frame_and_stays_aligned() -> None:
    message = encode(b"s" * 16, 0, Answer(to=1), [torch.ones(5)], DEFAULT)
    (frame,) = frames(message, 1, DEFAULT.chunk_bytes)
    whole = Assembler(DEFAULT).feed(frame)
    assert whole is not None
    assert whole.obj is frame
    (tensor,) = decode(whole, DEFAULT)[1]
    start = torch.frombuffer(frame, dtype=torch.uint8).data_ptr()
    assert (tensor.data_ptr() - start) % ALIGNMENT == 0


def test_the_pieces_of_a_message_may_end_anywhere() -> None:
    message = encode(b"s" * 16, 0, Answer(to=1), [torch.arange(1000.0), torch.arange(7)[:5].int()], DEFAULT)
    (whole,) = fed(Assembler(DEFAULT), *frames(message, 1, 200))
    assert whole == b"".join(message)
    assert decode(whole, DEFAULT)[1][1].tolist() == [0, 1, 2, 3, 4]


def test_a_doubled_frame_is_taken_once() -> None:
    assembler = Assembler(DEFAULT)
    (single,) = cut(b"single", 1)
    several = cut(b"several frames", 2)
    assert fed(assembler, single, single) == [b"single"]
    assert fed(assembler, several[0], several[0], several[1], *several) == [b"several frames"]


def test_a_number_is_forgotten_in_the_end() -> None:
    assembler = Assembler(dataclasses.replace(DEFAULT, remembered_messages=2))
    sent = [cut(b"abc", number)[0] for number in range(3)]
    assert len(fed(assembler, *sent)) == 3
    assert fed(assembler, sent[2], sent[1]) == []
    assert fed(assembler, sent[0]) == [b"abc"]


@pytest.mark.parametrize("place", range(FRAME_HEADER_BYTES + 8))
def test_every_damaged_byte_is_found(place: int) -> None:
    frame = bytearray(cut(b"12345678 and more")[0])
    frame[place] ^= 0x40
    with pytest.raises(VersionError if place == 3 else DamagedError):
        Assembler(DEFAULT).feed(frame)


@pytest.mark.parametrize("length", range(FRAME_HEADER_BYTES + 8))
def test_every_truncated_frame_is_found(length: int) -> None:
    with pytest.raises(DamagedError):
        Assembler(DEFAULT).feed(cut(b"12345678 and more")[0][:length])


def test_a_longer_frame_is_found() -> None:
    with pytest.raises(DamagedError, match="digest"):
        Assembler(DEFAULT).feed(cut(b"12345678")[0] + b"9")


def test_damage_does_not_disturb_the_rest_of_the_message() -> None:
    assembler = Assembler(DEFAULT)
    first, second = cut(b"0123456789")
    assert fed(assembler, first) == []
    with pytest.raises(DamagedError):
        assembler.feed(second[:-1] + b"x")
    assert fed(assembler, second) == [b"0123456789"]


def test_another_version_says_so() -> None:
    with pytest.raises(VersionError, match=f"a frame speaks version {PROTOCOL + 1}"):
        Assembler(DEFAULT).feed(sealed(b"abc", version=PROTOCOL + 1))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (sealed(b"abc", zeros=b"\1" + bytes(23)), "digest"),
        (sealed(b"abc", piece=0), "a frame at byte 0 of a message of 3"),
        (sealed(b"12345678", total=20, offset=4), "a frame at byte 4 of a message of 20"),
        (sealed(b"12345678", total=16, offset=16), "a frame at byte 16 of a message of 16"),
        (sealed(b"12345678", total=16, offset=2**63), "a frame at byte"),
        (sealed(b"abc", total=0), "a frame at byte 0 of a message of 0"),
        (sealed(b"abc", total=4), "a frame of 3 bytes"),
        (sealed(b"abcd", total=3), "a frame of 4 bytes"),
        (sealed(b"1234567", total=16), "a frame of 7 bytes, in a message cut into 8"),
        (sealed(b"123456789", total=16), "a frame of 9 bytes, in a message cut into 8"),
        (sealed(b"1234567", total=20, offset=16), "a frame of 7 bytes"),
    ],
    ids=str,
)
def test_a_frame_that_contradicts_itself(frame: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        Assembler(DEFAULT).feed(frame)


@pytest.mark.parametrize(
    "second",
    [sealed(b"12345678", total=24, offset=8), sealed(b"1234", total=16, offset=4, piece=4)],
    ids=["another length", "another cut"],
)
def test_a_frame_that_contradicts_the_first(second: bytes) -> None:
    assembler = Assembler(DEFAULT)
    good = cut(b"0123456789abcdef")
    assert fed(assembler, good[0]) == []
    with pytest.raises(ProtocolError, match="frames of message 1 disagree"):
        assembler.feed(second)
    assert fed(assembler, good[1]) == [b"0123456789abcdef"]


@pytest.mark.parametrize(
    ("limits", "frame", "said"),
    [
        ({"max_payload_bytes": 71}, sealed(b"12345678"), "a frame of 72 bytes, max_payload_bytes is 71"),
        ({"max_message_bytes": 15}, sealed(b"12345678", total=16), "a message of 16 bytes is announced, 15"),
        ({"max_partial_bytes": 15}, sealed(b"12345678", total=16), "a message of 16 bytes is announced, 15"),
        ({"max_frames": 2}, sealed(b"12345678", total=17), "max_frames is 2"),
        ({}, sealed(b"12345678", total=2**63), "is announced"),
        ({}, sealed(b"1", total=100 * MIB, piece=1), "max_frames"),
    ],
    ids=str,
)
def test_what_is_over_a_limit_is_refused(limits: dict[str, int], frame: bytes, said: str) -> None:
    with pytest.raises(LimitError, match=said):
        Assembler(dataclasses.replace(DEFAULT, **limits)).feed(frame)


def test_an_announced_length_over_the_limit_costs_nothing() -> None:
    assembler = Assembler(DEFAULT)
    frame = sealed(bytes(1000), piece=1000, total=DEFAULT.max_message_bytes + 1)
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            assembler.feed(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


def held(limits: dict[str, int], feed: Callable[[Assembler], None]) -> int:
    """Bytes that an assembler keeps after `feed`."""
    assembler = Assembler(dataclasses.replace(DEFAULT, **limits))
    tracemalloc.start()
    try:
        feed(assembler)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [{"max_partial_messages": 4}, {"max_partial_bytes": 40_000}], ids=str)
def test_messages_that_never_end_cost_no_more_than_the_limits_say(limit: dict[str, int]) -> None:
    begun = [sealed(bytes(1000), number=number, total=10_000, piece=1000) for number in range(200)]

    def flood(assembler: Assembler) -> None:
        assert fed(assembler, *begun) == []
        assert assembler.dropped == 196

    assert held(limit, flood) < 100_000


def test_no_more_is_dropped_than_room_is_needed() -> None:
    assembler = Assembler(dataclasses.replace(DEFAULT, max_partial_bytes=50))
    kept = [cut(bytes(12), number) for number in range(4)]
    assert fed(assembler, *(parts[0] for parts in kept), sealed(bytes(8), number=9, total=26)) == []
    assert assembler.dropped == 2
    assert fed(assembler, kept[2][1], kept[3][1]) == [bytes(12)] * 2


def test_on_a_network_that_loses_frames_new_messages_still_arrive() -> None:
    assembler = Assembler(dataclasses.replace(DEFAULT, max_partial_messages=3))
    for number in range(20):
        assert fed(assembler, cut(b"never whole", number)[0]) == []
    assert fed(assembler, *cut(b"whole at once", 20)) == [b"whole at once"]
    assert assembler.dropped == 18


def test_the_message_that_waited_longest_makes_room() -> None:
    assembler = Assembler(dataclasses.replace(DEFAULT, max_partial_messages=2))
    one, two, three = (cut(b"0123456789abcdefghi", number) for number in (1, 2, 3))
    assert fed(assembler, one[0], two[0], one[1], three[0]) == []
    assert fed(assembler, one[2]) == [b"0123456789abcdefghi"]
    assert fed(assembler, two[1], two[2]) == []  # its first frame is lost
    assert fed(assembler, three[1], three[2]) == [b"0123456789abcdefghi"]


def test_the_message_that_is_handed_out_does_not_change_any_more() -> None:
    assembler = Assembler(DEFAULT)
    sent = cut(b"0123456789")
    assert assembler.feed(sent[0]) is None
    message = assembler.feed(sent[1])
    assert message is not None
    assert fed(assembler, sealed(b"XXXXXXXX", total=10)) == []
    assert bytes(message) == b"0123456789"
