"""What one device is asked for one panel: the message, the inputs that go with it, and where its answer belongs."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.arithmetic.packing import packed_type, unpack
from awfulowl.blocks.grid import Grid, Span
from awfulowl.blocks.kernels import output_shape
from awfulowl.placement.plan import Panel
from awfulowl.veil.base import Sharing
from awfulowl.wire.messages import Apply, Term

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
    """What a device answered to a request: one tensor for each of the layout's terms."""

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
        self._made: dict[tuple[tuple[int, ...], tuple[int, ...]], Layout] = {}

    def lay_out(self, cells: Sequence[int], rows: tuple[int, ...]) -> Layout:
        """Return the request for these cells of one lane, restricted to `rows`."""
        key = (tuple(cells), rows)
        layout = self._made.get(key)
        if layout is None:
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            layout = self._made[key] = self._make(*key)
        return layout

    def _make(self, cells: tuple[int, ...], rows: tuple[int, ...]) -> Layout:
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

    def matrices(self, lane: int) -> range:
        """Return the numbers of a lane's matrices, counted over all lanes."""
        parts = self._sharing.parts
        return range(lane * parts, (lane + 1) * parts)

    def _handles(self, lane: int, columns: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(self.panel.slice_handle(column, matrix) for matrix in self.matrices(lane) for column in columns)

    def answer_bytes(self, layout: Layout, x: Tensor) -> int:
        """Return the size of the answer to a layout for inputs x (batch, inputs, *space)."""
        grid = self.panel.grid
        outputs = sum(grid.rows[row].size for term in layout.terms for row in term.rows)
        return (self.width or 4) * math.prod(output_shape(grid.kernel, outputs, grid.size, x.shape))

    def fits(self, piece: Piece, x: Tensor) -> bool:
        """Say whether an answer to inputs x has the tensors, shapes and type that its layout asks for."""
        if len(piece.tensors) != len(piece.layout.terms):
            return False
        return all(
            (tensor.dtype, tuple(tensor.shape)) == self._form(term, x)
            for term, tensor in zip(piece.layout.terms, piece.tensors, strict=True)
        )

    def _form(self, term: Sum, x: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
        grid = self.panel.grid
        shape = output_shape(grid.kernel, sum(grid.rows[row].size for row in term.rows), grid.size, x.shape)
        return packed_type(self.width, shape) if self.width else (torch.float32, shape)


def add_up(pieces: Sequence[Piece], layouts: Layouts, outputs: Outputs, out: Tensor) -> None:
    """Write the sum of all pieces into `out` (batch, rows, *space), in plan order whoever answered first.

    `out` is float32, or the integers that answers unpack to: sums of these wrap around as their ring does.
    """
    order = sorted(pieces, key=lambda piece: (piece.layout.lane, layouts.rank[piece.layout.columns[0]]))
    sums = [
        (term.rows, tensor if layouts.width == 0 else unpack(tensor, layouts.width))
        for piece in order
        for term, tensor in zip(piece.layout.terms, piece.tensors, strict=True)
    ]
    if all(rows == outputs.rows for rows, _ in sums):
        _add_whole([tensor for _, tensor in sums], out)
        return
    out.zero_()
    for rows, tensor in sums:
        position = 0
        for row in rows:
            target = outputs.spans[row]
            out[:, target.start : target.stop] += tensor[:, position : position + target.size]
            position += target.size


def _add_whole(tensors: Sequence[Tensor], out: Tensor) -> None:
    if len(tensors) == 1:
        out.copy_(tensors[0])
        return
    torch.add(tensors[0], tensors[1], out=out)
    for tensor in tensors[2:]:
        out += tensor
