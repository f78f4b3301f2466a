"""What the owner keeps of a panel's weights: secret vectors r over outputs, s = rᵀ W and v = (r²)ᵀ W²."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

import torch
from torch import Tensor

from awfulowl.blocks.grid import Grid, Span
from awfulowl.errors import InputError, ModelError
from awfulowl.randomness import Entropy

STREAMED: Final = 1 << 16
"""Weights held in float64 at a time: 512 KiB, which stays in a core's cache."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Vectors:
    """The secrets for some rows and some inputs of a panel; k vectors, `inputs` counts channels of a convolution.

    r: (k, outputs) float64, and `r_squared`, its squares in float32.
    s: (*size, k, inputs) float64.
    v: (*size, k, inputs) float32, in units of `unit`.
    """

    r: Tensor
    s: Tensor
    v: Tensor
    unit: float
    r_squared: Tensor

    @property
    def memory_bytes(self) -> int:
        """Bytes that they take."""
        return self.r.nbytes + self.s.nbytes + self.v.nbytes + self.r_squared.nbytes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Part:
    """Rows that are always asked for together; the sums cover the `inputs` that they see."""

    rows: tuple[int, ...]
    inputs: Span
    sums: tuple[Tensor, ...]


class Rows(Protocol):
    """Weights (outputs, inputs / groups, *size), as far as they are looked at: some outputs at a time."""

    def __len__(self) -> int:
        """Return how many outputs there are."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return the weights of some outputs."""


