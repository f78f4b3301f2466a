"""What loading a panel needs: its weights, the rows of its members, and how far it is."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from awfulowl.blocks.grid import Span
from awfulowl.errors import ModelError
from awfulowl.placement.plan import Panel

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
