"""What a strict decoder refused, with what it would have taken."""

import re
from typing import Final

import msgspec
from msgspec import inspect

_PLACE: Final = re.compile(r" - at `\$\.?(.*)`\Z")


def explained(error: Exception, kind: type[msgspec.Struct]) -> str:
    """Return the text of an error in decoding a `kind`: of an unknown field or value also those that there are."""
    text = str(error)
    place = _PLACE.search(text)
    found = _at(inspect.type_info(kind), place[1] if place else "")
    if isinstance(found, inspect.StructType) and "unknown field" in text:
        return f"{text}; there are {', '.join(field.encode_name for field in found.fields)}"
    if isinstance(found, inspect.LiteralType):
        return f"{text}; there are {', '.join(map(str, found.values))}"
    return text


def _at(found: inspect.Type | None, place: str) -> inspect.Type | None:
    for name in filter(None, place.split(".")):
        fields = found.fields if isinstance(found, inspect.StructType) else ()
        found = next((field.type for field in fields if field.encode_name == name), None)
    return found
