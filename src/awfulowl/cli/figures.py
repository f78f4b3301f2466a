"""Numbers as people read them."""

from awfulowl.limits import KIB, MIB

UNKNOWN = "unknown"


def percent(share: float | None) -> str:
    """Return a share as a percentage; what is neither nothing nor all never looks as if it were."""
    if share is None:
        return UNKNOWN
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def count(number: int | None) -> str:
    """Return a number with its thousands apart."""
    return UNKNOWN if number is None else f"{number:,}"


def short(number: int) -> str:
    """Return a number in three digits: 7, 590 k, 2.36 M."""
    for power, unit in ((12, " T"), (9, " G"), (6, " M"), (3, " k")):
        if number >= 0.9995 * 10**power:
            return f"{number / 10**power:#.3g}".removesuffix(".") + unit
    return str(number)


def size(number_of_bytes: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    if number_of_bytes < 10 * KIB:
        return f"{number_of_bytes:.0f} B"
    if number_of_bytes < 10 * MIB:
        return f"{number_of_bytes / KIB:.0f} KiB"
    return f"{number_of_bytes / MIB:.1f} MiB"


def counted(number: int, word: str) -> str:
    """Return a number with its word: 1 device, 2 devices."""
    return f"{count(number)} {word}{'' if number == 1 else 's'}"
