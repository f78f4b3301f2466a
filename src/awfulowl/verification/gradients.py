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
from awfulowl.verification.sums import BUFFERS, AnyKernel, Transposed, chunks, taps


class Laid(NamedTuple):
    """Samples as a matrix for each group, (groups, channels / groups, batch * positions), float64; squares are float32.

    Both are good until the next samples are laid in the same place.
    """

    columns: Tensor
    squares: Tensor
    shape: torch.Size


def laid(x: Tensor, dy: Tensor, groups: int) -> Iterator[tuple[Laid, Laid]]:
    """Yield a batch laid out, some samples at a time.

    Args:
        x: (batch, inputs, *space).
        dy: (batch, outputs, *space').
        groups: of the convolution.
    """
    count = min(len(chunks(x)[0]), len(chunks(dy)[0])) or 1
    for some, others in zip(torch.split(x, count), torch.split(dy, count), strict=True):
        yield _lay(some, groups, "x"), _lay(others, groups, "dy")


def _lay(x: Tensor, groups: int, place: str) -> Laid:
    own = x if x.dim() == 2 else x.transpose(0, 1)
    columns = BUFFERS.take(torch.float64, own.shape, place).copy_(own)
    squares = torch.square(own.float(), out=BUFFERS.take(torch.float32, own.shape, place))
    if x.dim() == 2:
        return Laid(columns.T.unsqueeze(0), squares.T.unsqueeze(0), x.shape)
    by_group = (groups, x.shape[1] // groups, x.shape[0] * prod(x.shape[2:]))
    return Laid(columns.view(by_group), squares.view(by_group), x.shape)


class Image(NamedTuple):
    """Σ_b (secret own_b) other_b, tap by tap, and the sum of the squares of what each sample adds.

    Both are (*size, k, channels of other) float64. Where a sample is one product of each number there are no squares.
    """

    total: Tensor
    squares: Tensor | None


def image(grid: Grid, kernel: AnyKernel, secret: Tensor, own: Laid, other: Laid) -> Image:
    """Return the image of what some samples add to a gradient.

    Args:
        grid: of the panel.
        kernel: the one whose results are at the positions of `own`, and which sees `other`.
        secret: (k, channels of own) float64.
        own: weighed with the secret.
        other: what that is correlated with.
    """
    weighed = _weigh(grid, kernel, secret, own.columns, own.shape, other.shape)
    if len(other.shape) == 2:
        return Image(_in_place(grid, len(secret), torch.bmm(weighed, other.columns.mT)), None)
    by_sample = (*weighed.shape[:2], other.shape[0], prod(other.shape[2:]))
    theirs = other.columns.view(len(weighed), other.columns.shape[1], *by_sample[2:])
    each = torch.matmul(weighed.view(by_sample).transpose(1, 2), theirs.permute(0, 2, 3, 1))
    total, squares = (_in_place(grid, len(secret), one.sum(dim=1)) for one in (each, each.square()))
    return Image(total, squares)


def energy(grid: Grid, kernel: AnyKernel, parts: Tensor, own: Laid, other: Laid) -> Tensor:
    """Return Σ_b |own_b|² other_b², tap by tap: (*size, parts, channels of other), float32. Arguments: see `image`."""
    weighed = _weigh(grid, kernel, parts, own.squares, own.shape, other.shape)
    return _in_place(grid, len(parts), torch.bmm(weighed, other.squares.mT))


def _weigh(grid: Grid, kernel: AnyKernel, weights: Tensor, own: Tensor, shape: torch.Size, seen: torch.Size) -> Tensor:
    """Return weights own, of columns of samples of a shape, as each tap sees it: (groups, taps * k, batch * space)."""
    (groups, each, _), k = own.shape, len(weights)
    weighed = torch.bmm(weights.view(k, groups, each).transpose(0, 1), own)
    if len(seen) > 2:
        here = weighed.view(groups, k, shape[0], *shape[2:])
        shifted = here.new_zeros(groups, prod(grid.size), k, seen[0], *seen[2:])
        for tap, (targets, sources) in enumerate(taps(kernel, grid.size, shape[2:], seen[2:])):
            shifted[:, tap][:, :, :, *targets] = here[:, :, :, *sources]
        weighed = shifted.flatten(3).flatten(1, 2)
    return weighed


def _in_place(grid: Grid, k: int, sums: Tensor) -> Tensor:
    """Return sums (groups, taps * k, channels / groups) as (*size, k, channels)."""
    return sums.reshape(len(sums), *grid.size, k, -1).movedim(0, -2).flatten(-2)


@torch.no_grad()
def sketch(grid: Grid, secret: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """Return the image from the left of the gradient of a batch: (*size, k, inputs), float64.

    Args:
        grid: of the panel.
        secret: (k, outputs).
        x: (batch, inputs, *space).
        dy: (batch, outputs, *space').
    """
    kernel = Transposed(grid.kernel)
    return added([image(grid, kernel, secret, theirs, mine).total for mine, theirs in laid(x, dy, grid.groups)])


def added(images: Sequence[Tensor]) -> Tensor:
    """Return the sum of images."""
    return images[0] if len(images) == 1 else torch.stack(list(images)).sum(dim=0)
