"""The verbs: what each says is wrong with a message of its kind."""

import msgspec
import pytest

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.errors import VersionError
from awfulowl.wire.messages import (
    PROTOCOL,
    Answer,
    Apply,
    ApplyTransposed,
    Body,
    Bye,
    Cancel,
    Commit,
    DeviceBody,
    DeviceHello,
    Error,
    Evict,
    Fetch,
    Freeze,
    Header,
    Load,
    Measure,
    OwnerBody,
    OwnerHello,
    Refuse,
    Release,
    Request,
    Step,
    check_version,
    handle_count,
    verb,
)
from awfulowl.wire.parts import Dtype, Sheet, TensorHeader, Term

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))
SEED = b"k" * 32
PLAIN = Dense()
FLAT = Convolution(stride=(1, 1), padding=(0, 0), dilation=(1, 1))
LINE = Convolution(stride=(2,), padding=(1,), dilation=(3,))
TERM = Term(rows=(A,), slices=(B,))
BODIES: dict[str, Body] = {
    "hello.device": DeviceHello(name="device-1", protocol=PROTOCOL, boot=A, memory_bytes=2**40, threads=4),
    "hello.owner": OwnerHello(protocol=PROTOCOL, boot=A, lease_s=30.0, heartbeat_s=1.0, credit_bytes=2**24),
    "load": Load(sheets=(Sheet(rows=(A,), row_sizes=(2,), slices=(B,), slice_sizes=(3,), kernel=Dense()),)),
    "apply": Apply(slices=(B,), terms=(TERM,)),
    "apply_transposed": ApplyTransposed(rows=(A,), slices=(B,), terms=(TERM,)),
    "step": Step(terms=(TERM,), step=3, jobs=(7, 2**63 - 1), rule=Descent.sgd(0.1, momentum=0.9)),
    "measure": Measure(rows=(A,), slices=(B,), jobs=(7,)),
    "freeze": Freeze(terms=(TERM,), number=4),
    "fetch": Fetch(rows=(A,), slices=(B,)),
    "commit": Commit(rows=(A,), slices=(B,)),
    "release": Release(slices=(B,)),
    "cancel": Cancel(target=7),
    "answer": Answer(to=7),
    "refuse": Refuse(to=7, reason="no"),
    "error": Error(to=7, reason="broken"),
    "evict": Evict(slices=(B,), reason="full"),
    "bye": Bye(reason="done"),
}


def tensor(*shape: int) -> TensorHeader:
    return TensorHeader(dtype="float32", shape=shape)


def sheet(
    *,
    rows: tuple[bytes, ...] = (A, B),
    row_sizes: tuple[int, ...] = (2, 1),
    slices: tuple[bytes, ...] = (C,),
    slice_sizes: tuple[int, ...] = (4,),
    kernel: Dense | Convolution = PLAIN,
    groups: int = 1,
) -> Sheet:
    return Sheet(rows=rows, row_sizes=row_sizes, slices=slices, slice_sizes=slice_sizes, kernel=kernel, groups=groups)


def test_every_verb_of_the_protocol_is_in_the_table() -> None:
    assert {type(body) for body in BODIES.values()} == set(Body.__args__)
    assert {name: verb(body) for name, body in BODIES.items()} == {name: name for name in BODIES}


def test_a_verb_belongs_to_one_side_but_for_goodbye() -> None:
    both = {name for name, body in BODIES.items() if isinstance(body, OwnerBody) and isinstance(body, DeviceBody)}
    assert both == {"bye"}
    assert {name for name, body in BODIES.items() if isinstance(body, Request)} == {
        "load",
        "apply",
        "apply_transposed",
        "step",
        "measure",
        "freeze",
        "fetch",
        "commit",
        "release",
    }


