"""The check of a panel that is trained: are y = W x and dx = Wᵀ dy right, and did W move as it was told to?

It holds no weights. Two sets of images move with them (`images`): s = rᵀ W checks products, p = W q checks transposed
ones, and both are only right while every device has taken every step, once, along the gradient of the very x and dy
that it was sent. So a step that was left out, doubled, scaled, or taken along another gradient is found at the next
product, like a lie in the product itself.

A sample is accepted if for each of k = 3 secret vectors

    |r y − s x| ≤ z σ,   σ² = κ u² 3 ((n + 6)/3 (V x² + |y|²) + D x²),

with V the energy of the weights' columns, D what they have strayed (`images`), and the rest as in `freivalds`.
The secrets differ from those for serving in one thing: they are uniform in [-√3, √3] instead of normal, so that
3 bounds r², and one V serves all vectors; normal ones would need k of them, each to be moved along. The density
of r e/|e| is at most 0.41 for any e (a section of a cube has at most √2 the volume of a face: Ball 1986), that
of a normal one 0.40: lies pass as rarely, but τ is up to √3 times wider. n + 6 instead of n + 3 stands for
weights that are rounded to float32 for the product, while images are of the 48 bits that a device keeps.

Adam's steps are not linear in the weights (`arithmetic.adaptation`), so no image follows those. There devices state
their weights after every step (`stating`), and images are of what was stated: products are held to that, exactly as
above, and the momentum, which is linear, to images that follow it. Whether the weights went where they should is for
`owner.auditing` to find out.

What a device may do unseen is stray within D. That is a bound for the time since secrets were drawn: a snapshot
(`owner.snapshots`) takes the true state, checked against both sets of images, as the new truth, and a device that
strayed as far as it can each time has moved the weights by (snapshots) x `drift`, relative to their length.
"""

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import output_shape
from awfulowl.errors import InputError
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import VECTORS, Expectation, Z
from awfulowl.verification.gradients import added, laid
from awfulowl.verification.images import LARGEST_SQUARE, Side, vectors_of
from awfulowl.verification.rounding import SMALLEST, variance
from awfulowl.verification.steps import Step, cut_in_runs
from awfulowl.verification.sums import Expected, Transposed, expect
from awfulowl.verification.vectors import Vectors, project, together

Seen = tuple[Step, Step]
"""What a batch adds to the images of the gradient, from the left and from the right."""


