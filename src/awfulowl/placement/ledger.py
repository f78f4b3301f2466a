"""Who saw what: the input slices that each device and each domain ever had.

Exposure is counted in slices seen over the whole history, not in blocks held today: a device sees the whole
input slice of every block that it holds, once is enough, and what was seen stays seen.
"""

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Final

from msgspec import Struct

UNKNOWN: Final = "unknown"


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """A machine that may hold blocks, and the domain it is assumed to belong to; unknown ones form one."""

    name: str
    domain: str = UNKNOWN


def by_domain(devices: Iterable[Device]) -> dict[str, list[Device]]:
    """Return devices by their domains."""
    members: dict[str, list[Device]] = {}
    for device in devices:
        members.setdefault(device.domain, []).append(device)
    return members


def unit(column: int, lane: int, columns: int) -> int:
    """Return what the ledger counts a lane of one of so many columns as; `divmod` gives lane and column again."""
    return lane * columns + column


class Sealed(Struct, frozen=True, forbid_unknown_fields=True):
    """A value that holds secrets: its repr shows counts only, to people, logs and tracebacks alike."""

    def _shown(self) -> list[tuple[str, Any]]:
        return []

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._shown())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show to `rich` what `repr` shows."""
        return self._shown()


class Ledger(Sealed, frozen=True):
    """The slices that were ever placed with each device and each domain, per panel.

    A slice counts from the moment it is placed, before anything is sent, so no crash can lose a sighting. Where inputs
    are shared, what is seen are shares: each lane of a column is counted for itself (`unit`).
    """

    devices: tuple[dict[str, set[int]], ...]
    domains: tuple[dict[str, set[int]], ...]

    @classmethod
    def empty(cls, panels: int) -> "Ledger":
        """Return a ledger of `panels` panels in which nobody has seen anything."""
        return cls(tuple({} for _ in range(panels)), tuple({} for _ in range(panels)))

    def copy(self) -> "Ledger":
        """Return a ledger that changes independently of this one."""
        return Ledger(_copied(self.devices), _copied(self.domains))

    def record(self, panel: int, device: Device, columns: Collection[int]) -> None:
        """Note that `device`, and with it its domain, sees these columns of a panel."""
        self.devices[panel].setdefault(device.name, set()).update(columns)
        self.domains[panel].setdefault(device.domain, set()).update(columns)

    def seen(self, panel: int, device: str) -> AbstractSet[int]:
        """Return the columns of a panel that a device ever saw."""
        return self.devices[panel].get(device, frozenset())

    def seen_by_domain(self, panel: int, domain: str) -> AbstractSet[int]:
        """Return the columns of a panel that any device of a domain ever saw."""
        return self.domains[panel].get(domain, frozenset())

    def _shown(self) -> list[tuple[str, Any]]:
        names = {name for panel in self.devices for name in panel}
        return [("panels", len(self.devices)), ("devices", len(names))]


def _copied(panels: tuple[dict[str, set[int]], ...]) -> tuple[dict[str, set[int]], ...]:
    return tuple({name: set(columns) for name, columns in panel.items()} for panel in panels)
