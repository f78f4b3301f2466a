"""Inputs that are copies of each other leak positions: their weights are nearly equal, and blocks cut through them.

Where every value enters a layer several times, side by side, the columns of a block change only where one value ends
and the next begins. That names the block's column up to a phase, and a value that is cut by the edge of a block has the
same weights on both sides of it.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.lab.sites.placing import Places, assign

DISTINCT: Final = 1.5
"""Times as different as other neighbours columns must be where values end, for a phase to be believed. Of 49 phases
the best reaches 1.1 by chance alone in blocks of 256 rows."""

_JOINED: Final = 0.5
"""Of the median distance of edges: closer ones belong together."""

Pattern = tuple[int, ...]
"""The columns inside a block, from 1, at which a value begins; the last entry is the width of the block."""


class Phases(NamedTuple):
    """The pattern of every block (k,), an index of `patterns` or -1 where none is seen, and how distinct it is (k,)."""

    patterns: list[Pattern]
    found: Tensor
    distinct: Tensor


def copies(twins: Tensor | None) -> int:
    """Return how often every value enters a layer, side by side; 1 where values enter once.

    Args:
        twins: (inputs,), the distinct input that each input equals; None where they differ.
    """
    if twins is None:
        return 1
    # Neighbouring values that are always zero look like one, so runs may be multiples.
    begins = (twins[1:] != twins[:-1]).nonzero().flatten().add_(1).tolist()
    return math.gcd(len(twins), *begins)


def patterns(places: Places, period: int) -> list[Pattern]:
    """Return, for every column of the grid, where values begin inside a block of it."""
    spans = [column.span for column in places.grid.columns]
    return [
        (*(at - span.start for at in range(span.start + 1, span.stop) if at % period == 0), span.size) for span in spans
    ]


def phases(blocks: Sequence[Tensor], columns: Sequence[Pattern]) -> Phases:
    """Return the pattern that fits each block best: its columns differ there, and nowhere else.

    Args:
        blocks: (height, width) each.
        columns: the pattern of every column of the grid.
    """
    distinct = sorted(set(columns))
    found, ratios = [], []
    for block in blocks:
        steps = (block[:, 1:] - block[:, :-1]).square().mean(dim=0)
        total, count = float(steps.sum()), len(steps)
        best, number = 0.0, -1
        for index, pattern in enumerate(distinct):
            inside = [at - 1 for at in pattern[:-1]]
            if pattern[-1] != count + 1 or not 0 < len(inside) < count:
                continue
            here = float(steps[inside].sum())
            elsewhere = (total - here) / (count - len(inside))
            ratio = here / len(inside) / max(elsewhere, torch.finfo(torch.float32).tiny)
            if ratio > best:
                best, number = ratio, index
        found.append(number if best >= DISTINCT else -1)
        ratios.append(best)
    return Phases(distinct, torch.tensor(found, dtype=torch.int64), torch.tensor(ratios))


def links(
    blocks: Sequence[Tensor], found: Phases, columns: Sequence[Pattern], places: Places, period: int
) -> dict[int, int]:
    """Return the right neighbour of blocks whose right edge cuts a value, as far as edges say.

    Args:
        blocks: (height, width) each.
        found: their phases.
        columns: the pattern of every column of the grid.
        places: of the grid.
        period: how often every value enters.
    """
    holders: Mapping[int, list[int]] = defaultdict(list)
    for block, number in enumerate(found.found.tolist()):
        holders[number].append(block)
    index = {pattern: number for number, pattern in enumerate(found.patterns)}
    joined: dict[int, int] = {}
    done: set[tuple[int, int]] = set()
    for column in range(len(columns) - 1):
        pair = (index[columns[column]], index[columns[column + 1]])
        left, right = holders.get(pair[0], []), holders.get(pair[1], [])
        if pair in done or not left or not right or places.grid.columns[column].span.stop % period == 0:
            continue
        done.add(pair)
        joined.update(_joined(blocks, left, right))
    return joined


def _joined(blocks: Sequence[Tensor], left: list[int], right: list[int]) -> dict[int, int]:
    """Assign right edges to left edges of blocks of one height, and keep the pairs that are close."""
    found: dict[int, int] = {}
    for height in {len(blocks[block]) for block in left}:
        ours = [block for block in left if len(blocks[block]) == height]
        theirs = [block for block in right if len(blocks[block]) == height]
        if not theirs:
            continue
        ends = torch.stack([blocks[block][:, -1] for block in ours])
        begins = torch.stack([blocks[block][:, 0] for block in theirs])
        distance = torch.cdist(ends, begins).double()
        close = _JOINED * float(_typical(ends, begins))
        wide = len(ours) <= len(theirs)
        chosen = assign(-distance if wide else -distance.T.contiguous()).tolist()
        pairs = enumerate(chosen) if wide else ((other, one) for one, other in enumerate(chosen))
        found.update({ours[one]: theirs[other] for one, other in pairs if float(distance[one, other]) < close})
    return found


def _typical(ends: Tensor, begins: Tensor) -> Tensor:
    """Return the distance of edges that do not belong together, from their lengths: their directions are random."""
    return (ends.square().sum(dim=1).mean() + begins.square().sum(dim=1).mean()).sqrt()


def chains(joined: Mapping[int, int], blocks: int) -> list[list[int]]:
    """Return blocks in runs from left to right: every block is in one run, alone where nothing joins it."""
    followers = set(joined.values())
    found = []
    for block in range(blocks):
        if block in followers:
            continue
        run = [block]
        while run[-1] in joined:
            run.append(joined[run[-1]])
        found.append(run)
    return found


def pooled(scores: Tensor, runs: Sequence[Sequence[int]], places: Places) -> Tensor:
    """Return scores in which a block has, at each place, the sum over its run if all of it lay as its place implies.

    Places from which the run would leave the grid keep the lowest sum.

    Args:
        scores: float64 (blocks, places), finite where blocks fit.
        runs: blocks from left to right.
        places: of a grid in which every row meets every column.
    """
    rows, columns = len(places.grid.rows), len(places.grid.columns)
    table = scores.view(-1, rows, columns)
    whole = torch.empty_like(table)
    for run in runs:
        length = len(run)
        starts = columns - length + 1
        totals = torch.zeros(rows, starts, dtype=scores.dtype)
        for offset, block in enumerate(run):
            totals += table[block, :, offset : offset + starts]
        finite = totals[totals.isfinite()]
        lowest = float(finite.min()) if len(finite) else 0.0
        for offset, block in enumerate(run):
            whole[block] = torch.full_like(table[block], lowest).masked_fill_(table[block].isinf(), -torch.inf)
            part = whole[block, :, offset : offset + starts]
            part.copy_(torch.where(totals.isfinite(), totals, part))
    return whole.view_as(scores)
