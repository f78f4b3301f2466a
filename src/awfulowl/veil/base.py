"""The interface of sharings: a product of integers from the answers of several parties, none of which learns it.

A sharing has *lanes*. Each is given matrices made of the weights and vectors made of an input, and answers the sum of
their products; the sum of all lanes' answers is W x, in the ring Z_2^b of the arithmetic. The lanes of a column go to
different domains for ever: what is proved holds for a domain with one lane, and for nobody who has two, or who sees
what others are sent (`shares`).

Not yet: codes that stand several colluders, or lanes that are gone or lie (Shamir, Lagrange). They need a coefficient
for each answer, and more lanes than suffice.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from awfulowl.blocks.grid import Grid, take
from awfulowl.errors import LocalError
from awfulowl.randomness import Entropy, Seeded, derive

MOST_SEEDS: Final = 256
"""Of one vector or matrix in one message, which has at most two of them and 1024 tensors (`limits`)."""

Sum = tuple[int, ...]
"""Shares, by number, that are added up."""


class Sharing(ABC):
    """One way to split a product among lanes.

    x, and W if it is hidden, is the sum of `shares` numbered shares, of which all but the last are random.
    """

    name: str
    shares: int
    lanes: int
    threshold: int
    """Lanes that learn inputs together; of fewer nothing is learnt."""
    whole: Sequence[tuple[int, int]]
    """Matrices, by lane and number, whose sum is W."""
    hides_weights: bool
    """Whether weights need as many lanes as inputs; otherwise each lane holds them."""

    @abstractmethod
    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        """Return what a lane multiplies: sums of shares of W (all of W where it is not hidden), and of x."""

    def matrices(self, lane: int) -> range:
        """Return the numbers of the matrices that a lane holds, counted over all lanes."""
        first = sum(len(self.products(before)) for before in range(lane))
        return range(first, first + len(self.products(lane)))


class Unshared(Sharing):
    """Everything in one lane: whoever serves it sees its inputs and holds its weights."""

    name = "none"
    shares = lanes = threshold = 1
    whole = ((0, 0),)
    hides_weights = False

    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        """Return W x."""
        del lane
        return (((0,), (0,)),)


class SharedInputs:
    """A batch of inputs, split afresh: who gets what, and who got what.

    Each random share has a seed of its own for each column, so that a device gets the seeds of its columns, 32 bytes
    for each, and can make nothing of the others. The last share is x less the others; sums with it travel whole.
    """

    def __init__(self, sharing: Sharing, x: Tensor, grid: Grid, ring: torch.dtype, entropy: Entropy) -> None:
        """Split x (batch, inputs) or (batch, inputs, *space); with a single share it stays as it is, in its type.

        Raises:
            LocalError: the ring is of floats, whose shares are not uniform and would show what they hide.
        """
        if sharing.shares > 1 and ring.is_floating_point:
            raise LocalError(f"sharing '{sharing.name}' of {ring} would show the inputs; nothing was split")
        self._sharing = sharing
        self._grid = grid
        random = [
            [Seeded(entropy.seed(), ring, (len(x), column.span.size, *x.shape[2:])) for column in grid.columns]
            for _ in range(sharing.shares - 1)
        ]
        self._random: Final = list(zip(*random, strict=True))
        self._whole: Final = {
            wanted: _first(x, ring, wanted, sharing.shares) if random else x
            for lane in range(sharing.lanes)
            for _, wanted in sharing.products(lane)
            if not _is_random(wanted, sharing.shares)
        }
        for column, numbers in zip(grid.columns, self._random, strict=False):
            part = slice(column.span.start, column.span.stop)
            _add_up({wanted: whole[:, part] for wanted, whole in self._whole.items()}, numbers)
        self._given: dict[tuple[str, int], int] = {}

    def inputs(self, lane: int, columns: Sequence[int], domain: str) -> list[Tensor | Seeded]:
        """Return what a device of a domain gets for a lane of some columns, to be laid side by side.

        Raises:
            LocalError: the domain was given another lane of one of these columns. Two lanes may show the inputs, so
                nothing is handed out: this fault is ours, and stops us.
        """
        for column in columns:
            if self._given.setdefault((domain, column), lane) != lane:
                raise LocalError(
                    f"domain '{domain}' would get two shares of the same inputs, those of column {column}; "
                    "nothing was sent to it. This is a defect of the placement: please report it"
                )
        return [piece for _, wanted in self._sharing.products(lane) for piece in self._pieces(wanted, columns)]

    def _pieces(self, wanted: Sum, columns: Sequence[int]) -> list[Tensor | Seeded]:
        if wanted in self._whole:
            return [take(self._whole[wanted], self._grid, columns).contiguous()]
        seeded = [self._random[column][wanted[0]] for column in columns]
        # As many seeds as a message may have tensors: beyond, numbers travel.
        many = len(seeded) > MOST_SEEDS
        return [torch.cat([one.expand() for one in seeded], dim=1)] if many else [*seeded]


class SharedWeights:
    """Shares of weights, made anew whenever they are wanted: nothing but a key is kept.

    A random share of a block has a seed, derived from the key, its number and the block's place, so whoever takes a
    lane over later is given the very numbers that its predecessor had, and who has the seeds of a block can make
    nothing of the others. So these have to be shares of one weight: a key is for what was scattered, and for nothing
    that became of it.
    """

    def __init__(self, sharing: Sharing, ring: torch.dtype, entropy: Entropy) -> None:
        self._sharing = sharing
        self._ring = ring
        self._key = entropy.seed()

    def matrices(self, lane: int, block: Tensor, place: Sequence[int]) -> list[Tensor | Seeded]:
        """Return the matrices of a lane for a block of integers, each of its shape; random shares as their seeds.

        Args:
            lane: of the sharing.
            block: (outputs, inputs / groups, *size).
            place: numbers that say which block it is.
        """
        products = self._sharing.products(lane)
        if not self._sharing.hides_weights:
            return [block for _ in products]
        random = [
            Seeded(derive(self._key, share, *place), self._ring, tuple(block.shape))
            for share in range(self._sharing.shares - 1)
        ]
        sums = {
            wanted: _first(block, self._ring, wanted, self._sharing.shares)
            for wanted, _ in products
            if not _is_random(wanted, self._sharing.shares)
        }
        _add_up(sums, random)
        return [sums[wanted] if wanted in sums else random[wanted[0]] for wanted, _ in products]


def _is_random(wanted: Sum, shares: int) -> bool:
    """Say whether a sum is a random share alone, which travels as its seed."""
    return len(wanted) == 1 and shares - 1 not in wanted


def _first(secret: Tensor, ring: torch.dtype, wanted: Sum, shares: int) -> Tensor:
    """Return what a sum of shares is before `_add_up`: the last share is the secret less each of the others."""
    return secret.to(ring, copy=True) if shares - 1 in wanted else torch.zeros(secret.shape, dtype=ring)


def _add_up(sums: Mapping[Sum, Tensor], random: Sequence[Seeded]) -> None:
    """Add random shares to sums that have them, and take them from the last share in those that have that one."""
    for share, numbers in enumerate(random):
        factors = {wanted: (share in wanted) - (len(random) in wanted) for wanted in sums}
        if any(factors.values()):
            drawn = numbers.expand()
            for wanted, factor in factors.items():
                if factor:
                    sums[wanted].add_(drawn, alpha=factor)
