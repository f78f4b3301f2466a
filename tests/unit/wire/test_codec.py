"""Messages to bytes and back: what arrives is what was sent, and everything else is refused before it costs."""

import dataclasses
import struct
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.errors import InputError, LimitError, ProtocolError, VersionError
from awfulowl.limits import DEFAULT, MIB
from awfulowl.wire.buffers import ALIGNMENT
from awfulowl.wire.codec import DTYPES, decode, encode
from awfulowl.wire.messages import PROTOCOL, Answer, Apply, Body, Bye, Cancel, Header, Release, Step
from awfulowl.wire.parts import TensorHeader, Term

SESSION = b"s" * 16
A, B = b"a" * 16, b"b" * 16
ANSWER = Answer(to=5)
APPLY = Apply(slices=(B,), terms=(Term(rows=(A,), slices=(B,)),))
PREFIX = struct.Struct("<3sBIQ")


def joined(body: Body, *tensors: Tensor, request_id: int = 0) -> bytes:
    return b"".join(encode(SESSION, request_id, body, tensors, DEFAULT))


def packed(header: object, body: bytes = b"", *, header_bytes: int | None = None, total: int | None = None) -> bytes:
    """A message with any header and any lengths."""
    head = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    length = PREFIX.size + len(head) + len(body)
    prefix = PREFIX.pack(
        b"OWL",
        PROTOCOL,
        len(head) if header_bytes is None else header_bytes,
        length if total is None else total,
    )
    return prefix + head + body


def fields(**changed: object) -> dict[str, object]:
    """The header of an answer as a dictionary, with some fields changed."""
    return {"session": SESSION, "id": 0, "body": {"verb": "answer", "to": 5}, "tensors": [], **changed}


def padded(header: object, body: bytes = b"") -> bytes:
    """A message whose one tensor starts where it has to."""
    end = PREFIX.size + len(msgspec.msgpack.encode(header))
    return packed(header, bytes(-end % ALIGNMENT) + body)


def address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def same(left: Tensor, right: Tensor) -> bool:
    """Equal in type, shape and every bit: NaN is equal to itself."""
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*flat)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (0,), (0, 4), (4, 0, 2), (2, 1, 3, 1, 2)])
def test_every_type_and_shape_arrives_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = (torch.randn(shape, dtype=torch.float64) * 50).to(dtype)
    header, (came,) = decode(joined(ANSWER, sent), DEFAULT)
    assert header.body == ANSWER
    assert header.session == SESSION
    assert same(came, sent)


def arrays(dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    return shapes.map(lambda shape: torch.randint(-100, 100, shape).to(dtype))


@given(st.lists(st.sampled_from(list(DTYPES.values())).flatmap(arrays), max_size=6))
def test_any_tensors_together_arrive_as_they_were(sent: list[Tensor]) -> None:
    header, came = decode(joined(ANSWER, *sent), DEFAULT)
    assert [tensor.shape for tensor in header.tensors] == [tuple(tensor.shape) for tensor in sent]
    assert len(came) == len(sent)
    assert all(map(same, came, sent))


def test_not_finite_numbers_arrive_bit_for_bit() -> None:
    sent = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    assert same(decode(joined(ANSWER, sent), DEFAULT)[1][0], sent)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if not dtype.is_floating_point], ids=str)
