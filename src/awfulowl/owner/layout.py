"""What one device is asked for one panel: the message, the inputs that go with it, and where its answer belongs."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.arithmetic.packing import PARTS, add, fold, put
from awfulowl.blocks.grid import Grid, Span
from awfulowl.blocks.kernels import output_shape
from awfulowl.placement.plan import Panel
from awfulowl.veil.base import Sharing
from awfulowl.wire.messages import Apply
from awfulowl.wire.parts import Term

_REMEMBERED: Final = 1024


class Layout(NamedTuple):
    """A request to one device: `terms[i]` is the sum over `terms[i].columns` for the rows `terms[i].rows`.

    Its cells are of one lane; their columns come once for each matrix of the lane, side by side.
    """

    lane: int
    cells: tuple[int, ...]
    columns: tuple[int, ...]
    terms: tuple["Sum", ...]
    body: Apply


class Sum(NamedTuple):
    """One sum that a device makes: indexes into the panel's grid."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


class Piece(NamedTuple):
    """What a device answered to a request: for each of the layout's terms a tensor, or the parts of integers."""

    device: str
    layout: Layout
    tensors: list[Tensor]
    request: int

    def samples(self, part: slice) -> "Piece":
        """Return the answer for some samples, as views."""
        return self._replace(tensors=[tensor[part] for tensor in self.tensors])


class Outputs(NamedTuple):
    """The rows that are wanted of a panel, in order, and where each lies in the result."""

    rows: tuple[int, ...]
    spans: dict[int, Span]
    size: int

    @classmethod
    def of(cls, grid: Grid, rows: Sequence[int]) -> "Outputs":
        """Lay these rows out one after the other."""
        spans = {}
        position = 0
        for row in rows:
            size = grid.rows[row].size
            spans[row] = Span(position, position + size)
            position += size
        return cls(tuple(rows), spans, position)


class Layouts:
    """Makes and remembers the requests for one panel, whose answers have `width` bytes a number (0: float32)."""

    def __init__(self, panel: Panel, sharing: Sharing, width: int) -> None:
        self.panel = panel
        self.width = width
        self._sharing = sharing
        self.rank = {column: position for position, column in enumerate(panel.order)}
        self.lay_out: Final = lru_cache(_REMEMBERED)(self._make)

    def _make(self, cells: tuple[int, ...], rows: tuple[int, ...]) -> Layout:
        """Return the request for these cells of one lane, restricted to `rows`."""
        panel = self.panel
        wanted = set(rows)
        ordered = sorted(cells, key=lambda cell: self.rank[panel.cells[cell].column])
        columns = tuple(dict.fromkeys(panel.cells[cell].column for cell in ordered))
        sums: dict[tuple[int, ...], list[int]] = {}
        for cell in ordered:
            held = tuple(row for row in panel.cells[cell].rows if row in wanted)
            if held:
                sums.setdefault(held, []).append(panel.cells[cell].column)
        terms = tuple(Sum(held, tuple(summed)) for held, summed in sums.items())
        lane = panel.cells[ordered[0]].lane
        body = Apply(
            slices=self._handles(lane, columns),
            terms=tuple(
                Term(
                    rows=tuple(panel.row_handles[row] for row in term.rows),
                    slices=self._handles(lane, term.columns),
                )
                for term in terms
            ),
            width=self.width,
        )
        return Layout(lane, tuple(ordered), columns, terms, body)

    def place(self, piece: Piece) -> tuple[int, int, int]:
        """Return what comes before what in a sum: cells of fewer rows may begin at one column, and none is in two."""
        layout = piece.layout
        return layout.lane, self.rank[layout.columns[0]], min(layout.cells)

    @property
    def are_shared(self) -> bool:
        """Whether answers are shares of the product, and no numbers of their own."""
        return self._sharing.shares > 1

    def matrices(self, lane: int) -> range:
        """Return the numbers of a lane's matrices, counted over all lanes."""
        return self._sharing.matrices(lane)

    def _handles(self, lane: int, columns: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(self.panel.slice_handle(column, matrix) for matrix in self.matrices(lane) for column in columns)

    def answer_bytes(self, layout: Layout, x: Tensor) -> int:
        """Return the size of the answer to a layout for inputs x (batch, inputs, *space)."""
        grid = self.panel.grid
        outputs = sum(grid.rows[row].size for term in layout.terms for row in term.rows)
        return (self.width or 4) * math.prod(output_shape(grid.kernel, outputs, grid.size, x.shape))

    def fits(self, piece: Piece, x: Tensor) -> bool:
        """Say whether an answer to inputs x has the tensors, shapes and type that its layout asks for."""
        grid = self.panel.grid
        wanted = []
        for term in piece.layout.terms:
            shape = output_shape(grid.kernel, sum(grid.rows[row].size for row in term.rows), grid.size, x.shape)
            wanted += [(dtype, shape) for dtype in self._types]
        return [(tensor.dtype, tuple(tensor.shape)) for tensor in piece.tensors] == wanted

    @property
    def _types(self) -> tuple[torch.dtype, ...]:
        """What the numbers of a term are answered in."""
        return PARTS[self.width] if self.width else (torch.float32,)

    def sums(self, piece: Piece) -> Iterator[tuple[Sum, Sequence[Tensor]]]:
        """Yield the terms of a piece and their sums: one tensor of float32, or the parts of integers."""
        count = len(self._types)
        for number, term in enumerate(piece.layout.terms):
            yield term, piece.tensors[number * count : (number + 1) * count]


def add_up(pieces: Sequence[Piece], layouts: Layouts, outputs: Outputs, out: Tensor) -> None:
    """Write the sum of all pieces into `out` (batch, rows, *space), in plan order whoever answered first.

    `out` is float32, or the integers that answers unpack to: sums of shares wrap around as answers of this width do.
    """
    order = sorted(pieces, key=layouts.place)
    sums = [(term.rows, parts) for piece in order for term, parts in layouts.sums(piece)]
    if all(rows == outputs.rows for rows, _ in sums):
        _add_whole([parts for _, parts in sums], out)
    else:
        _add_rows(sums, outputs, out)
    if layouts.are_shared:
        fold(out, layouts.width)


def _add_rows(sums: Sequence[tuple[Sequence[int], Sequence[Tensor]]], outputs: Outputs, out: Tensor) -> None:
    out.zero_()
    for rows, parts in sums:
        position = 0
        for row in rows:
            target = outputs.spans[row]
            add(out[:, target.start : target.stop], [part[:, position : position + target.size] for part in parts])
            position += target.size


def _add_whole(sums: Sequence[Sequence[Tensor]], out: Tensor) -> None:
    first, *rest = sums
    if rest and all(len(parts) == 1 and parts[0].dtype is out.dtype for parts in sums[:2]):
        torch.add(first[0], rest.pop(0)[0], out=out)  # one way through memory less
    else:
        put(out, first)
    for parts in rest:
        add(out, parts)


def evenly(samples: int, count: int) -> Iterator[slice]:
    """Cut a batch into `count` parts of nearly one size, fewer where there are fewer samples."""
    edges = [samples * index // count for index in range(count + 1)]
    return (slice(start, stop) for start, stop in pairwise(edges) if start < stop)
