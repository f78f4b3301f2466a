"""What one device is asked for one panel: the message, the inputs that go with it, and where its answer belongs."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.blocks.grid import Grid, Span, take
from awfulowl.blocks.kernels import output_shape
from awfulowl.placement.plan import Panel
from awfulowl.wire.messages import Apply, Term

_REMEMBERED: Final = 1024


class Layout(NamedTuple):
    """A request to one device: `terms[i]` is the sum over `terms[i].columns` for the rows `terms[i].rows`."""

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
    """Makes and remembers the requests for one panel."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.rank = {column: position for position, column in enumerate(panel.order)}
        self._made: dict[tuple[tuple[int, ...], tuple[int, ...]], Layout] = {}

    def lay_out(self, cells: Sequence[int], rows: tuple[int, ...]) -> Layout:
        """Return the request for these cells, restricted to `rows`."""
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
        body = Apply(
            slices=tuple(panel.slice_handles[column] for column in columns),
            terms=tuple(
                Term(
                    rows=tuple(panel.row_handles[row] for row in term.rows),
                    slices=tuple(panel.slice_handles[column] for column in term.columns),
                )
                for term in terms
            ),
        )
        return Layout(tuple(ordered), columns, terms, body)


def inputs_of(layout: Layout, grid: Grid, x: Tensor) -> Tensor:
    """Return the inputs that go with a layout: (batch, sum of its slices, *space), contiguous float32."""
    return take(x, grid, layout.columns).float().contiguous()


def answer_bytes(layout: Layout, grid: Grid, x: Tensor) -> int:
    """Return the size of the float32 answer to a layout for inputs x."""
    outputs = sum(grid.rows[row].size for term in layout.terms for row in term.rows)
    elements = 1
    for length in output_shape(grid.kernel, outputs, grid.size, x.shape):
        elements *= length
    return 4 * elements


def fits(piece: Piece, grid: Grid, x: Tensor) -> bool:
    """Say whether an answer has the tensors, shapes and type that its layout asks for."""
    if len(piece.tensors) != len(piece.layout.terms):
        return False
    return all(
        tensor.dtype is torch.float32
        and tuple(tensor.shape)
        == output_shape(grid.kernel, sum(grid.rows[row].size for row in term.rows), grid.size, x.shape)
        for term, tensor in zip(piece.layout.terms, piece.tensors, strict=True)
    )


def add_up(pieces: Sequence[Piece], layouts: Layouts, outputs: Outputs, out: Tensor) -> None:
    """Write the sum of all pieces into `out` (batch, rows, *space), in plan order whoever answered first."""
    order = sorted(pieces, key=lambda piece: layouts.rank[piece.layout.columns[0]])
    sums = [
        (term.rows, tensor) for piece in order for term, tensor in zip(piece.layout.terms, piece.tensors, strict=True)
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
