"""How far honest float32 sums stray, and how often a lie looks like that. The derivation is in `freivalds`."""

import math
from typing import Final

UNIT_ROUNDOFF: Final = 2.0**-24
"""Half the distance from 1 to the next float32: u."""

MEAN_SQUARE: Final = 1 / (8 * math.log(2))
"""Mean of (rounding error / (u |sum|))², 0.18: uniform over half a unit in the last place, mantissas after Benford."""

ONE_SIDED: Final = 1 / (16 * MEAN_SQUARE)
"""Sums of n equal numbers err by up to n/4 units in the last place, always in one direction, as long as they grow."""

SMALLEST: Final = 2.0**-126
"""The least normal float32: devices may call anything below it 0."""

_PRODUCT_ROUNDING: Final = 3
"""Makes the bound hold for few terms as well, whether products are rounded on their own or fused with the sum."""


def variance(terms: int) -> float:
    """Return the mean square of an honest error, in units of v x² + r² y².

    Args:
        terms: products in one output; they may be added up in any order, one after the other at worst.
    """
    return UNIT_ROUNDOFF**2 * MEAN_SQUARE * (terms + _PRODUCT_ROUNDING) / 3


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
