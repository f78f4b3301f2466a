"""Round floats to integers and back: x ≈ step · q, one step for each weight row or input vector.

Symmetric, without an offset, so that a product of integers is the product of the floats up to one factor
(Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", 2018,
with zero points of 0). Every operation is element by element and rounded as IEEE 754 says, so the integers are the
same on every machine.
"""

from typing import Final

import torch
from torch import Tensor

from awfulowl.arithmetic import compiled
from awfulowl.arithmetic.numbers import Integers

_SMALLEST_STEP: Final = 2.0**-126
"""The smallest normal float32: vectors of zeros, and of what is no larger than rounding, become zeros."""

_LARGEST_STEP: Final = 2.0**60
"""Times an integer of 63 bits it is still a float32; samples with larger steps are scaled in float64."""


@torch.no_grad()
def steps(x: Tensor, numbers: Integers) -> Tensor:
    """Return the step of each vector: its largest absolute value is `largest` steps.

    Args:
        x: (vectors, ...) float.
        numbers: the integers that it will be rounded to.

    Returns:
        (vectors,) float32; not finite where a vector is not.
    """
    largest = x.float().flatten(1).abs().amax(1)
    return (largest / numbers.largest).clamp_min(_SMALLEST_STEP)


@torch.no_grad()
def quantise(x: Tensor, step: Tensor, numbers: Integers) -> Tensor:
    """Round each vector to whole multiples of its step, ties to even.

    Args:
        x: (vectors, ...) float, finite.
        step: (vectors,) float32, from `steps`.
        numbers: the integers that are wanted.

    Returns:
        Integers of the shape of x, in [-largest, largest].
    """
    scaled = x.float() / step.view(-1, *[1] * (x.dim() - 1))
    return scaled.round_().to(numbers.dtype)


@torch.no_grad()
def rounded(x: Tensor, numbers: Integers) -> tuple[Tensor, Tensor]:
    """Return `steps` and what `quantise` makes of them; where a step is not finite, its integers mean nothing."""
    found = compiled.round_all(x, numbers.largest, _SMALLEST_STEP, numbers.dtype)
    if found is not None:
        return found
    own = steps(x, numbers)
    return own, quantise(x, own, numbers)


@torch.no_grad()
def dequantise(y: Tensor, input_steps: Tensor, weight_steps: Tensor, out: Tensor) -> None:
    """Write y · input step · weight step to `out`.

    Args:
        y: (batch, outputs, *space) integers.
        input_steps: (batch,) float32.
        weight_steps: (outputs,) float32.
        out: float32 of the shape of y.
    """
    space = [1] * (y.dim() - 2)
    of_inputs, of_weights = input_steps.view(-1, 1, *space), weight_steps.view(1, -1, *space)
    if not compiled.scale(y, input_steps, weight_steps, out):
        out.copy_(y)
        out *= of_inputs
        out *= of_weights
    large = input_steps > _LARGEST_STEP
    if bool(large.any()):
        out[large] = (y[large].double() * of_inputs[large].double() * of_weights.double()).float()