def test_changes_are_the_verbs_that_must_not_be_done_twice() -> None:
    requests = {name: body for name, body in BODIES.items() if isinstance(body, Request)}
    assert {name for name, body in requests.items() if body.changes} == {"load", "step", "freeze", "release"}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_survive_msgpack(name: str) -> None:
    header = Header(session=A, id=0, body=BODIES[name], tensors=())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(header), type=Header) == header


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("load", 2),
        ("apply", 3),
        ("apply_transposed", 4),
        ("step", 2),
        ("measure", 2),
        ("freeze", 2),
        ("fetch", 2),
        ("commit", 2),
        ("evict", 1),
        ("hello.owner", 1),
        ("bye", 0),
    ],
)
def test_handles_are_counted_wherever_they_stand(name: str, count: int) -> None:
    assert handle_count(BODIES[name]) == count


@pytest.mark.parametrize("name", sorted(BODIES.keys() - {"load", "apply", "apply_transposed", "answer"}))
def test_most_verbs_take_no_tensor(name: str) -> None:
    assert BODIES[name].fault(()) is None
    assert BODIES[name].fault((tensor(2, 2),)) == "takes no tensors, got 1"


def test_the_tensors_of_an_answer_are_for_others_to_judge() -> None:
    assert BODIES["answer"].fault((tensor(2, 2), tensor())) is None


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("load", 0),
        ("release", 0),
        ("freeze", 0),
        ("step", 0),
        ("apply", 1),
        ("apply_transposed", 1),
        ("measure", 1),
        ("fetch", 1),
        ("commit", 1),
    ],
)
def test_a_request_knows_how_many_tensors_answer_it(name: str, count: int) -> None:
    body = BODIES[name]
    assert isinstance(body, Request)
    assert body.answer_tensors() == count


@pytest.mark.parametrize("terms", [0, 1, 3])
@pytest.mark.parametrize(("width", "parts"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 1), (5, 2), (6, 2), (7, 3), (8, 1)])
def test_integers_are_answered_by_all_parts_of_all_terms(width: int, parts: int, terms: int) -> None:
    assert Apply(slices=(B,), terms=(TERM,) * terms, width=width).answer_tensors() == terms * parts


@pytest.mark.parametrize(
    ("sent", "announced"),
    [
        (sheet(), tensor(3, 4)),
        (sheet(slices=(A, B), slice_sizes=(4, 4)), tensor(3, 8)),
        (sheet(kernel=FLAT), tensor(3, 4, 5, 5)),
        (sheet(kernel=LINE), tensor(3, 4, 7)),
        (sheet(kernel=FLAT, groups=2), tensor(3, 2, 3, 3)),
    ],
)
def test_a_sheet_that_fits_its_tensor(sent: Sheet, announced: TensorHeader) -> None:
    assert sent.fault((announced,)) is None
    assert Load(sheets=(sent,)).fault((announced,)) is None


@pytest.mark.parametrize(
    ("sent", "announced", "fault"),
    [
        (sheet(rows=(), row_sizes=()), tensor(0, 4), "no rows"),
        (sheet(slices=(), slice_sizes=()), tensor(3, 0), "no slices"),
        (sheet(row_sizes=(3,)), tensor(3, 4), "one size for each handle"),
        (sheet(slice_sizes=(2, 2)), tensor(3, 4), "one size for each handle"),
        (sheet(rows=(A, A)), tensor(3, 4), "names a handle twice"),
        (sheet(slices=(C, C), slice_sizes=(2, 2)), tensor(3, 4), "names a handle twice"),
        (sheet(), tensor(4, 3), "3 x 4 comes with a tensor of shape"),
        (sheet(), tensor(3, 4, 1), "shape"),
        (sheet(), tensor(12), "shape"),
        (sheet(groups=2), tensor(3, 2), "shape"),
        (sheet(kernel=FLAT), tensor(3, 4), "shape"),
        (sheet(kernel=FLAT), tensor(3, 4, 3, 0), "shape"),
        (sheet(kernel=FLAT, groups=3), tensor(3, 1, 3, 3), "shape"),
    ],
)
def test_a_sheet_that_does_not_fit_its_tensor(sent: Sheet, announced: TensorHeader, fault: str) -> None:
    assert fault in str(Load(sheets=(sent,)).fault((announced,)))


