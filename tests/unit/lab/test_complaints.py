"""What users wrote wrong is said with the field, its value, and what was probably meant."""

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from awfulowl.lab.complaints import known, sentence

FIELDS = "share, shares, queries, knows_labels"


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """Some fields."""

    share: Annotated[float, Meta(ge=0, le=1)]
    shares: tuple[Annotated[float, Meta(gt=0, le=1)], ...] = ()
    queries: Annotated[int, Meta(ge=0)] = 0
    knows_labels: bool = True


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("least squares", "; did you mean 'least-squares'? There are least-squares, Norms, knows_labels"),
        ("norm", "; did you mean 'Norms'? There are least-squares, Norms, knows_labels"),
        ("KNOWS-LABEL", "; did you mean 'knows_labels'? There are least-squares, Norms, knows_labels"),
        ("lasts", "; there are least-squares, Norms, knows_labels"),
        ("", "; there are least-squares, Norms, knows_labels"),
    ],
)
def test_a_name_that_there_is_not_is_answered_with_those_there_are(name: str, end: str) -> None:
    assert known(name, iter(["least-squares", "Norms", "knows_labels"])) == end


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "object missing required field `share`"),
        ({"share": 2}, "share = 2: shares are between 0 and 1"),
        ({"share": -0.5}, "share = -0.5: shares are between 0 and 1"),
        ({"share": 1, "shares": [0.5, 3.0]}, "shares = [0.5, 3.0]: shares are between 0 and 1"),
        ({"share": 1, "queries": -1}, "queries = -1: expected `int` >= 0"),
        ({"share": 1, "queries": "many"}, "queries: expected `int`, got `str`"),
        ({"share": 1, "shares": [0.5, "all"]}, "shares[1]: expected `float`, got `str`"),
        (
            {"share": 1, "query": 1},
            "object contains unknown field `query`; did you mean 'queries'? There are " + FIELDS,
        ),
        ({"share": 1, "luck": 1}, f"object contains unknown field `luck`; there are {FIELDS}"),
    ],
)
def test_complaints_name_the_field_and_its_value(given: dict[str, Any], text: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(given, Asked)
    assert sentence(raised.value, given, Asked.__struct_fields__) == text
