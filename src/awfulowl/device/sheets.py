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
    """What training keeps of a sheet, beside its weights.

    `step` is the last one that it took. `parts` are what was lost in rounding, the momentum, and the mean square, once
    there. `frozen` are copies of the weights and parts as they were when the number `frozen_as` was given.
    """

    step: int = 0
    parts: list[Tensor] = field(default_factory=list)
    frozen_as: int = 0
    frozen: list[Tensor] = field(default_factory=list)


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
        own = self.weights.nbytes + sum(part.nbytes for part in self.state.parts)
        return own + self.frozen_nbytes

    @property
    def frozen_nbytes(self) -> int:
        """Bytes of the frozen copies."""
        return sum(part.nbytes for part in self.state.frozen)

    def part(self, rows: Span, inputs: Span) -> Weights:
        """Return the weights of a sub-rectangle, as a view."""
        return self.weights._replace(planes=self.cut(self.weights.planes, rows, inputs))

    def cut(self, whole: Tensor, rows: Span, inputs: Span) -> Tensor:
        """Return a sub-rectangle of something shaped like the weights, or like their planes, as a view."""
        across = slice(inputs.start // self.groups, inputs.stop // self.groups)
        first = len(whole.shape) - len(self.weights.planes.shape) + 1
        return whole[(*[slice(None)] * first, slice(rows.start, rows.stop), across)]

    def whole(self, part: int, frozen: int = 0) -> Tensor:
        """Return one part of the sheet: 0 weights, 1 lost in rounding, 2 momentum, 3 mean square; zeros if missing.

        Args:
            part: which.
            frozen: the number of a frozen copy that is wanted instead.

        Raises:
            RefusedError: there is no such copy.
        """
        if frozen and self.state.frozen_as != frozen:
            raise RefusedError("a frozen copy is named that is not here")
        parts = self.state.frozen if frozen else [self.weights.planes[0], *self.state.parts]
        return parts[part] if part < len(parts) else torch.zeros_like(parts[0])

    def freeze(self, number: int) -> None:
        """Copy all parts under a number, in place of an older copy; 0 only forgets that."""
        parts = [self.weights.planes[0], *self.state.parts] if number else []
        self.state.frozen_as, self.state.frozen = number, [part.clone() for part in parts]


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
