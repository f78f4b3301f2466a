"""Products with transposed weights at a device: any part of any sheets, and what is refused."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.blocks.kernels import Convolution, backward
from awfulowl.errors import LimitError, PeerError, RefusedError
from awfulowl.wire.messages import ApplyTransposed, Load
from awfulowl.wire.parts import Sheet, Term
from tests.unit.device.pupil import Pupil
from tests.unit.device.test_store import CONV, handles, sheet

R, S = handles("r", 4), handles("s", 4)


def test_a_whole_sheet_is_one_product() -> None:
    pupil, layout = Pupil(), sheet([3, 4], [6, 4])
    weight, dy = torch.randn(7, 10), torch.randn(5, 7)
    pupil.load(layout, weight)
    (dx,) = pupil.transposed(layout.rows, layout.slices, [Term(layout.rows, layout.slices)], dy)
    torch.testing.assert_close(dx, dy @ weight)


def test_terms_are_separate_sums() -> None:
    pupil, layout = Pupil(), sheet([2, 3], [2, 2])
    weight, dy = torch.randn(5, 4), torch.randn(3, 5)
    pupil.load(layout, weight)
    terms = [Term(R[:1], layout.slices), Term(R[1:2], S[1:2]), Term(R[:2], S[:1])]
    first, second, third = pupil.transposed(layout.rows, layout.slices, terms, dy)
    torch.testing.assert_close(first, dy[:, :2] @ weight[:2])
    torch.testing.assert_close(second, dy[:, 2:] @ weight[2:, 2:])
    torch.testing.assert_close(third, dy @ weight[:, :2])


def test_no_terms_no_products() -> None:
    pupil, layout = Pupil(), sheet([2], [2])
    pupil.load(layout, torch.randn(2, 2))
    assert pupil.transposed(layout.rows, layout.slices, [], torch.randn(3, 2)) == []


def cut_at(sizes: Sequence[int], edges: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of first and last between some edges of a list."""
    return list(itertools.pairwise(sorted({0, len(sizes), *edges})))


