"""The ledger of what was seen: nothing is forgotten, nothing is shown."""

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from awfulowl.placement.ledger import UNKNOWN, Device, Ledger, Sealed
from tests.unit.placement.fleets import some

DEVICES = [Device("one", "a"), Device("two", "a"), Device("three", "b"), Device("four")]
SIGHTINGS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(DEVICES), st.sets(st.integers(0, 9), max_size=3)), max_size=20
)


def test_unknown_devices_form_one_domain() -> None:
    assert Device("x").domain == Device("y").domain == UNKNOWN


@some
@given(SIGHTINGS)
def test_devices_and_domains_have_seen_what_was_recorded(sightings: list[tuple[int, Device, set[int]]]) -> None:
    ledger = Ledger.empty(3)
    for panel, device, columns in sightings:
        ledger.record(panel, device, columns)
    for panel in range(3):
        for device in DEVICES:
            own = [columns for at, who, columns in sightings if (at, who) == (panel, device)]
            shared = [columns for at, who, columns in sightings if (at, who.domain) == (panel, device.domain)]
            assert ledger.seen(panel, device.name) == set().union(*own)
            assert ledger.seen_by_domain(panel, device.domain) == set().union(*shared)


@some
@given(SIGHTINGS)
def test_a_ledger_survives_msgpack(sightings: list[tuple[int, Device, set[int]]]) -> None:
    ledger = Ledger.empty(3)
    for panel, device, columns in sightings:
        ledger.record(panel, device, columns)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ledger), type=Ledger) == ledger


def test_a_copy_changes_alone() -> None:
    ledger = Ledger.empty(1)
    ledger.record(0, DEVICES[0], {1})
    copy = ledger.copy()
    copy.record(0, DEVICES[0], {2})
    copy.record(0, DEVICES[2], {3})
    assert ledger.seen(0, "one") == {1}
    assert copy.seen(0, "one") == {1, 2}
    assert ledger.seen_by_domain(0, "b") == set()


def test_a_domain_remembers_a_device_that_changed_sides() -> None:
    ledger = Ledger.empty(1)
    ledger.record(0, Device("x", "a"), {1})
    ledger.record(0, Device("x", "b"), {2})
    assert ledger.seen(0, "x") == {1, 2}
    assert ledger.seen_by_domain(0, "a") == {1}
    assert ledger.seen_by_domain(0, "b") == {2}


def test_a_ledger_shows_counts_only() -> None:
    ledger = Ledger.empty(2)
    ledger.record(1, Device("somebody"), {77})
    assert repr(ledger) == str(ledger) == "Ledger(panels=2, devices=1)"


def test_a_sealed_value_shows_nothing_unless_it_says_what() -> None:
    class Key(Sealed, frozen=True):
        value: str

    assert repr(Key("hunter2")) == "Key()"
    assert Key("hunter2").__rich_repr__() == []


def test_rich_shows_what_repr_shows() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(Ledger.empty(3))
    assert out.getvalue().strip() == "Ledger(panels=3, devices=0)"


def test_a_ledger_cannot_be_exchanged() -> None:
    ledger = Ledger.empty(1)
    with pytest.raises(AttributeError):
        ledger.devices = ()  # type: ignore[misc]
