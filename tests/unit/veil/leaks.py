"""Statistics that find what numbers give away: each is a p-value, and right shares have none that is small.

Bytes, nibbles and pairs of nibbles are counted and held to their expectation by Pearson's χ², whose tail is Wilson and
Hilferty's (1931), good to a few percent of p at these degrees of freedom; bits and correlations are normal.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ALARM = 1e-6
"""A p-value below this is a leak: 4.75 standard deviations to one side."""

NUMBERS = 1 << 20
"""What a test is given of each sequence: a bias of 0.25 % in one bit is five standard deviations."""

Bytes = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Counts = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Score(NamedTuple):
    """What was tested, and how likely it is that uniform, independent numbers look worse."""

    what: str
    p: float


def leaks(scores: list[Score]) -> list[str]:
    return [score.what for score in scores if score.p < ALARM]


def alone(name: str, numbers: Tensor) -> Iterator[Score]:
    """Is one sequence uniform, and does no number say anything of the next ones?"""
    planes = bytes_of(numbers)
    for place, plane in enumerate(planes):
        counts = np.bincount(plane, minlength=256).astype(np.float64)
        yield Score(f"byte {place} of {name}", uniform(counts))
        for bit in range(8):
            ones = counts[(np.arange(256) >> bit & 1) == 1].sum()
            yield Score(f"bit {8 * place + bit} of {name}", normal((2 * ones - len(plane)) / math.sqrt(len(plane))))
    flat = numbers.reshape(-1)
    for lag in (1, 2):
        yield from _related(f"{name} and {name} {lag} further", flat[:-lag], flat[lag:])


def together(view: Mapping[str, Tensor]) -> Iterator[Score]:
    """Is every pair of sequences independent, and are their sum and their difference uniform?"""
    for (one, mine), (other, theirs) in itertools.combinations(view.items(), 2):
        yield from _related(f"{one} and {other}", mine, theirs)
        for sign, numbers in (("+", mine + theirs), ("-", mine - theirs)):
            for place, plane in enumerate(bytes_of(numbers)):
                counts = np.bincount(plane, minlength=256).astype(np.float64)
                yield Score(f"byte {place} of {one} {sign} {other}", uniform(counts))


def about(view: Mapping[str, Tensor], secrets: Mapping[str, Tensor]) -> Iterator[Score]:
    """Does any sequence say anything of a secret?"""
    for (name, numbers), (secret, true) in itertools.product(view.items(), secrets.items()):
        yield from _related(f"{name} and the true {secret}", numbers, true)


def _related(what: str, one: Tensor, other: Tensor) -> Iterator[Score]:
    """Linear correlation, and any relation of the lowest four bits, of the highest four, and of both with the other."""
    x, y = one.reshape(-1).double(), other.reshape(-1).double()
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x.square().sum() * y.square().sum()))
    yield Score(f"correlation of {what}", normal(float(x @ y) / size * math.sqrt(len(x))) if size else 1.0)
    mine, theirs = bytes_of(one), bytes_of(other)
    low, high = (mine[0] & 15, theirs[0] & 15), (mine[-1] >> 4, theirs[-1] >> 4)
    pairs = {"low, low": low, "high, high": high, "low, high": (low[0], high[1]), "high, low": (high[0], low[1])}
    for name, (rows, columns) in pairs.items():
        counts = np.bincount(rows.astype(np.int64) << 4 | columns, minlength=256).astype(np.float64)
        yield Score(f"bits of {what}: {name}", independent(counts.reshape(16, 16)))


def bytes_of(numbers: Tensor) -> Bytes:
    """The bytes of integers, lowest first: (bytes, numbers)."""
    flat = numbers.reshape(-1).contiguous()
    return np.ascontiguousarray(flat.view(torch.uint8).reshape(flat.numel(), -1).numpy().T)


def uniform(counts: Counts) -> float:
    """Pearson's χ² against equal counts."""
    expected = counts.sum() / counts.size
    return _tail(float(((counts - expected) ** 2).sum() / expected), counts.size - 1)


def independent(counts: Counts) -> float:
    """Pearson's χ² of a table against the product of its margins; rows and columns of too few are left out."""
    least = 5 * math.sqrt(counts.sum())
    counts = counts[counts.sum(1) > least][:, counts.sum(0) > least]
    if min(counts.shape) < 2:
        return 1.0
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    degrees = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return _tail(float(((counts - expected) ** 2 / expected).sum()), degrees)


def normal(z: float) -> float:
    """Both tails."""
    return math.erfc(abs(z) / math.sqrt(2))


def _tail(chi_square: float, degrees: int) -> float:
    """Both tails of χ²: numbers that are more even than chance are not random either."""
    spread = 2 / (9 * degrees)
    return normal(((chi_square / degrees) ** (1 / 3) - 1 + spread) / math.sqrt(spread))
