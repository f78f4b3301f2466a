"""How far two honest passes of a network may differ, and which rows of answers differ by more.

Every output of a layer of n products is off by a rounding error of its own, of mean square

    sigma^2 = variance(n + 1) (w^2 x^2 + b^2 + y^2)

whoever adds them up, and in whatever order (`verification.rounding`). To first order the answers are off by the sum of
these errors, each times the derivative J of the answer with respect to that output. They are independent, so that the
answer is off by sqrt(sum J^2 sigma^2), and two passes differ by sqrt(2) times that. `Z` of these deviations are
allowed: such sums have Gaussian tails at least (Hoeffding), so an honest row is called wrong with probability below
10^-20. Derived, then, and not fitted; a worst-case bound would let a lie of one per cent pass.
"""

import copy
from typing import Final

import torch
from torch import Tensor, nn

from awfulowl.verification.rounding import variance

Z: Final = 10.0
"""Deviations that are allowed."""


class _Watched:
    """A linear layer during a pass: its outputs, and the mean square of their rounding errors."""

    def __init__(self, layer: nn.Module) -> None:
        self._squares = copy.deepcopy(layer)
        terms = 1
        for parameter in self._squares.parameters():
            parameter.detach_().square_()
            terms = max(terms, parameter[0].numel() + 1)
        self._variance = variance(terms)
        self._handle = layer.register_forward_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.output = output
        with torch.no_grad():
            self.mean_square = self._variance * (self._squares(inputs[0].square()) + output.square())

    def leave(self) -> None:
        """Watch no longer."""
        self._handle.remove()


@torch.enable_grad()
def tolerance(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return how far each answer of two honest passes in float32 may differ.

    Args:
        model: a network whose weights are all in `Linear` and `Conv2d`, each used once; from (batch, ...) to
            (batch, answers).
        inputs: (batch, ...).

    Returns:
        (batch, answers).
    """
    watched = [_Watched(layer) for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    try:
        answers = model(inputs.detach().requires_grad_())
    finally:
        for one in watched:
            one.leave()
    outputs = [one.output for one in watched]
    mean_squares = torch.zeros_like(answers)
    for number in range(answers.shape[1]):
        slopes = torch.autograd.grad(answers[:, number].sum(), outputs, retain_graph=True)
        for slope, one in zip(slopes, watched, strict=True):
            mean_squares[:, number] += (slope.square() * one.mean_square).flatten(1).sum(1)
    return Z * (2 * mean_squares).sqrt().detach()


def wrong_rows(ours: Tensor, theirs: Tensor, allowed: Tensor) -> Tensor:
    """Return which rows of answers differ by more than allowed, or are not numbers: (batch,) bool.

    Args:
        ours: (batch, answers), computed here.
        theirs: (batch, answers), from the fleet.
        allowed: (batch, answers).
    """
    return ~((ours.double() - theirs.double()).abs() <= allowed).all(1)
