"""What one device is asked for one panel's gradients: dx = Wᵀ dy of some cells, and some cells' part of a step."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from awfulowl.blocks.grid import take
from awfulowl.owner.layout import Layouts, Sum
from awfulowl.wire.messages import ApplyTransposed
from awfulowl.wire.parts import Term


class TransposedLayout(NamedTuple):
    """A request to one device: `terms[i]` is the sum over `terms[i].rows` for the inputs of `terms[i].columns`."""

    cells: tuple[int, ...]
    """Those that it learns of, if there is a job."""
    answered: tuple[int, ...]
    columns: tuple[int, ...]
    rows: tuple[int, ...]
    terms: tuple[Sum, ...]
    body: ApplyTransposed


class TransposedPiece(NamedTuple):
    """What a device answered: a tensor for each of the layout's terms."""

    device: str
    layout: TransposedLayout
    tensors: list[Tensor]


class TransposedLayouts:
    """Makes and remembers the requests for one panel."""

    def __init__(self, layouts: Layouts) -> None:
        self._panel = layouts.panel
        self._layouts = layouts
        self.lay_out = lru_cache(1024)(self._make)

    def _make(self, cells: tuple[int, ...], answered: tuple[int, ...]) -> TransposedLayout:
        """Return the request to learn of `cells`, and to answer for those that are `answered`."""
        panel, rank = self._panel, self._layouts.rank
        ordered = sorted(cells, key=lambda cell: rank[panel.cells[cell].column])
        columns = tuple(dict.fromkeys(panel.cells[cell].column for cell in ordered))
        rows = tuple(sorted({row for cell in ordered for row in panel.cells[cell].rows}))
        by_rows: dict[tuple[int, ...], list[int]] = {}
        for cell in ordered:
            if cell in answered:
                by_rows.setdefault(panel.cells[cell].rows, []).append(panel.cells[cell].column)
        terms = tuple(Sum(own, tuple(summed)) for own, summed in by_rows.items())
        body = ApplyTransposed(
            rows=self._rows(rows),
            slices=self._slices(columns),
            terms=tuple(Term(rows=self._rows(term.rows), slices=self._slices(term.columns)) for term in terms),
        )
        return TransposedLayout(tuple(ordered), tuple(answered), columns, rows, terms, body)

    def _rows(self, rows: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(self._panel.row_handles[row] for row in rows)

    def _slices(self, columns: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(self._panel.slice_handle(column, 0) for column in columns)

    def gradients(self, layout: TransposedLayout, dy: Tensor) -> Tensor:
        """Return what a device gets of dy (batch, outputs, *space'): its rows, a view where it gets them all."""
        spans = [self._panel.grid.rows[row] for row in layout.rows]
        if sum(span.size for span in spans) == dy.shape[1]:
            return dy
        return torch.cat([dy[:, span.start : span.stop] for span in spans], dim=1)

    def inputs(self, layout: TransposedLayout, x: Tensor) -> Tensor:
        """Return what a device gets of x (batch, inputs, *space)."""
        return take(x, self._panel.grid, layout.columns)

    def _shapes(self, layout: TransposedLayout, x: Tensor) -> list[tuple[int, ...]]:
        columns = self._panel.grid.columns
        sizes = [sum(columns[column].span.size for column in term.columns) for term in layout.terms]
        return [(x.shape[0], size, *x.shape[2:]) for size in sizes]

    def answer_bytes(self, layout: TransposedLayout, x: Tensor) -> int:
        """Return the size of the answer for inputs x (batch, inputs, *space)."""
        return 4 * sum(map(math.prod, self._shapes(layout, x)))

    def fits(self, piece: TransposedPiece, x: Tensor) -> bool:
        """Say whether an answer has the tensors, shapes and type that its layout asks for."""
        found = [(tensor.dtype, tuple(tensor.shape)) for tensor in piece.tensors]
        return found == [(torch.float32, shape) for shape in self._shapes(piece.layout, x)]

    def add_up(self, pieces: Sequence[TransposedPiece], out: Tensor) -> None:
        """Write the sum of all pieces into `out` (batch, inputs, *space), in plan order whoever answered first."""
        out.zero_()
        order = sorted(pieces, key=lambda piece: self._layouts.rank[piece.layout.columns[0]])
        for piece in order:
            for term, tensor in zip(piece.layout.terms, piece.tensors, strict=True):
                spans = [self._panel.grid.columns[column].span for column in term.columns]
                parts = torch.split(tensor, [span.size for span in spans], dim=1)
                for span, part in zip(spans, parts, strict=True):
                    out[:, span.start : span.stop] += part
