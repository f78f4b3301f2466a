"""Errors of a strict decoder name what is permitted; where they cannot, they are left as they are."""

from typing import Literal

import msgspec
import pytest

from awfulowl.jobs.explaining import explained


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["one", "two"]
    sizes: tuple[Literal[1, 2], ...] = ()


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner
    names: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"outer": 1}', "; there are inner, names"),
        ('{"inner": {"kine": 1}}', "; there are kind, sizes"),
        ('{"inner": {"kind": "three"}}', "; there are one, two"),
        ('{"inner": {"kind": "one", "sizes": [3]}}', "at `$.inner.sizes[0]`"),
        ('{"inner": {"kind": "one"}, "names": {"x": {"kine": 1}}}', "at `$.names[...]`"),
        ('{"inner": {}}', "missing required field `kind` - at `$.inner`"),
        ("[]", "Expected `object`, got `array`"),
        ("{", "Input data was truncated"),
    ],
)
def test_what_is_permitted_is_named(text: str, said: str) -> None:
    with pytest.raises(msgspec.MsgspecError) as caught:
        msgspec.json.decode(text, type=Outer)
    assert explained(caught.value, Outer).startswith(str(caught.value))
    assert explained(caught.value, Outer).endswith(said)
