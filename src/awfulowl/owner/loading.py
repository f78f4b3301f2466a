"""What loading a panel needs: its weights, the rows of its members, and how far it is."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from awfulowl.blocks.grid import Span
from awfulowl.errors import ModelError
from awfulowl.owner.layout import Layouts
from awfulowl.placement.plan import Panel

CellKey = tuple[int, int]
"""(panel, cell) by their numbers in the plan."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class Meter:
    """Adds up progress over concurrent loads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress

    def add(self, count: int) -> None:
        """Note that so many more bytes are done."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def rows_of(panel: Panel, span: Span) -> tuple[int, ...]:
    """Return the rows of the grid that lie in a member's outputs."""
    return tuple(row for row, at in enumerate(panel.grid.rows) if span.start <= at.start and at.stop <= span.stop)


def stack(panel: Panel, weights: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
    """Return references to the weights of a panel's members, in the order of its outputs."""
    missing = [member.product for member in panel.members if member.product not in weights]
    if missing:
        raise ModelError(f"the plan names {missing[0]!r}, which this model does not have")
    return [tensor.detach() for member in panel.members for tensor in weights[member.product]]


def in_sheets(
    keys: Iterable[CellKey], layouts: Sequence[Layouts], cell_bytes: Callable[[CellKey], int], most_bytes: int
) -> Iterator[tuple[int, list[int]]]:
    """Group cells of one panel, lane and equal rows, in the order of summation, into loads of limited size.

    Args:
        keys: the cells.
        layouts: of all panels.
        cell_bytes: returns how many bytes a device holds of a cell.
        most_bytes: of a load, unless a single cell has more.

    Yields:
        The number of a panel, and cells that are loaded in one sheet.
    """
    groups: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
    for number, cell in keys:
        placed = layouts[number].panel.cells[cell]
        groups.setdefault((number, placed.lane, placed.rows), []).append(cell)
    for (number, _, _), cells in groups.items():
        panel, rank = layouts[number].panel, layouts[number].rank
        cells.sort(key=lambda cell: rank[panel.cells[cell].column])
        batch: list[int] = []
        size = 0
        for cell in cells:
            alone = panel.grid.columns[panel.cells[cell].column].groups > 1
            more = cell_bytes((number, cell))
            if batch and (alone or size + more > most_bytes):
                yield number, batch
                batch, size = [], 0
            batch.append(cell)
            size += more
            if alone:
                yield number, batch
                batch, size = [], 0
        if batch:
            yield number, batch
