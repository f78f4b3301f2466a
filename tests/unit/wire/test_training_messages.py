"""The verbs of training: what they carry, what each says is wrong with it, and what is not decoded."""

from collections.abc import Sequence
from math import inf, nan
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.errors import InputError, ProtocolError
from awfulowl.limits import DEFAULT
from awfulowl.wire.codec import decode, encode
from awfulowl.wire.messages import (
    STATE_PARTS,
    Apply,
    ApplyTransposed,
    Body,
    Commit,
    Fetch,
    Freeze,
    Load,
    Measure,
    Request,
    Step,
)
from awfulowl.wire.parts import Dtype, Sheet, TensorHeader, Term
from tests.unit.wire.test_codec import SESSION, joined, packed, same

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))
TERM = Term(rows=(A,), slices=(B,))
RULE = Descent.sgd(0.1, momentum=0.9, weight_decay=1e-7, nesterov=True)
ADAM = Adaptation.adam(0.1, 7, weight_decay=1e-7)
SHEET = Sheet(rows=(A,), row_sizes=(2,), slices=(B,), slice_sizes=(3,), kernel=Dense())
LARGEST = 2**63 - 1


def tensor(*shape: int, dtype: Dtype = "float32") -> TensorHeader:
    return TensorHeader(dtype=dtype, shape=shape)


def transposed(**changed: Any) -> ApplyTransposed:
    return ApplyTransposed(**{"rows": (A,), "slices": (B,), "terms": (TERM,)} | changed)


# Round trips

handle = st.binary(min_size=16, max_size=16)
some_handles = st.lists(handle, unique=True, max_size=4).map(tuple)
some_terms = st.lists(st.builds(Term, rows=some_handles, slices=some_handles), max_size=3).map(tuple)
natural = st.integers(0, LARGEST)
several = st.lists(natural, max_size=4).map(tuple)
number = st.floats(width=32, allow_nan=False, allow_infinity=False)
above_0 = st.floats(2.0**-126, width=32, allow_infinity=False)
rules = st.one_of(
    st.builds(Descent, *[number] * 6),
    st.builds(Adaptation, *[number] * 3, st.floats(0, 1, width=32), *[number] * 4, *[above_0] * 2),
)
parts = st.integers(1, STATE_PARTS)

bodies = st.one_of(
    st.builds(Step, terms=some_terms, step=natural, jobs=several, rule=rules),
    st.builds(Measure, rows=some_handles, slices=some_handles, jobs=several),
    st.builds(Freeze, terms=some_terms, number=natural),
    st.builds(Fetch, rows=some_handles, slices=some_handles, parts=parts, frozen=natural),
    st.builds(Commit, rows=some_handles, slices=some_handles, parts=parts),
)


@given(bodies, st.integers(1, LARGEST))
def test_any_request_without_tensors_arrives_as_it_was(body: Request, request_id: int) -> None:
    header, came = decode(joined(body, request_id=request_id), DEFAULT)
    assert (header.body, header.id, came) == (body, request_id, [])


@st.composite
def transposed_requests(draw: st.DrawFn) -> tuple[ApplyTransposed, list[Tensor]]:
    """Any apply_transposed that is not wrong by itself, with its tensors."""
    rows = draw(st.lists(handle, unique=True, min_size=1, max_size=4))
    slices = draw(st.lists(handle, unique=True, max_size=4))
    terms = [
        Term(rows=tuple(draw(st.lists(st.sampled_from(rows), unique=True))), slices=draw(some_handles))
        for _ in range(draw(st.integers(0, 3)))
    ]
    space = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    job, kept = draw(st.sampled_from([0, 1, LARGEST])), draw(st.sampled_from([0, 1, LARGEST]))
    body = ApplyTransposed(tuple(rows), tuple(slices), tuple(terms), space, job, kept)
    batch = draw(st.integers(0, 3))
    behind = draw(st.lists(st.integers(0, 4), min_size=len(space), max_size=len(space)))
    tensors = [torch.randn(batch, draw(st.integers(0, 5)), *behind)]
    if job and not kept:
        tensors.append(torch.randn(batch, draw(st.integers(0, 5)), *space))
    return body, tensors


