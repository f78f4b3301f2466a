"""Exact products here, from floats to floats: what devices compute, rounded and scaled as the owner does it."""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import Integers, fewest_bytes
from awfulowl.arithmetic.products import Backend, fastest
from awfulowl.arithmetic.quantise import dequantise, quantise, rounded, steps
from awfulowl.blocks.kernels import Dense, Kernel
from awfulowl.errors import InputError, ModelError


class Rounded:
    """Weights seen as integers: a view of some floats, rounded where and when it is looked at."""

    def __init__(self, weight: Tensor, numbers: Integers, name: str = "a layer") -> None:
        """Look at weights; `name` is the layer's in errors.

        Raises:
            ModelError: weights are not finite.
        """
        self._weight = weight
        self._numbers = numbers
        self.steps: Final = steps(weight, numbers)
        if not bool(self.steps.isfinite().all()):
            raise ModelError(f"{name}: weights are not finite, and integers have no infinity and no NaN")

    @property
    def shape(self) -> torch.Size:
        """The shape of the weights."""
        return self._weight.shape

    def __len__(self) -> int:
        """Return how many outputs there are."""
        return len(self._weight)

    def __getitem__(self, rows: slice) -> Tensor:
        """Return the integers of some outputs."""
        return quantise(self._weight[rows], self.steps[rows], self._numbers)

    def pieces(self, count: int) -> Iterator[Tensor]:
        """Yield the integers of all outputs, about `count` numbers at a time."""
        step = max(1, count // max(1, self._weight[0].numel()))
        return (self[slice(start, start + step)] for start in range(0, len(self), step))


_PIECE: Final = 1 << 20


def largest_sum(weights: Sequence[Rounded], numbers: Integers) -> int:
    """Return the largest |W x| that inputs in [-largest, largest] can lead to: their size times a row's Σ |W_ij|."""
    sums = (piece.flatten(1).abs().sum(1, dtype=torch.int64).max() for one in weights for piece in one.pieces(_PIECE))
    return numbers.largest * max(map(int, sums))


class LocalProduct:
    """y = W x in integers: rounds the input, multiplies exactly, scales the answer back. Holds integer weights."""

    def __init__(
        self, weights: Sequence[Tensor | Rounded], kernel: Kernel, groups: int, numbers: Integers, name: str = ""
    ) -> None:
        """Round weights (outputs, inputs / groups, *size), stacked along their outputs, as far as they are not yet.

        `name` is the layer's in errors; empty where the model itself is the layer.

        Raises:
            ModelError: weights are not finite.
        """
        self._name = name or "the model"
        rounded = [one if isinstance(one, Rounded) else Rounded(one, numbers, self._name) for one in weights]
        self._numbers = numbers
        self._kernel = kernel
        self._groups = groups
        self._steps = torch.cat([one.steps for one in rounded])
        self._backend: Backend = fastest()
        self._weights = self._backend.prepare(torch.cat([one[slice(None)] for one in rounded]))
        self._width = fewest_bytes(largest_sum(rounded, numbers))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product in float32.

        Args:
            x: (..., inputs) for a dense product, (batch, inputs, *space) for a convolution; float32.

        Raises:
            InputError: an input is not finite.
        """
        dense = isinstance(self._kernel, Dense)
        flat = x.reshape(-1, x.shape[-1]) if dense else x
        if flat.numel() == 0:
            y = self._multiply(flat.new_zeros(1, *flat.shape[1:]))[: len(flat)]
        else:
            y = self._multiply(flat)
        return y.reshape(*x.shape[:-1], y.shape[1]) if dense else y

    def _multiply(self, x: Tensor) -> Tensor:
        input_steps, integers = rounded(x, self._numbers)
        if not bool(input_steps.isfinite().all()):
            raise InputError(f"{self._name}: the inputs are not finite, and integers have no infinity and no NaN")
        y = self._backend.multiply(self._kernel, self._weights, integers, self._groups, self._width)
        out = torch.empty(y.shape, dtype=torch.float32)
        dequantise(y, input_steps, self._steps, out)
        return out
