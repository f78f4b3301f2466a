"""Sheets: full rectangles of blocks as a device holds them, with what training keeps beside the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from awfulowl.arithmetic.products import Weights
from awfulowl.blocks.grid import Span
from awfulowl.blocks.kernels import Kernel
from awfulowl.errors import RefusedError


@dataclass(eq=False, slots=True)
class State:
    """The last step that a sheet has taken, and `parts`: what was lost in rounding, and the momentum, once there."""

    step: int = 0
    parts: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class Held:
    """One loaded sheet: a full rectangle of blocks.

    `weights` are float32 in one plane, or integers as the backend wants them.
    """

    weights: Weights
    kernel: Kernel
    groups: int
    rows: dict[bytes, Span]
    slices: dict[bytes, Span]
    state: State = field(default_factory=State)

    @property
    def nbytes(self) -> int:
        """Bytes that the sheet takes."""
        return self.weights.planes.nbytes + sum(part.nbytes for part in self.state.parts)

    def part(self, rows: Span, inputs: Span) -> Weights:
        """Return the weights of a sub-rectangle, as a view."""
        return self.weights._replace(planes=self.cut(self.weights.planes, rows, inputs))

    def cut(self, whole: Tensor, rows: Span, inputs: Span) -> Tensor:
        """Return a sub-rectangle of something shaped like the weights, or like their planes, as a view."""
        across = slice(inputs.start // self.groups, inputs.stop // self.groups)
        first = len(whole.shape) - len(self.weights.planes.shape) + 1
        return whole[(*[slice(None)] * first, slice(rows.start, rows.stop), across)]

    def state_part(self, part: int) -> Tensor:
        """Return what belongs to the weights (1: lost in rounding, 2: momentum); zeros as long as it is not there."""
        parts = self.state.parts
        return parts[part - 1] if part <= len(parts) else torch.zeros_like(self.weights.planes[0])


def spans(handles: Sequence[bytes], sizes: Sequence[int]) -> dict[bytes, Span]:
    """Return where each of some things lies that lie side by side.

    Raises:
        RefusedError: there is not one size for each handle, or one comes twice.
    """
    edges = [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    found = {handle: Span(*edge) for handle, edge in zip(handles, pairwise(edges), strict=False)}
    if not handles or len(found) != len(handles) or len(sizes) != len(handles):
        raise RefusedError("handles and sizes do not match, or a handle comes twice")
    return found
