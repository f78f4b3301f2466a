"""Integers in the device's store: exact products modulo the width of the answer, packed, and what is refused."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.arithmetic.packing import PARTS, unpack
from awfulowl.blocks.kernels import Convolution
from awfulowl.errors import LimitError, RefusedError
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Apply, Load
from awfulowl.wire.parts import Sheet, Term
from tests.unit.device.test_store import CONV, handles, sheet, store

TYPES = (torch.int8, torch.int16, torch.int32, torch.int64)


def some_integers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    bounds = torch.iinfo(dtype)
    return torch.randint(bounds.min, bounds.max, shape, dtype=dtype)


def asked(layout: Sheet, width: int) -> Apply:
    return Apply(layout.slices, (Term(layout.rows, layout.slices),), width)


def modulo(y: torch.Tensor, width: int) -> torch.Tensor:
    """Read the low bytes of each number as a signed one, as an int64."""
    room = 64 - 8 * width
    return (y.to(torch.int64) << room) >> room


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_part_of_any_sheets_is_exact(data: st.DataObject) -> None:
    row_sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    slice_sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    of_weights, of_inputs = data.draw(st.sampled_from(TYPES)), data.draw(st.sampled_from(TYPES))
    width = data.draw(st.integers(1, min(of_weights.itemsize, of_inputs.itemsize) if of_weights.itemsize > 1 else 8))
    weight = some_integers(of_weights, sum(row_sizes), sum(slice_sizes))
    row_at, slice_at = [0, *itertools.accumulate(row_sizes)], [0, *itertools.accumulate(slice_sizes)]
    held = store()
    cut = data.draw(st.integers(0, len(slice_sizes)))
    for first, last in itertools.pairwise(sorted({0, cut, len(slice_sizes)})):
        part = weight[:, slice_at[first] : slice_at[last]].clone()
        held.load(Load((sheet(row_sizes, slice_sizes[first:last], slice_offset=first),)), [part])
    order = data.draw(st.permutations(range(len(slice_sizes))))
    rows = data.draw(st.permutations(range(len(row_sizes))))
    r, s = handles("r", len(row_sizes)), handles("s", len(slice_sizes))
    x_full = some_integers(of_inputs, 3, sum(slice_sizes))
    x = torch.cat([x_full[:, slice_at[i] : slice_at[i + 1]] for i in order], dim=1)
    term = Term(tuple(r[i] for i in rows), tuple(s[i] for i in order))
    y = held.apply(Apply(tuple(s[i] for i in order), (term,), width), x)
    total = x_full.to(torch.int64) @ weight.to(torch.int64).T
    expected = torch.cat([total[:, row_at[i] : row_at[i + 1]] for i in rows], dim=1)
    assert torch.equal(modulo(unpack(y, width), width), modulo(expected, width))


@pytest.mark.parametrize("width", range(1, 9))
def test_answers_have_as_many_bytes_as_are_asked_for(width: int) -> None:
    held = store()
    layout = sheet([3, 4], [6, 4])
    held.load(Load((layout,)), [some_integers(torch.int8, 7, 10)])
    parts = held.apply(asked(layout, width), some_integers(torch.int8, 5, 10))
    assert sum(part.nbytes for part in parts) == 5 * 7 * width


@pytest.mark.parametrize("width", range(1, 9))
def test_all_parts_of_a_term_come_before_those_of_the_next(width: int) -> None:
    held = store()
    layout = sheet([3, 4], [6, 4])
    most = 0x7F7F7F7F  # the largest number that four signed digits of 8 bits hold
    weight = some_integers(torch.int32, 7, 10).clamp(-most, most)
    held.load(Load((layout,)), [weight])
    terms = tuple(Term((row,), layout.slices) for row in layout.rows)
    x = some_integers(torch.int32, 5, 10)
    answer = held.apply(Apply(layout.slices, terms, width), x)
    count = len(PARTS[width])
    assert [part.dtype for part in answer] == [*PARTS[width]] * 2
    expected = modulo(x.long() @ weight.long().T, width)
    for parts, wanted in ((answer[:count], expected[:, :3]), (answer[count:], expected[:, 3:])):
        assert torch.equal(modulo(unpack(parts, width), width), wanted)


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_are_exact(groups: int) -> None:
    held = store()
    weight = some_integers(torch.int8, 8, 8 // groups, 3, 3)
    layout = sheet([8], [8], CONV, groups=groups)
    held.load(Load((layout,)), [weight])
    x = some_integers(torch.int8, 2, 8, 5, 6)
    (y,) = held.apply(asked(layout, 4), x)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1, groups=groups)
    assert torch.equal(y.double(), exact)


@pytest.mark.parametrize("dtype", TYPES)
def test_fetch_returns_what_was_loaded(dtype: torch.dtype) -> None:
    held = store()
    weight = some_integers(dtype, 7, 10)
    layout = sheet([3, 4], [6, 4])
    held.load(Load((layout,)), [weight])
    (whole,), (part,) = held.fetch(layout.rows, layout.slices), held.fetch(layout.rows[1:], layout.slices[:1])
    assert whole.dtype is part.dtype is dtype
    assert torch.equal(whole, weight)
    assert torch.equal(part, weight[3:, :6])
    assert torch.equal(digest([whole]), digest([weight]))


def test_the_store_keeps_a_copy() -> None:
    held = store()
    weight = some_integers(torch.int8, 4, 4)
    before = weight.clone()
    layout = sheet([4], [4])
    held.load(Load((layout,)), [weight])
    weight.zero_()
    (whole,) = held.fetch(layout.rows, layout.slices)
    assert torch.equal(whole, before)


@pytest.mark.parametrize(
    ("loaded", "sent", "width"),
    [
        (torch.float32, torch.int8, 4),
        (torch.int8, torch.float32, 4),
        (torch.int8, torch.int8, 0),
        (torch.float32, torch.float32, 4),
        (torch.int8, torch.float32, 0),
    ],
)
def test_floats_and_integers_do_not_mix(loaded: torch.dtype, sent: torch.dtype, width: int) -> None:
    held = store()
    layout = sheet([4], [4])
    held.load(Load((layout,)), [torch.ones(4, 4, dtype=loaded)])
    with pytest.raises(RefusedError, match="apply"):
        held.apply(asked(layout, width), torch.ones(2, 4, dtype=sent))


def test_shares_of_weights_give_no_wider_answers_than_their_ring() -> None:
    held = store()
    layout = sheet([4], [4])
    weight = some_integers(torch.int32, 4, 4)
    weight[0, 0] = 2**31 - 1  # needs a fifth digit as an integer
    held.load(Load((layout,)), [weight])
    x = some_integers(torch.int32, 2, 4)
    (y,) = held.apply(asked(layout, 4), x)
    assert torch.equal(y.to(torch.int64), modulo(x.to(torch.int64) @ weight.to(torch.int64).T, 4))
    with pytest.raises(RefusedError):
        held.apply(asked(layout, 5), x)


def test_an_answer_larger_than_a_message_is_refused_before_it_is_made() -> None:
    held = store(max_message_bytes=1000)
    layout = sheet([10], [4])
    held.load(Load((layout,)), [torch.ones(10, 4, dtype=torch.int8)])
    with pytest.raises(LimitError, match="answer of 1600 bytes"):
        held.apply(asked(layout, 8), torch.ones(20, 4, dtype=torch.int8))


def test_kernels_larger_than_their_input_are_refused() -> None:
    held = store()
    kernel = Convolution(stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    layout = sheet([2], [2], kernel)
    held.load(Load((layout,)), [torch.ones(2, 2, 5, 5, dtype=torch.int8)])
    with pytest.raises(RefusedError, match="apply"):
        held.apply(asked(layout, 4), torch.ones(1, 2, 3, 3, dtype=torch.int8))


def test_padding_beyond_a_message_is_refused_before_it_is_laid_out() -> None:
    held = store()
    kernel = Convolution(stride=(40_000, 40_000), padding=(20_000, 20_000), dilation=(1, 1))
    layout = sheet([1], [1], kernel)
    held.load(Load((layout,)), [torch.ones(1, 1, 1, 1, dtype=torch.int8)])
    with pytest.raises(LimitError, match="padded"):
        held.apply(asked(layout, 4), torch.ones(1, 1, 2, 2, dtype=torch.int32))
