"""Cutting and rejoining is exact, whatever the shapes; what does not fit is refused."""

import math
from typing import NamedTuple

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.blocks.grid import Column, Grid, Span, make_grid, rectangle, rejoin, take
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, product
from awfulowl.errors import InputError, ModelError

some = settings(max_examples=150, deadline=None)


class Laid(NamedTuple):
    """Weights, stacked along their outputs, and a grid over them."""

    weights: tuple[Tensor, ...]
    grid: Grid

    @property
    def whole(self) -> Tensor:
        return torch.cat(self.weights)


def convolution(size: tuple[int, ...]) -> Convolution:
    return Convolution((1,) * len(size), (0,) * len(size), (1,) * len(size))


@st.composite
def laid(draw: st.DrawFn) -> Laid:
    size = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    kernel: Kernel = convolution(size) if size else Dense()
    groups = draw(st.integers(1, 6)) if size else 1
    inputs = draw(st.integers(1, 9))
    outputs = [groups * draw(st.integers(1, 9))]
    if groups == 1:
        outputs += draw(st.lists(st.integers(1, 9), max_size=2))
    torch.manual_seed(draw(st.integers(0, 99)))
    weights = tuple(torch.randn(rows, inputs, *size) for rows in outputs)
    block = draw(st.one_of(st.integers(1, 12), st.tuples(st.integers(1, 40), st.integers(1, 40))))
    ends = torch.tensor(outputs).cumsum(0).tolist()
    grid = make_grid(
        (sum(outputs), inputs, *size),
        kernel,
        groups,
        block=block,
        row_cuts=ends[:-1],
    )
    return Laid(weights, grid)


@given(laid(), st.randoms())
@some
def test_cut_and_rejoined_is_the_same(made: Laid, random: st.DataObject) -> None:
    pieces = [
        ((row,), (index,), rectangle(made.weights, made.grid, [row], [index]))
        for index, column in enumerate(made.grid.columns)
        for row in column.rows
    ]
    random.shuffle(pieces)  # type: ignore[attr-defined]
    assert len(pieces) == made.grid.blocks
    assert torch.equal(rejoin(pieces, made.grid), made.whole)


@given(laid())
@some
def test_whole_columns_rejoin(made: Laid) -> None:
    grid = made.grid
    pieces = [
        (column.rows, (index,), rectangle(made.weights, grid, column.rows, [index]))
        for index, column in enumerate(grid.columns)
    ]
    assert torch.equal(rejoin(pieces, grid), made.whole)


@given(laid(), st.data())
@some
def test_rectangles_take_any_order(made: Laid, data: st.DataObject) -> None:
    grid = made.grid
    first = data.draw(st.sampled_from(grid.columns))
    alike = [index for index, column in enumerate(grid.columns) if column.rows == first.rows]
    rows = data.draw(st.lists(st.sampled_from(first.rows), min_size=1, unique=True))
    columns = data.draw(st.lists(st.sampled_from(alike), min_size=1, unique=True))
    cut = rectangle(made.weights, grid, rows, columns)
    each = grid.inputs // grid.groups
    expected = torch.cat([made.whole[grid.rows[row].start : grid.rows[row].stop] for row in rows])
    spans = [grid.columns[index].span for index in columns]
    if first.groups == 1:
        starts = [span.start % each for span in spans]
        expected = torch.cat(
            [expected[:, start : start + span.size] for start, span in zip(starts, spans, strict=True)], 1
        )
    assert torch.equal(cut, expected)
    assert cut.is_contiguous()
    assert cut.dtype == torch.float32


@given(laid().filter(lambda made: made.grid.blocks < 50))
@settings(max_examples=60, deadline=None)
def test_blocks_sum_to_the_product(made: Laid) -> None:
    """The slow obvious way: every block with its own slice, added up."""
    grid = made.grid
    x = torch.randn(2, grid.inputs, *(3 + extent for extent in grid.size)).double()
    y = product(grid.kernel, made.whole.double(), x, grid.groups)
    total = torch.zeros_like(y)
    for index, column in enumerate(grid.columns):
        for row in column.rows:
            span = grid.rows[row]
            block = rectangle(made.weights, grid, [row], [index]).double()
            total[:, span.start : span.stop] += product(grid.kernel, block, take(x, grid, [index]), column.groups)
    # n double roundings of numbers below 10: 9 inputs x 9 taps x 10 x 10 x 2^-53 is 1e-12.
    assert torch.allclose(total, y, rtol=0.0, atol=1e-11)


