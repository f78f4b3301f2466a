"""Steps of Adam taken again by the owner for one block: what a device says that its block became is held to this.

Everything is computed in float64 from the inputs and gradients that the device was sent. Beside each number goes how
far an honest device may be off: a gradient is a sum of float32 products, off by at most Z of its standard deviations
(`rounding`, `images`); each operation of the step rounds once; and errors are carried along as if they never cancelled.
Where a mean square is nothing but rounding (a gradient that is 0 but for cancellation), the direction of the update is
anybody's guess, and no more is asked than that the weight moved no further than a step can.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.blocks.kernels import Kernel, gradient
from awfulowl.verification.freivalds import Z
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF, variance

_ROUNDINGS: Final = 4 * UNIT_ROUNDOFF
"""Each line of a step rounds each of its numbers at most so often."""

_ONE_SIDED: Final = 1 / (16 * MEAN_SQUARE)
"""As in `images`: sums of equal numbers err in one direction."""

_LEAST: Final = 1e-300


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
    value, energy, terms = torch.zeros(*shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.float64), 0
    for x, dy in pairs:
        mine, theirs = x.double(), dy.double()
        value += gradient(kernel, tuple(shape[2:]), mine, theirs, groups)
        energy += gradient(kernel, tuple(shape[2:]), mine.square(), theirs.square(), groups)
        terms += len(dy) * math.prod(dy.shape[2:])
    square = value.square()
    alike = square / energy.clamp_min(_LEAST)
    one_sided = MEAN_SQUARE * UNIT_ROUNDOFF**2 * _ONE_SIDED * terms * alike * square
    return Gradient(value, Z * (variance(terms) * (energy + square) + one_sided).sqrt())


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
        of_square = rule.square_square * of_square + 2 * root.abs() * of_root + of_root.square() + _ROUNDINGS * square
        divisor = rule.lift * square.sqrt() + rule.epsilon
        least = rule.lift * (square - of_square).clamp_min(0).sqrt() + rule.epsilon
        update = momentum / divisor
        of_update = of_momentum / least + momentum.abs() * (1 / least - 1 / divisor) + 2 * _ROUNDINGS * update.abs()
        # The bound is for means that were always made alike; what came before the log is taken on trust.
        self._kinds.add((rule.momentum_momentum, rule.square_square))
        if len(self._kinds) == 1:
            of_update = of_update.clamp_max(2 * rule.furthest)
        change, of_change = _sum((rule.weight_weight, weight, of_weight), (rule.weight_momentum, update, of_update))
        self._weight = weight + change
        self._momentum, self._square = momentum, square
        # A device keeps 48 bits of a weight: what it loses below them is far under the rounding of the change.
        lost = UNIT_ROUNDOFF**2 * self._weight.abs()
        self._off = (of_weight + of_change + lost, of_momentum, of_square)

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
    return value, off
