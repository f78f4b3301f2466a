"""One step of gradient descent, as a linear map of weights, momentum and gradient.

With the gradient G, every variant of stochastic gradient descent is

    M <- a M + b W + c G,        W <- W + d W + e M + f G,

with the new M and the old W in the second line, and six numbers that the owner computes. A device needs to know
nothing else, and what is linear in W and M (the owner's checks) moves by the same six numbers.

Devices keep a second float32 beside every weight, what was lost when it was rounded: W + C has some 48 bits, of which
products use the first 24. Without it updates below half a unit in the last place of a weight, such as a decay of
1e-7, would vanish (Kahan 1965; the sum is Knuth's, exact whatever is larger: TAOCP 2, 4.2.2, theorem B).
"""

import math
from collections.abc import Sequence
from typing import Final, Protocol, Self

import msgspec
import numpy as np
import torch
from torch import Tensor

from awfulowl.errors import InputError

_CHUNK: Final = 1 << 16
"""Weights at a time: what an update reads and writes stays in a core's cache."""


class Descent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="descent"):
    """The six numbers a to f, each a float32: devices round a number to that anyway, and the owner has to know."""

    momentum_momentum: float
    momentum_weight: float
    momentum_gradient: float
    weight_weight: float
    weight_momentum: float
    weight_gradient: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, msgspec.structs.astuple(self))):
            raise InputError(f"{self} is no step: its numbers are not finite")

    @classmethod
    def sgd(
        cls,
        lr: float,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        decoupled: bool = False,
        scale: float = 1.0,
        first: bool = False,
    ) -> Self:
        """Return one step of `torch.optim.SGD`.

        Args:
            lr: the learning rate.
            momentum: how much of it is left after a step, below 1.
            dampening: how much of the gradient does not enter the momentum.
            weight_decay: added to the gradient as so many times the weights.
            nesterov: whether the step goes along the momentum that the next would have.
            decoupled: whether weights decay by lr * weight_decay by themselves, not through the gradient
                (Loshchilov and Hutter 2019).
            scale: what gradients are multiplied with, as when they are clipped.
            first: whether the momentum begins: PyTorch does not dampen then.

        Raises:
            InputError: a number is not finite, or too large for float32.
        """
        coupled = 0.0 if decoupled else weight_decay
        enters = 1.0 if first else 1.0 - dampening
        alone = -lr * weight_decay if decoupled else 0.0
        if momentum == 0.0:
            numbers = (0.0, 0.0, 0.0, alone - lr * coupled, 0.0, -lr * scale)
        elif nesterov:
            numbers = (
                momentum,
                enters * coupled,
                enters * scale,
                alone - lr * coupled,
                -lr * momentum,
                -lr * scale,
            )
        else:
            numbers = (momentum, enters * coupled, enters * scale, alone, -lr, 0.0)
        with np.errstate(over="ignore"):
            return cls(*(float(np.float32(number)) for number in numbers))

    @property
    def parts(self) -> int:
        """How many tensors a block has under this rule: weights, what they lost, and maybe a momentum."""
        return 3 if self.has_momentum else 2

    @property
    def linear(self) -> "Descent":
        """What images of weights and momentum follow: the whole step."""
        return self

    @property
    def has_momentum(self) -> bool:
        """Whether the momentum takes part; otherwise it stays as it is, for later steps."""
        return any((self.momentum_momentum, self.momentum_weight, self.momentum_gradient))

    @property
    def numbers(self) -> tuple[float, float, float, float, float, float]:
        """The six numbers, where a momentum that takes no part stays as it is: a = 1, and e = 0."""
        a, b, c, d, e, f = msgspec.structs.astuple(self)
        return (a, b, c, d, e, f) if self.has_momentum else (1.0, b, c, d, 0.0, f)

    def moved(self, weight: Tensor, momentum: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return what becomes of something linear in weights, momentum and gradient: the new (weight, momentum)."""
        own = ((self.weight_weight, weight), (self.weight_gradient, gradient))
        if not self.has_momentum:
            return _plus(weight, *own), momentum
        enters = ((self.momentum_weight, weight), (self.momentum_gradient, gradient))
        after = _plus(momentum * self.momentum_momentum, *enters)
        return _plus(weight, (self.weight_momentum, after), *own), after

    def step(self, state: Sequence[Tensor], gradient: Tensor, scratch: Sequence[Tensor]) -> None:
        """Take the step in place; see `Rule`."""
        weight, lost, *momentum = state
        change, total = scratch
        if self.has_momentum:
            (after,) = momentum
            after.mul_(self.momentum_momentum).add_(gradient, alpha=self.momentum_gradient)
            if self.momentum_weight:
                after.add_(weight, alpha=self.momentum_weight)
            gradient.mul_(self.weight_gradient) if self.weight_gradient else gradient.zero_()
            change = gradient.add_(after, alpha=self.weight_momentum)
        else:
            change = gradient.mul_(self.weight_gradient)
        if self.weight_weight:
            change.add_(weight, alpha=self.weight_weight)
        add_exactly(weight, lost, change, total)


def _plus(total: Tensor, *products: tuple[float, Tensor]) -> Tensor:
    for factor, tensor in products:
        if factor:
            total = torch.add(total, tensor, alpha=factor)
    return total


class Rule(Protocol):
    """A step, of any kind."""

    @property
    def parts(self) -> int:
        """How many tensors a block has under this rule."""

    def step(self, state: Sequence[Tensor], gradient: Tensor, scratch: Sequence[Tensor]) -> None:
        """Take the step in place: `gradient` and both tensors of `scratch` are overwritten; all are of one shape."""


def descend(rule: Rule, state: Sequence[Tensor], gradient: Tensor) -> None:
    """Take a step in place.

    Args:
        rule: the step.
        state: `rule.parts` tensors: weights, what was lost when they were rounded, the momentum where the rule has
            one, and the mean square where it has one; float32 of one shape, contiguous.
        gradient: of the same shape; overwritten.
    """
    flat = [one.view(-1) for one in (*state, gradient)]
    scratch = [torch.empty(min(_CHUNK, len(flat[0])), dtype=torch.float32, device=gradient.device) for _ in range(2)]
    for start in range(0, len(flat[0]), _CHUNK):
        *parts, along = (one[start : start + _CHUNK] for one in flat)
        rule.step(parts, along, [one[: len(along)] for one in scratch])


def add_exactly(weight: Tensor, lost: Tensor, change: Tensor, scratch: Tensor) -> None:
    """Add a change to weights and to what was lost of them, in place; `change` and `scratch` are overwritten."""
    change.add_(lost)
    # Two-sum: total + lost = weight + change, exactly.
    total = torch.add(weight, change, out=scratch)
    seen = torch.sub(total, weight, out=lost)  # what of the change arrived
    change.sub_(seen)
    seen.sub_(total).add_(weight)  # minus what of the weight was lost
    lost.add_(change)
    weight.copy_(total)
