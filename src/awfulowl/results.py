"""A measured number never stands alone: with it go its interval, its count, its seeds, its cost and its setting."""

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from statistics import NormalDist, fmean
from typing import Final, NamedTuple, Self

import msgspec
import torch

from awfulowl.errors import InputError
from awfulowl.randomness import Entropy

Setting = str | int | float | bool | None

_RESAMPLES: Final = 2000


class Interval(NamedTuple):
    """Where the true value lies at the stated confidence; both ends belong to it."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a rate.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927, equation 3.

    Raises:
        InputError: there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n == 0:
        raise InputError(f"{successes} successes in {n} trials are no rate")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, share = successes / n, z * z / n
    centre = rate + share / 2
    half = math.sqrt(rate * (1 - rate) * share + (share / 2) ** 2)
    # Rounding must not put the rate itself outside.
    return Interval(
        max(0.0, min((centre - half) / (1 + share), rate)), min(1.0, max((centre + half) / (1 + share), rate))
    )


def bootstrap(values: Sequence[float], entropy: Entropy, confidence: float = 0.95) -> Interval:
    """Return the percentile bootstrap interval for a mean.

    Source: B. Efron and R. Tibshirani, "An introduction to the bootstrap", 1993, section 13.3.

    Raises:
        InputError: there are no values.
    """
    if not values:
        raise InputError("no values have no mean")
    n = len(values)
    # Uniform is in (0, 1], so ceil gives 1 to n.
    drawn = torch.ceil(entropy.uniform(_RESAMPLES * n) * n).long().sub_(1)
    means = torch.tensor(values, dtype=torch.float64)[drawn].view(_RESAMPLES, n).mean(dim=1)
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high)


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    names = ("awfulowl", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured number.

    `interval` has a confidence of 95 %. `seeds` is empty where the randomness came from the operating system.
    `cost` is by unit, such as `products` or `seconds`; times are the only numbers that equal seeds do not repeat.
    """

    name: str
    value: float
    n: int
    interval: Interval
    seeds: tuple[int, ...]
    cost: Mapping[str, float]
    configuration: Mapping[str, Setting]
    versions: Mapping[str, str] = msgspec.field(default_factory=versions)

    @classmethod
    def rate(
        cls,
        name: str,
        successes: int,
        n: int,
        *,
        seeds: Sequence[int] = (),
        cost: Mapping[str, float] | None = None,
        configuration: Mapping[str, Setting] | None = None,
    ) -> Self:
        """Return successes / n with Wilson's interval.

        Raises:
            InputError: there are no trials, or more successes than trials.
        """
        return cls(
            name=name,
            value=successes / n if n else math.nan,
            n=n,
            interval=wilson(successes, n),
            seeds=tuple(seeds),
            cost=dict(cost or {}),
            configuration=dict(configuration or {}),
        )

    @classmethod
    def mean(
        cls,
        name: str,
        values: Sequence[float],
        entropy: Entropy,
        *,
        seeds: Sequence[int] = (),
        cost: Mapping[str, float] | None = None,
        configuration: Mapping[str, Setting] | None = None,
    ) -> Self:
        """Return the mean of values with its bootstrap interval.

        Raises:
            InputError: there are no values.
        """
        return cls(
            name=name,
            value=fmean(values) if values else math.nan,
            n=len(values),
            interval=bootstrap(values, entropy),
            seeds=tuple(seeds),
            cost=dict(cost or {}),
            configuration=dict(configuration or {}),
        )
