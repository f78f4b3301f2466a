"""Numbers of a report as people read them."""

from collections.abc import Callable

from awfulowl.lab.report.schema import Judgement
from awfulowl.results import Interval

_FEW: float = 0.0005


def percent(share: float | None) -> str:
    """Return a share as a percentage; what is neither nothing nor all never looks as if it were."""
    if share is None:
        return "-"
    if 0 < share < _FEW:
        return "< 0.1 %"
    if 1 - _FEW <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def interval(found: Interval | None, form: Callable[[float], str] = percent) -> str:
    """Return an interval in brackets; nothing where there is none."""
    return "" if found is None else f"[{form(found.low)}, {form(found.high)}]"


def operations(number: float) -> str:
    """Return a number of operations in three digits: 0, 590 M, 2.36 T."""
    for power, unit in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:
            return f"{number / 10**power:#.3g}".removesuffix(".") + f" {unit}"
    return f"{number:.0f}"


def hours(number: float) -> str:
    """Return GPU-hours in two digits."""
    return "0" if number == 0 else f"{number:.2g}"


def seconds(number: float) -> str:
    """Return seconds in two digits or more."""
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


def block(asked: str | int, size: tuple[int, int]) -> str:
    """Return what block was asked for, and its rows and columns where that does not say them."""
    rows, columns = size
    return str(asked) if asked == rows == columns else f"{asked} ({rows} x {columns})"


def where(judgement: Judgement) -> str:
    """Return what a part of the tables is about."""
    what = "One layer" if judgement.setting == "layer" else "Whole model"
    return f"{what}, share {100 * judgement.share:g} %, block {block(judgement.block, judgement.block_size)}"