class Blocks:
    """Weights that are loaded in several sheets, cut into row strips that each are cut into columns of their own."""

    def __init__(self, data: st.DataObject) -> None:
        self.row_sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        self.slice_sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        self.weight = torch.randn(sum(self.row_sizes), sum(self.slice_sizes))
        self.row_at = [0, *itertools.accumulate(self.row_sizes)]
        self.slice_at = [0, *itertools.accumulate(self.slice_sizes)]
        self.pupil = Pupil()
        for low, high in cut_at(self.row_sizes, data.draw(st.lists(st.integers(0, len(self.row_sizes)), max_size=2))):
            edges = data.draw(st.lists(st.integers(0, len(self.slice_sizes)), max_size=2))
            for first, last in cut_at(self.slice_sizes, edges):
                part = self.weight[self.row_at[low] : self.row_at[high], self.slice_at[first] : self.slice_at[last]]
                rows, slices = self.row_sizes[low:high], self.slice_sizes[first:last]
                self.pupil.load(sheet(rows, slices, row_offset=low, slice_offset=first), part.clone())

    def expected(self, dy: Tensor, rows: Sequence[int], slices: Sequence[int]) -> Tensor:
        """The sum over some rows for some slices, of gradients of all rows in their order."""
        total = torch.zeros(len(dy), self.weight.shape[1])
        for row in rows:
            span = slice(self.row_at[row], self.row_at[row + 1])
            total += dy[:, span] @ self.weight[span]
        return torch.cat([total[:, self.slice_at[i] : self.slice_at[i + 1]] for i in slices], dim=1)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_part_of_any_sheets_is_right(data: st.DataObject) -> None:
    """Rows and slices loaded in several sheets, asked for in any order and grouping: equal to the dense product."""
    blocks = Blocks(data)
    r, s = handles("r", len(blocks.row_sizes)), handles("s", len(blocks.slice_sizes))
    dy = torch.randn(3, len(blocks.weight))
    asked = [
        (
            data.draw(st.permutations(range(len(r))))[: data.draw(st.integers(1, len(r)))],
            data.draw(st.permutations(range(len(s))))[: data.draw(st.integers(1, len(s)))],
        )
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    terms = [Term(tuple(r[i] for i in rows), tuple(s[i] for i in slices)) for rows, slices in asked]
    found = blocks.pupil.transposed(r, s, terms, dy)
    for dx, (rows, slices) in zip(found, asked, strict=True):
        torch.testing.assert_close(dx, blocks.expected(dy, rows, slices), rtol=1e-5, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_gradients_in_any_order_are_multiplied_right_or_refused(data: st.DataObject) -> None:
    blocks = Blocks(data)
    r, s = handles("r", len(blocks.row_sizes)), handles("s", len(blocks.slice_sizes))
    order = data.draw(st.permutations(range(len(r))))
    dy = torch.randn(3, len(blocks.weight))
    sent = torch.cat([dy[:, blocks.row_at[i] : blocks.row_at[i + 1]] for i in order], dim=1)
    try:
        (dx,) = blocks.pupil.transposed([r[i] for i in order], s, [Term(r, s)], sent)
    except RefusedError:
        if order == sorted(order):
            raise
    else:
        torch.testing.assert_close(dx, blocks.expected(dy, range(len(r)), range(len(s))), rtol=1e-5, atol=1e-5)


def strips() -> tuple[Pupil, Tensor]:
    """Four rows of 2 of one slice, the first two and the last two held together."""
    pupil, weight = Pupil(), torch.randn(8, 3)
    pupil.load(sheet([2, 2], [3]), weight[:4])
    pupil.load(sheet([2, 2], [3], row_offset=2), weight[4:])
    return pupil, weight


@pytest.mark.parametrize(
    "rows", [(1, 2), (0, 2), (3, 0), (1, 0), (0, 1), (2, 3), (1,), (0, 1, 2, 3), (2, 0, 3)], ids=str
)
def test_a_term_over_rows_of_several_sheets(rows: tuple[int, ...]) -> None:
    """Whether they are as many as those of a sheet, or all of one in another order, says nothing."""
    pupil, weight = strips()
    dy = torch.randn(5, 8)
    (dx,) = pupil.transposed(R, S[:1], [Term(tuple(R[row] for row in rows), S[:1])], dy)
    places = [place for row in rows for place in (2 * row, 2 * row + 1)]
    torch.testing.assert_close(dx, dy[:, places] @ weight[places])


def test_gradients_lie_as_their_rows_are_named() -> None:
    pupil, weight = strips()
    dy = torch.randn(5, 8)
    sent = torch.cat([dy[:, 4:], dy[:, :4]], dim=1)
    (dx,) = pupil.transposed((*R[2:], *R[:2]), S[:1], [Term(R, S[:1])], sent)
    torch.testing.assert_close(dx, dy @ weight)


def test_rows_of_one_sheet_that_lie_apart_are_refused() -> None:
    pupil, _ = strips()
    with pytest.raises(RefusedError, match="another order"):
        pupil.transposed((R[0], R[2], R[1]), S[:1], [Term(R[:2], S[:1])], torch.randn(5, 6))


def test_rows_in_another_order_are_refused_also_where_their_sizes_agree() -> None:
    pupil, weight = Pupil(), torch.randn(8, 3)
    pupil.load(sheet([2, 2, 2, 2], [3]), weight)
    with pytest.raises(RefusedError, match="another order"):
        pupil.transposed((R[0], R[2], R[1], R[3]), S[:1], [Term(R, S[:1])], torch.randn(5, 8))


def test_slices_of_several_sheets_with_other_rows() -> None:
    """Two slices in one sheet of two rows, and each in a sheet of its own with the third row."""
    pupil, weight, dy = Pupil(), torch.randn(7, 5), torch.randn(4, 7)
    pupil.load(sheet([2, 2], [3, 2]), weight[:4])
    pupil.load(sheet([3], [3], row_offset=2), weight[4:, :3])
    pupil.load(sheet([3], [2], row_offset=2, slice_offset=1), weight[4:, 3:])
    terms = [Term(R[:3], S[:2]), Term(R[1:3], S[1::-1]), Term(R[2:3], S[1:2])]
    whole, turned, last = pupil.transposed(R[:3], S[:2], terms, dy)
    torch.testing.assert_close(whole, dy @ weight)
    torch.testing.assert_close(turned, (dy[:, 2:] @ weight[2:])[:, [3, 4, 0, 1, 2]])
    torch.testing.assert_close(last, dy[:, 4:] @ weight[4:, 3:])


# Convolutions


@pytest.mark.parametrize(
    ("kernel", "size", "space", "behind"),
    [
        (CONV, (3, 3), (7, 7), (7, 7)),
        (CONV, (3, 3), (1, 1), (1, 1)),
        (Convolution((1, 1), (0, 0), (1, 1)), (1, 1), (4, 5), (4, 5)),
        (Convolution((2, 2), (1, 1), (1, 1)), (3, 3), (6, 6), (3, 3)),
        (Convolution((2, 2), (1, 1), (1, 1)), (3, 3), (5, 5), (3, 3)),
        (Convolution((2,), (0,), (2,)), (2,), (8,), (3,)),
        (Convolution((2,), (0,), (2,)), (2,), (7,), (3,)),
    ],
)
def test_convolutions(
    kernel: Convolution, size: tuple[int, ...], space: tuple[int, ...], behind: tuple[int, ...]
) -> None:
    pupil, layout = Pupil(), sheet([2, 4], [2, 3], kernel)
    weight, dy = torch.randn(6, 5, *size), torch.randn(2, 6, *behind)
    pupil.load(layout, weight)
    terms = [Term(layout.rows, layout.slices), Term(R[1:2], S[1:2])]
    whole, part = pupil.transposed(layout.rows, layout.slices, terms, dy, space)
    torch.testing.assert_close(whole, backward(kernel, weight, dy, space), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part, backward(kernel, weight[2:, 2:], dy[:, 2:], space), rtol=1e-4, atol=1e-4)


def test_a_convolution_in_several_sheets() -> None:
    pupil, weight, dy = Pupil(), torch.randn(5, 4, 3, 3), torch.randn(2, 5, 6, 6)
    pupil.load(sheet([2], [1, 3], CONV), weight[:2])
    pupil.load(sheet([3], [1, 3], CONV, row_offset=1), weight[2:])
    (dx,) = pupil.transposed(R[:2], S[:2], [Term(R[:2], S[1::-1])], dy, (6, 6))
    wanted = backward(CONV, weight, dy, (6, 6))[:, [1, 2, 3, 0]]
    torch.testing.assert_close(dx, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [2, 4])
def test_groups(groups: int) -> None:
    pupil = Pupil()
    weight, dy = torch.randn(8, 8 // groups, 3, 3), torch.randn(2, 8, 5, 5)
    pupil.load(sheet([8], [8], CONV, groups), weight)
    (dx,) = pupil.transposed(R[:1], S[:1], [Term(R[:1], S[:1])], dy, (5, 5))
    torch.testing.assert_close(dx, backward(CONV, weight, dy, (5, 5), groups), rtol=1e-4, atol=1e-4)


def test_groups_in_blocks_of_their_own() -> None:
    """A grid cuts a convolution along its groups: every block has some of them."""
    pupil, weight, dy = Pupil(), torch.randn(8, 2, 3, 3), torch.randn(2, 8, 5, 5)
    for block in range(2):
        layout = sheet([4], [4], CONV, 2, row_offset=block, slice_offset=block)
        pupil.load(layout, weight[4 * block : 4 * block + 4])
    terms = [Term(R[block : block + 1], S[block : block + 1]) for block in range(2)]
    found = pupil.transposed(R[:2], S[:2], terms, dy, (5, 5))
    torch.testing.assert_close(torch.cat(found, 1), backward(CONV, weight, dy, (5, 5), 4), rtol=1e-4, atol=1e-4)


# What does not change, and what is refused


def test_equal_requests_give_equal_bits_and_tensors_of_their_own() -> None:
    pupil, layout = Pupil(), sheet([40, 24], [30, 20])
    pupil.load(layout, torch.randn(64, 50))
    dy, term = torch.randn(16, 64), Term(layout.rows, layout.slices)
    (first,) = pupil.transposed(layout.rows, layout.slices, [term], dy)
    (second,) = pupil.transposed(layout.rows, layout.slices, [term], dy)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_an_empty_batch() -> None:
    pupil = Pupil()
    pupil.load(sheet([4], [3]), torch.randn(4, 3))
    pupil.load(sheet([4], [3], CONV, row_offset=1, slice_offset=1), torch.randn(4, 3, 3, 3))
    (dx,) = pupil.transposed(R[:1], S[:1], [Term(R[:1], S[:1])], torch.empty(0, 4))
    assert dx.shape == (0, 3)
    (dx,) = pupil.transposed(R[1:2], S[1:2], [Term(R[1:2], S[1:2])], torch.empty(0, 4, 5, 5), (5, 5))
    assert dx.shape == (0, 3, 5, 5)


def test_an_answer_larger_than_a_message_is_refused_before_it_is_made() -> None:
    pupil, layout = Pupil(max_message_bytes=1000), sheet([4], [4])
    pupil.load(layout, torch.zeros(4, 4))
    term = Term(layout.rows, layout.slices)
    assert len(pupil.transposed(R[:1], S[:1], [term], torch.zeros(62, 4))) == 1
    with pytest.raises(LimitError, match="answer of 1008 bytes"):
        pupil.transposed(R[:1], S[:1], [term], torch.zeros(63, 4))
    with pytest.raises(LimitError, match="answer of 1008 bytes"):
        pupil.transposed(R[:1], S[:1], [term] * 3, torch.zeros(21, 4))


def test_an_announced_space_costs_nothing() -> None:
    pupil = Pupil()
    pupil.load(sheet([4], [3], CONV), torch.randn(4, 3, 3, 3))
    with pytest.raises(PeerError):
        pupil.transposed(R[:1], S[:1], [Term(R[:1], S[:1])], torch.zeros(1, 4, 5, 5), (2**31 - 1, 2**31 - 1))


DENSE_TERM = (Term(R[:1], S[:1]),)


@pytest.mark.parametrize(
    ("request_", "shape"),
    [
        (ApplyTransposed(R[:1], S[:1], DENSE_TERM), (2, 3)),
        (ApplyTransposed(R[:1], S[:1], DENSE_TERM), (2,)),
        (ApplyTransposed(R[:1], S[:1], DENSE_TERM), (2, 2, 5)),
        (ApplyTransposed(R[:1], S[:1], DENSE_TERM, space=(3,)), (2, 2, 3)),
        (ApplyTransposed(R[:1], S[:1], DENSE_TERM, space=(2,)), (2, 2, 2)),
        (ApplyTransposed(R[:2], S[:1], DENSE_TERM), (2, 2)),
        (ApplyTransposed(R[:1] * 2, S[:1], DENSE_TERM), (2, 4)),
        (ApplyTransposed(R[:1], S[:1] * 2, (), job=1), (2, 2)),
        (ApplyTransposed(R[3:], S[:1], ()), (2, 2)),
        (ApplyTransposed(R[:1], S[3:], ()), (2, 2)),
        (ApplyTransposed(R[:1], (), ()), (2, 2)),
        (ApplyTransposed((), S[:1], ()), (2, 0)),
        (ApplyTransposed(R[:1], S[:1], (Term(R[:1], ()),)), (2, 2)),
        (ApplyTransposed(R[:1], S[:1], (Term(R[:1], S[:1] * 2),)), (2, 2)),
        (ApplyTransposed(R[:1], S[:1], (Term(R[:1], S[3:]),)), (2, 2)),
        (ApplyTransposed(R[:1], S[:1], (Term(R[:1], S[2:3]),)), (2, 2)),
        (ApplyTransposed(R[2:3], S[2:3], (Term(R[2:3], S[2:3]),)), (2, 2)),
        (ApplyTransposed(R[2:3], S[2:3], (Term(R[2:3], S[2:3]),), space=(5,)), (2, 2, 5)),
        (ApplyTransposed(R[2:3], S[2:3], (Term(R[2:3], S[2:3]),), space=(5, 5)), (2, 2, 5, 4)),
        (ApplyTransposed(R[2:3], S[2:3], (Term(R[2:3], S[2:3]),), space=(9, 9)), (2, 2, 5, 5)),
        (ApplyTransposed(R[2:3], S[2:3], (Term(R[2:3], S[2:3]),), space=(5, 5, 5)), (2, 2, 5, 5, 5)),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_requests_that_do_not_fit_are_refused(request_: ApplyTransposed, shape: tuple[int, ...]) -> None:
    """Two rows and two slices of dense blocks, and a third of each that is a convolution."""
    pupil = Pupil()
    pupil.load(sheet([2, 2], [2, 2]), torch.zeros(4, 4))
    pupil.load(sheet([2], [2], CONV, row_offset=2, slice_offset=2), torch.zeros(2, 2, 3, 3))
    with pytest.raises(PeerError):
        pupil.learner.apply_transposed(request_, [torch.zeros(shape)])


def test_blocks_of_integers_are_not_multiplied_by_gradients() -> None:
    pupil, layout = Pupil(), sheet([2], [2])
    pupil.load(layout, torch.ones(2, 2, dtype=torch.int8))
    with pytest.raises(RefusedError, match="apply_transposed"):
        pupil.transposed(layout.rows, layout.slices, [Term(layout.rows, layout.slices)], torch.ones(3, 2))


def test_what_was_released_is_not_multiplied() -> None:
    pupil, layout = Pupil(), sheet([2], [2, 2])
    pupil.load(layout, torch.ones(2, 4))
    pupil.store.release(layout.slices[:1])
    with pytest.raises(RefusedError, match="not held"):
        pupil.transposed(layout.rows, layout.slices[1:], [Term(layout.rows, layout.slices[1:])], torch.ones(3, 2))


def test_several_sheets_come_in_one_load() -> None:
    pupil, weight, dy = Pupil(), torch.randn(4, 6), torch.randn(3, 4)
    layouts: list[Sheet] = [sheet([4], [3]), sheet([4], [3], slice_offset=1)]
    pupil.store.load(Load(tuple(layouts)), [weight[:, :3], weight[:, 3:]])
    (dx,) = pupil.transposed(R[:1], S[:2], [Term(R[:1], S[:2])], dy)
    torch.testing.assert_close(dx, dy @ weight)
