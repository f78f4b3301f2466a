"""What a batch adds to the images of weights under training, and what rounding leaves behind of it (`images`)."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from torch import Tensor

from awfulowl.verification.gradients import added
from awfulowl.verification.rounding import ONE_SIDED

LEAST: Final = 1e-300

_LONG: Final = 512
"""Rows of a batch that may be the tokens of fewer samples, whose products are alike."""

_RUNS: Final = 8
"""Runs that such a batch is cut into: enough that what cancels over all of it does not within each."""


class Runs(NamedTuple):
    """How large sums are on their way: Σ_r |G_r|² (*size, parts, b) float64, G_r being what a run of terms adds.

    Runs are the positions of a sample, or neighbouring rows of a long batch: `terms` in each, as a mean.
    """

    energy: Tensor
    terms: float


class Step(NamedTuple):
    """What a gradient adds to a side.

    `image` is (*size, k, b) float64, `energy` is Σ_b |dy_b|² x_b² (*size, parts, b), and `terms` is the number of
    products in each number of the gradient. Without `runs` each term is one.
    """

    image: Tensor
    energy: Tensor
    terms: int
    runs: Runs | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return math.isfinite(float(self.image.sum())) and math.isfinite(float(self.energy.max()))

    @staticmethod
    def total(steps: Sequence["Step"]) -> "Step":
        """Return the sum of some."""
        image, energy = added([step.image for step in steps]), added([step.energy for step in steps])
        terms = sum(step.terms for step in steps)
        if all(step.runs is None for step in steps):
            return Step(image, energy, terms)
        runs = [step.runs or Runs(step.energy.double(), 1.0) for step in steps]
        mean = sum(run.terms * step.terms for run, step in zip(runs, steps, strict=True)) / max(1, terms)
        return Step(image, energy, terms, Runs(added([run.energy for run in runs]), mean))


def gained(step: Step, size: Tensor) -> Tensor:
    """Return the variance of what sums of float32 products leave behind in a gradient; `size` is Σ_i G_ij²."""
    # 1 for products of random signs, `terms` for equal ones; more where energies are below what float32 can hold
    alike = (size / step.energy.double().clamp_min(LEAST)).clamp_max(step.terms)
    each = (step.terms + 3) / 3
    return each * (step.energy + size) + ONE_SIDED * step.terms * alike * size


def gained_by_runs(step: Step, runs: Runs) -> Tensor:
    """Return what `gained` lacks where sums are larger on their way than at their end."""
    alike = (runs.energy / step.energy.double().clamp_min(LEAST)).clamp_max(runs.terms)
    between = (step.terms + 3) / 3 * (runs.energy - step.energy).clamp_min(0)
    return between + ONE_SIDED * step.terms * alike.square() / runs.terms * runs.energy


def cut_in_runs(x: Tensor, dy: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return a batch of rows run by run: in one piece where it is so short that each row is a run of its own."""
    count = _RUNS if len(x) >= _LONG else 1
    return list(zip(x.chunk(count), dy.chunk(count), strict=True))
