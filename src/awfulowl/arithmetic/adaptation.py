"""One step of Adam, in ten numbers.

With the gradient G, every variant of Adam that is not AMSGrad is

    M <- a M + b W + c G,    V <- v V + (s W + t G)²,    W <- W + d W + e M / (l √V + ε),

elementwise, with the old W in the first two and the new M and V in the last (Kingma and Ba 2015, algorithm 1; decoupled
decay: Loshchilov and Hutter 2019). M is linear in what it is made of, so images of it can follow (`linear`); V and W
are not.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import msgspec
import numpy as np
import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent, add_exactly
from awfulowl.errors import InputError


class Adaptation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="adam"):
    """The ten numbers, each a float32: a, b, c; v, s, t; d, e; l and ε."""

    parts: ClassVar[int] = 4
    """Tensors that a block has: weights, what they lost, M and V."""
    has_momentum: ClassVar[bool] = True

    momentum_momentum: float
    momentum_weight: float
    momentum_gradient: float
    square_square: float
    square_weight: float
    square_gradient: float
    weight_weight: float
    weight_momentum: float
    lift: float
    epsilon: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, msgspec.structs.astuple(self))):
            raise InputError(f"{self} is no step: its numbers are not finite")
        if not (self.epsilon > 0 and self.lift > 0 and 0 <= self.square_square <= 1):
            raise InputError(f"{self} is no step: it may divide by nothing")

    @classmethod
    def adam(
        cls,
        lr: float,
        step: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        scale: float = 1.0,
    ) -> Self:
        """Return one step of `torch.optim.Adam`.

        Args:
            lr: the learning rate.
            step: which step it is, from 1: both means begin at 0, and are raised by what that makes them too small.
            betas: how much of M and of V is left after a step.
            epsilon: added to √V.
            weight_decay: added to the gradient as so many times the weights.
            decoupled: whether weights decay by lr * weight_decay by themselves, as in `torch.optim.AdamW`.
            scale: what gradients are multiplied with, as when they are clipped.

        Raises:
            InputError: a number is not finite, or a divisor is not above 0.
        """
        first, second = betas
        if not (0 <= first < 1 and 0 <= second < 1):
            raise InputError(f"betas={betas}: both are at least 0 and below 1")
        coupled = 0.0 if decoupled else weight_decay
        root = math.sqrt(1 - second)
        numbers = (
            *(first, (1 - first) * coupled, (1 - first) * scale),
            *(second, root * coupled, root * scale),
            *(-lr * weight_decay if decoupled else 0.0, -lr / (1 - first**step)),
            *(1 / math.sqrt(1 - second**step), epsilon),
        )
        with np.errstate(over="ignore", under="ignore"):
            return cls(*(float(np.float32(number)) for number in numbers))

    @property
    def linear(self) -> Descent:
        """What images of M follow; those of the weights stay where they are."""
        return Descent(self.momentum_momentum, self.momentum_weight, self.momentum_gradient, 0.0, 0.0, 0.0)

    @property
    def furthest(self) -> float:
        """How many times `weight_momentum` a weight can move at most, but for its decay.

        |M| <= C √V by Cauchy and Schwarz, with C² = Σ_k (c a^k)² / (t² v^k), for means that began at 0.
        """
        shrinking = self.momentum_momentum**2 / self.square_square if self.square_square else math.inf
        if shrinking >= 1 or not self.square_gradient:
            return math.inf
        return abs(self.momentum_gradient / self.square_gradient) / math.sqrt(1 - shrinking) / self.lift

    def step(self, state: Sequence[Tensor], gradient: Tensor, scratch: Sequence[Tensor]) -> None:
        """Take the step in place; see `descent.Rule`."""
        weight, lost, momentum, square = state
        change, total = scratch
        momentum.mul_(self.momentum_momentum).add_(gradient, alpha=self.momentum_gradient)
        if self.momentum_weight:
            momentum.add_(weight, alpha=self.momentum_weight)
        gradient.mul_(self.square_gradient)
        if self.square_weight:
            gradient.add_(weight, alpha=self.square_weight)
        square.mul_(self.square_square).addcmul_(gradient, gradient)
        divisor = torch.sqrt(square, out=gradient).mul_(self.lift).add_(self.epsilon)
        change = torch.div(momentum, divisor, out=change).mul_(self.weight_momentum)
        if self.weight_weight:
            change.add_(weight, alpha=self.weight_weight)
        add_exactly(weight, lost, change, total)
