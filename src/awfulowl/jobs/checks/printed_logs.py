"""The three log checks of the founding paper (Lab Apex, section 2.1), as printed."""

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
        series = [sample.utilisation for sample in case.proof.log.samples]
        if not series:
            return "no samples"
        mean = fmean(series)
        share = sum(value > mean for value in series) / len(series)
        return None if share >= ALPHA else f"{share:.2f} of the samples are over their mean, {ALPHA} expected"


class PrintedMemory(Check):
    """m_(i+1) - m_i > 0 for small i, and about 0 for large i: memory is steep, then flat."""

    name = "printed: memory"
    printed = True

    def refuse(self, case: Case) -> str | None:
        """Return how memory went otherwise, or None."""
        series = [sample.memory_bytes for sample in case.proof.log.samples]
        first = max(1, round(_STEEP * len(series)))
        if len(series) < 2 or series[first] <= series[0]:
            return "memory does not rise at the beginning"
        later = series[len(series) // 2 :]
        flat = max(later) - min(later) <= _STABLE * max(later)
        return None if flat else "memory is not stable later on"