@given(laid())
@some
def test_rows_and_columns_tile_the_weights(made: Laid) -> None:
    grid = made.grid
    for spans, end in ((grid.rows, grid.outputs), ([column.span for column in grid.columns], grid.inputs)):
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == end
        assert min(span.size for span in spans) >= 1
    ends = torch.tensor([len(weight) for weight in made.weights]).cumsum(0).tolist()
    assert set(ends) <= {span.stop for span in grid.rows}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(grid), type=Grid) == grid


@given(laid())
@some
def test_no_block_is_larger_than_asked(made: Laid) -> None:
    grid = make_grid(made.grid.shape, made.grid.kernel, made.grid.groups, block=(4, 5))
    for column in grid.columns:
        assert column.span.size <= 5
        assert all(grid.rows[row].size <= 4 for row in column.rows)


@given(laid(), st.data())
@some
def test_take_puts_slices_side_by_side(made: Laid, data: st.DataObject) -> None:
    grid = made.grid
    x = torch.randn(data.draw(st.integers(0, 3)), grid.inputs, *grid.size)
    columns = data.draw(st.lists(st.sampled_from(range(len(grid.columns))), min_size=1, unique=True))
    spans = [grid.columns[index].span for index in columns]
    assert torch.equal(take(x, grid, columns), torch.cat([x[:, span.start : span.stop] for span in spans], 1))