def test_the_ends_of_integers_arrive_and_travel_little_endian(dtype: torch.dtype) -> None:
    ends = torch.iinfo(dtype)
    numbers = [ends.min, ends.max, 0, 1, ends.max // 3]
    message = joined(ANSWER, torch.tensor(numbers, dtype=dtype))
    size = dtype.itemsize
    assert message[-5 * size :] == b"".join(n.to_bytes(size, "little", signed=ends.min < 0) for n in numbers)
    assert decode(message, DEFAULT)[1][0].tolist() == numbers


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_any_int64_arrive(numbers: list[int]) -> None:
    sent = torch.tensor(numbers, dtype=torch.int64)
    header, (came,) = decode(joined(ANSWER, sent), DEFAULT)
    assert header.tensors[0].dtype == "int64"
    assert same(came, sent)


@pytest.mark.parametrize(
    "sent",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0)[::3],
        torch.arange(3.0).expand(4, 3),
        torch.arange(4.0, requires_grad=True),
        torch.nn.Parameter(torch.arange(4.0)),
    ],
    ids=["transposed", "strided", "expanded", "requires grad", "parameter"],
)
def test_any_layout_is_sent_in_order(sent: Tensor) -> None:
    (came,) = decode(joined(ANSWER, sent), DEFAULT)[1]
    assert torch.equal(came, sent.detach())
    assert not came.requires_grad


def test_tensors_of_inference_mode_travel() -> None:
    with torch.inference_mode():
        message = joined(ANSWER, torch.ones(3).bfloat16())
        assert decode(message, DEFAULT)[1][0].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_contiguous_tensor_is_not_copied(dtype: torch.dtype) -> None:
    sent = torch.zeros(4, 300, dtype=dtype)
    piece = encode(SESSION, 0, ANSWER, [sent], DEFAULT)[-1]
    assert address(torch.frombuffer(piece, dtype=torch.uint8)) == address(sent)


def test_received_tensors_are_views_of_the_message() -> None:
    message = joined(ANSWER, torch.ones(5), torch.ones(3, dtype=torch.int8))
    start = address(torch.frombuffer(message, dtype=torch.uint8))
    for tensor in decode(message, DEFAULT)[1]:
        assert start < address(tensor) < start + len(message)
        assert (address(tensor) - start) % ALIGNMENT == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_decoded(kind: type) -> None:
    assert decode(kind(joined(ANSWER, torch.ones(2))), DEFAULT)[1][0].tolist() == [1.0, 1.0]


def test_views_of_read_only_bytes_raise_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(joined(ANSWER, torch.ones(2)), DEFAULT)


def test_the_pieces_begin_with_the_prefix_and_bodies_are_aligned() -> None:
    tensors = [torch.ones(3, dtype=torch.uint8), torch.zeros(0), torch.ones(70, dtype=torch.int16)]
    message = joined(ANSWER, *tensors)
    magic, version, header_bytes, total = PREFIX.unpack_from(message)
    assert (magic, version, total) == (b"OWL", PROTOCOL, len(message))
    first = -(-(PREFIX.size + header_bytes) // ALIGNMENT) * ALIGNMENT
    assert message[first : first + 3] == b"\1\1\1"
    assert message[first + ALIGNMENT :] == b"\1\0" * 70


def test_what_does_not_travel_is_said_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match=r"torch.complex64 do not travel; convert to one of float32"):
        joined(ANSWER, torch.ones(2, dtype=torch.complex64))
    with pytest.raises(InputError, match=r"apply takes tensors, got none; nothing was sent"):
        joined(APPLY, request_id=1)


@pytest.mark.parametrize(("body", "request_id"), [(ANSWER, 3), (APPLY, 0), (Cancel(target=4), 4), (Bye(reason=""), 1)])
def test_only_requests_have_an_id(body: Body, request_id: int) -> None:
    tensors = [torch.ones(1, 1)] if body is APPLY else []
    with pytest.raises(InputError, match="requests count from 1"):
        joined(body, *tensors, request_id=request_id)
    good = joined(body, *tensors, request_id=1 if body is APPLY else 0)
    header = decode(good, DEFAULT)[0]
    forged = msgspec.structs.replace(header, id=request_id)
    with pytest.raises(ProtocolError, match="requests count from 1"):
        decode(padded(forged, bytes(4)) if tensors else packed(forged), DEFAULT)


def test_a_message_shorter_than_its_prefix() -> None:
    for length in range(PREFIX.size):
        with pytest.raises(ProtocolError, match="shorter than its prefix"):
            decode(joined(ANSWER)[:length], DEFAULT)