class TrainingCheck:
    """Says which answers for one panel are right while its weights are trained elsewhere."""

    def __init__(
        self,
        weight: Sequence[Tensor],
        grid: Grid,
        entropy: Entropy,
        *,
        momentum: Sequence[Tensor] = (),
        apart: Iterable[Collection[int]] | None = None,
        z: float = Z,
    ) -> None:
        """Draw secrets in one pass over weights that are known, of which nothing is kept.

        Args:
            weight: tensors (outputs, inputs / groups, *size) whose sum are the weights: what devices multiply with,
                and what they keep beside it.
            grid: how the weights are cut.
            entropy: where the secrets come from.
            momentum: the same for the momentum; none stands for 0.
            apart: sets of rows that will be asked for without the others.
            z: standard deviations of an honest residue that are accepted.

        Raises:
            ModelError: weights are not finite.
        """
        self.grid: Final = grid
        self.stated = False
        """Whether the weights are those that devices said they have."""
        self._z = z
        self._parts = list(together(len(grid.rows), apart))
        left = torch.zeros(len(self._parts), grid.outputs)
        for mask, rows in zip(left, self._parts, strict=True):
            for row in rows:
                mask[grid.rows[row].start : grid.rows[row].stop] = 1
        self._left = Side(grid, entropy, VECTORS, left, transposed=False)
        self._right = Side(grid, entropy, VECTORS, torch.ones(1, grid.inputs), transposed=True)
        for side in (self._left, self._right):
            side.anchor(weight, momentum)

    @property
    def memory_bytes(self) -> int:
        """Bytes that secrets and images take."""
        tensors = [tensor for side in (self._left, self._right) for tensor in side.tensors()]
        return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())

    # Products

    def expect(
        self, x: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Expectation:
        """Do what can be done of the check of y = W x before there is a y; see `freivalds.Check.expect`.

        Raises:
            InputError: the shape of x is not that of the columns, or `rows` was not named in `apart`.
        """
        secrets, terms = self._select(rows, columns)
        outputs, inputs, size = secrets.r.shape[1], secrets.s.shape[-1], self.grid.size
        if x.dim() != 2 + len(size) or x.shape[1] != inputs:
            raise InputError(f"a check of {inputs} inputs got inputs of shape {tuple(x.shape)}")
        shape = output_shape(self.grid.kernel, outputs, size, x.shape)
        return _expectation(expect(self.grid.kernel, secrets, x, shape[2:]), shape, terms, self._z)

    def accepts(
        self, x: Tensor, y: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Say for each sample whether y is W x: (batch,) bool. Arguments and errors as for `expect`."""
        return self.expect(x, columns=columns, rows=rows).accepts(y)

    def expect_transposed(self, dy: Tensor, space: Sequence[int]) -> Expectation:
        """Do what can be done of the check of dx = Wᵀ dy before there is a dx.

        Args:
            dy: (batch, outputs, *space').
            space: the spatial shape of the inputs.

        Raises:
            InputError: dy has another number of outputs.
        """
        grid = self.grid
        if dy.dim() != 2 + len(grid.size) or dy.shape[1] != grid.outputs:
            raise InputError(f"a check of {grid.outputs} outputs got gradients of shape {tuple(dy.shape)}")
        terms = grid.outputs // grid.groups * prod(grid.size)
        expected = expect(Transposed(grid.kernel), self._right.whole(terms + 3), dy, space)
        return _expectation(expected, (dy.shape[0], grid.inputs, *space), terms, self._z)

    def _select(self, rows: Sequence[int] | None, columns: Sequence[int] | None) -> tuple[Vectors, int]:
        """Return the secrets for some rows and columns, in this order, and the number of products in an output."""
        inputs = self.grid.inputs // self.grid.groups
        if rows is None and columns is None:
            terms = inputs * prod(self.grid.size)
            return self._left.whole(terms + 3), terms
        chosen, outputs, across = self._places(rows, columns)
        if columns is not None:
            inputs = min(inputs, sum(self.grid.columns[column].span.size for column in columns))
        terms = inputs * prod(self.grid.size)
        r, s, v = self._left.secret_of(chosen), self._left.image_of(chosen), self._left.spread_of(chosen, terms + 3)
        return vectors_of(r[:, outputs], s[..., across], v[..., across]), terms

    def _places(
        self, rows: Sequence[int] | None, columns: Sequence[int] | None
    ) -> tuple[list[int], Tensor | slice, Tensor | slice]:
        """Return the parts that have these rows, the outputs of the rows, and the inputs of the columns.

        Raises:
            InputError: `rows` splits rows that were not named in `apart`.
        """
        grid = self.grid
        reached = {row for column in columns or () for row in grid.columns[column].rows}
        if rows is None and columns is not None:
            rows = sorted(reached)
        across: Tensor | slice = slice(None)
        if columns is not None:
            across = _indexes((grid.columns[column].span.start, grid.columns[column].span.stop) for column in columns)
        if rows is None:
            return list(range(len(self._parts))), slice(None), across
        chosen = [number for number, part in enumerate(self._parts) if not set(rows).isdisjoint(part)]
        summed = {row for number in chosen for row in self._parts[number] if columns is None or row in reached}
        if not rows or len(set(rows)) < len(rows) or not summed <= set(rows) <= set(range(len(grid.rows))):
            raise InputError(f"rows {list(rows)} cannot be checked alone: name them in `apart`")
        return chosen, _indexes((grid.rows[row].start, grid.rows[row].stop) for row in rows), across

    # Steps

    @torch.no_grad()
    def see(self, x: Tensor, dy: Tensor) -> Seen:
        """Return what a batch adds to the gradient: x (batch, inputs, *space), dy (batch, outputs, *space')."""
        runs = cut_in_runs(x, dy) if x.dim() == 2 else []
        if len(runs) < 2:
            return self._see(x, dy)
        left, right = zip(*(self._see(*run) for run in runs), strict=True)
        return self._left.joined(left), self._right.joined(right)

    def _see(self, x: Tensor, dy: Tensor) -> Seen:
        whole = self._left.step_of(x, dy), self._right.step_of(x, dy)
        if whole[0] is not None and whole[1] is not None:
            return whole[0], whole[1]
        pairs = laid(x, dy, self.grid.groups)
        steps = [(self._left.step(*pair), self._right.step(*pair)) for pair in pairs]
        left, right = (Step.total(one) for one in zip(*steps, strict=True))
        return left, right

    def move(self, rule: Descent, seen: Sequence[Seen]) -> None:
        """Follow the weights through a step along the sum of some batches.

        Raises:
            InputError: there are none.
        """
        if not seen:
            raise InputError("a step needs at least one batch")
        for number, side in enumerate((self._left, self._right)):
            side.move(rule, Step.total([one[number] for one in seen]))

    @property
    def stretched(self) -> float:
        """By how much the weights have changed since secrets were drawn, as a multiple of their length."""
        return self._left.stretched

    @property
    def drift(self) -> float:
        """How far devices may have moved the weights unseen since secrets were drawn, relative to their length."""
        return self._z * self._left.drift

    @property
    def largest_weight(self) -> float:
        """A number that no absolute weight is larger than by now, as far as the images tell."""
        return math.sqrt(float(self._left.energy.max()))

    # States

    def stating(self, weight: Tensor) -> "TrainingCheck":
        """Return a check of weights (outputs, inputs / groups, *size) that devices say they have: this one stays.

        Raises:
            ModelError: they are not finite.
        """
        stated = self.copy()
        stated.stated = True
        for side in (stated._left, stated._right):  # noqa: SLF001  its own
            side.state(weight)
        return stated

    @property
    def statement(self) -> Tensor:
        """An image of all weights as they were stated last, which takes little room; see `part_of`."""
        return self._left.weight

    def part_of(self, statement: Tensor, rows: Sequence[int], columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the secrets (k, outputs) and the image (*size, k, inputs) of what was stated of some blocks."""
        chosen, outputs, across = self._places(rows, columns)
        return self._left.secret_of(chosen)[:, outputs], self._left.image_of(chosen, statement)[..., across]

    def copy(self) -> "TrainingCheck":
        """Return a check of the weights as they are now: this one moves on."""
        still = copy.copy(self)
        still._left, still._right = copy.copy(self._left), copy.copy(self._right)  # noqa: SLF001  its own
        return still

    def matches(
        self,
        state: Sequence[Tensor],
        *,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
    ) -> bool:
        """Say whether a device's state is what it should be by now, as far as its rounding can tell.

        Args:
            state: weights, what was lost in rounding, momentum, and after steps of Adam the mean square of a
                rectangle, as `blocks.grid.rectangle` cuts it; any shape is answered.
            rows: rows of the grid, None for all that the columns reach.
            columns: columns of the grid, None for all; a column of several groups comes alone.
        """
        chosen, outputs, across = self._places(rows, columns)
        r = self._left.secret_of(chosen)[:, outputs]
        groups = self.grid.groups if columns is None else self.grid.columns[columns[0]].groups
        inputs = self.grid.inputs if isinstance(across, slice) else len(across)
        shape = (r.shape[1], inputs // groups, *self.grid.size)
        wanted = 4 if self.stated else 3
        if len(state) != wanted or any(tuple(part.shape) != shape or not part.isfinite().all() for part in state):
            return False
        weight, lost, momentum, *square = state
        if not torch.equal(weight + lost, weight):
            return False  # only their sum is in the images, but products and the model take the first alone
        if any(bool((part < 0).any()) for part in square):
            return False
        images = [
            added([project(r, part, groups, (1,))[0] for part in self._known(weight, lost)]),
            project(r, momentum, groups, (1,))[0],
        ]
        size = project(torch.ones_like(r[:1]), weight, groups, (2,))[0]
        return self._left.agrees([*images, size], chosen, across, self._z)

    def matches_whole(self, state: Sequence[Tensor]) -> bool:
        """Say the same of the whole panel's state, by the images from the right as well."""
        if not self.matches(state):
            return False
        weight, lost, momentum = state[:3]
        side = self._right
        found = [side.project(self._known(weight, lost)), side.project([momentum]), side.size(weight)]
        return side.agrees(found, [0], slice(None), self._z)

    def _known(self, weight: Tensor, lost: Tensor) -> list[Tensor]:
        """Return what the images of the weights are of, to be added up."""
        return [weight] if self.stated else [weight, lost]


def _expectation(expected: Expected, shape: Sequence[int], terms: int, z: float) -> Expectation:
    """Return what an answer is held to; rounding is relative but for numbers that float32 has no bits for."""
    lost = LARGEST_SQUARE**0.5 * shape[1] * prod(shape[2:]) ** 0.5 * (terms + 1) * SMALLEST
    return Expectation(expected, shape, variance(terms + 3), z, lost)


def _indexes(spans: Iterable[tuple[int, int]]) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in spans])
