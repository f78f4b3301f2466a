"""A fleet of machines elsewhere, through a broker that somebody runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from awfulowl.errors import InputError
from awfulowl.fabric.identity import Enrolment, Identity
from awfulowl.fabric.nats import NatsFabric
from awfulowl.fabric.sealed import SealedFabric
from awfulowl.fleet.fleet import Fleet
from awfulowl.owner.policy import Policy
from awfulowl.placement.ledger import UNKNOWN, Device

_ENROLMENT_BYTES = 4096


class ConnectedFleet(Fleet):
    """A fleet of machines elsewhere, to which more can be added."""

    peers: dict[str, bytes] | None = None
    """The keys that frames of each device are sealed with, where they are: the fabric looks here."""

    def enrol(self, device: Enrolment | Path | str, domain: str = UNKNOWN) -> None:
        """Let one more device take part; whoever runs the broker has to let it in as well.

        Raises:
            InputError: the enrolment is not usable, or its name is known with another key or in another domain.
        """
        enrolled = _enrolment(device)
        key = enrolled.seal_public
        if self.peers is not None and self.peers.get(enrolled.name, key) != key:
            raise InputError(f"{enrolled.name!r} is known with another key; give the device another name")
        self.admit(Device(enrolled.name, domain))  # before its key is kept: who is refused leaves none behind
        if self.peers is not None:
            self.peers[enrolled.name] = key


def connect(
    url: str,
    *,
    identity: Identity | Path | str,
    devices: Sequence[Enrolment | Path | str],
    domains: Mapping[str, str] | None = None,
    sealed: bool = True,
    policy: Policy | None = None,
) -> ConnectedFleet:
    """Join a broker as the owner of these devices.

    Args:
        url: `nats://`, `tls://`, or with the extra `websocket` `ws://` or `wss://`; host and port.
        identity: the owner's keys, or the file that holds them.
        devices: what each device's `owl device` printed when it was enrolled, or the file that holds it.
        domains: of devices whose party is known, by name; the others form one domain.
        sealed: seal every frame between owner and device, so that whoever runs the broker sees no block and no
            activation. Leave it on unless the broker is your own.
        policy: times and sizes, where the standard ones do not fit.

    Raises:
        InputError: an address, a key file or an enrolment is not usable.
        BrokerError: the broker is not there, or does not let the owner in.
    """
    keys = identity if isinstance(identity, Identity) else Identity.load(Path(identity))
    enrolled = [_enrolment(device) for device in devices]
    known = domains or {}
    strangers = known.keys() - {device.name for device in enrolled}
    if strangers:
        raise InputError(f"domains name devices that are not enrolled: {', '.join(sorted(strangers))}")
    members = [Device(device.name, known.get(device.name, UNKNOWN)) for device in enrolled]
    open_fabric = NatsFabric(url, keys)
    if not sealed:
        return ConnectedFleet(open_fabric, members, policy=policy)
    peers = {device.name: device.seal_public for device in enrolled}
    fleet = ConnectedFleet(SealedFabric(open_fabric, keys, peers), members, policy=policy)
    fleet.peers = peers
    return fleet


def _enrolment(device: Enrolment | Path | str) -> Enrolment:
    return device if isinstance(device, Enrolment) else read_enrolment(Path(device))


def read_enrolment(path: Path) -> Enrolment:
    """Read the public part of an identity from a JSON file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_ENROLMENT_BYTES + 1)
        if len(content) > _ENROLMENT_BYTES:
            raise InputError(f"{path} is larger than an enrolment can be ({_ENROLMENT_BYTES} bytes)")
        return msgspec.json.decode(content, type=Enrolment)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no enrolment: give the line that `owl identity` printed") from error
