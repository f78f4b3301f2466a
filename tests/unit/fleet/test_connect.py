"""Who is let into a fleet at work, and under which key."""

from collections.abc import Iterator

import pytest

from awfulowl.errors import InputError
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.fleet.connect import ConnectedFleet
from awfulowl.placement.ledger import Device

FIRST = Identity.generate("d1").enrolment


@pytest.fixture
def fleet() -> Iterator[ConnectedFleet]:
    """One of one device, whose frames are sealed."""
    with ConnectedFleet(MemoryFabric(), [Device("d1", "a")]) as fleet:
        fleet.peers = {"d1": FIRST.seal_public}
        yield fleet


def test_one_more_is_let_in_with_its_key(fleet: ConnectedFleet) -> None:
    more = Identity.generate("d2").enrolment
    fleet.enrol(more, "b")
    assert fleet.devices == (Device("d1", "a"), Device("d2", "b"))
    assert fleet.peers == {"d1": FIRST.seal_public, "d2": more.seal_public}


def test_who_is_there_is_let_in_again_as_it_is(fleet: ConnectedFleet) -> None:
    fleet.enrol(FIRST, "a")
    assert fleet.devices == (Device("d1", "a"),)
    assert fleet.peers == {"d1": FIRST.seal_public}


def test_a_name_keeps_its_key(fleet: ConnectedFleet) -> None:
    with pytest.raises(InputError, match="'d1' is known with another key; give the device another name"):
        fleet.enrol(Identity.generate("d1").enrolment, "a")
    assert fleet.peers == {"d1": FIRST.seal_public}


def test_who_is_refused_leaves_no_key_behind(fleet: ConnectedFleet) -> None:
    fleet.peers = {}
    with pytest.raises(InputError, match="device 'd1' is of domain 'a' here, not of 'b'"):
        fleet.enrol(FIRST, "b")
    assert fleet.peers == {}
    fleet.enrol(Identity.generate("d1").enrolment, "a")


def test_without_seals_there_are_no_keys(fleet: ConnectedFleet) -> None:
    fleet.peers = None
    fleet.enrol(Identity.generate("d2").enrolment)
    assert [device.name for device in fleet.devices] == ["d1", "d2"]
    assert fleet.peers is None