def test_one_tensor_for_each_sheet() -> None:
    assert Load(sheets=(sheet(),)).fault(()) == "takes 1 tensors, got 0"
    assert Load(sheets=()).fault(()) is None


def test_the_first_bad_sheet_is_named() -> None:
    load = Load(sheets=(sheet(), sheet(rows=(A, A))))
    assert "twice" in str(load.fault((tensor(3, 4), tensor(3, 4))))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [
        ((0, 1), (0, 0), (1, 1)),
        ((1, 1), (-1, 0), (1, 1)),
        ((1, 1), (0, 0), (1, 0)),
        ((1, 1), (0,), (1, 1)),
        ((1, 1, 1), (0, 0, 0), (1, 1, 1)),
        ((), (), ()),
    ],
)
def test_impossible_convolutions_are_not_decoded(
    stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    fields = {"type": "convolution", "stride": stride, "padding": padding, "dilation": dilation}
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Convolution)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [((2**40, 1), (0, 0), (1, 1)), ((1, 1), (2**63, 0), (1, 1)), ((1, 1), (0, 0), (1, 2**31))],
)
def test_giant_strides_are_refused(
    stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    kernel = Convolution(stride=stride, padding=padding, dilation=dilation)
    assert "over 2147483647" in str(sheet(kernel=kernel).fault((tensor(3, 4, 3, 3),)))


@pytest.mark.parametrize(
    ("body", "tensors", "fault"),
    [
        (Apply(slices=(B,), terms=(TERM,)), (), "takes tensors, got none"),
        (Apply(slices=(B, B), terms=(TERM,)), (tensor(1, 1), tensor(1, 1)), "names a handle twice"),
        (Apply(slices=(C,), terms=(TERM,)), (tensor(1, 1), tensor(1, 1)), "did not come along"),
        (ApplyTransposed(rows=(A,), slices=(B,), terms=(TERM,)), (), "takes 1 tensors, got 0"),
        (ApplyTransposed(rows=(A,), slices=(B,), terms=(TERM,)), (tensor(1, 1),) * 2, "takes 1 tensors, got 2"),
        (ApplyTransposed(rows=(A, A), slices=(B,), terms=(TERM,)), (tensor(1, 1),), "names a handle twice"),
        (ApplyTransposed(rows=(A,), slices=(B, B), terms=(TERM,)), (tensor(1, 1),), "names a handle twice"),
        (Apply(slices=(B, B), terms=(TERM,)), (tensor(1, 1),), "names a handle twice"),
        (Apply(slices=(C,), terms=(TERM,)), (tensor(1, 1),), "did not come along"),
        (ApplyTransposed(rows=(C,), slices=(B,), terms=(TERM,)), (tensor(1, 1),), "did not come along"),
    ],
)
def test_a_sum_needs_its_inputs(body: Apply | ApplyTransposed, tensors: tuple[TensorHeader, ...], fault: str) -> None:
    assert fault in str(body.fault(tensors))


def integers(dtype: Dtype, *shape: int, seed: bytes | None = None) -> TensorHeader:
    return TensorHeader(dtype=dtype, shape=shape, seed=seed)


@pytest.mark.parametrize(
    "tensors",
    [
        (tensor(2, 3),),
        (tensor(2, 3), tensor(2, 4)),
        (tensor(2, 3), tensor(2, 0), tensor(2, 1)),
        (tensor(0, 3), tensor(0, 4)),
        (tensor(2, 3, 5, 5), tensor(2, 4, 5, 5)),
        (integers("int64", 2, 3), integers("int64", 2, 3, seed=SEED)),
        (integers("int32", 2, 3, seed=SEED), integers("int32", 2, 9, seed=SEED)),
        (tensor(5),),  # whether one alone fits the blocks is for the device to say
        (tensor(),),
    ],
    ids=str,
)
def test_inputs_that_lie_side_by_side(tensors: tuple[TensorHeader, ...]) -> None:
    assert Apply(slices=(B,), terms=(TERM,)).fault(tensors) is None


@pytest.mark.parametrize(
    "tensors",
    [
        (tensor(2, 3), tensor(3, 3)),
        (tensor(2, 3), tensor(0, 3)),
        (tensor(2, 3), tensor(2, 3, 1)),
        (tensor(2, 3), tensor(2)),
        (tensor(2, 3, 5), tensor(2, 3, 6)),
        (tensor(2, 3, 5, 4), tensor(2, 3, 4, 5)),
        (tensor(2, 3), tensor(2, 3), tensor(2, 3), tensor(4, 3)),
        (integers("int32", 2, 3), integers("int64", 2, 3)),
        (integers("int8", 2, 3), integers("uint8", 2, 3)),
        (integers("int32", 2, 3), integers("int64", 2, 3, seed=SEED)),
        (integers("int32", 2, 3, seed=SEED), integers("int32", 3, 3, seed=SEED)),
        (tensor(2), tensor(2)),
        (tensor(), tensor()),
    ],
    ids=str,
)
def test_inputs_that_do_not_lie_side_by_side(tensors: tuple[TensorHeader, ...]) -> None:
    assert Apply(slices=(B,), terms=(TERM,)).fault(tensors) == "has tensors that do not lie side by side"


def tried(width: object) -> Apply:
    """What becomes of an apply with a width, whatever it is, on the wire."""
    fields = {"verb": "apply", "slices": [B], "terms": [], "width": width}
    return msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Apply)