@pytest.mark.parametrize(
    ("columns", "is_view"), [([0], True), ([1, 2, 3], True), ([0, 2], False), ([1, 0], False), ([3, 4], True)]
)
def test_neighbours_are_taken_without_a_copy(columns: list[int], is_view: bool) -> None:
    x = torch.randn(4, 18)
    taken = take(x, make_grid((5, 18), Dense(), 1, block=4), columns)
    assert (taken.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == is_view


def test_a_grid_has_ragged_edges() -> None:
    grid = make_grid((10, 7), Dense(), 1, block=(4, 3), row_cuts=[0, 5, 10])
    assert grid.rows == (Span(0, 4), Span(4, 5), Span(5, 9), Span(9, 10))
    assert grid.columns == tuple(Column(span, (0, 1, 2, 3)) for span in (Span(0, 3), Span(3, 6), Span(6, 7)))
    assert (grid.shape, grid.blocks) == ((10, 7), 12)


@pytest.mark.parametrize(
    ("shape", "groups", "block", "expected"),
    [
        # depthwise, two outputs for an input: runs of groups, ragged
        ((10, 1, 3), 5, 4, [(Span(0, 2), (0,), 2), (Span(2, 4), (1,), 2), (Span(4, 5), (2,), 1)]),
        # groups as wide as a block
        ((4, 4, 3), 2, 4, [(Span(0, 4), (0,), 1), (Span(4, 8), (1,), 1)]),
        # groups wider than a block are cut inside
        (
            (4, 5, 3),
            2,
            4,
            [(Span(0, 4), (0,), 1), (Span(4, 5), (0,), 1), (Span(5, 9), (1,), 1), (Span(9, 10), (1,), 1)],
        ),
        # groups taller than a block are cut into rows
        ((12, 1, 3), 2, 4, [(Span(0, 1), (0, 1), 1), (Span(1, 2), (2, 3), 1)]),
    ],
)
def test_groups(
    shape: tuple[int, ...], groups: int, block: int, expected: list[tuple[Span, tuple[int, ...], int]]
) -> None:
    grid = make_grid(shape, convolution(shape[2:]), groups, block=block)
    assert [(column.span, column.rows, column.groups) for column in grid.columns] == expected


@pytest.mark.parametrize(
    ("shape", "kernel", "groups", "options"),
    [
        ((4, 4, 3), Dense(), 1, {}),
        ((4, 4), convolution((3,)), 1, {}),
        ((4, 0), Dense(), 1, {}),
        ((4, 4), Dense(), 2, {}),
        ((4, 4, 3), convolution((3,)), 3, {}),
        ((4, 4, 3), convolution((3,)), 0, {}),
        ((4, 4), Dense(), 1, {"block": 0}),
        ((4, 4), Dense(), 1, {"block": (3, 0)}),
        ((4, 4), Dense(), 1, {"row_cuts": [5]}),
        ((4, 4, 3), convolution((3,)), 2, {"row_cuts": [2]}),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...], kernel: Kernel, groups: int, options: dict[str, int]
) -> None:
    with pytest.raises(InputError):
        make_grid(shape, kernel, groups, **{"block": 2, **options})  # type: ignore[arg-type]


def test_weights_in_other_types_are_cut_to_float32() -> None:
    weights = [torch.randn(6, 5).half(), torch.randn(5, 3).bfloat16().T.requires_grad_()[:, :5]]
    grid = make_grid((9, 5), Dense(), 1, block=2, row_cuts=[6])
    cut = rectangle(weights, grid, range(len(grid.rows)), range(len(grid.columns)))
    assert torch.equal(cut, torch.cat([weight.detach().float() for weight in weights]))
    assert not cut.requires_grad


def test_the_default_type_does_not_matter() -> None:
    grid = make_grid((3, 3), Dense(), 1, block=2)
    torch.set_default_dtype(torch.float64)
    try:
        cut = rectangle([torch.ones(3, 3)], grid, [0, 1], [0, 1])
        assert rejoin([((0, 1), (0, 1), cut)], grid).dtype == cut.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("weights", [[torch.ones(3, 4)], [torch.ones(4, 3)], [torch.ones(2, 4)] * 3, []])
def test_other_weights_are_refused(weights: list[Tensor]) -> None:
    with pytest.raises(ModelError, match="do not stack"):
        rectangle(weights, make_grid((4, 4), Dense(), 1, block=2), [0], [0])


@pytest.mark.parametrize(
    ("rows", "columns"),
    [([], [0]), ([0], []), ([0], [9]), ([0], [-1]), ([9], [0]), ([0], [1]), ([0, 1], [0]), ([0], [0, 1])],
)
def test_rectangles_that_are_not_full_are_refused(rows: list[int], columns: list[int]) -> None:
    grid = make_grid((8, 1, 3), convolution((3,)), 8, block=4)
    with pytest.raises(ModelError, match="rectangle of rows"):
        rectangle([torch.ones(8, 1, 3)], grid, rows, columns)


def test_two_runs_of_groups_are_no_rectangle() -> None:
    grid = msgspec.structs.replace(
        make_grid((4, 1, 3), convolution((3,)), 4, block=2),
        columns=(Column(Span(0, 2), (0, 1), 2), Column(Span(2, 4), (0, 1), 2)),
    )
    with pytest.raises(ModelError, match="not full"):
        rectangle([torch.ones(4, 1, 3)], grid, [0, 1], [0, 1])


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([((0, 1), (0,), torch.ones(4, 2))], "2 of 4 blocks are missing, first row 0 x column 1"),
        ([], "4 of 4 blocks are missing"),
        ([((0, 1), (0, 1), torch.ones(4, 4)), ((1,), (1,), torch.ones(2, 2))], "came before"),
        ([((0, 0), (0,), torch.ones(4, 2))], "came before"),
        ([((0,), (1, 1), torch.ones(2, 4))], "came before"),
        ([((0, 1), (0, 1), torch.ones(4, 3))], r"not \(4, 4\)"),
        ([((0, 1), (0, 1), torch.ones(4, 4, 1))], r"not \(4, 4\)"),
        ([((0, 1), (0, 1), torch.ones(4, 4).double())], "float64"),
        ([((0, 2), (0, 1), torch.ones(4, 4))], "not full"),
        ([((0, 1), (0, 2), torch.ones(4, 4))], "not in a grid"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(
    pieces: list[tuple[tuple[int, ...], tuple[int, ...], Tensor]], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        rejoin(pieces, make_grid((4, 4), Dense(), 1, block=2))


@pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 3, 4)])
def test_other_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(batch, 4, ...\)"):
        take(torch.ones(shape), make_grid((2, 4), Dense(), 1, block=2), [0])


def test_a_cut_copies_no_more_than_it_returns() -> None:
    """The stack of all weights is never made: these would take 2 TB."""
    many = [torch.empty(1).expand(2**17, 2**16)] * 64
    grid = make_grid((2**23, 2**16), Dense(), 1, block=2**12)
    assert rectangle(many, grid, [0, 2047], [0]).shape == (2**13, 2**12)
    assert math.prod(grid.shape) == 2**39
