"""Layers in each kind of number, with the check that belongs to it and answers known to be right."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.numbers import FLOAT32, INTEGERS, Integers
from awfulowl.blocks.grid import Grid, rectangle
from awfulowl.blocks.kernels import product
from awfulowl.randomness import Entropy
from awfulowl.verification.exact import ExactCheck
from awfulowl.verification.freivalds import Check
from awfulowl.verification.training import TrainingCheck
from tests.unit.verification.shapes import Layer, layers

AnyCheck = Check | ExactCheck | TrainingCheck


class Moving(NamedTuple):
    """float32 that is trained, and checked by images that could move."""


Numbers = Integers | Moving | None
"""What a layer is in; None is float32 that stays as it is."""

MOVING: Final = Moving()


class Case(NamedTuple):
    """A layer in some numbers."""

    weights: Tensor
    grid: Grid
    x: Tensor
    numbers: Numbers

    @property
    def y(self) -> Tensor:
        """The right answer."""
        return self.answer(self.weights, self.x, self.grid.groups)

    @property
    def bound(self) -> int:
        """The largest |W x| that there can be."""
        assert isinstance(self.numbers, Integers)
        return self.numbers.largest * int(self.weights.long().abs().flatten(1).sum(1).max())

    def answer(self, weights: Tensor, x: Tensor, groups: int) -> Tensor:
        """The right answer to a rectangle; sums here are far below 2^53, so float64 makes no error."""
        if not isinstance(self.numbers, Integers):
            return product(self.grid.kernel, weights, x, groups)
        return product(self.grid.kernel, weights.double(), x.double(), groups).to(self.numbers.ring)

    def check(self, seed: int | None = 3, apart: Iterable[Collection[int]] | None = None) -> AnyCheck:
        """Secrets for these weights."""
        if self.numbers is None:
            return Check([self.weights], self.grid, Entropy(seed), apart=apart)
        if isinstance(self.numbers, Moving):
            return TrainingCheck([self.weights], self.grid, Entropy(seed), apart=apart)
        return self.exact_check(seed, apart)

    def exact_check(self, seed: int | None = 3, apart: Iterable[Collection[int]] | None = None) -> ExactCheck:
        """The same, where there are integers."""
        assert isinstance(self.numbers, Integers)
        return ExactCheck([self.weights], self.grid, Entropy(seed), numbers=self.numbers, bound=self.bound, apart=apart)

    def matches(
        self,
        check: AnyCheck,
        piece: Tensor,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
    ) -> bool:
        """Ask a check whether weights are its own; where they are trained, a device has two more tensors."""
        if isinstance(check, TrainingCheck):
            state = [piece, torch.zeros_like(piece), torch.zeros_like(piece)]
            return check.matches(state, rows=rows, columns=columns)
        return check.matches(piece, rows=rows, columns=columns)

    def rectangle(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Weights as they are cut out of the grid; float32 holds these integers."""
        return rectangle([self.weights], self.grid, rows, columns).to(self.weights.dtype)


def in_numbers(layer: Layer, numbers: Numbers, *, extreme: bool = False) -> Case:
    """Put a layer into some numbers: random integers of all sizes, or of the largest size only."""
    if not isinstance(numbers, Integers):
        return Case(layer.weights, layer.grid, layer.x, numbers)

    def integers(like: Tensor) -> Tensor:
        if extreme:
            return (like.sign() * numbers.largest).to(numbers.dtype)
        scale = numbers.largest / max(1e-30, float(like.abs().max())) if like.numel() else 1.0
        return (like.double() * scale).round().clamp(-numbers.largest, numbers.largest).to(numbers.dtype)

    return Case(integers(layer.weights), layer.grid, integers(layer.x), numbers)


KINDS: dict[str, Numbers] = {FLOAT32: None, "trained": MOVING, **INTEGERS}


@st.composite
def cases(draw: st.DrawFn, numbers: Numbers, least_batch: int = 0) -> Case:
    """Layers of all kinds in some numbers."""
    layer = draw(layers(least_batch=least_batch))
    return in_numbers(layer, numbers, extreme=draw(st.booleans()))


class Part(NamedTuple):
    """Rows and columns that form a full rectangle, and the groups of a convolution in it."""

    rows: list[int]
    columns: list[int]
    groups: int


@st.composite
def parts(draw: st.DrawFn, grid: Grid) -> Part:
    """What one device may be asked for."""
    first = draw(st.sampled_from(grid.columns))
    if first.groups > 1:
        return Part(list(first.rows), [grid.columns.index(first)], first.groups)
    beside = [index for index, column in enumerate(grid.columns) if column.rows == first.rows]
    columns = draw(st.lists(st.sampled_from(beside), min_size=1, unique=True))
    return Part(draw(st.lists(st.sampled_from(first.rows), min_size=1, unique=True)), columns, 1)