@pytest.mark.parametrize("width", range(9))
def test_an_answer_has_up_to_eight_bytes_for_each_number(width: int) -> None:
    assert tried(width).width == width


@pytest.mark.parametrize("width", [-1, 9, 2**63, 4.0, 0.5, True, "4", None, b"4"])
def test_other_widths_are_not_decoded(width: object) -> None:
    with pytest.raises(msgspec.ValidationError, match="width"):
        tried(width)


def test_an_apply_is_one_of_floats_unless_it_says_otherwise() -> None:
    assert Apply(slices=(B,), terms=(TERM,)).width == 0
    fields = {"verb": "apply", "slices": [B], "terms": []}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Apply).width == 0


def test_inputs_and_weights_alone_may_be_seeds() -> None:
    assert [name for name, body in BODIES.items() if body.seeds] == ["load", "apply"]


@pytest.mark.parametrize("length", [0, 1, 16, 31, 33, 64])
def test_seeds_of_another_length_are_not_decoded(length: int) -> None:
    def came(seed: bytes) -> TensorHeader:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(["int32", [2, 3], seed]), type=TensorHeader)

    assert came(SEED).seed == SEED
    with pytest.raises(msgspec.ValidationError, match="length"):
        came(bytes(length))


def test_a_tensor_without_a_seed_may_leave_it_out() -> None:
    for fields in (["int32", [2, 3]], ["int32", [2, 3], None]):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=TensorHeader).seed is None


def test_no_text_shows_a_seed() -> None:
    secret = b"not to be read by all the others"
    header = Header(session=A, id=1, body=BODIES["apply"], tensors=(integers("int32", 2, 3, seed=secret),))
    shown = f"{header!r} {header.tensors} {list(header.tensors[0].__rich_repr__())}"
    assert "not to be read" not in shown
    assert "(2, 3)" in shown
    assert "seeded=True" in shown


def test_handles_alone_are_counted_not_seeds() -> None:
    header = Header(session=A, id=1, body=BODIES["apply"], tensors=(integers("int32", 2, 3, seed=SEED),))
    assert handle_count(header.body) == 3


def test_a_sum_over_part_of_its_inputs() -> None:
    assert Apply(slices=(B, C), terms=(TERM, Term(rows=(A,), slices=(C, B)))).fault((tensor(2, 2),)) is None
    assert ApplyTransposed(rows=(A, C), slices=(B,), terms=(TERM,)).fault((tensor(2, 2),)) is None


def test_versions_must_agree_and_the_error_says_what_to_do() -> None:
    check_version("a frame", PROTOCOL)
    with pytest.raises(VersionError, match=r"a frame speaks version 9 of the protocol.*install the same version"):
        check_version("a frame", 9)