class Projections:
    """Sums over outputs, Σ_i r_i^p W_i^p for some powers p, and those for a rectangle of the panel.

    Sums for several rows are sums over these rows, so they are kept once for all rows that are always asked for
    together; `r` is kept for every output.
    """

    def __init__(
        self,
        weights: Sequence[Rows],
        grid: Grid,
        r: Tensor,
        powers: Sequence[int],
        apart: Iterable[Collection[int]] | None,
    ) -> None:
        self._grid = grid
        self._powers = powers
        self.r = r
        self._parts = [self._add_up(weights, rows) for rows in together(len(grid.rows), apart)]
        self.whole = self._whole()

    def of(self, weights: Sequence[Rows]) -> tuple[Tensor, ...]:
        """Return the sums over all rows of these weights, under the same r, in one pass that keeps nothing of them."""
        return self._sum([self._add_up(weights, part.rows) for part in self._parts]).sums

    def replace(self, change: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]) -> None:
        """Keep other sums in place of these."""
        self._parts = [_Part(part.rows, part.inputs, change(part.sums)) for part in self._parts]
        self.whole = self._whole()

    def tensors(self) -> Iterator[Tensor]:
        """Yield everything that is kept, some of it twice."""
        yield from (self.r, *self.whole)
        for part in self._parts:
            yield from part.sums

    def select(self, rows: Sequence[int] | None, columns: Sequence[int] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return r and the sums for these rows and columns of the grid, in this order; None stands for all.

        Raises:
            InputError: `rows` splits rows of which only the sum was kept, or is not in the grid.
        """
        if rows is None and columns is None:
            return self.r, self.whole
        seen = reached(self._grid, columns)
        rows = seen if rows is None else tuple(rows)
        chosen = [part for part in self._parts if not set(rows).isdisjoint(part.rows)]
        # A part's other rows do no harm where none of the columns reaches them: there their s is 0.
        summed = {row for part in chosen for row in part.rows if row in seen}
        if not rows or len(set(rows)) < len(rows) or not summed <= set(rows) <= set(range(len(self._grid.rows))):
            raise InputError(f"rows {list(rows)} cannot be checked alone: name them in `apart`")
        r, sums = _side_by_side(self.r, [self._grid.rows[row] for row in rows]), self._sum(chosen).sums
        if columns is not None:
            spans = [self._grid.columns[column].span for column in columns]
            sums = tuple(_side_by_side(one, spans) for one in sums)
        return r, sums

    def _whole(self) -> tuple[Tensor, ...]:
        return self._parts[0].sums if len(self._parts) == 1 else self._sum(self._parts).sums

    def _add_up(self, weights: Sequence[Rows], rows: tuple[int, ...]) -> _Part:
        """Project the weights of some rows, one row after the other."""
        pieces = [piece for row in rows for piece in self._project_row(weights, self._grid.rows[row])]
        seen = Span(min(piece.inputs.start for piece in pieces), max(piece.inputs.stop for piece in pieces))
        return self._sum(pieces, seen, rows)

    def _project_row(self, weights: Sequence[Rows], row: Span) -> Iterator[_Part]:
        grid = self._grid
        outputs_each, inputs_each = grid.outputs // grid.groups, grid.inputs // grid.groups
        groups = max(1, row.size // outputs_each) if grid.groups > 1 else 1
        seen = row.start // outputs_each * inputs_each
        tops = accumulate((len(weight) for weight in weights), initial=0)
        for top, weight in zip(tops, weights, strict=False):
            start, stop = max(row.start, top), min(row.stop, top + len(weight))
            if start < stop:
                sums = project(self.r[:, start:stop], weight[start - top : stop - top], groups, self._powers)
                yield _Part((), Span(seen, seen + groups * inputs_each), sums)

    def _sum(self, parts: Sequence[_Part], inputs: Span | None = None, rows: tuple[int, ...] = ()) -> _Part:
        """Add parts up over a run of inputs, all of them by default."""
        inputs = inputs or Span(0, self._grid.inputs)
        shape = (*self._grid.size, len(self.r), inputs.size)
        sums = tuple(torch.zeros(shape, dtype=one.dtype) for one in parts[0].sums)
        for part in parts:
            own = slice(part.inputs.start - inputs.start, part.inputs.stop - inputs.start)
            for total, one in zip(sums, part.sums, strict=True):
                total[..., own] += one
        return _Part(rows, inputs, sums)


class Keeping:
    """Draws the secrets of a check in floating point, in one pass over the weights, and hands out parts of them."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        grid: Grid,
        entropy: Entropy,
        vectors: int,
        apart: Iterable[Collection[int]] | None,
    ) -> None:
        self._sums = Projections(weights, grid, entropy.normal(vectors, grid.outputs), (1, 2), apart)
        s, v = self._sums.whole
        largest = float(v.max())
        if not (bool(torch.isfinite(s).all()) and largest < float("inf")):
            raise ModelError("weights to be scattered are not finite; nothing multiplied with them can be checked")
        self._unit = largest or 1.0
        self._sums.replace(lambda sums: (sums[0], (sums[1] / self._unit).float()))
        self._whole = self._vectors(self._sums.r, self._sums.whole)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the secrets take."""
        tensors = (*self._sums.tensors(), self._whole.r_squared)
        return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())

    def select(self, rows: Sequence[int] | None, columns: Sequence[int] | None) -> Vectors:
        """Return the secrets for these rows and columns of the grid, in this order; None stands for all.

        Raises:
            InputError: `rows` splits rows of which only the sum was kept, or is not in the grid.
        """
        if rows is None and columns is None:
            return self._whole
        return self._vectors(*self._sums.select(rows, columns))

    def of(self, weights: Sequence[Rows]) -> tuple[Tensor, Tensor]:
        """Return s and v of all rows of these weights, under the same r, as `project` does."""
        s, v = self._sums.of(weights)
        return s, v

    def _vectors(self, r: Tensor, sums: tuple[Tensor, ...]) -> Vectors:
        s, v = sums
        return Vectors(r, s, v, self._unit, r.square().float())


def reached(grid: Grid, columns: Sequence[int] | None) -> tuple[int, ...]:
    """Return the rows that columns reach, in the order of the grid; None stands for all columns."""
    chosen = grid.columns if columns is None else [grid.columns[column] for column in columns]
    return tuple(sorted({row for column in chosen for row in column.rows}))


@torch.no_grad()
def project(r: Tensor, weights: Tensor, groups: int = 1, powers: Sequence[int] = (1, 2)) -> tuple[Tensor, ...]:
    """Return Σ_i r_i^p W_i^p for each power: s = rᵀ W for 1, v = (r²)ᵀ W² for 2.

    Args:
        r: (k, outputs) float64; int64 for sums modulo 2^64, of the first power.
        weights: (outputs, inputs / groups, *size); rounded to float32, as a device holds them, or integers.
        groups: groups of a convolution, each with its own run of outputs and of inputs.
        powers: 1, or 1 and 2.

    Returns:
        (*size, k, inputs) each, of the type of r.
    """
    k, outputs, inputs = len(r), len(weights) // groups, weights[0].numel()
    sums = torch.zeros(len(powers), groups, k, inputs, dtype=r.dtype)
    step = max(1, STREAMED // inputs)
    for group in range(groups):
        for start in range(group * outputs, (group + 1) * outputs, step):
            stop = min(start + step, (group + 1) * outputs)
            piece = weights[start:stop].flatten(1)
            piece = piece.float().double() if r.is_floating_point() else piece.to(r.dtype)
            for total, power in zip(sums, powers, strict=True):
                if power == 1:
                    total[group] += r[:, start:stop] @ piece
                else:
                    total[group] += r[:, start:stop].square() @ piece.square_()
    return tuple(_taps_first(total, weights.shape[1:]) for total in sums)


def _taps_first(secrets: Tensor, shape: torch.Size) -> Tensor:
    """Reorder (groups, k, inputs / groups * taps) to (*size, k, inputs)."""
    groups, k, _ = secrets.shape
    taps_last = secrets.view(groups, k, *shape).transpose(0, 1).reshape(k, groups * shape[0], *shape[1:])
    return taps_last.movedim((0, 1), (-2, -1)).contiguous()


def _side_by_side(secrets: Tensor, spans: Sequence[Span]) -> Tensor:
    return torch.cat([secrets[..., span.start : span.stop] for span in spans], dim=-1)


def together(rows: int, apart: Iterable[Collection[int]] | None) -> Iterator[tuple[int, ...]]:
    """Split rows into the largest parts of which every set in `apart` is a union; None sets every row apart."""
    sets = {frozenset(rows) for rows in apart} if apart is not None else {frozenset((row,)) for row in range(rows)}
    parts: dict[frozenset[frozenset[int]], list[int]] = {}
    for row in range(rows):
        parts.setdefault(frozenset(rows for rows in sets if row in rows), []).append(row)
    return map(tuple, parts.values())
