"""The device's store: sheets of blocks, products of any part of them, and what it refuses."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.blocks.kernels import Convolution, Dense, Kernel, product
from awfulowl.device.store import Store
from awfulowl.errors import LimitError, PeerError, RefusedError
from awfulowl.limits import MIB, Limits
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Apply, Load
from awfulowl.wire.parts import Sheet, Term

DENSE = Dense()
CONV = Convolution(stride=(1, 1), padding=(1, 1), dilation=(1, 1))


def handles(prefix: str, count: int) -> tuple[bytes, ...]:
    return tuple(f"{prefix}{number:015d}".encode() for number in range(count))


def sheet(
    row_sizes: Sequence[int],
    slice_sizes: Sequence[int],
    kernel: Kernel = DENSE,
    groups: int = 1,
    row_offset: int = 0,
    slice_offset: int = 0,
) -> Sheet:
    rows = handles("r", row_offset + len(row_sizes))[row_offset:]
    slices = handles("s", slice_offset + len(slice_sizes))[slice_offset:]
    return Sheet(rows, tuple(row_sizes), slices, tuple(slice_sizes), kernel, groups)


def store(**limits: int) -> Store:
    return Store(Limits(**limits), 64 * MIB)


def test_whole_sheet_is_one_product() -> None:
    held = store()
    weight = torch.randn(7, 10)
    layout = sheet([3, 4], [6, 4])
    held.load(Load((layout,)), [weight])
    x = torch.randn(5, 10)
    (y,) = held.apply(Apply(layout.slices, (Term(layout.rows, layout.slices),)), x)
    torch.testing.assert_close(y, x @ weight.T)
    assert len(held) == 4
    assert held.held_bytes == weight.nbytes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_part_of_any_sheets_is_right(data: st.DataObject) -> None:
    """Rows and slices loaded in several sheets, asked for in any order and grouping: equal to the dense product."""
    row_sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    slice_sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    weight = torch.randn(sum(row_sizes), sum(slice_sizes))
    row_at = [0, *itertools.accumulate(row_sizes)]
    slice_at = [0, *itertools.accumulate(slice_sizes)]
    held = store()
    edges = sorted({0, len(slice_sizes), *data.draw(st.sets(st.integers(0, len(slice_sizes)), max_size=2))})
    row_edges = sorted({0, len(row_sizes), *data.draw(st.sets(st.integers(0, len(row_sizes)), max_size=1))})
    for first, last in itertools.pairwise(edges):
        for low, high in itertools.pairwise(row_edges):
            part = weight[row_at[low] : row_at[high], slice_at[first] : slice_at[last]].clone()
            layout = sheet(row_sizes[low:high], slice_sizes[first:last], row_offset=low, slice_offset=first)
            held.load(Load((layout,)), [part])
    assert len(held) == len(row_sizes) * len(slice_sizes)

    order = data.draw(st.permutations(range(len(slice_sizes))))
    asked = order[: data.draw(st.integers(1, len(order)))]
    rows = data.draw(st.permutations(range(len(row_sizes))))[: data.draw(st.integers(1, len(row_sizes)))]
    r, s = handles("r", len(row_sizes)), handles("s", len(slice_sizes))
    x_full = torch.randn(3, sum(slice_sizes))
    x = torch.cat([x_full[:, slice_at[i] : slice_at[i + 1]] for i in asked], dim=1)
    (y,) = held.apply(
        Apply(tuple(s[i] for i in asked), (Term(tuple(r[i] for i in rows), tuple(s[i] for i in asked)),)), x
    )
    parts = [x_full[:, slice_at[i] : slice_at[i + 1]] @ weight[:, slice_at[i] : slice_at[i + 1]].T for i in asked]
    total = torch.stack(parts).sum(dim=0)
    expected = torch.cat([total[:, row_at[i] : row_at[i + 1]] for i in rows], dim=1)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_terms_are_separate_sums() -> None:
    held = store()
    weight = torch.randn(5, 4)
    layout = sheet([2, 3], [2, 2])
    held.load(Load((layout,)), [weight])
    x = torch.randn(3, 4)
    first, second = held.apply(
        Apply(layout.slices, (Term(layout.rows[:1], layout.slices), Term(layout.rows[1:], layout.slices[1:]))), x
    )
    torch.testing.assert_close(first, x @ weight[:2].T)
    torch.testing.assert_close(second, x[:, 2:] @ weight[2:, 2:].T)


def test_convolution_sums_over_channel_slices() -> None:
    held = store()
    weight = torch.randn(6, 5, 3, 3)
    layout = sheet([2, 4], [2, 3], CONV)
    held.load(Load((layout,)), [weight])
    x = torch.randn(2, 5, 7, 7)
    (y,) = held.apply(Apply(layout.slices, (Term(layout.rows, layout.slices),)), x)
    torch.testing.assert_close(y, product(CONV, weight, x), rtol=1e-4, atol=1e-4)


def test_grouped_convolution_block() -> None:
    held = store()
    weight = torch.randn(8, 2, 3, 3)
    layout = sheet([8], [8], CONV, groups=4)
    held.load(Load((layout,)), [weight])
    x = torch.randn(2, 8, 5, 5)
    (y,) = held.apply(Apply(layout.slices, (Term(layout.rows, layout.slices),)), x)
    torch.testing.assert_close(y, product(CONV, weight, x, 4), rtol=1e-4, atol=1e-4)


def test_half_precision_is_raised() -> None:
    held = store()
    weight = torch.randn(4, 4, dtype=torch.bfloat16)
    layout = sheet([4], [4])
    held.load(Load((layout,)), [weight])
    (y,) = held.apply(Apply(layout.slices, (Term(layout.rows, layout.slices),)), torch.ones(1, 4))
    assert y.dtype is torch.float32
    torch.testing.assert_close(y[0], weight.float().sum(1))


def test_empty_batch() -> None:
    held = store()
    layout = sheet([4], [4])
    held.load(Load((layout,)), [torch.randn(4, 4)])
    (y,) = held.apply(Apply(layout.slices, (Term(layout.rows, layout.slices),)), torch.empty(0, 4))
    assert y.shape == (0, 4)


def test_fetch_and_digest_return_what_was_loaded() -> None:
    held = store()
    weight = torch.randn(5, 6)
    layout = sheet([2, 3], [4, 2])
    held.load(Load((layout,)), [weight])
    (whole,), (part,) = held.fetch(layout.rows, layout.slices), held.fetch(layout.rows[1:], layout.slices[:1])
    torch.testing.assert_close(whole, weight, rtol=0, atol=0)
    torch.testing.assert_close(part, weight[2:, :4], rtol=0, atol=0)
    assert torch.equal(digest([whole]), digest([weight]))
    (first,), (second,) = held.fetch(layout.rows[:1], layout.slices), held.fetch(layout.rows[1:], layout.slices)
    assert not torch.equal(digest([first]), digest([second]))


def test_a_repeated_load_replaces() -> None:
    held = store()
    layout = sheet([2], [2])
    held.load(Load((layout,)), [torch.zeros(2, 2)])
    held.load(Load((layout,)), [torch.ones(2, 2)])
    assert len(held) == 1
    assert held.held_bytes == 16
    (whole,) = held.fetch(layout.rows, layout.slices)
    torch.testing.assert_close(whole, torch.ones(2, 2))


def test_release_forgets_and_frees() -> None:
    held = store()
    layout = sheet([2], [2, 2])
    held.load(Load((layout,)), [torch.ones(2, 4)])
    held.release(layout.slices[:1])
    assert held.held_bytes == 0
    with pytest.raises(RefusedError, match="not held"):
        held.apply(Apply(layout.slices[:1], (Term(layout.rows, layout.slices[:1]),)), torch.ones(1, 2))


def test_recipes_follow_the_blocks() -> None:
    """A remembered request must not answer from blocks that were replaced since."""
    held = store()
    layout = sheet([2], [2])
    request = Apply(layout.slices, (Term(layout.rows, layout.slices),))
    held.load(Load((layout,)), [torch.zeros(2, 2)])
    held.apply(request, torch.ones(1, 2))
    held.load(Load((layout,)), [torch.ones(2, 2)])
    (y,) = held.apply(request, torch.ones(1, 2))
    assert y.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("layout", "tensor", "reason"),
    [
        (sheet([2], [2]), torch.zeros(2, 3), "load"),
        (sheet([2], [2]), torch.zeros(2, 2, 1), "load"),
        (sheet([2], [2]), torch.zeros(2, 2, dtype=torch.uint8), "load"),
        (sheet([2], [2], CONV), torch.zeros(2, 2), "load"),
        (Sheet(handles("r", 1) * 2, (1, 1), handles("s", 1), (2,), Dense()), torch.zeros(2, 2), "a handle comes twice"),
        (Sheet(handles("r", 1), (1, 1), handles("s", 1), (2,), Dense()), torch.zeros(2, 2), "sizes do not match"),
        (Sheet((), (), handles("s", 1), (2,), Dense()), torch.zeros(0, 2), "handles and sizes do not match"),
        (sheet([4], [4], Dense(), groups=2), torch.zeros(4, 2), "load"),
        (sheet([3], [4], CONV, groups=2), torch.zeros(3, 2, 3, 3), "load"),
    ],
)
def test_misfitting_sheets_are_refused(layout: Sheet, tensor: torch.Tensor, reason: str) -> None:
    held = store()
    with pytest.raises(RefusedError, match=reason):
        held.load(Load((layout,)), [tensor])
    assert held.held_bytes == 0


def test_loads_beyond_memory_are_refused_and_change_nothing() -> None:
    held = Store(Limits(), 100)
    layout = sheet([4], [4])
    held.load(Load((layout,)), [torch.zeros(4, 4)])
    other = sheet([4], [4], row_offset=1, slice_offset=1)
    with pytest.raises(LimitError, match="offered"):
        held.load(Load((other,)), [torch.zeros(4, 4)])
    assert len(held) == 1


def test_overlap_with_part_of_another_sheet_is_refused() -> None:
    held = store()
    held.load(Load((sheet([2, 2], [2, 2]),)), [torch.zeros(4, 4)])
    with pytest.raises(RefusedError, match="overlaps"):
        held.load(Load((sheet([2], [2]),)), [torch.zeros(2, 2)])


R, S = handles("r", 3), handles("s", 3)


@pytest.mark.parametrize(
    ("request_", "x"),
    [
        (Apply(S[:1], (Term(R[:1], S[:1]),)), torch.zeros(1, 3)),
        (Apply(S[:1], (Term(R[:1], S[:1]),)), torch.zeros(2)),
        (Apply(S[:1], (Term(R[:1], S[:1]),)), torch.zeros(1, 2, 2, 2)),
        (Apply(S[:1] * 2, (Term(R[:1], S[:1]),)), torch.zeros(1, 4)),
        (Apply(S[2:], (Term(R[:1], S[2:]),)), torch.zeros(1, 2)),
        (Apply(S[:1], (Term(R[2:], S[:1]),)), torch.zeros(1, 2)),
        (Apply(S[:1], (Term(R[:1], S[1:2]),)), torch.zeros(1, 2)),
        (Apply(S[:1], (Term((), S[:1]),)), torch.zeros(1, 2)),
        (Apply(S[:1], (Term(R[:1], ()),)), torch.zeros(1, 2)),
    ],
)
def test_requests_that_do_not_fit_are_refused(request_: Apply, x: torch.Tensor) -> None:
    held = store()
    held.load(Load((sheet([2, 2], [2, 2]),)), [torch.zeros(4, 4)])
    with pytest.raises(PeerError):
        held.apply(request_, x)


def test_an_answer_larger_than_a_message_is_refused_before_it_is_made() -> None:
    held = store(max_message_bytes=1000)
    layout = sheet([4], [4])
    held.load(Load((layout,)), [torch.zeros(4, 4)])
    with pytest.raises(LimitError, match="answer"):
        held.apply(Apply(layout.slices, (Term(layout.rows, layout.slices),)), torch.zeros(100, 4))
