"""Freivalds' check over the integers: is y = W x, exactly? Without the weights, at a stated miss rate.

**The check** (Freivalds, 1977). For each of k secret vectors r, uniform over the integers in [-2^(b-1), 2^(b-1)), the
owner keeps s = rᵀ W. It accepts a sample when for every vector r y = s x, with nothing to spare. In a convolution r
is over the output channels, s has one vector for each tap, and the equation has to hold at each output position.

**Right answers always pass**: both sides are the same integer, computed without rounding. There are no false alarms, so
one failure proves that an answer is wrong.

**Wrong ones do not.** Let y = W x + e with e ≠ 0 chosen without knowledge of r, say e_i ≠ 0. Whatever the other
numbers in r are, r e = 0 holds for at most one r_i of 2^b. So k vectors miss a wrong sample with probability at
most 2^(-b k), in a convolution too (e is then one wrong position): k is chosen for 2^-40.

**Why no rounding and no wrapping.** Products are computed as `arithmetic.pieces` says, modulo 2^64 and else
exactly. With m outputs and |e| <= E in each, |r e| <= 2^(b-1) m E, and below 2^64 a number is 0 if it is 0
modulo 2^64. Answers of 4 bytes have E <= 2^32. Longer ones are held to the bound B >= |W x| first, so E <= 2 B.
b is the largest up to 16 that 2^(b-1) m E < 2^63 allows, and at 4 bytes what a single piece allows:
b + 32 + ⌈log2 m⌉ <= 55.

Secrets are renewed as in `freivalds`: a device that learns whether it passed learns a little about r.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from math import prod
from typing import Final

import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import Integers
from awfulowl.arithmetic.pieces import EXACT_BITS, in_pieces, is_exact
from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import Kernel, output_shape
from awfulowl.errors import InputError, ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled
from awfulowl.verification.sums import chunks, joined, multiply, weigh
from awfulowl.verification.vectors import Projections, Rows, project

MISS_BITS: Final = 40
"""A wrong sample is accepted with probability 2^-40 at most."""

_MOST_BITS: Final = 16


def secret_bits(outputs: int, numbers: Integers, bound: int) -> int:
    """Return how many bits a secret number has, at least 1.

    Args:
        outputs: how many numbers an answer has, m.
        numbers: what was multiplied.
        bound: the largest |W x|.

    Raises:
        ModelError: not even one bit can be had: the layer is too large for these integers.
    """
    outputs_bits = max(0, outputs - 1).bit_length()
    if numbers.ring_bytes == 4:
        bits = EXACT_BITS + 2 - 32 - outputs_bits
    else:
        bits = min(_MOST_BITS, 63 - (2 * bound).bit_length() - outputs_bits + 1)
    if bits < 1:
        raise ModelError(f"{outputs} outputs up to {bound} are too many to be checked in {numbers.name}")
    return bits


class ExactCheck:
    """Says which answers for one panel of integers are right, from secrets of k (inputs + outputs) numbers."""

    def __init__(
        self,
        weights: Sequence[Rows],
        grid: Grid,
        entropy: Entropy,
        *,
        numbers: Integers,
        bound: int,
        apart: Iterable[Collection[int]] | None = None,
    ) -> None:
        """Draw secrets in one pass over the weights, of which nothing else is kept.

        Args:
            weights: (outputs, inputs / groups, *size) integers each; together they have the outputs of the grid.
            grid: how the weights are cut.
            entropy: where the secrets come from.
            numbers: what weights and inputs are.
            bound: the largest |W x| that there can be.
            apart: sets of rows that will be asked for without the others; None: every row.

        Raises:
            ModelError: the layer is too large to be checked in these integers.
        """
        self.grid: Final = grid
        self._numbers = numbers
        self._bound = bound
        self._bits = secret_bits(grid.outputs, numbers, bound)
        self.vectors: Final = -(-MISS_BITS // self._bits)
        half = 1 << (self._bits - 1)
        r = entropy.integers(1 << self._bits, self.vectors, grid.outputs) - half
        apart = None if apart is None else [frozenset(rows) for rows in apart]
        self._sums = Projections(weights, grid, r.double(), (1,), apart)
        self._s_bits = self._bits + 8 * numbers.dtype.itemsize + max(0, grid.outputs - 1).bit_length()

    @property
    def memory_bytes(self) -> int:
        """Bytes that the secrets take."""
        return sum({id(tensor): tensor.nbytes for tensor in self._sums.tensors()}.values())

    @torch.no_grad()
    def expect(
        self, x: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> "ExactExpectation":
        """Do what can be done before there is an answer.

        Args:
            x: (batch, inputs) or (batch, inputs, *space), the integers before they were shared. With `columns` only
                their inputs, side by side in this order.
            columns: columns of the grid; None for all.
            rows: rows of the grid; None for all that the columns reach.

        Raises:
            InputError: the shape of x is not that of the columns, or `rows` was not named in `apart`.
        """
        r, (s,) = self._sums.select(rows, columns)
        kernel, size = self.grid.kernel, self.grid.size
        outputs, inputs = r.shape[1], s.shape[-1]
        if x.dim() != 2 + len(size) or x.shape[1] != inputs:
            raise InputError(f"a check of {inputs} inputs got inputs of shape {tuple(x.shape)}")
        shape = output_shape(kernel, outputs, size, x.shape)
        terms, sums = inputs * prod(size), partial(_sums, kernel, shape[2:])
        products = [in_pieces(sums, chunk, s, terms, w_bits=self._s_bits) for chunk in chunks(x)]
        bound = self._bound if self._numbers.ring_bytes > 4 else None
        return ExactExpectation(r, self._bits, joined(products), shape, bound)

    def accepts(
        self, x: Tensor, y: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Say for each sample whether y is W x: (batch,) bool. Arguments and errors as for `expect`."""
        return self.expect(x, columns=columns, rows=rows).accepts(y)

    def matches(
        self, rectangle: Tensor, *, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
    ) -> bool:
        """Say whether weights are those that the secrets were drawn for; wrong ones pass as wrong answers do.

        Args:
            rectangle: integers as `blocks.grid.rectangle` cuts them; any shape is answered.
            rows: rows of the grid, None for all that the columns reach.
            columns: columns of the grid, None for all; a column of several groups comes alone.

        Raises:
            InputError: `rows` was not named in `apart`.
        """
        r, (s,) = self._sums.select(rows, columns)
        groups = self.grid.groups if columns is None else self.grid.columns[columns[0]].groups
        if tuple(rectangle.shape) != (r.shape[1], s.shape[-1] // groups, *self.grid.size):
            return False
        return torch.equal(project(r, rectangle, groups, (1,))[0], s)

    def matches_whole(self, weights: Sequence[Rows]) -> bool:
        """Say the same of all weights, stacked as the check got them; some rows at a time are looked at."""
        return torch.equal(self._sums.of(weights)[0], self._sums.whole[0])


class ExactExpectation:
    """What an answer to known inputs is held to; made by `ExactCheck.expect`."""

    def __init__(self, r: Tensor, bits: int, product: Tensor, shape: Sequence[int], bound: int | None) -> None:
        self._r = r
        self._bits = bits
        self._product = product
        self._shape = tuple(shape)
        self._bound = bound

    def samples(self, part: slice) -> "ExactExpectation":
        """Return what is expected of some samples of the batch, as views."""
        product = self._product[:, part]
        return ExactExpectation(self._r, self._bits, product, (product.shape[1], *self._shape[1:]), self._bound)

    @torch.no_grad()
    def accepts(self, y: Tensor) -> Tensor:
        """Say for each sample whether y is W x: (batch,) bool.

        Args:
            y: (batch, outputs) or (batch, outputs, *space'): int32 or int64.

        Raises:
            InputError: y has another shape.
        """
        if tuple(y.shape) != self._shape:
            raise InputError(f"a check got an answer of shape {tuple(y.shape)}, not {self._shape}")
        answers = chunks(y)
        expected = torch.split(self._product, len(answers[0]), dim=1)
        equal = [self._equal(chunk, part) for chunk, part in zip(answers, expected, strict=True)]
        right = equal[0] if len(equal) == 1 else torch.cat(equal)
        # What has more than 4 bytes could be off by a multiple of 2^64 once it is weighed.
        limit = 2**31 if self._bound is None and y.itemsize > 4 else self._bound
        if limit is not None and y.numel() > 0:
            least, most = torch.aminmax(y)
            if int(least) < -limit or int(most) > limit:
                right &= ((y >= -limit) & (y <= limit)).flatten(1).all(dim=1)
        return right

    def _equal(self, y: Tensor, product: Tensor) -> Tensor:
        bits = 8 * y.itemsize if self._bound is None else (2 * self._bound).bit_length()
        if product.dim() == 2 and is_exact(bits, self._bits, y.shape[1]):
            found = compiled.equal(self._r, y, product)
            if found is not None:
                return found
        ours = in_pieces(lambda y, r: weigh(r.double(), y), y, self._r, y.shape[1], x_bits=bits, w_bits=self._bits)
        equal = (ours == product).all(dim=0)
        return equal if equal.dim() == 1 else equal.flatten(1).all(dim=1)


def _sums(kernel: Kernel, positions: Sequence[int], x: Tensor, s: Tensor) -> Tensor:
    return multiply(kernel, s.double(), x, positions)
