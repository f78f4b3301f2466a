"""What the texts of options mean."""

import pytest

from awfulowl.cli.options import names, parse_block, parse_devices
from awfulowl.errors import InputError
from awfulowl.placement.ledger import UNKNOWN, Device


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("2", [("d1", UNKNOWN), ("d2", UNKNOWN)]),
        (" 1 ", [("d1", UNKNOWN)]),
        ("one", [("one", UNKNOWN)]),
        ("a@x, b@x,c", [("a", "x"), ("b", "x"), ("c", UNKNOWN)]),
        ("a@", [("a", UNKNOWN)]),
        ("a@x@y", [("a", "x@y")]),
    ],
)
def test_devices_are_a_number_or_names_with_domains(text: str, devices: list[tuple[str, str]]) -> None:
    assert parse_devices(text) == tuple(Device(*device) for device in devices)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0", "no devices"),
        ("-3", "no devices"),
        ("", "no name of a device"),
        ("a,,b", "no name of a device"),
        ("a b", "no name of a device"),
        ("a.b", "no name of a device"),
        ("a,a@x", "two devices share a name, 'a'"),
    ],
)
def test_devices_that_are_none_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_devices(text)


@pytest.mark.parametrize(("text", "block"), [("auto", "auto"), ("64", 64), ("64x32", (64, 32))])
def test_blocks_are_automatic_square_or_not(text: str, block: object) -> None:
    assert parse_block(text) == block


@pytest.mark.parametrize("text", ["", "x", "3y", "64x", "1x2x3", "-4", "4.5", "Auto", "²", "9" * 5000])
def test_blocks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--block"):
        parse_block(text)


def test_an_option_that_was_not_given_names_nothing() -> None:
    assert names(None) == ()
    assert names(["a", "b"]) == ("a", "b")
