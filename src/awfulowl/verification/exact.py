"""Freivalds' check over the integers: is y = W x, exactly? Without the weights, at a stated miss rate.

**The check** (Freivalds, 1977). For each of k secret vectors r, uniform over the integers in [-2^(b-1), 2^(b-1)), the
owner keeps s = rᵀ W. It accepts a sample when for every vector r y = s x, with nothing to spare. A convolution over the
positions that inputs come with first is checked as the dense product that it is there, with r over all outputs at all
positions (`unrolled`). Over others, or too many, r is over the output channels, s has one vector for each tap, and the
equation has to hold at each output position.

**Right answers always pass**: both sides are the same integer, or the same modulo 2^64, computed without rounding.
There are no false alarms, so one failure proves that an answer is wrong.

**Dense products, modulo 2^64.** r y, s and s x are computed in int64, which wraps around as that ring does, and every
answer is held to the bound B >= |W x|. Let y = W x + e with e ≠ 0 chosen without knowledge of r. Then |e| <= 2 B; let
e_i = 2^t u with u odd, t <= log2 2 B. r e = 0 modulo 2^64 determines r_i modulo 2^(64-t), whatever the others are, and
of the 2^b numbers that r_i may be no two are equal modulo that if b <= 64 - t. So it holds for one r_i of 2^b at most,
and k vectors miss a wrong sample with probability at most 2^(-b k), of any number of outputs. k is the least with room
for 2^-40, b = ⌈40 / k⌉: one vector of 40 bits if B < 2^24, two of 20 if B < 2^44.

**By channels, in float64**, since PyTorch multiplies no matrices of int64 as fast: e is then one wrong position, and b
has to leave room, so that nothing wraps. Products are computed as `arithmetic.pieces` says, exactly
modulo 2^64. With m outputs and |e| <= E in each, |r e| <= 2^(b-1) m E, and below 2^64 a number is 0 if it is 0 modulo
2^64. Answers of 4 bytes have E <= 2^32. Longer ones are held to B first, so E <= 2 B. b is the largest up to 16 that
2^(b-1) m E < 2^63 allows, and at 4 bytes what a single piece allows: b + 32 + ⌈log2 m⌉ <= 55. A layer that leaves not
one bit is refused, whatever it is.

Secrets are renewed as in `freivalds`: a device that learns whether it passed learns a little about r.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from math import prod
from typing import Final

import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import Integers
from awfulowl.arithmetic.pieces import EXACT_BITS, in_pieces
from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import Dense, Kernel, output_shape
from awfulowl.errors import InputError, ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled
from awfulowl.verification.sums import BUFFERS, chunks, joined, multiply, weigh
from awfulowl.verification.unrolled import First, IntegerVectors, fits, unroll_integers
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


def modular_secrets(bound: int) -> tuple[int, int]:
    """Return how many vectors there are modulo 2^64, and how many bits a secret number has, for the largest |W x|."""
    vectors = -(-MISS_BITS // (65 - (2 * bound).bit_length()))
    return vectors, -(-MISS_BITS // vectors)


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
            weights: (outputs, inputs / groups, *size) integers each; together they have the outputs of the grid. Those
                of a convolution are looked at again when the first inputs come.
            grid: how the weights are cut.
            entropy: where the secrets come from.
            numbers: what weights and inputs are.
            bound: the largest |W x| that there can be.
            apart: sets of rows that will be asked for without the others; None: every row.

        Raises:
            ModelError: the layer is too large to be checked in these integers.
        """
        self.grid: Final = grid
        self._weights = weights
        self._entropy = entropy
        self._numbers = numbers
        self._bound = bound
        bits = secret_bits(grid.outputs, numbers, bound)
        vectors = -(-MISS_BITS // bits)
        self._by_channel = not isinstance(grid.kernel, Dense)
        if not self._by_channel:
            vectors, bits = modular_secrets(bound)
        r = entropy.integers(1 << bits, vectors, grid.outputs) - (1 << (bits - 1))
        self._sums = Projections(weights, grid, r.double() if self._by_channel else r, (1,), apart)
        self._bits, self.vectors = bits, vectors
        self._s_bits = bits + 8 * numbers.dtype.itemsize + max(0, grid.outputs - 1).bit_length()
        self._unrolled: First[IntegerVectors] = First()

    @property
    def memory_bytes(self) -> int:
        """Bytes that the secrets take."""
        unrolled = self._unrolled.kept
        kept = sum({id(tensor): tensor.nbytes for tensor in self._sums.tensors()}.values())
        return kept + (0 if unrolled is None else unrolled.memory_bytes)

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
        unrolled = self._unroll(tuple(x.shape[2:])) if rows is None and columns is None else None
        if unrolled is not None:
            r, s = unrolled.r, unrolled.s
        if unrolled is not None or not self._by_channel:
            return ExactExpectation(r, None, _add_up(s, x.flatten(1)), shape, self._bound)
        terms, sums = inputs * prod(size), partial(_sums, kernel, shape[2:])
        products = [in_pieces(sums, chunk, s, terms, w_bits=self._s_bits) for chunk in chunks(x)]
        bound = self._bound if self._numbers.ring_bytes > 4 else None
        return ExactExpectation(r, self._bits, joined(products), shape, bound)

    def _unroll(self, space: tuple[int, ...]) -> IntegerVectors | None:
        """Return secrets for a convolution over these positions, if they are the first that were seen."""
        return self._unrolled.get(space, self._draw)

    def _draw(self, space: tuple[int, ...]) -> IntegerVectors | None:
        vectors, bits = modular_secrets(self._bound)
        if not fits(self.grid, space, vectors):
            return None
        # Devices have the weights that were scattered: they are looked at once more, and once only.
        weights = torch.cat([weight[: len(weight)] for weight in self._weights])
        if not self.matches(weights):
            return None
        return unroll_integers(weights, self.grid, space, self._entropy, vectors, bits)

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

    def __init__(self, r: Tensor, bits: int | None, product: Tensor, shape: Sequence[int], bound: int | None) -> None:
        """Prepare to compare: r is float64 of so many bits, or int64, if they are None, for sums modulo 2^64."""
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
        if self._product.dim() == 2:
            y = y.flatten(1)  # of a convolution that was unrolled
        limit = 2**31 if self._bound is None else self._bound
        if self._bits is None:
            found = compiled.congruent(self._r, y, limit, self._product)
            if found is not None:
                return found
        answers = chunks(y)
        expected = torch.split(self._product, len(answers[0]), dim=1)
        equal = [self._equal(chunk, part) for chunk, part in zip(answers, expected, strict=True)]
        right = equal[0] if len(equal) == 1 else torch.cat(equal)
        # What has more than 4 bytes could be off by a multiple of 2^64 once it is weighed.
        if (self._bound is not None or y.itemsize > 4) and y.numel() > 0:
            least, most = torch.aminmax(y)
            if int(least) < -limit or int(most) > limit:
                right &= ((y >= -limit) & (y <= limit)).flatten(1).all(dim=1)
        return right

    def _equal(self, y: Tensor, product: Tensor) -> Tensor:
        if self._bits is None:
            return (_add_up(self._r, y) == product).all(dim=0)
        bits = 8 * y.itemsize if self._bound is None else (2 * self._bound).bit_length()
        ours = in_pieces(lambda y, r: weigh(r.double(), y), y, self._r, y.shape[1], x_bits=bits, w_bits=self._bits)
        equal = (ours == product).all(dim=0)
        return equal if equal.dim() == 1 else equal.flatten(1).all(dim=1)


def _sums(kernel: Kernel, positions: Sequence[int], x: Tensor, s: Tensor) -> Tensor:
    return multiply(kernel, s.double(), x, positions)


def _add_up(weights: Tensor, x: Tensor) -> Tensor:
    """Return weights xᵀ modulo 2^64, (k, batch) int64, for weights (k, n) int64 and integers x (batch, n)."""
    found = compiled.add_up(weights, x)
    if found is not None:
        return found
    raised = (BUFFERS.take(torch.int64, chunk.shape).copy_(chunk) for chunk in chunks(x))
    # Of all products of PyTorch in int64 this one alone is as fast as memory.
    return joined([torch.stack([torch.mv(chunk, one) for one in weights]) for chunk in raised])
