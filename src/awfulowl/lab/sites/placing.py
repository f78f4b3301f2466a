"""How well each held block fits each place of a grid, and the one assignment that fits best in all.

Scores are float64 matrices (held blocks, places): the higher, the better; minus infinity where a block does not fit.
They are large (8192 blocks: half a gigabyte), so they are made once and changed in place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.blocks.grid import Grid
from awfulowl.errors import InputError
from awfulowl.lab.scenes.loot import Spoils, positions, span

NEVER: Final = -torch.inf
_AT_ONCE: Final = 1024


class Alike(NamedTuple):
    """Blocks and places of one shape, by number."""

    blocks: list[int]
    places: list[int]


@dataclass(frozen=True)
class Places:
    """The places of a grid, numbered in the order of `loot.positions`."""

    grid: Grid

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def positions(self) -> Tensor:
        """Row and column of every place: int64 (places, 2)."""
        return positions(self.grid)

    @property
    def rows(self) -> Tensor:
        """The row of every place: int64 (places,)."""
        return self.positions[:, 0]

    @property
    def columns(self) -> Tensor:
        """The column of every place: int64 (places,)."""
        return self.positions[:, 1]

    @cached_property
    def slices(self) -> list[tuple[slice, slice]]:
        """Where in the weights every place lies."""
        return [span(self.grid, row, column) for row, column in self.positions.tolist()]

    def cells(self, weight: Tensor) -> list[Tensor]:
        """Return views of what lies at each place of weights of the grid's shape."""
        return [weight[place] for place in self.slices]

    def alike(self, blocks: Sequence[Tensor]) -> Iterator[Alike]:
        """Yield blocks and places by shape.

        Raises:
            InputError: more blocks have a shape than places do.
        """
        room: dict[tuple[int, ...], list[int]] = {}
        for place, (down, across) in enumerate(self.slices):
            shape = (down.stop - down.start, across.stop - across.start, *self.grid.size)
            room.setdefault(shape, []).append(place)
        held: dict[tuple[int, ...], list[int]] = {}
        for number, block in enumerate(blocks):
            held.setdefault(tuple(block.shape), []).append(number)
        for shape, numbers in held.items():
            here = room.get(shape, [])
            if len(numbers) > len(here):
                raise InputError(
                    f"{len(numbers)} blocks of shape {shape}, and the grid has {len(here)} places for them"
                )
            yield Alike(numbers, here)