@given(transposed_requests())
def test_any_apply_transposed_arrives_as_it_was(sent: tuple[ApplyTransposed, list[Tensor]]) -> None:
    body, tensors = sent
    header, came = decode(joined(body, *tensors, request_id=1), DEFAULT)
    assert header.body == body
    assert body.answer_tensors() == len(body.terms)
    assert len(came) == len(tensors)
    assert all(map(same, came, tensors))


@given(parts, natural, st.integers(0, 3))
def test_any_state_arrives_as_it_was(count: int, step: int, sheets: int) -> None:
    body = Load((SHEET,) * sheets, count, step)
    tensors = [torch.randn(2, 3) for _ in range(count * sheets)]
    header, came = decode(joined(body, *tensors, request_id=1), DEFAULT)
    assert header.body == body
    assert all(map(same, came, tensors))


@given(natural)
def test_the_number_of_kept_inputs_arrives(keep: int) -> None:
    body = Apply((B,), (TERM,), keep=keep)
    assert decode(joined(body, torch.ones(1, 3), request_id=1), DEFAULT)[0].body == body


def came(body: dict[str, object]) -> Body:
    """What a device reads of the fields of a request."""
    return decode(packed({"session": SESSION, "id": 1, "body": body, "tensors": []}), DEFAULT)[0].body


TERM_FIELDS = {"rows": [A], "slices": [B]}
RULE_FIELDS = {"type": "descent", **dict.fromkeys(Descent.__struct_fields__, 0.5)}
ADAM_FIELDS = {"type": "adam", **dict.fromkeys(Adaptation.__struct_fields__, 0.5)}
FIELDS: dict[str, dict[str, object]] = {
    "load": {"sheets": []},
    "step": {"terms": [TERM_FIELDS], "step": 3, "jobs": [7], "rule": RULE_FIELDS},
    "measure": {"rows": [A], "slices": [B], "jobs": [7]},
    "freeze": {"terms": [TERM_FIELDS], "number": 4},
    "fetch": {"rows": [A], "slices": [B]},
    "commit": {"rows": [A], "slices": [B]},
}


def test_a_step_is_of_one_rule_or_the_other() -> None:
    body = {"verb": "step", **FIELDS["step"]}
    for fields, rule in ((RULE_FIELDS, Descent(*[0.5] * 6)), (ADAM_FIELDS, Adaptation(*[0.5] * 10))):
        assert came({**body, "rule": fields}) == Step((TERM,), 3, (7,), rule)


@pytest.mark.parametrize("name", ADAM_FIELDS)
def test_a_step_of_adam_has_all_its_numbers(name: str) -> None:
    fields = {key: value for key, value in ADAM_FIELDS.items() if key != name}
    with pytest.raises(ProtocolError, match="the header is not one of this protocol"):
        came({"verb": "step", **FIELDS["step"], "rule": fields})


def test_what_may_be_left_out() -> None:
    assert came({"verb": "load", **FIELDS["load"]}) == Load((), parts=1, step=0)
    assert came({"verb": "fetch", **FIELDS["fetch"]}) == Fetch((A,), (B,), parts=1, frozen=0)
    assert came({"verb": "commit", **FIELDS["commit"]}) == Commit((A,), (B,), parts=1)
    body = {"verb": "apply_transposed", "rows": [A], "slices": [B], "terms": []}
    header = {"session": SESSION, "id": 1, "body": body, "tensors": [["float32", [0, 0], None]]}
    assert decode(packed(header, bytes(-len(packed(header)) % 64)), DEFAULT)[0].body == ApplyTransposed((A,), (B,), ())
    assert Apply((B,), ()).keep == transposed().job == transposed().kept == 0
    assert transposed().space == ()


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, fields in FIELDS.items() for name in fields])
def test_what_may_not_be_left_out(verb: str, name: str) -> None:
    body = {"verb": verb, **FIELDS[verb]}
    came(body)
    del body[name]
    with pytest.raises(ProtocolError, match=f"missing required field `{name}`"):
        came(body)


