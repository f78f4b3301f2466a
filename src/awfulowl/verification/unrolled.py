"""Secrets for a convolution over positions that are known: those of the dense product that it is there.

With r over the channels of the outputs, s x takes k products for each tap and each input: 27 for three vectors and taps
of 3 x 3. With r over all outputs at all positions it takes k, and a lie is missed as rarely as in a dense product,
whatever its shape. The price is k numbers for each input and output of a sample in place of a channel's.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from awfulowl.allocator import give_back
from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import backward, output_shape
from awfulowl.randomness import Entropy
from awfulowl.verification.vectors import Vectors

_MOST_NUMBERS: Final = 1 << 18
"""Inputs and outputs of a sample; three vectors over them take 9 MiB. More is checked by channels."""

_STREAMED: Final = 1 << 16
"""Weights held in float64 at a time."""


@torch.no_grad()
def unroll(
    weights: Sequence[Tensor], grid: Grid, space: Sequence[int], entropy: Entropy, vectors: int
) -> Vectors | None:
    """Draw secrets for all inputs and all outputs of a panel's convolution.

    Args:
        weights: (outputs, inputs / groups, *size) each; together they have the outputs of the grid.
        grid: how the weights are cut.
        space: the spatial shape of the inputs.
        entropy: where the secrets come from.
        vectors: independent secret vectors, k.

    Returns:
        r (k, outputs * positions), s and v (k, inputs * prod(space)); None where there are too many of them, or none.
    """
    positions = output_shape(grid.kernel, grid.outputs, grid.size, torch.Size((1, grid.inputs, *space)))[2:]
    inputs, outputs = grid.inputs * prod(space), grid.outputs * prod(positions)
    if min(*positions, inputs, outputs) < 1 or inputs + outputs > _MOST_NUMBERS:
        return None
    r = entropy.normal(vectors, outputs)
    by_channel = r.view(vectors, grid.outputs, *positions)
    s, v = torch.zeros(2, vectors, grid.inputs, *space, dtype=torch.float64)
    for start, stop, weight in _slices(weights, grid):
        own = by_channel[:, start:stop]
        s += backward(grid.kernel, weight, own, tuple(space), grid.groups)
        v += backward(grid.kernel, weight.square(), own.square(), tuple(space), grid.groups)
    give_back()  # what convolutions in float64 took on the way
    unit = float(v.max()) or 1.0
    return Vectors(r, s.flatten(1), (v / unit).float().flatten(1), unit, r.square().float())


def _slices(weights: Sequence[Tensor], grid: Grid) -> Iterator[tuple[int, int, Tensor]]:
    """Yield weights as devices hold them, in float64, some outputs at a time; groups stay together."""
    start = 0
    for weight in weights if grid.groups == 1 else [torch.cat(list(weights))]:
        rows = max(1, _STREAMED // weight[0].numel()) if grid.groups == 1 else len(weight)
        for some in torch.split(weight, rows):
            yield start, start + len(some), some.float().double()
            start += len(some)
