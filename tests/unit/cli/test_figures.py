"""Numbers as people read them."""

import pytest

from awfulowl.cli import figures


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "unknown"),
        (0.0, "0.0 %"),
        (0.0001, "< 0.1 %"),
        (0.0005, "0.1 %"),
        (0.25, "25.0 %"),
        (0.98888, "98.9 %"),
        (0.9994, "99.9 %"),
        (0.99999, "> 99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_a_share_is_never_nothing_or_all_by_rounding(share: float | None, text: str) -> None:
    assert figures.percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (1280, "1.28 k"),
        (37_792, "37.8 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (150_994_944, "151 M"),
        (2_743_074_816, "2.74 G"),
        (5 * 10**13, "50.0 T"),
    ],
)
def test_short_numbers_have_three_digits(number: int, text: str) -> None:
    assert figures.short(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (10_239, "10239 B"),
        (10_240, "10 KiB"),
        (175_168, "171 KiB"),
        (10 * 2**20, "10.0 MiB"),
        (94_437_376, "90.1 MiB"),
    ],
)
def test_sizes_have_the_unit_that_suits_them(size: int, text: str) -> None:
    assert figures.size(size) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 devices"), (1, "1 device"), (1234, "1,234 devices")])
def test_words_follow_their_number(number: int, text: str) -> None:
    assert figures.counted(number, "device") == text


def test_what_is_not_known_is_called_so() -> None:
    assert figures.count(None) == "unknown"
