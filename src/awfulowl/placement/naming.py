"""What a caller may give as `devices`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from awfulowl.errors import InputError
from awfulowl.placement.ledger import UNKNOWN, Device


class HasDevices(Protocol):
    """A fleet, or a plan."""

    devices: tuple[Device, ...]


def name_devices(
    devices: "int | Sequence[str | Device] | Mapping[str, str] | HasDevices",
) -> tuple[Device, ...]:
    """Return devices from a number (d1, d2, ...), names (d1, or d1@alice), a mapping to domains, or what has devices.

    Raises:
        InputError: there are none, or two share a name.
    """
    if isinstance(devices, int):
        named = [Device(f"d{number}") for number in range(1, devices + 1)]
    elif isinstance(devices, Mapping):
        named = [Device(name, domain) for name, domain in devices.items()]
    elif isinstance(devices, Sequence):
        named = [device if isinstance(device, Device) else _device(device) for device in devices]
    else:
        named = list(devices.devices)
    if not named:
        raise InputError("no devices: give a number of at least 1, or names")
    name, count = Counter(device.name for device in named).most_common(1)[0]
    if count > 1:
        raise InputError(f"two devices share a name, {name!r}: give each its own")
    return tuple(named)


def _device(text: str) -> Device:
    name, _, domain = text.partition("@")
    return Device(name, domain or UNKNOWN)