NUMBERS = [-1, 2**63, 1.0, 0.5, True, "1", None, b"1", [1]]
PARTS = [0, STATE_PARTS + 1, *NUMBERS]
LISTS: list[object] = [-1, 7, None, "", {"7": 7}]
OTHER_HANDLES: list[object] = [b"b", "b" * 16, 7, B + b"b"]
OTHER_RULES: list[object] = ["sgd", "adam", None, 1, [], {}, [0.5] * 6, [0.5] * 10]


@pytest.mark.parametrize(
    ("verb", "name", "value"),
    [
        *[(verb, "parts", value) for verb in ("load", "fetch", "commit") for value in PARTS],
        *[("load", "step", value) for value in NUMBERS],
        *[("step", "step", value) for value in NUMBERS],
        *[("freeze", "number", value) for value in NUMBERS],
        *[("fetch", "frozen", value) for value in NUMBERS],
        *[(verb, "jobs", value) for verb in ("step", "measure") for value in LISTS],
        *[(verb, "jobs", [7, value]) for verb in ("step", "measure") for value in NUMBERS],
        *[("measure", "slices", [B, value]) for value in OTHER_HANDLES],
        *[
            (verb, "terms", [{"rows": [A], "slices": [value]}])
            for verb in ("step", "freeze")
            for value in OTHER_HANDLES
        ],
        *[("measure", "rows", [value]) for value in OTHER_HANDLES],
        *[("step", "rule", value) for value in OTHER_RULES],
        *[("step", "rule", {**RULE_FIELDS, "weight_gradient": value}) for value in ("1", None, True, [1.0])],
        ("step", "rule", {**RULE_FIELDS, "more": 0.5}),
        ("step", "rule", {**RULE_FIELDS, "type": "dense"}),
        ("step", "rule", {**RULE_FIELDS, "type": "adam"}),
        *[("step", "rule", {**ADAM_FIELDS, "lift": value}) for value in ("1", None, True, [1.0], 0.0, -1.0, nan)],
        *[("step", "rule", {**ADAM_FIELDS, "epsilon": value}) for value in ("1", None, True, 0.0, -1e-8, inf)],
        *[("step", "rule", {**ADAM_FIELDS, "square_square": value}) for value in ("1", None, 1.5, -0.5, nan)],
        *[("step", "rule", {**ADAM_FIELDS, name: inf}) for name in Adaptation.__struct_fields__],
        ("step", "rule", {**ADAM_FIELDS, "more": 0.5}),
        ("step", "rule", {**ADAM_FIELDS, "type": "descent"}),
        ("step", "rule", {**ADAM_FIELDS, "type": "adamw"}),
        *[(verb, "more", 0) for verb in FIELDS],
        ("step", "slices", []),
        ("step", "tensors", []),
        ("measure", "frozen", 0),
        ("commit", "frozen", 0),
    ],
    ids=repr,
)
def test_what_is_not_decoded(verb: str, name: str, value: object) -> None:
    with pytest.raises(ProtocolError, match="the header is not one of this protocol"):
        came({"verb": verb, **FIELDS[verb], name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("job", "kept") for value in NUMBERS],
        *[("space", [5, value]) for value in (0, -1, 2**31, 1.5, True, "5", None)],
        *[("space", value) for value in (5, None, "55")],
        ("rows", [b"a"]),
        ("slices", [b"b"]),
        ("terms", [{"rows": [A]}]),
        ("terms", [{"rows": [A], "slices": [B], "width": 0}]),
        ("width", 0),
        ("keep", 0),
        ("more", 0),
    ],
    ids=repr,
)
def test_what_is_no_apply_transposed(name: str, value: object) -> None:
    good: dict[str, object] = {"verb": "apply_transposed", "rows": [A], "slices": [B], "terms": []}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(good), type=ApplyTransposed) == ApplyTransposed((A,), (B,), ())
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(good | {name: value}), type=ApplyTransposed)


