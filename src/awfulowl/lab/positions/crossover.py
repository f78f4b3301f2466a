"""Children of two permutations: the founding paper's order crossover, and growth, which keeps what lies side by side.

A permutation lists, for every place, the number of what lies there: a held block, or one of the empty pieces, whose
numbers come after the blocks'.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

Below = Callable[[int], int]
"""Returns a random integer in [0, bound)."""

RIGHT, LEFT, DOWN, UP = range(4)
_STEPS: Final = ((0, 1), (0, -1), (1, 0), (-1, 0))
_STRAYS: Final = 20
"""One piece in so many is drawn at random while a child grows, as in the source."""


def order_crossover(first: Sequence[int], second: Sequence[int], below: Below) -> list[int]:
    """Keep a run of the first parent where it is, and fill the rest in the order of the second.

    Source: L. Davis, "Applying adaptive algorithms to epistatic domains", 1985.
    """
    length = len(first)
    start, stop = sorted((below(length + 1), below(length + 1)))
    kept = set(first[start:stop])
    rest = iter(gene for gene in (*second[stop:], *second[:stop]) if gene not in kept)
    child = list(first)
    for place in (*range(stop, length), *range(start)):
        child[place] = next(rest)
    return child


def swap_mutation(genes: list[int], below: Below) -> None:
    """Exchange two random places, in place."""
    one, other = below(len(genes)), below(len(genes))
    genes[one], genes[other] = genes[other], genes[one]


class Affinity(NamedTuple):
    """How alike pieces (pieces, pieces) are as neighbours in a row, and in a column; 0 for empty pieces."""

    beside: Tensor
    below: Tensor

    def towards(self, direction: int) -> Tensor:
        """Return the matrix for neighbours in a direction."""
        return self.beside if direction in {RIGHT, LEFT} else self.below


class Growth:
    """Kernel growth: a child grows piece by piece from one, and keeps the segments that both parents have.

    An open cell beside the kernel gets, in this order: the piece that both parents have there; one that a parent has
    there and that is the best neighbour, both ways; the most alike that is left. The kernel may grow in any direction
    until it has the size of the grid, so segments survive that lie in different places in the parents.

    Source: D. Sholomon, O. David and N. Netanyahu, "A genetic algorithm-based solver for very large jigsaw puzzles",
    2013, section 2.3. Blocks have no picture to go on over an edge: instead neighbours in a row have alike norms of
    rows, and neighbours in a column alike norms of columns.

    Args:
        rows: of the grid of places.
        columns: of the grid of places.
        affinity: between all pieces, empty ones included.
        held: how many pieces are blocks; the others are empty and nobody's best neighbours.
    """

    def __init__(self, rows: int, columns: int, affinity: Affinity, held: int) -> None:
        self._rows: Final = rows
        self._columns: Final = columns
        self._affinity: Final = affinity
        self._buddies: Final = {direction: _buddies(affinity.towards(direction), held) for direction in range(4)}

    def child(self, first: Sequence[int], second: Sequence[int], below: Below) -> list[int]:
        """Return a child of two permutations in reading order."""
        parents = (_Parent(first, self._columns), _Parent(second, self._columns))
        kernel = _Kernel(self._rows, self._columns, len(first))
        shared: deque[tuple[tuple[int, int], int]] = deque()
        liked: deque[tuple[tuple[int, int], int]] = deque()
        kernel.put((0, 0), below(len(first)))
        last = (0, 0)
        while len(kernel.pieces) < len(first):
            piece = kernel.pieces[last]
            for direction, (down, across) in enumerate(_STEPS):
                cell = (last[0] + down, last[1] + across)
                there = [parent.neighbour(piece, direction) for parent in parents]
                if there[0] is not None and there[0] == there[1]:
                    shared.append((cell, there[0]))
                buddy = self._buddies[direction][piece]
                if buddy >= 0 and buddy in there:
                    liked.append((cell, buddy))
            choice = None
            if below(_STRAYS):
                choice = _next_valid(shared, kernel) or _next_valid(liked, kernel)
            last, chosen = choice or self._most_alike(kernel, below)
            kernel.put(last, chosen)
        return kernel.permutation()

    def _most_alike(self, kernel: "_Kernel", below: Below) -> tuple[tuple[int, int], int]:
        cell = kernel.open_cell(below)
        left = kernel.left()
        score = torch.zeros(len(left))
        for direction, (down, across) in enumerate(_STEPS):
            neighbour = kernel.pieces.get((cell[0] + down, cell[1] + across))
            if neighbour is not None:
                score += self._affinity.towards(direction)[neighbour, left]
        # Empty pieces are alike to nobody: ties go to any of them, not to the first.
        best = (score == score.max()).nonzero().flatten()
        return cell, int(left[best[below(len(best))]])


class _Parent:
    """Who lies next to whom in a permutation."""

    def __init__(self, genes: Sequence[int], columns: int) -> None:
        self._genes: Final = genes
        self._columns: Final = columns
        self._where: Final = [0] * len(genes)
        for place, gene in enumerate(genes):
            self._where[gene] = place

    def neighbour(self, gene: int, direction: int) -> int | None:
        place, columns = self._where[gene], self._columns
        down, across = _STEPS[direction]
        if not 0 <= place % columns + across < columns:
            return None
        other = place + down * columns + across
        return self._genes[other] if 0 <= other < len(self._genes) else None


class _Kernel:
    """What has grown so far, by cells relative to the first piece."""

    def __init__(self, rows: int, columns: int, pieces: int) -> None:
        self._most: Final = (rows, columns)
        self._free: Final = torch.ones(pieces, dtype=torch.bool)
        self._open: Final[list[tuple[int, int]]] = []
        self._low, self._high = [0, 0], [0, 0]
        self.pieces: Final[dict[tuple[int, int], int]] = {}

    def put(self, cell: tuple[int, int], piece: int) -> None:
        self.pieces[cell] = piece
        self._free[piece] = False
        for side in range(2):
            self._low[side] = min(self._low[side], cell[side])
            self._high[side] = max(self._high[side], cell[side])
        self._open.extend((cell[0] + down, cell[1] + across) for down, across in _STEPS)

    def is_free(self, piece: int) -> bool:
        return bool(self._free[piece])

    def left(self) -> Tensor:
        return self._free.nonzero().flatten()

    def fits(self, cell: tuple[int, int]) -> bool:
        """Say whether a cell is open, and the kernel stays in the size of the grid with it."""
        spans = (max(high, at) - min(low, at) for low, high, at in zip(self._low, self._high, cell, strict=True))
        return cell not in self.pieces and all(span < most for span, most in zip(spans, self._most, strict=True))

    def open_cell(self, below: Below) -> tuple[int, int]:
        """Return a random open cell; those that are none any more are dropped on the way."""
        while True:
            index = below(len(self._open))
            self._open[index], self._open[-1] = self._open[-1], self._open[index]
            cell = self._open.pop()
            if self.fits(cell):
                return cell

    def permutation(self) -> list[int]:
        genes = [0] * len(self.pieces)
        for (row, column), piece in self.pieces.items():
            genes[(row - self._low[0]) * self._most[1] + column - self._low[1]] = piece
        return genes


def _next_valid(waiting: deque[tuple[tuple[int, int], int]], kernel: _Kernel) -> tuple[tuple[int, int], int] | None:
    while waiting:
        cell, piece = waiting.popleft()
        if kernel.is_free(piece) and kernel.fits(cell):
            return cell, piece
    return None


def _buddies(affinity: Tensor, held: int) -> list[int]:
    """Return for every piece the one that it is most alike to, where that is mutual; -1 elsewhere."""
    buddies = [-1] * len(affinity)
    if held < 2:
        return buddies
    best = affinity[:held, :held].clone().fill_diagonal_(-torch.inf).argmax(dim=1).tolist()
    for piece, other in enumerate(best):
        if best[other] == piece:
            buddies[piece] = other
    return buddies


def rectangle(places: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return rows and columns of places in reading order if they are all pairs of some rows and some columns."""
    rows, columns = sorted({row for row, _ in places}), sorted({column for _, column in places})
    full = [(row, column) for row in rows for column in columns]
    return (len(rows), len(columns)) if full == list(places) else None
