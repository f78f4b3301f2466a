"""Images of a gradient Σ_b dy_b x_bᵀ under secret vectors, made from x and dy alone, in one pass over both.

A chunk of a batch is laid out once, as a matrix of channels by samples and positions, beside its squares; images from
both sides and the energies that go with them are products of these.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from awfulowl.blocks.grid import Grid
from awfulowl.verification.sums import BUFFERS, AnyKernel, Transposed, chunks, in_runs, precision, taps


class Laid(NamedTuple):
    """Samples as a matrix for each group, (groups, channels / groups, batch * positions), and its squares.

    Both are good until the next samples are laid in the same place.
    """

    columns: Tensor
    squares: Tensor
    shape: torch.Size


def laid(x: Tensor, dy: Tensor, groups: int, run: int) -> Iterator[tuple[Laid, Laid]]:
    """Yield a batch laid out, some samples at a time.

    Args:
        x: (batch, inputs, *space).
        dy: (batch, outputs, *space').
        groups: of the convolution.
        run: products that will be added up in float32; 0: all is float64.
    """
    count = min(len(chunks(part, precision(run))[0]) for part in (x, dy)) or 1
    for some, others in zip(torch.split(x, count), torch.split(dy, count), strict=True):
        yield _lay(some, groups, precision(run), "x"), _lay(others, groups, precision(run), "dy")


def _lay(x: Tensor, groups: int, dtype: torch.dtype, place: str) -> Laid:
    flat = x.dim() == 2
    own = x if flat else x.transpose(0, 1)
    if not flat or x.dtype != dtype:
        own = BUFFERS.take(dtype, own.shape, place).copy_(own)
    squares = torch.square(own, out=BUFFERS.take(dtype, own.shape, f"{place} squared"))
    columns, squared = (
        one.T.unsqueeze(0) if flat else one.view(groups, x.shape[1] // groups, -1) for one in (own, squares)
    )
    return Laid(columns, squared, x.shape)


def image(grid: Grid, kernel: AnyKernel, secret: Tensor, own: Laid, other: Laid, run: int) -> Tensor:
    """Return Σ_b (secret own_b) other_b, tap by tap: (*size, k, channels of other), float64.

    Args:
        grid: of the panel.
        kernel: the one whose results are at the positions of `own`, and which sees `other`.
        secret: (k, channels of own) float64.
        own: weighed with the secret.
        other: what that is correlated with.
        run: products that are added up in float32 before float64 takes over; 0: all is float64.
    """
    weighed = in_runs(_by_group(secret, own.columns), own.columns, run).to(own.columns.dtype)
    return _correlate(grid, kernel, weighed, own, other, other.columns, run)


def energy(grid: Grid, kernel: AnyKernel, parts: Tensor, own: Laid, other: Laid) -> Tensor:
    """Return Σ_b |own_b|² other_b², tap by tap: (*size, parts, channels of other) float32. Arguments as for `image`."""
    weighed = _by_group(parts, own.squares) @ own.squares
    return _correlate(grid, kernel, weighed, own, other, other.squares, 0).float()


def _by_group(weights: Tensor, columns: Tensor) -> Tensor:
    """Set the groups apart: (k, channels) to (groups, k, channels / groups)."""
    return weights.to(columns.dtype).view(len(weights), len(columns), -1).transpose(0, 1)


def _correlate(
    grid: Grid, kernel: AnyKernel, weighed: Tensor, own: Laid, other: Laid, columns: Tensor, run: int
) -> Tensor:
    """Add up, over samples and positions, what was weighed (groups, k, ...) times what each tap saw of the columns."""
    (groups, k), space = weighed.shape[:2], other.shape[2:]
    if space:
        here = weighed.view(groups, k, own.shape[0], *own.shape[2:])
        shifted = here.new_zeros(groups, prod(grid.size), k, own.shape[0], *space)
        for tap, (targets, sources) in enumerate(taps(kernel, grid.size, own.shape[2:], space)):
            shifted[:, tap][:, :, :, *targets] = here[:, :, :, *sources]
        weighed = shifted.flatten(3).flatten(1, 2)
    sums = in_runs(weighed, columns.mT, run)
    return sums.reshape(groups, *grid.size, k, -1).movedim(0, -2).flatten(-2)


def sketch(grid: Grid, secret: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """Return the image from the left of the gradient of a batch: (*size, k, inputs), float64.

    Args:
        grid: of the panel.
        secret: (k, outputs).
        x: (batch, inputs, *space).
        dy: (batch, outputs, *space').
    """
    kernel = Transposed(grid.kernel)
    return added([image(grid, kernel, secret, theirs, mine, 0) for mine, theirs in laid(x, dy, grid.groups, 0)])


def added(images: Sequence[Tensor]) -> Tensor:
    """Return the sum of images."""
    return images[0] if len(images) == 1 else torch.stack(list(images)).sum(dim=0)
