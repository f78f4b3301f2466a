"""Steps of Adam taken again by the owner for one block: what a device says that its block became is held to this.

Everything is computed in float64 from the inputs and gradients that the device was sent. Beside each number goes how
far an honest device may be off: a gradient is a sum of float32 products, off by at most Z of its standard deviations
(`rounding`, `images`); each operation of the step rounds once, and may call a number 0 that is below the normal ones of
float32; and errors are carried along as if they never cancelled. Where a mean square is nothing but rounding (a
gradient that is 0 but for cancellation), the direction of the update is anybody's guess, and no more is asked than that
the weight moved no further than a step can.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.blocks.kernels import Kernel, gradient
from awfulowl.verification.freivalds import Z
from awfulowl.verification.rounding import MEAN_SQUARE, SMALLEST, UNIT_ROUNDOFF
from awfulowl.verification.steps import Runs, Step, cut_in_runs, gained, gained_by_runs
from awfulowl.verification.vectors import project

_ROUNDINGS: Final = 4 * UNIT_ROUNDOFF
"""Each line of a step rounds each of its numbers at most so often."""

_FURTHER: Final = 1.01
"""Rounding may take a momentum a little further than its mean square allows."""


class Gradient(NamedTuple):
    """The gradient of a block, and how far an honest device's may be from it: float64, of the block's shape."""

    value: Tensor
    off: Tensor


def gradient_of(kernel: Kernel, shape: Sequence[int], pairs: Sequence[tuple[Tensor, Tensor]], groups: int) -> Gradient:
    """Return the gradient of a block along some batches.

    Args:
        kernel: the block's.
        shape: the block's, (outputs, inputs / groups, *size).
        pairs: of each batch x (samples, inputs, *space) and dy (samples, outputs, *space').
        groups: of a convolution, in this block.
    """
    nothing = torch.zeros(*shape, dtype=torch.float64)
    step = Step.total([Step(nothing, nothing, 0), *(_step_along(kernel, shape, x, dy, groups) for x, dy in pairs)])
    noise = gained(step, step.image.square())
    if step.runs is not None:
        noise += gained_by_runs(step, step.runs)
    return Gradient(step.image, Z * UNIT_ROUNDOFF * (MEAN_SQUARE * noise).sqrt() + step.terms * SMALLEST)


def _step_along(kernel: Kernel, shape: Sequence[int], x: Tensor, dy: Tensor, groups: int) -> Step:
    mine, theirs, size = x.double(), dy.double(), tuple(shape[2:])
    rows = x.dim() == 2
    runs = cut_in_runs(mine, theirs) if rows else list(zip(torch.split(mine, 1), torch.split(theirs, 1), strict=True))
    value, squares = (torch.zeros(*shape, dtype=torch.float64) for _ in range(2))
    for some, others in runs:
        found = gradient(kernel, size, some, others, groups)
        value += found
        squares += found.square()
    energy = gradient(kernel, size, mine.square(), theirs.square(), groups)
    terms = len(dy) * math.prod(dy.shape[2:])
    alone = rows and len(runs) == 1
    return Step(value, energy, terms, None if alone else Runs(squares, terms / max(1, len(runs))))


class Reworked:
    """A block, where it should be, and how far from there it may be."""

    def __init__(self, state: Sequence[Tensor]) -> None:
        """Begin with a state that is known: weights, and what was lost, the momentum and the mean square if any."""
        parts = [part.double() for part in state]
        nothing = torch.zeros_like(parts[0])
        weight, lost, self._momentum, self._square = (*parts, *[nothing] * (4 - len(parts)))
        self._weight = weight + lost
        self._off = (nothing, nothing, nothing)
        self._kinds: set[tuple[float, float]] = set()
        self._limited: Tensor | None = None

    def step(self, rule: Adaptation, along: Gradient) -> None:
        """Take a step."""
        weight, (of_weight, of_momentum, of_square) = self._weight, self._off
        momentum, of_momentum = _sum(
            (rule.momentum_momentum, self._momentum, of_momentum),
            (rule.momentum_weight, weight, of_weight),
            (rule.momentum_gradient, along.value, along.off),
        )
        root, of_root = _sum((rule.square_weight, weight, of_weight), (rule.square_gradient, along.value, along.off))
        square = rule.square_square * self._square + root.square()
        of_square = rule.square_square * of_square + (2 * root.abs() + of_root) * of_root
        of_square = of_square + _ROUNDINGS * square + 2 * SMALLEST
        roots = ((square - of_square).clamp_min(0).sqrt(), square.sqrt(), (square + of_square).sqrt())
        least, divisor, most = (rule.lift * one + rule.epsilon for one in roots)
        update = momentum / divisor
        of_divisor = torch.maximum(1 / least - 1 / divisor, 1 / divisor - 1 / most)
        of_update = of_momentum / least + momentum.abs() * of_divisor + 2 * _ROUNDINGS * update.abs()
        of_update = torch.where(self._is_limited(rule), of_update.clamp_max(2 * _FURTHER * rule.furthest), of_update)
        change, of_change = _sum((rule.weight_weight, weight, of_weight), (rule.weight_momentum, update, of_update))
        self._weight = weight + change
        self._momentum, self._square = momentum, square
        # A device keeps 48 bits of a weight: what was lost is rounded when the change is added to it, and once more.
        lost = 2 * UNIT_ROUNDOFF**2 * self._weight.abs()
        self._off = (of_weight + of_change + lost, of_momentum, of_square)

    def _is_limited(self, rule: Adaptation) -> Tensor:
        """Say of which numbers `rule.furthest` holds: their means were always made alike, and no square is lost."""
        if self._limited is None:  # what came before the log: maybe a liar's, whose blocks an honest device took over
            most = _FURTHER * rule.furthest * rule.lift
            self._limited = (self._momentum.abs() <= most * self._square.sqrt()) | (most == math.inf)
        self._kinds.add((rule.momentum_momentum, rule.square_square))
        lost = rule.lift**2 * SMALLEST > rule.epsilon**2 * (1 - rule.square_square)
        return self._limited & (len(self._kinds) == 1 and not lost)

    def states(self, secret: Tensor, image: Tensor, groups: int) -> bool:
        """Say whether a device may state now what has such an image; products take float32 of what it keeps.

        Args:
            secret: (k, outputs).
            image: (*size, k, inputs).
            groups: of a convolution, in this block.
        """
        off = self._off[0] + 2 * UNIT_ROUNDOFF * self._weight.abs()
        (own,) = project(secret, self._weight, groups, (1,))
        (allowed,) = project(secret.abs(), off, groups, (1,))
        return bool(((image - own).abs() <= allowed + SMALLEST).all())

    def agrees(self, state: Sequence[Tensor]) -> bool:
        """Say whether a device's block (weights, lost, momentum, mean square) is what it should be by now."""
        return self.residue(state) <= 1

    def residue(self, state: Sequence[Tensor]) -> float:
        """Return how far the furthest number is from where it should be, as a multiple of what it may be off."""
        if len(state) != 4 or any(part.shape != self._weight.shape for part in state):
            return math.inf
        weight, lost, momentum, square = (part.double() for part in state)
        found = zip((weight + lost, momentum, square), (self._weight, self._momentum, self._square), strict=True)
        away = torch.stack([(seen - own).abs() for seen, own in found])
        return float(torch.where(away == 0, 0.0, away / torch.stack(self._off)).max())


def _sum(*terms: tuple[float, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return Σ factor value, and how far it may be off when each value may be off by so much."""
    value = torch.stack([factor * own for factor, own, _ in terms]).sum(dim=0)
    off = torch.stack([abs(factor) * (other + _ROUNDINGS * own.abs()) for factor, own, other in terms]).sum(dim=0)
    return value, off + len(terms) * SMALLEST