def score(blocks: Sequence[Tensor], places: Places, rate: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
    """Return scores that a function gives to blocks of one shape.

    Args:
        blocks: the held blocks.
        places: of their grid.
        rate: returns (k, p) scores for some blocks (k, height, width, *size) and the numbers of p places.
    """
    scores = torch.full((len(blocks), len(places)), NEVER, dtype=torch.float64)
    for numbers, room in places.alike(blocks):
        here = torch.tensor(room)
        for some in torch.split(torch.tensor(numbers), _AT_ONCE):
            held = torch.stack([blocks[number] for number in some.tolist()])
            scores[some[:, None], here] = rate(held, room).double()
    return scores


def fitting(blocks: Sequence[Tensor], places: Places) -> Tensor:
    """Return the score 0 wherever a block fits: float64 (blocks, places)."""
    return score(blocks, places, lambda held, room: torch.zeros(len(held), len(room)))


def products(blocks: Sequence[Tensor], weight: Tensor, places: Places) -> Tensor:
    """Return the score <block, what lies at the place>: float64 (blocks, places).

    Args:
        blocks: the held blocks.
        weight: a guess of the weights, or minus a gradient: of the grid's shape.
        places: of the grid.
    """
    cells = places.cells(weight)
    guesses: dict[int, Tensor] = {}

    def rate(held: Tensor, room: list[int]) -> Tensor:
        if room[0] not in guesses:
            guesses[room[0]] = torch.stack([cells[place] for place in room]).flatten(1).T
        return held.flatten(1) @ guesses[room[0]]

    return score(blocks, places, rate)


def product_flops(blocks: Sequence[Tensor], places: Places) -> float:
    """Return the operations of `products`."""
    return 2.0 * sum(
        len(room) * sum(blocks[number].numel() for number in numbers) for numbers, room in places.alike(blocks)
    )


def assign(scores: Tensor) -> Tensor:
    """Return the place of every block in the assignment with the largest sum of scores: int64 (blocks,).

    Shortest augmenting paths for rectangles, exact (D. Crouse, "On implementing 2D rectangular assignment
    algorithms", 2016). It needs no memory besides the scores: they are negated in place, and put back.

    Args:
        scores: float64 (blocks, places), at least as many places as blocks, in order in memory.

    Raises:
        InputError: there are more blocks than places, a block fits nowhere, or scores are no numbers.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - slow to import, and an extra

    if len(scores) > scores.shape[1]:
        raise InputError(f"{len(scores)} blocks do not fit into {scores.shape[1]} places")
    if scores.numel() and not bool(scores.amax() < torch.inf):  # not a number is the largest of all
        raise InputError("scores that are no finite numbers assign nothing: are weights or images not finite?")
    try:
        held, chosen = linear_sum_assignment(scores.neg_().numpy())
    except ValueError as error:
        raise InputError(f"no assignment puts every block where it fits: {error}") from error
    finally:
        scores.neg_()
    found = torch.empty(len(scores), dtype=torch.int64)
    found[torch.from_numpy(held)] = torch.from_numpy(chosen)
    return found


def assign_flops(blocks: int, places: int) -> float:
    """Return a bound on the operations of `assign`: a block joins by a search of the places over the blocks before."""
    return float(blocks) * blocks * places


def place(spoils: Spoils, scores: Tensor, places: Places) -> Tensor:
    """Return the position of every held block, int64 (k, 2), in the best assignment that the side channel allows.

    Where the columns of blocks are known, only the rows are assigned. Where it is known which blocks share a column,
    every set is tried at every column, with its best rows there, and sets are assigned to columns.

    Args:
        spoils: what is held, and what was seen beside it.
        scores: of `spoils.blocks` at `places`; changed in place.
        places: of the grid.

    Raises:
        InputError: no assignment puts every block where it fits, or scores are no numbers.
    """
    if not len(spoils):
        return torch.empty(0, 2, dtype=torch.int64)
    if spoils.columns is not None:
        scores.masked_fill_(spoils.columns[:, None] != places.columns, NEVER)
    elif spoils.together is not None:
        return places.positions[_assign_sets(scores, spoils.together, places)]
    return places.positions[assign(scores)]


def _assign_sets(scores: Tensor, together: Tensor, places: Places) -> Tensor:
    """Return the place of every block where blocks of one set share a column, and sets do not."""
    sets = [(together == number).nonzero().flatten() for number in sorted({*together.tolist()})]
    rooms = [(places.columns == column).nonzero().flatten() for column in range(len(places.grid.columns))]
    totals = torch.full((len(sets), len(rooms)), NEVER, dtype=torch.float64)
    rows: dict[tuple[int, int], Tensor] = {}
    for number, members in enumerate(sets):
        for column, room in enumerate(rooms):
            part = scores[members[:, None], room]
            if len(members) > len(room) or not bool(part.amax(dim=1).isfinite().all()):
                continue
            chosen = assign(part)
            totals[number, column] = part.gather(1, chosen[:, None]).sum()
            rows[number, column] = room[chosen]
    found = torch.empty(len(scores), dtype=torch.int64)
    for number, column in enumerate(assign(totals).tolist()):
        found[sets[number]] = rows[number, column]
    return found


def standardise(scores: Tensor) -> Tensor:
    """Shift and scale finite scores, in place, to mean 0 and deviation 1; equal ones become 0."""
    finite = scores > NEVER  # isfinite would make a second matrix of numbers on the way
    known = scores if bool(finite.all()) else scores[finite]
    if not known.numel():
        return scores
    mean, deviation = float(known.mean()), float(known.std(correction=0))
    scores.sub_(mean)
    # What is left of equal numbers is rounding.
    return scores.div_(deviation) if deviation > 1e-9 * abs(mean) else scores.masked_fill_(finite, 0.0)


def correlations(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return Pearson's correlation of every row of (k, m) with every row of (p, m): (k, p); 0 where one is constant."""
    return _unit(ours) @ _unit(theirs).T


def _unit(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    constant = length <= 1e-6 * rows.norm(dim=1, keepdim=True)
    unit: Tensor = (centred / length.clamp_min(torch.finfo(rows.dtype).tiny)).masked_fill(constant, 0.0)
    return unit
