"""What is wrong with what a user wrote, in a sentence: the field, its value, what there is, and what was meant."""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Final

import msgspec

_CLOSE: Final = 0.65
"""Of difflib's ratio: by its own .6, luck would be taken for blocks."""

_SHARES: Final = frozenset({"share", "shares"})
_RANGE: Final = re.compile(r"expected `\w+` [<>]")
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`")


def known(name: str, names: Iterable[str]) -> str:
    """Return the end of a complaint about a name that there is not: the one that was probably meant, and all."""
    there = [*names]
    close = get_close_matches(
        name.lower().replace(" ", "-").replace("_", "-"), [_plain(one) for one in there], n=1, cutoff=_CLOSE
    )
    meant = next((one for one in there if close == [_plain(one)]), None)
    listed = f"here are {', '.join(there)}"
    return f"; t{listed}" if meant is None else f"; did you mean {meant!r}? T{listed}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")


def sentence(error: msgspec.ValidationError, given: Mapping[str, object], fields: Collection[str]) -> str:
    """Return what msgspec complains of, with the field in front.

    Args:
        error: of the conversion of `given`.
        given: values by field.
        fields: that there are.
    """
    text, at, path = str(error).rpartition(" - at `$.")
    text = text if at else str(error)
    text = text[0].lower() + text[1:]
    unknown = _UNKNOWN.search(text)
    if unknown and not at:
        return text + known(unknown[1], fields)
    if not at:
        return text
    path = path.rstrip("`")
    field = path.partition("[")[0].partition(".")[0]
    if not _RANGE.match(text):
        return f"{path}: {text}"
    said = "shares are between 0 and 1" if field in _SHARES else text
    return f"{field} = {given.get(field)}: {said}"
