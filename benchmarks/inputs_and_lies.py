"""Kinds of inputs and kinds of lies that benchmarks of the check draw: one table of each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

Draw = Callable[[Sequence[int], torch.Generator], Tensor]
"""From a shape (batch, channels, *space) to inputs."""


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator)


def relu(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return normal(shape, generator).relu_()


def large_mean(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return normal(shape, generator).add_(10)


def sparse(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return normal(shape, generator) * (torch.rand(tuple(shape), generator=generator) < 0.01)


def heavy_tailed(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Student's t with two degrees of freedom."""
    scale = torch.empty(tuple(shape)).exponential_(generator=generator)
    return normal(shape, generator).div_(scale.sqrt_())


def constant(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """One number throughout each sample."""
    batch, *others = shape
    return torch.rand(batch, *[1] * len(others), generator=generator).expand(tuple(shape)).contiguous()


INPUTS: Final[Mapping[str, Draw]] = {
    "normal": normal,
    "relu": relu,
    "large mean": large_mean,
    "sparse": sparse,
    "heavy-tailed": heavy_tailed,
    "constant": constant,
}


class Told(NamedTuple):
    """The answer (batch, outputs, *space) that a liar bends, and what it has at hand.

    `multiply` takes other weights, for these inputs; `draw` is `torch.randn`.
    """

    y: Tensor
    weights: Tensor
    multiply: Callable[[Tensor], Tensor]
    draw: Callable[..., Tensor]


Lie = Callable[[Told], Tensor]
"""Return an error of the answer's shape, of any scale."""


def move_rows(told: Told, *steps: float) -> Tensor:
    rows = told.draw(told.y.shape[1]).argsort()[: len(steps)]
    direction = torch.zeros_like(told.y)
    direction[:, rows] = torch.tensor(steps, dtype=torch.float32).view(-1, *[1] * (told.y.dim() - 2))
    return direction


def low_rank(told: Told) -> Tensor:
    product_of_two = told.draw(len(told.weights), 2) @ told.draw(2, told.weights[0].numel())
    return told.multiply(product_of_two.view_as(told.weights))


def one_channel(told: Told) -> Tensor:
    return only(told, told.draw(told.y.shape[1]).argmax(), slice(None))


def one_position(told: Told) -> Tensor:
    return only(told, slice(None), told.draw(told.y[0, 0].numel()).argmax())


def one_number(told: Told) -> Tensor:
    return only(told, told.draw(told.y.shape[1]).argmax(), told.draw(told.y[0, 0].numel()).argmax())


def only(told: Told, channel: Tensor | slice, position: Tensor | slice) -> Tensor:
    """Return random errors there, and 0 elsewhere."""
    error, drawn = (torch.zeros_like(told.y).flatten(2), told.draw(*told.y.shape).flatten(2))
    error[:, channel, position] = drawn[:, channel, position]
    return error.view_as(told.y)


def opposite_positions(told: Told) -> Tensor:
    """Errors at two positions whose sum is 0."""
    error = torch.zeros_like(told.y).flatten(2)
    one, other = told.draw(error.shape[2]).argsort()[:2]
    error[:, :, one] = told.draw(*error.shape[:2])
    error[:, :, other] = -error[:, :, one]
    return error.view_as(told.y)


LIES: Final[Mapping[str, Lie]] = {
    "one row": lambda told: move_rows(told, 1),
    "two rows": lambda told: move_rows(told, 1, -1),
    "random": lambda told: told.draw(*told.y.shape),
    "low rank": low_rank,
    "stale answer": lambda told: told.y.flip(0) - told.y,
    "another block's": lambda told: told.multiply(told.draw(*told.weights.shape)) - told.y,
    "zeros": lambda told: -told.y,
    "sign": lambda told: -2 * told.y,
}
LIES_AT_POSITIONS: Final[Mapping[str, Lie]] = {
    "one channel": one_channel,
    "one position": one_position,
    "one number": one_number,
    "opposite positions": opposite_positions,
}
"""Of convolutions, which have positions."""


def lies_about(axes: int) -> Mapping[str, Lie]:
    """Return the lies that can be told about answers with so many axes of positions."""
    return {**LIES, **LIES_AT_POSITIONS} if axes else LIES
