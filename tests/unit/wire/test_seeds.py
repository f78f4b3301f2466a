"""Tensors that are given by seeds: what the receiver makes of them, what they cost, and who may send them."""

import dataclasses
import re
from typing import NoReturn

import msgspec
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.blocks.kernels import Dense
from awfulowl.errors import InputError, LimitError, ProtocolError
from awfulowl.limits import DEFAULT, MIB, Limits
from awfulowl.randomness import Seeded, expanded
from awfulowl.wire.buffers import ALIGNMENT
from awfulowl.wire.codec import DTYPES, Buffer, decode, encode
from awfulowl.wire.frames import frames
from awfulowl.wire.messages import Apply, Body, Header, Load, Request
from awfulowl.wire.parts import Sheet, Term
from awfulowl.wire.session import Requested
from tests.unit.wire.linked import APPLY, Linked, X, asked, violation
from tests.unit.wire.test_codec import PREFIX, SESSION, A, B, address, packed, padded, same
from tests.unit.wire.test_messages import BODIES

SEED, OTHER_SEED = bytes(range(32)), b"k" * 32
INTEGERS = Apply(slices=(B,), terms=(Term(rows=(A,), slices=(B,)),), width=4)
LIMIT = dataclasses.replace(DEFAULT, max_message_bytes=4096)


def joined(*tensors: Tensor | Seeded, body: Body = INTEGERS) -> bytes:
    return b"".join(encode(SESSION, int(isinstance(body, Request)), body, tensors, DEFAULT))


def taken(message: Buffer, limits: Limits) -> tuple[Header, list[Tensor]]:
    """What a device makes of a message when its turn comes."""
    header, tensors = decode(message, limits, seeds=True)
    return header, [expanded(tensor) for tensor in tensors]


def header_end(message: bytes | bytearray) -> int:
    return int(PREFIX.size + PREFIX.unpack_from(message)[2])


