"""How far honest float32 sums stray, and how often a lie looks like that. The derivation is in `freivalds`.

The owner's own sums may be in float32 too, where they are short beside a device's. Let m products be added up in a
row, and the runs be added up in float64; Q is v x² or r² y², and T is s x or r y. A run of sum T_c rounds by a mean
square of κ u² ((m + 1)/6 (Q_c + 2 T_c²) + Q_c), and Σ T_c² is at most Q + m/n T² on average over the orders of n
products. On average over the secrets T² is |y|², as much as r² y². So r y adds (m + 3)/2 r² y², with r drawn so that
float32 holds it, and s x, where s is rounded to float32 once, (m + 5)/2 v x² + (m + 1)/3 m/n r² y². With m ≤ n/6 that
is no more than if a device's sums were longer by 5 m/3 + 8.
"""

import math
from typing import Final

UNIT_ROUNDOFF: Final = 2.0**-24
"""Half the distance from 1 to the next float32: u."""

MEAN_SQUARE: Final = 1 / (8 * math.log(2))
"""Mean of (rounding error / (u |sum|))², 0.18: uniform over half a unit in the last place, mantissas after Benford."""

SMALLEST: Final = 2.0**-126
"""The least normal float32: devices may call anything below it 0."""

_PRODUCT_ROUNDING: Final = 3
"""Makes the bound hold for few terms as well, whether products are rounded on their own or fused with the sum."""

_SHARE: Final = 6
"""The owner's runs of float32 are that much shorter than a device's sums, so the tolerance grows by a sixth at most."""

_RUNS: Final = (32, 128)
"""Shorter ones are not worth it, longer ones not quicker."""


def variance(terms: int, run: int = 0) -> float:
    """Return the mean square of an honest error, in units of v x² + r² y².

    Args:
        terms: products in one output; they may be added up in any order, one after the other at worst.
        run: products that the owner adds up in float32 before float64 takes over; 0: it uses float64 alone.
    """
    return UNIT_ROUNDOFF**2 * MEAN_SQUARE * (terms + own_terms(run) + _PRODUCT_ROUNDING) / 3


def own_terms(run: int) -> int:
    """Return by how much a device's sums would be longer if the owner's rounding were theirs."""
    return 5 * run // 3 + 9 if run else 0


def run_of(terms: int) -> int:
    """Return how many products the owner may add up in float32 beside a device's sums of so many: 2^i, or 0."""
    shortest, longest = _RUNS
    run = 1 << (max(1, terms // _SHARE).bit_length() - 1)
    return min(run, longest) if run >= shortest else 0


def miss_bound(ratio: float, vectors: int, *, positions: int = 1) -> float:
    """Return the most likely a lie is to be accepted.

    Args:
        ratio: root mean square, over the secrets, of the tolerance / length of the lie.
        vectors: independent secret vectors.
        positions: output positions of a sample, 1 for a dense layer.
    """
    if ratio >= 1:
        return 1.0
    if positions == 1:
        return min(1.0, math.sqrt(2 / math.pi) * ratio / math.sqrt(1 - ratio**2)) ** vectors
    return (2 * ratio / (1 + ratio**2)) ** vectors
