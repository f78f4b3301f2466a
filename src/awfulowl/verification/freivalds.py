"""Freivalds' check in floating point: is y = W x, up to rounding? Without the weights, at a stated miss rate.

Slalom (Tramèr and Boneh, arXiv 1806.03287) checks outsourced products as Freivalds did (1977), in a prime field.
Devices here answer in float32, so right answers differ by rounding, and the check has to tell rounding from lies.

**The check.** For each of k = 3 secret vectors r ~ N(0, 1) over the outputs the owner keeps s = rᵀ W and
v = (r²)ᵀ W² in place of the weights. It accepts a sample when for every vector, with n products in each output,

    |r y − s x| ≤ τ = z σ,    σ² = κ u² (n + 3)/3 (v x² + r² y²),    z = 10, u = 2⁻²⁴, κ = 1/(8 ln 2).

x² and y² are element by element, so r² y² = Σ r_i² y_i². A convolution over the positions that inputs come with first
is checked as the dense product that it is there, with r over all outputs at all positions (`unrolled`). Over others,
or too many, r is over the output channels, s has one vector for each tap, r y − s x is a vector over the output
positions of which the length is taken, and v x² and r² y² are sums over positions. A sample is one image; nothing is
shared between samples.

**Why honest answers pass.** Output i is the sum of p_j = W_ij x_j. A device adds them up in an order that we do not
know, at worst one after the other: GPUs do, libraries for CPUs add up blocks of a few hundred. With partial sums S_t
and roundings δ_t that are uncorrelated, of mean 0 and mean square κ u² (Higham and Mary, "A new approach to
probabilistic rounding error analysis", 2019; κ is for errors uniform within half a unit in the last place and
mantissas after Benford) the error e_i has

    E e_i² = κ u² Σ_t S_t²,    and over all orders of summation    Σ_t E S_t² = (n + 1)/6 (Q_i + 2 y_i²)

with Q_i = Σ_j p_j². Products that are rounded on their own add Q_i. The sum is at most (n + 3)/3 (Q_i + y_i²), and
Σ r_i² Q_i = v x² makes σ² the mean square of r e = Σ r_i e_i. As a sum of many roundings r e is close to Gaussian,
so three vectors raise a false alarm at 10⁻¹² if z is 7.3. The rest of z covers what the mean over orders does not:
a dominant product that comes first (√(3/2)), mantissas that are all near a power of two (√(1/3κ)).
`benchmarks/freivalds.py` measures both, and fits the tail.

Not covered: sums whose order is against us in every output. Products that are all equal err in one direction
(constant inputs on constant weights); thousands of one sign and then thousands of the other make partial sums larger
than Q or y tells. Added one after the other, dozens of either pass, hundreds may not. Nor are samples so small that
float32 loses bits (sums below 10⁻³⁸). And devices have to keep to float32: half precision and TF32 look like lies.

The design started from z u √(v x² + (r y)²) with z = 32, which is this τ at n = 167. It lacked two things. Honest
errors grow like √n: of answers that add 25,088 products one after the other 32 rejects three quarters, and a quarter
of those that PyTorch's CPU gives to single samples. And (r y)² is as large as r² y² only on average: where r y happens
to be near 0, the roundings of y are not.

**Why lies do not pass.** Let the answer be off by e, for reasons that do not depend on the secrets, and
ε = τ*/|e| with τ*² = E_r τ² = z² κ u² (n + 3)/3 Σ_i (Q_i + y_i²). Write r = g e/|e| + h, with g and h independent. The
lie passes if |g| |e| ≤ τ(r), and by the triangle inequality τ(r) ≤ |g| τ* α + τ(h), with α τ* the part of τ along e;
the density of g is at most 1/√(2π), and E τ(h) ≤ τ* √(1 − α²). So one vector misses with probability at most

    √(2/π) ε √(1 − α²)/(1 − ε α)  ≤  √(2/π) ε / √(1 − ε²),

which is (0.8 τ*/|e|)^k for k vectors and ε ≤ 0.07, and nearly attained. By channels e is a matrix E, outputs by
positions. The lie passes if rᵀ (E Eᵀ − T) r ≤ 0, where rᵀ T r = τ², and by Chernoff's bound that has at most the
probability 2 ε/(1 + ε²), whatever the shape of E: (2 τ*/|e|)^k. Lies in one channel still have 0.8.

y stands in τ as the device claims it, which buys nothing: τ grows by z u √(κ (n + 3)/3) < 10⁻⁴ of what |e| grows by.
With Q as large as y², lies are found from a relative size |e|/|y| well above 2 · 10⁻⁷ √n; smaller ones are rounding.

Answers that are not finite never pass. A device that learns whether it passed learns a little about r, so draw
others after every failure and on a schedule, and do not tell it at once.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import Dense, output_shape
from awfulowl.errors import InputError
from awfulowl.randomness import Entropy
from awfulowl.verification.rounding import variance
from awfulowl.verification.sums import Expected, compare, expect, judge
from awfulowl.verification.unrolled import First, unroll
from awfulowl.verification.vectors import Keeping, Rows, Vectors, project

VECTORS: Final = 3
Z: Final = 10.0
"""Standard deviations of an honest residue that are accepted."""


class Check:
    """Says which answers for one panel are right, from secrets of k (2 inputs + outputs) numbers."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        grid: Grid,
        entropy: Entropy,
        *,
        vectors: int = VECTORS,
        z: float = Z,
        apart: Iterable[Collection[int]] | None = None,
    ) -> None:
        """Draw secrets in one pass over the weights, of which nothing is copied.

        Args:
            weights: (outputs, inputs / groups, *size) each; together they have the outputs of the grid. Those of a
                convolution are looked at again when the first inputs come.
            grid: how the weights are cut.
            entropy: where the secrets come from.
            vectors: independent secret vectors, k.
            z: standard deviations of an honest residue that are accepted.
            apart: sets of rows that will be asked for without the others, such as the rows of a cell or of one layer
                of several. The finer they cut the rows, the more is kept. None: every row.

        Raises:
            ModelError: weights are not finite.
        """
        self.grid: Final = grid
        self._entropy = entropy
        self._count = vectors
        self._z = z
        self._weights = weights
        self._keeping = Keeping(weights, grid, entropy, vectors, apart)
        self._unrolled: First[Vectors] = First()

    @property
    def memory_bytes(self) -> int:
        """Bytes that the secrets take."""
        unrolled = self._unrolled.kept
        return self._keeping.memory_bytes + (0 if unrolled is None else unrolled.memory_bytes)

    def accepts(
        self, x: Tensor, y: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Say for each sample whether y is W x.

        Args:
            x: (batch, inputs) or (batch, inputs, *space), as the device saw it, bit by bit. With `columns` only
                their inputs, side by side in this order, as `blocks.grid.take` gives.
            y: (batch, outputs) or (batch, outputs, *space'): the sum over these columns, for these rows, in this
                order.
            columns: columns of the grid; None for all.
            rows: rows of the grid; None for all that the columns reach.

        Returns:
            (batch,) bool.

        Raises:
            InputError: the shapes of x or y are not those of the rows and columns, or `rows` was not named in
                `apart`.
        """
        return self.expect(x, columns=columns, rows=rows).accepts(y)

    def expect(
        self, x: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> "Expectation":
        """Do what can be done before there is an answer, with the secrets of now. Arguments as for `accepts`.

        Raises:
            InputError: the shape of x is not that of the columns, or `rows` was not named in `apart`.
        """
        secrets = self._keeping.select(rows, columns)
        kernel, size = self.grid.kernel, self.grid.size
        outputs, inputs = secrets.r.shape[1], secrets.s.shape[-1]
        if x.dim() != 2 + len(size) or x.shape[1] != inputs:
            raise InputError(f"a check of {inputs} inputs got inputs of shape {tuple(x.shape)}")
        shape = output_shape(kernel, outputs, size, x.shape)
        unrolled = self._unroll(tuple(x.shape[2:])) if rows is None and columns is None else None
        if unrolled is None:
            expected = expect(kernel, secrets, x, shape[2:])
        else:
            expected = expect(Dense(), unrolled, x.flatten(1), ())
        return Expectation(expected, shape, variance(self._terms(columns)), self._z)

    def _unroll(self, space: tuple[int, ...]) -> Vectors | None:
        """Return secrets for a convolution over these positions, if they are the first that were seen."""
        return self._unrolled.get(space, self._draw)

    def _draw(self, space: tuple[int, ...]) -> Vectors | None:
        found = unroll(self._weights, self.grid, space, self._entropy, self._count)
        # Devices have the weights that were scattered, whatever became of those here.
        return found if found is not None and self.matches_whole(self._weights) else None

    def tolerance(
        self, x: Tensor, y: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Return τ for each sample and vector, (batch, k) float64. Arguments and errors as for `accepts`."""
        return self.expect(x, columns=columns, rows=rows).tolerance(y)

    def residue(
        self, x: Tensor, y: Tensor, *, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Return |r y − s x| / σ for each sample and vector, (batch, k) float64; 0 where nothing is off.

        Arguments and errors as for `accepts`, which allows at most z.
        """
        return self.expect(x, columns=columns, rows=rows).residue(y)

    def matches(
        self, rectangle: Tensor, *, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
    ) -> bool:
        """Say whether weights are those that the secrets were drawn for, to the last bits of float32.

        Only float64 rounding is allowed for, by its worst case, so a rectangle that fits is never refused.

        Args:
            rectangle: weights as `blocks.grid.rectangle` cuts them; any shape is answered.
            rows: rows of the grid, None for all that the columns reach.
            columns: columns of the grid, None for all; a column of several groups comes alone.

        Raises:
            InputError: `rows` was not named in `apart`.
        """
        secrets = self._keeping.select(rows, columns)
        groups = self.grid.groups if columns is None else self.grid.columns[columns[0]].groups
        outputs, inputs = secrets.r.shape[1], secrets.s.shape[-1]
        if tuple(rectangle.shape) != (outputs, inputs // groups, *self.grid.size):
            return False
        return _agree(secrets, *project(secrets.r, rectangle, groups))

    def matches_whole(self, weights: Sequence[Rows]) -> bool:
        """Say the same of all weights, stacked as the check got them; some rows at a time are looked at."""
        return _agree(self._keeping.select(None, None), *self._keeping.of(weights))

    def _terms(self, columns: Sequence[int] | None) -> int:
        """Return how many products an output is the sum of."""
        inputs = self.grid.inputs // self.grid.groups
        if columns is not None:
            inputs = min(inputs, sum(self.grid.columns[column].span.size for column in columns))
        return inputs * prod(self.grid.size)


def _agree(secrets: Vectors, s: Tensor, v: Tensor) -> bool:
    """Say whether s is that of the secrets, up to the rounding of the two sums over weights that v is of."""
    # Both err by at most outputs u |r| |W| <= u outputs^1.5 v^.5, u = 2^-53 (Higham 2002, 3.1).
    allowed = 2 * 2.0**-52 * (secrets.r.shape[1] + 2) ** 1.5 * v.sqrt()
    return bool(allowed.isfinite().all() and ((s - secrets.s).abs() <= allowed).all())


class Expectation:
    """What an answer to known inputs is held to; made by `Check.expect`."""

    def __init__(self, expected: Expected, shape: Sequence[int], variance: float, z: float, least: float = 0.0) -> None:
        """Prepare to compare: `least` is allowed whatever the deviation is."""
        self._least = least
        self._expected = expected
        self._shape = tuple(shape)
        self._variance = variance
        self._z = z

    def samples(self, part: slice | Tensor) -> "Expectation":
        """Return what is expected of some samples of the batch, as views if they are a slice."""
        expected, batch = self._expected, len(self._expected.x[part])
        chosen = expected._replace(
            x=expected.x[part], product=expected.product[:, part], energy=expected.energy[:, part]
        )
        return Expectation(chosen, (batch, *self._shape[1:]), self._variance, self._z, self._least)

    def accepts(self, y: Tensor) -> Tensor:
        """Say for each sample whether y is W x: (batch,) bool. Arguments and errors as for `Check.accepts`."""
        self._fit(y)
        found = judge(self._expected, y, self._variance, self._z, self._least)
        if found is None:
            return self._compared(y)
        accepted, sure = found
        if sure is not None:
            again = (~sure).nonzero()[:, 0]
            accepted[again] = self.samples(again)._compared(y[again])  # noqa: SLF001  its own
        return accepted

    def _compared(self, y: Tensor) -> Tensor:
        residue, deviation = self._measure(y)
        tolerance = self._z * deviation + self._least
        return ((residue <= tolerance) & (tolerance < math.inf)).all(dim=1)

    def tolerance(self, y: Tensor) -> Tensor:
        """Return τ for each sample and vector, (batch, k) float64."""
        return self._z * self._measure(y)[1] + self._least

    def residue(self, y: Tensor) -> Tensor:
        """Return |r y − s x| / σ for each sample and vector, (batch, k) float64; 0 where nothing is off."""
        residue, deviation = self._measure(y)
        return torch.where(residue == 0, residue, residue / deviation)

    def _measure(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return |r y − s x| and σ, (batch, k) each."""
        self._fit(y)
        residue, energy = compare(self._expected, y)
        return residue.T, (self._variance * energy).sqrt_().T

    def _fit(self, y: Tensor) -> None:
        if tuple(y.shape) != self._shape:
            raise InputError(f"a check got an answer of shape {tuple(y.shape)}, not {self._shape}")
