"""The plan at run time: who serves a cell now, who may take it over, and what a device that returns gets back."""

from collections import Counter
from collections.abc import Collection

import msgspec

from awfulowl.errors import InputError
from awfulowl.placement.ledger import Device, unit
from awfulowl.placement.plan import Plan, weights
from awfulowl.placement.rules import Referee
from awfulowl.randomness import SYSTEM, Entropy


class Assignment:
    """The owner's current holders of every cell, and the history that binds them.

    A cell keeps every holder that it ever had, in order of preference; the first live ones, as many as the plan
    has replicas, serve it. So a device that comes back takes its old place, and its stand-in steps back, without a
    word. Placing is for ever: what a device was given counts as seen, even if it never answers. Call `assign`,
    save `plan()`, and only then send the blocks, so that no crash can lose a sighting.

    `panel` and `cell` are indexes into the plan. Not thread-safe: it lives in the owner's event loop.
    """

    def __init__(self, plan: Plan, entropy: Entropy = SYSTEM) -> None:
        self._plan = plan
        self._entropy = entropy
        self._devices = {device.name: device for device in plan.devices}
        self._ledger = plan.ledger.copy()
        layers = [(panel.title, len(panel.grid.columns)) for panel in plan.panels]
        self._referee = Referee(plan.rules, self._ledger, layers, plan.neighbours)
        self._holders = [[list(cell.holders) for cell in panel.cells] for panel in plan.panels]
        self._cells: dict[str, list[tuple[int, int]]] = {}
        self._load: Counter[str] = Counter()
        for panel, cells in enumerate(self._holders):
            for cell, holders in enumerate(cells):
                for name in holders:
                    self._count(panel, cell, name)

    def holders(self, panel: int, cell: int, alive: Collection[str]) -> tuple[str, ...]:
        """Return the devices that serve a cell now, preferred first: at most as many as the plan has replicas."""
        live = (name for name in self._holders[panel][cell] if name in alive)
        return tuple(name for name, _ in zip(live, range(self._plan.rules.replicas), strict=False))

    def ever(self, panel: int, cell: int) -> tuple[str, ...]:
        """Return all devices that a cell was ever given to, live or not: who may come back with it."""
        return tuple(self._holders[panel][cell])

    def domain(self, device: str) -> str:
        """Return the domain of a device of the plan."""
        return self._devices[device].domain

    def duties(self, device: str, alive: Collection[str]) -> tuple[tuple[int, int], ...]:
        """Return the (panel, cell) pairs that a live device serves now: what to load when it comes or returns."""
        return tuple(place for place in self._cells.get(device, ()) if device in self.holders(*place, alive))

    def candidates(self, panel: int, cell: int, alive: Collection[str]) -> list[str]:
        """Return the live devices that may take a cell without breaking a rule over the history, best first.

        Those that saw the slice already come first, then those whose domain did, then those that saw the least of
        the panel, so that room is left with everybody, then the least loaded; chance breaks ties. Present holders are
        left out.
        """
        placed = self._plan.panels[panel].cells[cell]
        column, lane = placed.column, placed.lane
        counted = unit(column, lane, len(self._plan.panels[panel].grid.columns))
        holders = self._holders[panel][cell]
        free = [device for name, device in self._devices.items() if name in alive and name not in holders]
        allowed = [device for device in free if self._referee.broken(panel, device, (column,), lane) is None]
        luck = self._entropy.uniform(len(allowed)).tolist()
        ranked = sorted(
            (
                counted not in self._ledger.seen(panel, device.name),
                counted not in self._ledger.seen_by_domain(panel, device.domain),
                len(self._ledger.seen(panel, device.name)),
                self._load[device.name],
                chance,
                device.name,
            )
            for device, chance in zip(allowed, luck, strict=True)
        )
        return [name for *_, name in ranked]

    def assign(self, panel: int, cell: int, device: str) -> None:
        """Make a device the last holder of a cell, and record what it will see.

        Raises:
            InputError: the plan knows no such device.
            RuleError: it would break a rule over the history; nothing changes.
        """
        if device not in self._devices:
            raise InputError(f"device {device!r} is not in the plan; add it first")
        if device in self._holders[panel][cell]:
            return
        placed = self._plan.panels[panel].cells[cell]
        self._referee.record(panel, self._devices[device], (placed.column,), placed.lane)
        self._holders[panel][cell].append(device)
        self._count(panel, cell, device)

    def demote(self, panel: int, cell: int, devices: Collection[str]) -> None:
        """Ask some holders of a cell after all others from now on."""
        self._holders[panel][cell].sort(key=lambda name: name in devices)

    def add(self, device: Device) -> None:
        """Let a new device take part from now on.

        Raises:
            InputError: the plan knows it in another domain.
        """
        known = self._devices.setdefault(device.name, device)
        if known != device:
            raise InputError(
                f"device {device.name!r} is of domain {known.domain!r} in the plan, not of {device.domain!r}; "
                "give it another name"
            )

    def plan(self) -> Plan:
        """Return the plan as it is now, with the history so far, to be saved."""
        panels = tuple(
            msgspec.structs.replace(
                panel,
                cells=tuple(
                    cell if len(cell.holders) == len(names) else msgspec.structs.replace(cell, holders=tuple(names))
                    for cell, names in zip(panel.cells, holders, strict=True)
                ),
            )
            for panel, holders in zip(self._plan.panels, self._holders, strict=True)
        )
        devices = tuple(self._devices.values())
        return msgspec.structs.replace(self._plan, devices=devices, panels=panels, ledger=self._ledger.copy())

    def _count(self, panel: int, cell: int, device: str) -> None:
        self._cells.setdefault(device, []).append((panel, cell))
        placed = self._plan.panels[panel].cells[cell]
        self._load[device] += weights(self._plan.panels[panel].grid, placed.column, placed.rows)
