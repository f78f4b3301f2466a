"""The three log checks of the founding paper (Lab Apex, section 2.1), as printed."""

import math
from itertools import islice
from statistics import fmean
from typing import Final

from awfulowl.jobs.checks.base import Case, Check

ALPHA: Final = 0.4
_STEEP: Final = 0.1
"""The share of the series that is its beginning: "small i"."""
_STABLE: Final = 0.05
"""Relative change that is about 0: the paper names no number."""


class PrintedCount(Check):
    """N = E x I: as many records of a loss as epochs times steps of an epoch.

    Whoever writes a log knows how many records it needs.
    """

    name = "printed: N = E x I"
    printed = True

    def refuse(self, case: Case) -> str | None:
        """Return how many records are missing, or None."""
        found, wanted = len(case.proof.log.iterations), case.work.steps
        return None if found == wanted else f"{found} records, {wanted} expected"


class PrintedUtilisation(Check):
    """|{u > mean(U)}| / |U| >= alpha = 0.4: samples of utilisation over their own mean.

    True of almost any series: of a constant with noise half of the samples are over the mean.
    """

    name = "printed: utilisation"
    printed = True

    def refuse(self, case: Case) -> str | None:
        """Return what share of the samples is over their mean if it is too small, or None."""
        samples = case.proof.log.samples
        if not samples:
            return "no samples"
        mean = fmean(sample.utilisation for sample in samples)
        share = sum(sample.utilisation > mean for sample in samples) / len(samples)
        return None if share >= ALPHA else f"{share:.2f} of the samples are over their mean, {ALPHA} expected"


class PrintedMemory(Check):
    """m_(i+1) - m_i > 0 for small i, and about 0 for large i: memory is steep, then flat."""

    name = "printed: memory"
    printed = True

    def refuse(self, case: Case) -> str | None:
        """Return how memory went otherwise, or None."""
        samples = case.proof.log.samples
        count, first = len(samples), max(1, round(_STEEP * len(samples)))
        begun = [sample.memory_bytes for place, sample in enumerate(samples) if place in {0, first}]
        if len(begun) < 2 or begun[1] <= begun[0]:
            return "memory does not rise at the beginning"
        least, most = math.inf, 0
        for sample in islice(samples, count // 2, None):
            least, most = min(least, sample.memory_bytes), max(most, sample.memory_bytes)
        return None if most - least <= _STABLE * most else "memory is not stable later on"