def test_every_truncation_is_refused() -> None:
    message = joined(ANSWER, torch.ones(9), torch.ones(3, 3))
    for length in range(len(message)):
        with pytest.raises(ProtocolError):
            decode(message[:length], DEFAULT)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(ProtocolError, match="announces"):
        decode(joined(ANSWER, torch.ones(9)) + b"\0", DEFAULT)
    longer = packed(fields(), bytes(64))
    with pytest.raises(ProtocolError, match="the header promises"):
        decode(longer, DEFAULT)
    header = msgspec.msgpack.encode(fields())
    with pytest.raises(ProtocolError, match="trailing characters"):
        decode(packed(header + b"\xc0"), DEFAULT)


def test_foreign_bytes_and_other_versions() -> None:
    message = bytearray(joined(ANSWER))
    message[3] = PROTOCOL + 1
    with pytest.raises(VersionError, match=f"version {PROTOCOL + 1} of the protocol"):
        decode(message, DEFAULT)
    message[:3] = b"PNG"
    with pytest.raises(ProtocolError, match="no message"):
        decode(message, DEFAULT)


def test_padding_must_be_zero() -> None:
    message = bytearray(joined(ANSWER, torch.ones(3, dtype=torch.uint8), torch.ones(3, dtype=torch.uint8)))
    header_end = PREFIX.size + PREFIX.unpack_from(message)[2]
    start = -(-header_end // ALIGNMENT) * ALIGNMENT
    places = [*range(header_end, start), *range(start + 3, start + ALIGNMENT)]
    assert places
    for place in places:
        message[place] = 1
        with pytest.raises(ProtocolError, match="padding"):
            decode(message, DEFAULT)
        message[place] = 0
    decode(message, DEFAULT)


@pytest.mark.parametrize(
    "header",
    [
        fields(extra=1),
        fields(session=b"short"),
        fields(session="s" * 16),
        fields(id=-1),
        fields(id=2**63),
        fields(id=True),
        fields(id=0.0),
        fields(body={"verb": "format", "to": 5}),
        fields(body={"verb": 3, "to": 5}),
        fields(body={"to": 5}),
        fields(body={"verb": "answer"}),
        fields(body={"verb": "answer", "to": 5, "also": 6}),
        fields(body={"verb": "answer", "to": None}),
        fields(body={"verb": "bye", "reason": "x" * 1025}),
        fields(body={"verb": "release", "slices": [b"x"]}),
        fields(body=[]),
        fields(tensors={}),
        fields(tensors=[["float32"]]),
        fields(tensors=[["float32", [1], 0]]),
        fields(tensors=[["float32", [1], True]]),
        fields(tensors=[["float32", [1], []]]),
        fields(tensors=[["float32", [1], None, None]]),
        fields(tensors=[["complex64", [1]]]),
        fields(tensors=[["uint64", [1]]]),
        fields(tensors=[["float32", [-1]]]),
        fields(tensors=[["float32", [2**63]]]),
        fields(tensors=[["float32", ["1"]]]),
        {key: value for key, value in fields().items() if key != "tensors"},
        [SESSION, 0, {}, []],
        "text",
        None,
        b"",
        b"\xc1",
        b"\xff" * 40,
    ],
    ids=repr,
)
def test_headers_of_other_types_are_refused(header: object) -> None:
    with pytest.raises(ProtocolError, match="the header is not one of this protocol"):
        decode(packed(header), DEFAULT)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 86401.0, "1", None])
def test_times_are_positive_and_finite(value: object) -> None:
    body = {"verb": "hello.owner", "protocol": 1, "boot": A, "lease_s": value, "heartbeat_s": 1.0, "credit_bytes": 0}
    with pytest.raises(ProtocolError, match="lease_s"):
        decode(packed(fields(body=body)), DEFAULT)


