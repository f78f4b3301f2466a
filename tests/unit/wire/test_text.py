"""Text of a peer, before anybody sees it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.wire.text import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("all is well", "all is well"),
        ("Größe", "Größe"),
        ("red \x1b[31m\nline\0", "red ?[31m?line?"),
        ("turned \u202e round", "turned ? round"),
        ("half \ud800 pair", "half ? pair"),
        ("", ""),
    ],
)
def test_what_acts_on_a_terminal_is_replaced(text: str, shown: str) -> None:
    assert plain(text, 100) == shown


def test_long_text_is_cut() -> None:
    assert plain("x" * 100, 10) == "x" * 10


@given(st.text(), st.integers(0, 20))
def test_any_text_becomes_printable_and_short(text: str, most: int) -> None:
    shown = plain(text, most)
    assert len(shown) <= most
    assert shown.isprintable()
    shown.encode()