@pytest.mark.parametrize("value", [*NUMBERS, [0]], ids=repr)
def test_what_is_no_number_to_keep_inputs_under(value: object) -> None:
    fields = {"verb": "apply", "slices": [B], "terms": [], "keep": value}
    with pytest.raises(msgspec.ValidationError, match="keep"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Apply)


# Faults


@pytest.mark.parametrize(
    ("changed", "tensors"),
    [
        ({}, [tensor(2, 3)]),
        ({}, [tensor(0, 3)]),
        ({"terms": ()}, [tensor(2, 3)]),
        ({"terms": (), "slices": ()}, [tensor(2, 3)]),
        ({"kept": 5}, [tensor(2, 3)]),
        ({"job": 1}, [tensor(2, 3), tensor(2, 4)]),
        ({"job": 1, "kept": 5}, [tensor(2, 3)]),
        ({"space": (7,)}, [tensor(2, 3, 5)]),
        ({"space": (7, 8), "job": 1}, [tensor(2, 3, 5, 4), tensor(2, 4, 7, 8)]),
    ],
    ids=str,
)
def test_nothing_is_wrong_with_these(changed: dict[str, Any], tensors: Sequence[TensorHeader]) -> None:
    assert transposed(**changed).fault(tensors) is None


@pytest.mark.parametrize(
    ("changed", "tensors", "fault"),
    [
        ({}, [], "takes 1 tensors, got 0"),
        ({}, [tensor(2, 3), tensor(2, 4)], "takes 1 tensors, got 2"),
        ({"kept": 5}, [tensor(2, 3), tensor(2, 4)], "takes 1 tensors, got 2"),
        ({"job": 1}, [tensor(2, 3)], "takes 2 tensors, got 1"),
        ({"job": 1}, [tensor(2, 3)] * 3, "takes 2 tensors, got 3"),
        ({"job": 1, "kept": 5}, [tensor(2, 3), tensor(2, 4)], "takes 1 tensors, got 2"),
        *[
            ({}, [TensorHeader(dtype, (2, 3))], "takes float32 of 2 dimensions")
            for dtype in ("float16", "bfloat16", "float64", "int8", "int16", "int32", "int64", "uint8")
        ],
        ({"job": 1}, [tensor(2, 3), tensor(2, 4, dtype="float64")], "takes float32 of 2 dimensions"),
        ({}, [tensor(2)], "takes float32 of 2 dimensions"),
        ({}, [tensor()], "takes float32 of 2 dimensions"),
        ({}, [tensor(2, 3, 5)], "takes float32 of 2 dimensions"),
        ({"space": (7,)}, [tensor(2, 3)], "takes float32 of 3 dimensions"),
        ({"space": (7, 7)}, [tensor(2, 3, 5)], "takes float32 of 4 dimensions"),
        ({"space": (7,), "job": 1}, [tensor(2, 3, 5), tensor(2, 4)], "takes float32 of 3 dimensions"),
        ({"job": 1}, [tensor(2, 3), tensor(3, 4)], "has gradients and inputs of different batches"),
        ({"job": 1}, [tensor(2, 3), tensor(0, 4)], "has gradients and inputs of different batches"),
        ({"slices": (B, B)}, [tensor(2, 3)], "names a handle twice"),
        ({"rows": (A, A)}, [tensor(2, 3)], "names a handle twice"),
        ({"rows": (C,)}, [tensor(2, 3)], "did not come along"),
        ({"rows": ()}, [tensor(2, 3)], "did not come along"),
        ({"terms": (TERM, Term((A, C), (B,)))}, [tensor(2, 3)], "did not come along"),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_apply_transposed(
    changed: dict[str, Any], tensors: Sequence[TensorHeader], fault: str
) -> None:
    assert fault in str(transposed(**changed).fault(tensors))


@pytest.mark.parametrize(
    ("body", "tensors"),
    [
        (transposed(), [torch.ones(2, 3).half()]),
        (transposed(job=1), [torch.ones(2, 3)]),
        (transposed(job=1), [torch.ones(2, 3), torch.ones(3, 3)]),
        (transposed(rows=(C,)), [torch.ones(2, 3)]),
        (Load((SHEET,), 2), [torch.ones(2, 3)]),
        (Load((SHEET,), 4), [torch.ones(2, 3)] * 3),
        (Step((TERM,), 1, (), RULE), [torch.ones(1)]),
        (Step((TERM,), 1, (), ADAM), [torch.ones(1)]),
        (Measure((A,), (B,), ()), [torch.ones(1)]),
        (Freeze((TERM,), 1), [torch.ones(1)]),
    ],
    ids=str,
)
def test_what_is_wrong_is_neither_sent_nor_taken(body: Request, tensors: list[Tensor]) -> None:
    with pytest.raises(InputError, match="nothing was sent"):
        encode(SESSION, 1, body, tensors, DEFAULT)
    announced = [["float16" if one.dtype == torch.float16 else "float32", [*one.shape], None] for one in tensors]
    header = {"session": SESSION, "id": 1, "body": body, "tensors": announced}
    message = packed(header)
    for one in tensors:
        message += bytes(-len(message) % 64) + one.numpy().tobytes()
    message = message[:8] + len(message).to_bytes(8, "little") + message[16:]
    fault = body.fault([TensorHeader(*one[:2]) for one in announced])  # type: ignore[arg-type]
    assert fault is not None
    with pytest.raises(ProtocolError, match=fault.replace("(", r"\(").replace(")", r"\)")):
        decode(message, DEFAULT)


@pytest.mark.parametrize("count", range(1, STATE_PARTS + 1))
def test_a_state_has_a_tensor_for_each_part_of_each_sheet(count: int) -> None:
    load = Load((SHEET, SHEET), count)
    assert load.fault([tensor(2, 3)] * (2 * count)) is None
    for wrong in (2 * count - 1, 2 * count + 1, 0):
        assert load.fault([tensor(2, 3)] * wrong) == f"takes {2 * count} tensors, got {wrong}"
    for index in range(2 * count):
        tensors = [tensor(2, 3)] * (2 * count)
        tensors[index] = tensor(3, 2)
        assert "a sheet of 2 x 3 comes with a tensor of shape (3, 2)" in str(load.fault(tensors))


def test_all_parts_of_a_sheet_come_before_those_of_the_next() -> None:
    other = Sheet((A,), (4,), (B,), (5,), Convolution((1,), (0,), (1,)))
    load = Load((SHEET, other), 2)
    assert load.fault([tensor(2, 3), tensor(2, 3), tensor(4, 5, 3), tensor(4, 5, 3)]) is None
    assert "shape" in str(load.fault([tensor(2, 3), tensor(4, 5, 3), tensor(2, 3), tensor(4, 5, 3)]))


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (Load((SHEET,), 3, 4), 0),
        (Step((TERM,), 1, (7,), RULE), 0),
        (Step((TERM,), 1, (7,), ADAM), 0),
        (Freeze((TERM,), 1), 0),
        (Measure((A,), (B,), (7,)), 1),
        (transposed(), 1),
        (transposed(terms=()), 0),
        (transposed(terms=(TERM,) * 3), 3),
        (Fetch((A,), (B,)), 1),
        (Fetch((A,), (B,), parts=3, frozen=5), 3),
        (Fetch((A,), (B,), parts=4, frozen=5), 4),
        (Commit((A,), (B,), parts=3), 1),
        (Apply((B,), (TERM, TERM), keep=5), 2),
    ],
    ids=str,
)
def test_how_many_tensors_answer(body: Request, count: int) -> None:
    assert body.answer_tensors() == count
