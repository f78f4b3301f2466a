"""A class of machines is what decides the last bit."""

import msgspec

from awfulowl.jobs.job import canonical
from awfulowl.jobs.machine import Machine, this_machine


def test_a_machine_is_of_its_own_class() -> None:
    assert this_machine(2) == this_machine(2)
    assert this_machine(1) != this_machine(2)
    assert this_machine(3).threads == 3


def test_a_class_can_be_signed_and_read() -> None:
    one = this_machine(1)
    assert msgspec.msgpack.decode(canonical(one), type=Machine) == one
    assert all(getattr(one, field) for field in Machine.__struct_fields__)
