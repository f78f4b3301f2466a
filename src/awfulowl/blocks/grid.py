"""Cut a weight matrix into blocks, and join blocks into the matrix again, exactly.

A grid cuts outputs into rows and inputs into columns, and a block is what lies where a row and a column meet.
Only spans are kept here, never weights, so a grid is small and can stand in a plan file. Edges are ragged:
the last row and the last column are as large as what is left.

The weights of a grouped convolution are not a full matrix: the outputs of a group see the inputs of that
group only. There a column is a run of whole groups with one row of its own; a group that is wider or taller
than a block has columns and rows for itself, cut inside the group.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Protocol, TypeVar

import msgspec
import torch
from torch import Tensor

from awfulowl.blocks.kernels import Convolution, Dense, Kernel
from awfulowl.errors import InputError, ModelError


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of outputs or inputs, from `start` up to but not including `stop`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many outputs or inputs there are in it."""
        return self.stop - self.start


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input slice, the rows that it reaches, and the groups of a convolution that lie inside it."""

    span: Span
    rows: tuple[int, ...]
    groups: int = 1


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one weight matrix of shape (outputs, inputs / groups, *size) is cut."""

    kernel: Kernel
    inputs: int
    outputs: int
    size: tuple[int, ...]
    groups: int
    rows: tuple[Span, ...]
    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return (self.outputs, self.inputs // self.groups, *self.size)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return sum(len(column.rows) for column in self.columns)


def make_grid(
    shape: tuple[int, ...],
    kernel: Kernel,
    groups: int,
    *,
    block: tuple[int, int] | int,
    row_cuts: Sequence[int] = (),
) -> Grid:
    """Lay a grid over weights.

    Args:
        shape: (outputs, inputs / groups, *size) of the weights.
        kernel: what a device does with a block.
        groups: groups of a convolution; 1 for `Dense`.
        block: most outputs and most inputs of a block, or one number for both.
        row_cuts: outputs at which a row has to start: where one layer of several that are stacked ends.

    Raises:
        InputError: shape, kernel, groups, block and cuts do not fit each other.
    """
    outputs, inputs = shape[0], shape[1] * groups
    height, width = (block, block) if isinstance(block, int) else block
    _check_grid(shape, kernel, groups, (height, width), row_cuts)
    outputs_each, inputs_each = outputs // groups, shape[1]
    rows: list[Span] = []
    columns: list[Column] = []
    # Where a run has several groups it is no larger than a block, so that it is one row and one column.
    for run in _cut(0, groups, max(1, min(width // inputs_each, height // outputs_each))):
        above = len(rows)
        top, bottom = run.start * outputs_each, run.stop * outputs_each
        edges = sorted({top, bottom, *(cut for cut in row_cuts if top < cut < bottom)})
        rows += [span for start, stop in pairwise(edges) for span in _cut(start, stop, height)]
        own = tuple(range(above, len(rows)))
        slices = _cut(run.start * inputs_each, run.stop * inputs_each, width)
        columns += [Column(span, own, run.size) for span in slices]
    return Grid(kernel, inputs, outputs, tuple(shape[2:]), groups, tuple(rows), tuple(columns))


def _check_grid(
    shape: tuple[int, ...],
    kernel: Kernel,
    groups: int,
    block: tuple[int, int],
    row_cuts: Sequence[int],
) -> None:
    dimensions = 2 if isinstance(kernel, Dense) else 2 + len(kernel.stride)
    if len(shape) != dimensions or min(shape) < 1:
        raise InputError(f"weights of shape {tuple(shape)} do not fit the product {kernel}")
    if groups < 1 or shape[0] % groups or (groups > 1 and not isinstance(kernel, Convolution)):
        raise InputError(f"{groups} groups do not fit weights of shape {tuple(shape)} and the product {kernel}")
    if min(block) < 1:
        raise InputError(f"block {block}: a block has at least one output and one input")
    if any(not 0 <= cut <= shape[0] for cut in row_cuts):
        raise InputError(f"rows cut at {list(row_cuts)}: weights of shape {tuple(shape)} end before")
    if groups > 1 and any(0 < cut < shape[0] for cut in row_cuts):
        raise InputError("grouped convolutions cannot be stacked: their inputs are not shared")


def _cut(start: int, stop: int, width: int) -> list[Span]:
    return [Span(at, min(at + width, stop)) for at in range(start, stop, width)]


@torch.no_grad()
def rectangle(
    weights: Sequence[Tensor],
    grid: Grid,
    rows: Sequence[int],
    columns: Sequence[int],
    empty: Callable[[Sequence[int]], Tensor] = partial(torch.empty, dtype=torch.float32),  # noqa: B008  a function
) -> Tensor:
    """Copy the blocks rows x columns out of weights stacked along their outputs.

    The stack is never made: only what is asked for is copied.

    Args:
        weights: (outputs, inputs / groups, *size) each; together they have the outputs of the grid.
        grid: how the stack is cut.
        rows: indexes of rows, in the order wanted.
        columns: indexes of columns, in the order wanted; a column of several groups comes alone.
        empty: makes the float32 tensor that is filled, from its shape.

    Returns:
        (sum of row sizes, sum of slice sizes / groups, *size), contiguous float32.

    Raises:
        ModelError: the weights are not those of the grid, or rows and columns form no full rectangle.
    """
    tops = [0, *accumulate(len(weight) for weight in weights)]
    if tops[-1] != grid.outputs or any(tuple(weight.shape[1:]) != grid.shape[1:] for weight in weights):
        shapes = [tuple(weight.shape) for weight in weights]
        raise ModelError(f"weights of shapes {shapes} do not stack to the grid's {grid.shape}")
    down, across = _sides(grid, rows, columns)
    piece = empty((_size(down), _size(across), *grid.size))
    strips = [
        weight[max(run.start - top, 0) : max(run.stop - top, 0)]
        for run in down
        for top, weight in zip(tops, weights, strict=False)
    ]
    for target, strip in zip(torch.split(piece, [len(strip) for strip in strips]), strips, strict=True):
        for part, span in zip(torch.split(target, [span.size for span in across], dim=1), across, strict=True):
            part.copy_(strip[:, span.start : span.stop])
    return piece


@torch.no_grad()
def rejoin(pieces: Iterable[tuple[Sequence[int], Sequence[int], Tensor]], grid: Grid) -> Tensor:
    """Put rectangles back where `rectangle` took them from.

    Args:
        pieces: rows, columns, and the rectangle as `rectangle` returns it; every block once, in any order.
        grid: how the weights were cut.

    Returns:
        (outputs, inputs / groups, *size), float32, with the same bits.

    Raises:
        ModelError: a block is missing or comes twice, or a rectangle has another shape or type.
    """
    whole = torch.empty(grid.shape, dtype=torch.float32)
    missing = torch.zeros(len(grid.rows), len(grid.columns), dtype=torch.bool)
    for index, column in enumerate(grid.columns):
        missing[list(column.rows), index] = True
    for rows, columns, piece in pieces:
        down, across = _sides(grid, rows, columns)
        shape = (_size(down), _size(across), *grid.size)
        if tuple(piece.shape) != shape or piece.dtype != torch.float32:
            got = f"{tuple(piece.shape)} of {piece.dtype}"
            raise ModelError(f"{_named(rows, columns)} came as {got}, not {shape} of torch.float32")
        blocks = (torch.tensor(rows)[:, None], torch.tensor(columns))
        if not missing[blocks].all() or len(set(rows)) < len(rows) or len(set(columns)) < len(columns):
            raise ModelError(f"{_named(rows, columns)} holds a block that came before")
        missing[blocks] = False
        for strip, run in zip(torch.split(piece, [run.size for run in down]), down, strict=True):
            for part, span in zip(torch.split(strip, [span.size for span in across], dim=1), across, strict=True):
                whole[run.start : run.stop, span.start : span.stop] = part
    if missing.any():
        row, index = missing.nonzero()[0].tolist()
        count = int(missing.sum())
        raise ModelError(f"{count} of {grid.blocks} blocks are missing, first row {row} x column {index}")
    return whole


class Shaped(Protocol):
    """A block, or what one is made from."""

    @property
    def shape(self) -> Sequence[int]:
        """Outputs, inputs, and the rest."""


B = TypeVar("B", bound=Shaped)


def tiled(blocks: Sequence[B], across: int, make: Callable[[B], Tensor]) -> Tensor:
    """Return the matrix whose blocks these are, row by row, `across` of them in each; a single one as it is.

    Blocks are made one after the other, so that only one is held beside the matrix.
    """
    if len(blocks) == 1:
        return make(blocks[0])
    shape = sum(block.shape[0] for block in blocks[::across]), sum(block.shape[1] for block in blocks[:across])
    whole, top, left = torch.empty(0), 0, 0
    for number, block in enumerate(blocks):
        piece = make(block)
        if number == 0:
            whole = piece.new_empty(*shape, *piece.shape[2:])
        whole[top : top + len(piece), left : left + piece.shape[1]] = piece
        left += piece.shape[1]
        if (number + 1) % across == 0:
            top, left = top + len(piece), 0
    return whole


def take(x: Tensor, grid: Grid, columns: Sequence[int]) -> Tensor:
    """Put the inputs of columns side by side: a view where they are neighbours, a copy otherwise.

    Args:
        x: (batch, inputs) or (batch, inputs, *space).
        grid: how the inputs are cut.
        columns: indexes of columns, in the order wanted; at least one.

    Returns:
        (batch, sum of slice sizes) or (batch, sum of slice sizes, *space).

    Raises:
        InputError: x has another number of inputs.
    """
    if x.dim() < 2 or x.shape[1] != grid.inputs:
        raise InputError(f"inputs of shape {tuple(x.shape)} where (batch, {grid.inputs}, ...) is cut")
    parts = [x.narrow(1, run.start, run.size) for run in _runs(grid.columns[index].span for index in columns)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _runs(spans: Iterable[Span]) -> Iterator[Span]:
    """Merge neighbours that touch, so that they are copied at once."""
    run: Span | None = None
    for span in spans:
        if run is not None and run.stop == span.start:
            run = Span(run.start, span.stop)
        else:
            if run is not None:
                yield run
            run = span
    if run is not None:
        yield run


def _size(spans: Iterable[Span]) -> int:
    return sum(span.size for span in spans)


def _named(rows: Sequence[int], columns: Sequence[int]) -> str:
    return f"the rectangle of rows {list(rows)} x columns {list(columns)}"


def _sides(grid: Grid, rows: Sequence[int], columns: Sequence[int]) -> tuple[list[Span], list[Span]]:
    """Return the runs of a rectangle along the first two dimensions of the weights."""
    wanted = set(rows)
    chosen = [grid.columns[index] for index in columns if 0 <= index < len(grid.columns)]
    if not rows or not columns or len(chosen) < len(columns):
        raise ModelError(f"{_named(rows, columns)} is not in a grid of {len(grid.columns)} columns")
    alone = len(chosen) == 1 or all(column.groups == 1 for column in chosen)
    if not alone or not all(wanted.issubset(column.rows) for column in chosen):
        raise ModelError(f"{_named(rows, columns)} is not full: not every row meets every column")
    starts = (0 if column.groups > 1 else column.span.start % grid.shape[1] for column in chosen)
    across = [
        Span(start, start + column.span.size // column.groups) for start, column in zip(starts, chosen, strict=True)
    ]
    return list(_runs(grid.rows[index] for index in rows)), list(_runs(across))