def expected(seed: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """What a seed stands for, by AES-256-CTR in one go."""
    size = torch.Size(shape).numel() * dtype.itemsize
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(size))
    return torch.frombuffer(bytearray(stream), dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def seeded(*shape: int, dtype: str = "int32", seed: object = SEED) -> list[object]:
    """A tensor as a header announces it."""
    return [dtype, list(shape), seed]


def applied(*announced: object, **changed: object) -> dict[str, object]:
    """The header of an apply as a dictionary, whatever tensors it announces."""
    return {"session": SESSION, "id": 1, "body": {"verb": "apply", "slices": [], "terms": []}, **changed} | {
        "tensors": announced
    }


@pytest.fixture
def nothing_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody makes numbers of a seed, nor memory for them."""

    def expand(self: Seeded) -> NoReturn:
        pytest.fail(f"{self} was expanded")

    monkeypatch.setattr(Seeded, "expand", expand)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (0,), (0, 4), (4, 0, 2), (2, 1, 3, 1, 2)])
def test_a_seed_of_every_type_and_shape_becomes_its_keystream(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    header, (came,) = taken(joined(Seeded(SEED, dtype, shape)), DEFAULT)
    assert header.body == INTEGERS
    assert (header.tensors[0].shape, header.tensors[0].seed) == (shape, SEED)
    assert same(came, expected(SEED, dtype, shape))


@st.composite
def side_by_side(draw: st.DrawFn) -> list[Tensor | Seeded]:
    """Tensors that lie beside each other, some of them by a seed."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    batch, space = draw(st.integers(0, 4)), tuple(draw(st.lists(st.integers(0, 3), max_size=2)))

    def one() -> Tensor | Seeded:
        shape = (batch, draw(st.integers(0, 9)), *space)
        if draw(st.booleans()):
            return Seeded(draw(st.binary(min_size=32, max_size=32)), dtype, shape)
        return torch.randint(-100, 100, shape).to(dtype)

    return [one() for _ in range(draw(st.integers(1, 6)))]


@given(side_by_side())
def test_any_mixture_of_seeds_and_tensors_arrives_as_it_was(sent: list[Tensor | Seeded]) -> None:
    message = joined(*sent)
    header, came = taken(message, DEFAULT)
    assert [(DTYPES[each.dtype], each.shape) for each in header.tensors] == [
        (each.dtype, tuple(each.shape)) for each in sent
    ]
    assert [each.seed for each in header.tensors] == [each.seed if isinstance(each, Seeded) else None for each in sent]
    for tensor, each in zip(came, sent, strict=True):
        assert same(tensor, expected(*each) if isinstance(each, Seeded) else each)
    length = header_end(message)
    for each in sent:
        if isinstance(each, Tensor):
            length = -(-length // ALIGNMENT) * ALIGNMENT + each.nbytes
    assert len(message) == length


@given(side_by_side())
def test_what_came_by_a_seed_can_be_sent_on_by_it(sent: list[Tensor | Seeded]) -> None:
    message = joined(*sent)
    assert joined(*decode(message, DEFAULT, seeds=True)[1]) == message


def test_a_seed_costs_no_bytes_behind_the_header() -> None:
    message = joined(Seeded(SEED, torch.int64, (1000, 1000)))
    assert len(message) == header_end(message) < 256
    assert taken(message, DEFAULT)[1][0].nbytes == 8_000_000
    assert len(joined(*[Seeded(SEED, torch.int64, (1000, 1000))] * 2)) < len(message) + 64


def test_tensors_beside_seeds_lie_as_if_the_seeds_were_not_there() -> None:
    x = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    one, other = Seeded(SEED, torch.int32, (2, 500)), Seeded(OTHER_SEED, torch.int32, (2, 500))
    orders: list[list[Tensor | Seeded]] = [[one, x, other], [x, one, other], [one, other, x]]
    for sent in orders:
        message = joined(*sent)
        start = -(-header_end(message) // ALIGNMENT) * ALIGNMENT
        assert message[start:] == x.numpy().tobytes()
        assert not any(message[header_end(message) : start])
    message = joined(x, one, x)
    start = -(-header_end(message) // ALIGNMENT) * ALIGNMENT
    assert message[start : start + 24] == message[start + ALIGNMENT :] == x.numpy().tobytes()


@pytest.mark.parametrize("bytes_", [MIB - 1, MIB, MIB + 1, 2 * MIB - 8, 2 * MIB, 2 * MIB + 8, 3 * MIB + 5])
def test_long_tensors_are_one_keystream(bytes_: int) -> None:
    sent = Seeded(SEED, torch.uint8, (1, bytes_))
    assert same(taken(joined(sent), DEFAULT)[1][0], expected(*sent))


def test_expansions_lie_in_memory_of_their_own_and_may_be_written_to() -> None:
    message = joined(Seeded(SEED, torch.int32, (2, 8)), Seeded(SEED, torch.int32, (2, 8)))
    one, other = taken(message, DEFAULT)[1]
    assert address(one) != address(other)
    one.zero_()
    assert same(other, expected(SEED, torch.int32, (2, 8)))
    assert same(taken(message, DEFAULT)[1][0], other)


def test_a_random_share_and_the_rest_add_up_at_the_receiver() -> None:
    x = torch.randint(-(2**31), 2**31, (3, 17), dtype=torch.int64)
    mask = Seeded(SEED, torch.int64, (3, 17))
    header, (share, rest) = taken(joined(mask, x - mask.expand()), DEFAULT)
    assert len(header.tensors) == 2
    assert torch.equal(share + rest, x)


@pytest.mark.parametrize("name", sorted(BODIES.keys() - {"apply", "load"}))
@pytest.mark.usefixtures("nothing_is_expanded")
def test_seeds_are_neither_sent_nor_taken_with_any_other_verb(name: str) -> None:
    body = BODIES[name]
    shape = (2, 3)
    with pytest.raises(InputError, match=f"{name} takes no seeds; nothing was sent"):
        joined(Seeded(SEED, torch.float32, shape), body=body)
    header = applied(seeded(*shape, dtype="float32"), id=int(isinstance(body, Request)), body=body)
    with pytest.raises(ProtocolError, match=f"{name} takes no seeds"):
        taken(packed(header), DEFAULT)
    beside = applied(["float32", list(shape)], seeded(*shape, dtype="float32"), id=header["id"], body=body)
    with pytest.raises(ProtocolError, match=f"{name} takes no seeds"):
        taken(padded(beside, bytes(24)), DEFAULT)


@pytest.mark.parametrize(
    ("announced", "said"),
    [
        ([seeded(1, 1025)], "a tensor of 4100 bytes"),
        ([seeded(1, 1024), seeded(1, 1)], "seeds for 4100 bytes"),
        ([seeded(1, 1), seeded(1, 1024)], "seeds for 4100 bytes"),
        ([seeded(1, 400)] * 3, "seeds for 4800 bytes"),
        ([seeded(1, 512, dtype="int64"), seeded(1, 1, dtype="int64")], "seeds for 4104 bytes"),
        ([seeded(1, 2**63 - 1)], "a tensor of 36893488147419103228 bytes"),
        ([seeded(2**32, 2**32)], "a tensor of 73786976294838206464 bytes"),
        ([seeded(2**62 + 1, 4)], "a tensor of 73786976294838206480 bytes"),
        ([seeded(0, 2**63 - 1)], "a tensor of 36893488147419103228 bytes"),
        ([seeded(0, 1024), seeded(0, 1)], "seeds for 4100 bytes"),
        ([["int32", [1, 1024]], seeded(1, 1024), seeded(1, 1)], "seeds for 4100 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else str([announced[:2] for announced in value]),
)
@pytest.mark.usefixtures("nothing_is_expanded")
def test_all_seeds_together_stand_for_no_more_than_a_message_may_have(announced: list[object], said: str) -> None:
    with pytest.raises(LimitError, match=f"{said}, max_message_bytes is 4096"):
        taken(packed(applied(*announced)), LIMIT)


@pytest.mark.usefixtures("nothing_is_expanded")
def test_what_stands_for_too_much_is_not_sent() -> None:
    half = Seeded(SEED, torch.int32, (1, 512))
    assert encode(SESSION, 1, INTEGERS, [half, half], LIMIT)
    with pytest.raises(LimitError, match="seeds for 6144 bytes, max_message_bytes is 4096"):
        encode(SESSION, 1, INTEGERS, [half] * 3, LIMIT)
    with pytest.raises(LimitError, match="a tensor of 8192 bytes, max_message_bytes is 4096"):
        encode(SESSION, 1, INTEGERS, [half._replace(shape=(1, 2048))], LIMIT)


def test_seeds_may_stand_for_exactly_as_much_as_a_message_may_have() -> None:
    message = packed(applied(seeded(1, 512), seeded(1, 511), seeded(1, 1)))
    assert sum(tensor.nbytes for tensor in taken(message, LIMIT)[1]) == 4096
    x = torch.ones(1, 900, dtype=torch.int32)
    beside = b"".join(encode(SESSION, 1, INTEGERS, [x, Seeded(SEED, torch.int32, (1, 1024))], LIMIT))
    assert sum(tensor.nbytes for tensor in taken(beside, LIMIT)[1]) == 4096 + 3600


@pytest.mark.usefixtures("nothing_is_expanded")
def test_a_fault_anywhere_comes_before_the_first_expansion() -> None:
    good, bad = seeded(2, 3), seeded(3, 3)
    with pytest.raises(ProtocolError, match="side by side"):
        taken(packed(applied(good, good, bad)), DEFAULT)
    with pytest.raises(ProtocolError, match="requests count from 1"):
        taken(packed(applied(good, id=0)), DEFAULT)
    with pytest.raises(ProtocolError, match="twice"):
        taken(packed(applied(good, body={"verb": "apply", "slices": [A, A], "terms": []})), DEFAULT)
    with pytest.raises(ProtocolError, match="the header promises"):
        taken(packed(applied(good), bytes(24)), DEFAULT)
    with pytest.raises(ProtocolError, match="the header promises"):
        taken(packed(applied(good, ["int32", [2, 3]])), DEFAULT)
    message = bytearray(padded(applied(good, ["int32", [2, 3]]), bytes(24)))
    message[header_end(message)] = 1
    with pytest.raises(ProtocolError, match="padding"):
        taken(message, DEFAULT)


@pytest.mark.parametrize("seed", [b"", SEED[:31], SEED + b"x", SEED * 2, "s" * 32, 7, [1] * 32], ids=repr)
@pytest.mark.usefixtures("nothing_is_expanded")
def test_seeds_of_another_length_or_type_are_refused(seed: object) -> None:
    with pytest.raises(ProtocolError, match=r"the header is not one of this protocol.*\$.tensors\[0\]"):
        taken(packed(applied(seeded(2, 3, seed=seed))), DEFAULT)


@pytest.mark.usefixtures("nothing_is_expanded")
def test_every_truncation_of_seeds_is_refused() -> None:
    message = joined(Seeded(SEED, torch.int32, (2, 3)), torch.ones(2, 3, dtype=torch.int32))
    for length in range(len(message)):
        with pytest.raises(ProtocolError):
            taken(message[:length], DEFAULT)


@pytest.mark.usefixtures("nothing_is_expanded")
def test_tensors_that_do_not_lie_side_by_side_are_not_sent() -> None:
    x = torch.ones(2, 3, dtype=torch.int32)
    apart: list[list[Tensor | Seeded]] = [
        [x, x[:1]],
        [x, x.long()],
        [x, x[..., None]],
        [x, Seeded(SEED, torch.int32, (3, 3))],
        [x, Seeded(SEED, torch.int64, (2, 3))],
        [x[0], x[0]],
        [x[0, 0], x[0, 0]],
    ]
    for tensors in apart:
        with pytest.raises(InputError, match="apply has tensors that do not lie side by side; nothing was sent"):
            joined(*tensors)


def test_what_lies_side_by_side_is_put_together_along_dimension_one() -> None:
    sent = [torch.randint(-9, 9, (2, width, 3), dtype=torch.int32) for width in (4, 0, 1)]
    came = taken(joined(*sent, Seeded(SEED, torch.int32, (2, 5, 3))), DEFAULT)[1]
    assert torch.cat(came, dim=1).shape == (2, 10, 3)


def test_a_seed_for_a_type_that_does_not_travel_is_not_sent() -> None:
    with pytest.raises(InputError, match=r"torch.complex64 do not travel"):
        joined(Seeded(SEED, torch.complex64, (2, 3)))


@pytest.mark.parametrize("width", range(9))
def test_the_width_of_an_answer_arrives(width: int) -> None:
    sent = msgspec.structs.replace(INTEGERS, width=width)
    assert taken(joined(Seeded(SEED, torch.int32, (2, 3)), body=sent), DEFAULT)[0].body == sent


@pytest.mark.parametrize("width", [-1, 9, 1.0, True, None])
def test_other_widths_are_refused(width: object) -> None:
    body = {"verb": "apply", "slices": [], "terms": [], "width": width}
    with pytest.raises(ProtocolError, match=r"the header is not one of this protocol.*width"):
        taken(packed(applied(seeded(2, 3), body=body)), DEFAULT)


def test_seeds_arrive_at_a_device_and_stand_for_their_numbers() -> None:
    linked = Linked().opened()
    sent: list[Tensor | Seeded] = [Seeded(SEED, torch.float32, (2, 2)), X]
    _, under_way = linked.owner.request(APPLY, sent, deadline=linked.now + 1.0)
    linked.to_device += under_way
    seed, x = asked(linked).tensors
    assert seed == sent[0]
    assert same(expanded(seed), expected(SEED, torch.float32, (2, 2)))
    assert torch.equal(expanded(x), X)


def test_seeds_take_the_credit_of_their_message_only() -> None:
    linked = Linked().opened()
    linked.owner.request(APPLY, [Seeded(SEED, torch.int64, (1000, 1000))], deadline=linked.now + 1.0)
    assert 0 < DEFAULT.credit_bytes - linked.owner.free_credit_bytes < 300


@pytest.mark.usefixtures("nothing_is_expanded")
def test_a_device_can_neither_answer_with_seeds_nor_be_believed_if_it_does() -> None:
    linked = Linked().opened()
    request_id = linked.ask(APPLY)
    asked(linked)
    with pytest.raises(InputError, match="answer takes no seeds"):
        linked.device.answer(request_id, [Seeded(SEED, torch.float32, (2, 2))])  # type: ignore[list-item]
    body = {"verb": "answer", "to": request_id}
    header = applied(seeded(1, 2**20), session=linked.owner.handle, id=0, body=body)
    (frame,) = frames([packed(header)], 1, DEFAULT.chunk_bytes)
    assert "answer takes no seeds" in str(violation(linked.owner.receive(frame, linked.now)))


@pytest.mark.usefixtures("nothing_is_expanded")
def test_an_owner_expands_no_seeds_whatever_verb_they_come_with() -> None:
    """An apply of a device is not for it to say; that it is, is found out after the message was decoded."""
    linked = Linked().opened()
    assert linked.owner.handle is not None
    header = applied(seeded(1, 2**20), session=linked.owner.handle)
    (frame,) = frames([packed(header)], 2**40, DEFAULT.chunk_bytes)
    assert "apply takes no seeds" in str(violation(linked.owner.receive(frame, linked.now)))


@pytest.mark.usefixtures("nothing_is_expanded")
def test_requests_that_wait_take_no_memory_for_what_their_seeds_stand_for() -> None:
    """Or a few bytes each would make a device hold as many times `max_message_bytes` as it may have requests open."""
    linked = Linked().opened()
    assert linked.device.handle is not None
    body = {"verb": "load", "sheets": [apart_of((2**13,), (2**13,))]}
    for count in range(1, 101):
        header = applied(seeded(2**13, 2**13), session=linked.device.handle, id=count, body=body)
        (frame,) = frames([packed(header)], 2**40 + count, DEFAULT.chunk_bytes)
        (event,) = linked.device.receive(frame, linked.now)
        assert isinstance(event, Requested)
        assert sum(tensor.nbytes for tensor in event.tensors) == 256 * MIB


# Seeds of weights


def apart_of(row_sizes: tuple[int, ...], slice_sizes: tuple[int, ...], *, apart: bool = True) -> Sheet:
    """A sheet whose blocks come one by one."""
    rows, slices = (
        [bytes([kind, at]) * 8 for at in range(len(sizes))] for kind, sizes in enumerate((row_sizes, slice_sizes))
    )
    return Sheet(tuple(rows), row_sizes, tuple(slices), slice_sizes, Dense(), apart=apart)


@given(st.data())
def test_blocks_apart_arrive_as_they_were_by_seeds_or_not(data: st.DataObject) -> None:
    sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
    sheets = [apart_of(data.draw(sizes), data.draw(sizes), apart=data.draw(st.booleans())) for _ in range(2)]
    sent: list[Tensor | Seeded] = [
        Seeded(data.draw(st.binary(min_size=32, max_size=32)), torch.int32, shape)
        if data.draw(st.booleans())
        else torch.randint(-9, 9, shape, dtype=torch.int32)
        for sheet in sheets
        for shape in sheet.cut
    ]
    body = Load(tuple(sheets))
    header, came = taken(joined(*sent, body=body), DEFAULT)
    assert header.body == body
    assert body.takes == len(sent)
    assert all(same(tensor, expanded(each)) for tensor, each in zip(came, sent, strict=True))
    assert [(sheet, len(own)) for sheet, own in body.dealt(came)] == [(sheet, sheet.takes) for sheet in sheets]


@pytest.mark.parametrize(
    ("sheet", "announced", "said"),
    [
        (apart_of((2, 1), (3,)), [seeded(3, 3)], "takes 2 tensors, got 1"),
        (apart_of((2, 1), (3,)), [seeded(2, 3)] * 3, "takes 2 tensors, got 3"),
        (apart_of((2, 1), (3,), apart=False), [seeded(2, 3), seeded(1, 3)], "takes 1 tensors, got 2"),
        (apart_of((2, 1), (3,)), [seeded(1, 3), seeded(2, 3)], "a block of 2 x 3 comes with a tensor of shape (1, 3)"),
        (apart_of((2,), (3, 1)), [seeded(2, 1), seeded(2, 3)], "a block of 2 x 3 comes with a tensor of shape (2, 1)"),
        (apart_of((2, 1), (3,)), [seeded(2, 3), seeded(1, 3, dtype="int64")], "blocks of several types"),
        (apart_of((2, 1), (3,)), [seeded(2, 3), seeded(1, 3, 1)], "blocks of several types or kernel sizes"),
        (apart_of((), ()), [], "no rows or no slices"),
        (apart_of((2, 2), (3,)), [seeded(2, 3), seeded(0, 3)], "a block of 2 x 3 comes with a tensor of shape (0, 3)"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("nothing_is_expanded")
def test_blocks_that_do_not_fit_are_refused(sheet: Sheet, announced: list[object], said: str) -> None:
    body = {"verb": "load", "sheets": [sheet]}
    with pytest.raises(ProtocolError, match=re.escape(said)):
        taken(packed(applied(*announced, body=body)), DEFAULT)


@pytest.mark.parametrize("seed", [b"", SEED[:31], SEED + b"x", "s" * 32], ids=repr)
@pytest.mark.usefixtures("nothing_is_expanded")
def test_seeds_of_blocks_are_as_long_as_others(seed: object) -> None:
    body = {"verb": "load", "sheets": [apart_of((2,), (3,))]}
    with pytest.raises(ProtocolError, match=r"the header is not one of this protocol.*\$.tensors\[0\]"):
        taken(packed(applied(seeded(2, 3, seed=seed), body=body)), DEFAULT)


@pytest.mark.usefixtures("nothing_is_expanded")
def test_seeds_of_blocks_stand_for_no_more_than_a_message_may_have() -> None:
    body = {"verb": "load", "sheets": [apart_of((16, 16, 1), (32,))]}
    with pytest.raises(LimitError, match="seeds for 4224 bytes, max_message_bytes is 4096"):
        taken(packed(applied(seeded(16, 32), seeded(16, 32), seeded(1, 32), body=body)), LIMIT)
    huge = {"verb": "load", "sheets": [apart_of((2**31 - 1,), (2**31 - 1,))]}
    with pytest.raises(LimitError, match="max_message_bytes is 4096"):
        taken(packed(applied(seeded(2**31 - 1, 2**31 - 1), body=huge)), LIMIT)