def test_a_text_that_is_none_is_refused() -> None:
    header = msgspec.msgpack.encode(fields(body={"verb": "bye", "reason": "abc"})).replace(b"abc", b"\xff\xfe\xfd")
    with pytest.raises(ProtocolError, match="utf-8"):
        decode(packed(header), DEFAULT)


def test_an_error_shows_no_control_characters_of_the_peer_and_stays_short() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(packed(fields(**{"\x1b[2J" + "x" * 5000: 1})), DEFAULT)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdd\0\0\0\1", b"\xdf\0\0\0\1\xc0"])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    depth = (DEFAULT.max_header_bytes - 64) // len(opening)
    for header in (opening * depth, b"\x81\xa4body\x82\xa1x" + opening * (depth - 10)):
        with pytest.raises(ProtocolError, match="the header is not one of this protocol"):
            decode(packed(header), DEFAULT)


def announcements() -> Iterator[tuple[str, bytes]]:
    """Short messages that announce very much."""
    good = msgspec.msgpack.encode(fields())
    huge = b"\xdd\xff\xff\xff\xff"
    yield "array of tensors", packed(good[:-1] + huge)
    yield "array, then some", packed(good[:-1] + huge + b"\xc0" * 1000)
    yield "map", packed(b"\xdf\xff\xff\xff\xff" + good[1:])
    yield "bytes", packed(good.replace(b"\xc4\x10", b"\xc6\xff\xff\xff\xff"))
    yield "text", packed(good[:-1] + b"\xdb\xff\xff\xff\xff")
    yield "extension", packed(good[:-1] + b"\xc9\xff\xff\xff\xff\1")
    yield "shape", packed(good[:-1] + b"\x91\x92\xa7float32" + huge)
    yield "handles", packed(good.replace(b"\xa6answer\xa2to\5", b"\xa7release\xa6slices" + huge))
    yield "total of 2^63", packed(good, total=2**63)
    yield "total of 200 MB", packed(good, total=200 * MIB)
    yield "header of 2^32", packed(good, header_bytes=2**32 - 1)
    yield "header of 1 MB", packed(good, header_bytes=MIB)
    yield "tensor of 200 MB", padded(fields(tensors=[["uint8", [200 * MIB]]]))
    yield "tensor of 2^63", padded(fields(tensors=[["uint8", [2**63 - 1]]]))
    yield "empty tensor of 2^63", padded(fields(tensors=[["uint8", [2**63 - 1, 0]]]))
    yield "shape product over 2^64", padded(fields(tensors=[["float64", [2**32, 2**32]]]))
    yield "shape product that wraps to 0", padded(fields(tensors=[["uint8", [2**32, 2**32, 2**32]]]))
    yield "shape product that wraps to 4", padded(fields(tensors=[["int32", [2**62 + 1, 2**2]]]), bytes(16))
    yield "every dimension 2^63", padded(fields(tensors=[["float64", [2**63 - 1] * 8]]))
    yield "many tensors of 200 MB", padded(fields(tensors=[["uint8", [200 * MIB]]] * 1000))
    seeded = ["uint8", [1, 200 * MIB], b"k" * 32]
    yield "seed for 200 MB in an answer", packed(fields(tensors=[seeded]))
    apply = fields(id=1, body={"verb": "apply", "slices": [], "terms": []})
    yield "seeds for 400 MB", packed({**apply, "tensors": [seeded] * 2})
    yield "seeds for 200 GB", packed({**apply, "tensors": [seeded] * 1000})
    yield "seeds for 200 GB, then bytes", packed({**apply, "tensors": [seeded] * 1000}, bytes(64))
    yield "seed for 2^63", packed({**apply, "tensors": [["int64", [1, 2**63 - 1], b"k" * 32]]})
    yield "seed for nothing of 2^63", packed({**apply, "tensors": [["int64", [0, 2**63 - 1], b"k" * 32]]})
    yield "seed shape product that wraps to 0", packed({**apply, "tensors": [["uint8", [2**32] * 3, b"k" * 32]]})


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in announcements()])
def test_announced_sizes_cost_nothing(message: bytes) -> None:
    decode(joined(ANSWER), DEFAULT)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(message, DEFAULT, seeds=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 + 20 * len(message)  # what is there may cost 20 times its length, as Python objects


def test_sizes_are_compared_as_whole_numbers() -> None:
    header = fields(tensors=[["float64", [2**61]], ["uint8", [2**63 - 1]]])
    with pytest.raises(LimitError, match=f"a tensor of {2**64} bytes, max_message_bytes"):
        decode(padded(header), DEFAULT)


@pytest.mark.parametrize(
    ("limit", "most", "sent"),
    [
        ("max_message_bytes", 400, [torch.ones(100)]),
        ("max_header_bytes", 50, []),
        ("max_tensors", 2, [torch.ones(1)] * 3),
        ("max_dimensions", 2, [torch.ones(1, 1, 1)]),
    ],
)
def test_what_is_over_a_limit_is_neither_sent_nor_taken(limit: str, most: int, sent: list[Tensor]) -> None:
    message = joined(ANSWER, *sent)
    limits = dataclasses.replace(DEFAULT, **{limit: most})
    with pytest.raises(LimitError, match=rf"{limit} is {most}"):
        decode(message, limits)
    with pytest.raises(LimitError, match=rf"{limit} is {most}"):
        encode(SESSION, 0, ANSWER, sent, limits)


def test_too_many_handles_are_neither_sent_nor_taken() -> None:
    many = tuple(index.to_bytes(16, "little") for index in range(101))
    for count, refused in ((100, False), (101, True)):
        body = Release(slices=many[:count])
        limits = dataclasses.replace(DEFAULT, max_handles=100)
        if not refused:
            decode(b"".join(encode(SESSION, 1, body, (), limits)), limits)
            continue
        with pytest.raises(LimitError, match="101 handles, max_handles is 100"):
            encode(SESSION, 1, body, (), limits)
        with pytest.raises(LimitError, match="101 handles, max_handles is 100"):
            decode(joined(body, request_id=1), limits)


def test_what_is_exactly_at_the_limits_passes() -> None:
    message = joined(ANSWER, torch.ones(2, 2), torch.ones(2))
    limits = dataclasses.replace(
        DEFAULT,
        max_message_bytes=len(message),
        max_header_bytes=PREFIX.unpack_from(message)[2],
        max_tensors=2,
        max_dimensions=2,
    )
    assert len(decode(message, limits)[1]) == 2
    assert b"".join(encode(SESSION, 0, ANSWER, [torch.ones(2, 2), torch.ones(2)], limits)) == message


def test_tensors_must_suit_the_verb() -> None:
    header = Header(session=SESSION, id=0, body=Bye(reason=""), tensors=(TensorHeader(dtype="uint8", shape=(0,)),))
    with pytest.raises(ProtocolError, match="bye takes no tensors, got 1"):
        decode(padded(header), DEFAULT)


def test_a_step_carries_its_rule_and_no_tensors() -> None:
    step = Step(terms=APPLY.terms, step=1, jobs=(3, 2**63 - 1), rule=Descent.sgd(0.1, momentum=0.9, weight_decay=1e-7))
    header, came = decode(joined(step, request_id=9), DEFAULT)
    assert header.body == step
    assert came == []
    with pytest.raises(InputError, match=r"step takes no tensors, got 1; nothing was sent"):
        joined(step, torch.ones(1), request_id=9)


def test_machines_of_the_other_byte_order_are_refused_at_import() -> None:
    script = "import sys; sys.byteorder = 'big'; import awfulowl.wire.codec"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "ImportError: awfulowl.wire: tensors travel as little-endian bytes" in ended.stderr
