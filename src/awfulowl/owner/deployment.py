"""One plan on the fleet: which device holds what right now, and what is done when that changes."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from awfulowl.errors import LocalError, ModelError, PeerError, RuleError, UnavailableError
from awfulowl.owner.engine import Engine, together
from awfulowl.owner.layout import Layouts, Outputs
from awfulowl.owner.loading import Meter, Progress, rows_of, stack
from awfulowl.owner.numbers import AnyCheck, Numbers, numbers_of
from awfulowl.owner.peer import Peer, Standing
from awfulowl.placement.assignment import Assignment
from awfulowl.placement.plan import Plan
from awfulowl.placement.plan import weights as weights_in
from awfulowl.veil.shares import sharing_of
from awfulowl.wire.messages import Load, Release, Sheet

CellKey = tuple[int, int]
"""(panel, cell) by their numbers in the plan."""

_LOADS_AT_ONCE: Final = 2
"""Of all devices together: each takes a copy of its sheet, and the owner's memory is to stay near the model's."""

_LOAD_TIMEOUT_FACTOR: Final = 6.0
"""Loads are larger than answers, and a device may be busy with another."""


class KeptError(LocalError):
    """The rules allow no placement for this panel: the owner multiplies itself."""


class Deployment:
    """Holds the assignment, the check vectors and references to the model's weights: no copy of them."""

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        weights: Mapping[str, Sequence[Tensor]],
        on_change: Callable[[Plan], None] | None = None,
    ) -> None:
        self.engine = engine
        self.assignment = Assignment(plan, engine.entropy)
        self.panels = plan.panels
        self.replicas = plan.rules.replicas
        self.sharing = sharing_of(plan.sharing)
        self.layouts: list[Layouts] = []
        self.numbers: list[Numbers] = []
        self.weights = [stack(panel, weights) for panel in self.panels]
        self.member_rows = [[rows_of(panel, member.rows) for member in panel.members] for panel in self.panels]
        self.checks: list[AnyCheck] = []
        self.kept: set[int] = set()
        self._on_change = on_change
        self.ready_on: dict[CellKey, set[str]] = {
            (number, cell): set() for number, panel in enumerate(self.panels) for cell in range(len(panel.cells))
        }
        self._loading: dict[tuple[str, CellKey], asyncio.Task[None]] = {}
        self._loads = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._uses = [0] * len(self.panels)
        self._renewing: set[int] = set()
        self._lanes: dict[tuple[int, int, str], int] = {}
        """The lane that each domain was given of each column, by panel, column and domain."""
        self.loading_onto: dict[str, asyncio.Lock] = {}

    async def start(self, timeout_s: float, progress: Progress | None = None) -> None:
        """Round weights, draw check vectors, wait for the devices, and load every block.

        Raises:
            UnavailableError: devices are missing, or blocks could not be loaded in time.
            ModelError: weights are not finite.
        """
        for number, panel in enumerate(self.panels):
            self.numbers.append(await self.engine.compute(partial(self.make_numbers, number)))
            self.layouts.append(Layouts(panel, self.sharing, self.numbers[number].width))
            self.checks.append(await self.engine.compute(partial(self.new_check, number)))
        names = [device.name for device in self.assignment.plan().devices]
        self.engine.enrol(names)
        await self.engine.present(names, timeout_s)
        self.engine.watch(self)
        duties = {name: self.assignment.duties(name, names) for name in names}
        meter = Meter(sum(self._cell_bytes(key) for keys in duties.values() for key in keys), progress)
        try:
            async with asyncio.timeout(timeout_s):
                await together(self.load_duties(self.engine.peers[name], meter) for name in names)
                await together(self._find(key, frozenset()) for key in self.ready_on)
        except TimeoutError as error:
            raise UnavailableError(f"the blocks were not loaded within {timeout_s:g} s; see fleet.events") from error
        except KeptError:
            return

    async def stop(self) -> None:
        """Let the devices forget this plan's blocks, and watch them no longer."""
        self.engine.unwatch(self)
        for task in self._loading.values():
            task.cancel()
        slices = tuple(handle for panel in self.panels for handle in panel.slice_handles)
        for peer in self.engine.peers.values():
            if peer.alive:
                await peer.ask(Release(slices), [], timeout_s=self.engine.policy.answer_timeout_s)

    def make_numbers(self, number: int) -> Numbers:
        """Return the numbers of a panel, from its weights as they are now."""
        return numbers_of(self.panels[number], self.weights[number], self.sharing, self.engine.entropy)

    def new_check(self, number: int) -> AnyCheck:
        """Draw secrets for a panel as it was when it was last known."""
        panel = self.panels[number]
        apart = {*map(tuple, self.member_rows[number]), *(cell.rows for cell in panel.cells)}
        return self.numbers[number].new_check(self.engine.entropy, apart)

    def _alive(self, avoid: Collection[str] = ()) -> set[str]:
        return {name for name, peer in self.engine.peers.items() if peer.alive and name not in avoid}

    def _cell_bytes(self, key: CellKey) -> int:
        panel, cell = self.panels[key[0]], self.panels[key[0]].cells[key[1]]
        return self.numbers[key[0]].weight_bytes * weights_in(panel.grid, cell.column, cell.rows)

    def domain(self, device: str) -> str:
        """Return the domain of a device."""
        return self.assignment.domain(device)

    # What devices hold

    def opened(self, peer: Peer, *, fresh: bool) -> None:
        """Give a device that came back its old blocks again."""
        if fresh:
            for holders in self.ready_on.values():
                holders.discard(peer.name)
        if self.assignment.duties(peer.name, self._alive()):
            self.engine.ledger.restored += 1
            self.engine.spawn(self.load_duties(peer))

    def lost(self, _: Peer) -> None:
        """Look for replacements if the device stays away; what it holds counts again if it comes back with it."""
        self.engine.spawn(self._repair_later())

    def evicted(self, peer: Peer, slices: Sequence[bytes]) -> None:
        """Load again what a device dropped."""
        gone = set(slices)
        for (number, cell), holders in self.ready_on.items():
            if not gone.isdisjoint(self.slices(number, cell)):
                holders.discard(peer.name)
        self.engine.spawn(self.load_duties(peer))

    async def load_duties(self, peer: Peer, meter: "Meter | None" = None) -> None:
        """Load what the assignment gives a device and it does not hold yet, in sheets of full rectangles."""
        duties = self.assignment.duties(peer.name, self._alive())

        async def one(number: int, cells: Sequence[int]) -> None:
            async with self._loads:
                try:
                    await self._load(peer, number, cells)
                except PeerError as error:
                    self.engine.note("load failed", peer.name, str(error))
            if meter is not None:
                meter.add(sum(self._cell_bytes((number, cell)) for cell in cells))

        missing = [key for key in duties if peer.name not in self.ready_on[key]]
        await together(one(number, cells) for number, cells in self._sheets(missing))

    def _sheets(self, keys: Iterable[CellKey]) -> Iterable[tuple[int, list[int]]]:
        """Group cells of one panel, lane and equal rows, in the order of summation, into loads of limited size."""
        groups: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
        for number, cell in keys:
            placed = self.panels[number].cells[cell]
            groups.setdefault((number, placed.lane, placed.rows), []).append(cell)
        for (number, _, _), cells in groups.items():
            rank = self.layouts[number].rank
            panel = self.panels[number]
            cells.sort(key=lambda cell: rank[panel.cells[cell].column])
            batch: list[int] = []
            size = 0
            for cell in cells:
                alone = panel.grid.columns[panel.cells[cell].column].groups > 1
                more = self._cell_bytes((number, cell))
                if batch and (alone or size + more > self.engine.policy.load_bytes):
                    yield number, batch
                    batch, size = [], 0
                batch.append(cell)
                size += more
                if alone:
                    yield number, batch
                    batch, size = [], 0
            if batch:
                yield number, batch

    async def _load(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        """Load cells of one lane and equal rows onto a device; one load at a time, none twice."""
        async with self.loading_onto.setdefault(peer.name, asyncio.Lock()):
            cells = [cell for cell in cells if peer.name not in self.ready_on[number, cell]]
            if not cells:
                return
            await self._send_load(peer, number, cells)
            await self.catch_up(peer, number, cells)
            for cell in cells:
                self.ready_on[number, cell].add(peer.name)
        self.engine.changed()

    async def catch_up(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        """Bring blocks that were just loaded to the present: nothing to do for weights that stay what they are."""

    async def _send_load(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        panel, layouts, numbers = self.panels[number], self.layouts[number], self.numbers[number]
        lane, rows = panel.cells[cells[0]].lane, panel.cells[cells[0]].rows
        columns = [panel.cells[cell].column for cell in cells]
        self._guard(number, lane, columns, peer.name)
        step, parts = numbers.step, numbers.parts
        tensors = await self.engine.compute(lambda: self.matrices(number, lane, rows, columns))
        sheets = tuple(
            Sheet(
                rows=tuple(panel.row_handles[row] for row in rows),
                row_sizes=tuple(panel.grid.rows[row].size for row in rows),
                slices=tuple(panel.slice_handle(column, matrix) for column in columns),
                slice_sizes=tuple(panel.grid.columns[column].span.size for column in columns),
                kernel=panel.grid.kernel,
                groups=panel.grid.columns[columns[0]].groups,
            )
            for matrix in layouts.matrices(lane)
        )
        timeout_s = self.engine.policy.answer_timeout_s * _LOAD_TIMEOUT_FACTOR
        await peer.ask(Load(sheets, parts=parts, step=step), tensors, timeout_s=timeout_s)

    def _guard(self, number: int, lane: int, columns: Iterable[int], device: str) -> None:
        """Refuse to give a domain two lanes of a column, whoever planned it: what was sent cannot be taken back.

        Raises:
            LocalError: the device's domain was given another lane.
        """
        domain = self.domain(device)
        for column in columns:
            if self._lanes.setdefault((number, column, domain), lane) != lane:
                raise LocalError(
                    f"domain '{domain}' would get two shares of {self.panels[number].name}, column {column}; nothing "
                    "was sent. This is a defect of the placement, or a plan that was changed: please report it"
                )

    def matrices(self, number: int, lane: int, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
        """Return what a device of a lane holds of some blocks.

        Raises:
            ModelError: the weights changed since they were scattered.
        """
        return self.numbers[number].matrices(self.checks[number], lane, rows, columns)

    def slices(self, number: int, cell: int) -> tuple[bytes, ...]:
        """Return the handles of all that a holder of a cell holds."""
        panel = self.panels[number]
        placed = panel.cells[cell]
        return tuple(panel.slice_handle(placed.column, matrix) for matrix in self.layouts[number].matrices(placed.lane))

    # Who is asked

    def holders(self, key: CellKey, avoid: Collection[str] = ()) -> tuple[str, ...]:
        """Return the live devices, outside `avoid`, that hold a cell and serve it."""
        return self.assignment.holders(*key, self.ready_on[key] & self._alive(avoid))

    def has_others(self, number: int, cells: Iterable[int], avoid: Collection[str]) -> bool:
        """Say whether every one of these cells has a live holder outside `avoid`."""
        return all(self.holders((number, cell), avoid) for cell in cells)

    async def route(
        self, number: int, cells: Iterable[int], avoid: frozenset[str], turn: int = 0
    ) -> dict[tuple[str, int], list[int]]:
        """Choose a live holder for each cell; where there is none, find one or wait for one.

        Args:
            number: of the panel.
            cells: of it.
            avoid: devices that are asked only if there is no other.
            turn: which of several holders comes first: those that train share the parts of a batch.

        Returns:
            The cells by device and lane.

        Raises:
            KeptError: the owner has taken this panel back.
            UnavailableError: every device was caught lying.
        """
        shares: dict[tuple[str, int], list[int]] = {}
        for cell in cells:
            holders = await self._find((number, cell), avoid)
            first = turn % len(holders)
            device = self.engine.pace.choose((*holders[first:], *holders[:first]))
            shares.setdefault((device, self.panels[number].cells[cell].lane), []).append(cell)
        return shares

    async def _find(self, key: CellKey, avoid: frozenset[str]) -> tuple[str, ...]:
        """Return the holders of a cell; those in `avoid` only when nobody else may have it."""
        while True:
            if key[0] in self.kept:
                raise KeptError(self.panels[key[0]].name)
            holders = self.holders(key, avoid)
            if not holders and await self._replace(key, avoid):
                holders = self.holders(key, avoid)
            holders = holders or self.holders(key)
            if holders:
                return holders
            if self._alive() and not self._may_return(key):
                self.keep(key[0])
            else:
                await self._wait_for_devices()

    async def _wait_for_devices(self) -> None:
        """Wait until somebody comes; when everybody was caught lying nobody will."""
        if all(peer.standing is Standing.QUARANTINED for peer in self.engine.peers.values()):
            raise UnavailableError("every device was caught lying; nothing honest is left")
        await self.engine.change()

    async def _replace(self, key: CellKey, avoid: Collection[str] = ()) -> bool:
        """Load a cell onto one more device, if the rules allow any."""
        loading = [device for device, cell in self._loading if cell == key and device not in avoid]
        for device in loading or self.assignment.candidates(*key, self._alive(avoid)):
            if await self._settle(device, key):
                return True
        return False

    async def _settle(self, device: str, key: CellKey) -> bool:
        """Give a cell to a device; many may ask for the same at once, it is loaded once."""
        task = self._loading.get((device, key))
        if task is None:
            try:
                self.assignment.assign(*key, device)
            except RuleError:  # another cell was given to its domain since the candidates were counted
                return False
            if self._on_change is not None:
                self._on_change(self.assignment.plan())
            self.engine.ledger.replaced += 1
            self.engine.note("replaced", device, f"takes a cell of {self.panels[key[0]].name}")
            task = self.engine.spawn(self._load(self.engine.peers[device], key[0], [key[1]]))
            self._loading[device, key] = task
            task.add_done_callback(lambda _: self._loading.pop((device, key), None))
        try:
            await asyncio.shield(task)
        except PeerError as error:
            self.engine.note("load failed", device, str(error))
            return False
        return True

    def _may_return(self, key: CellKey) -> bool:
        """Say whether a holder of this cell is absent for so short that it may come back."""
        return any(
            self.engine.absent_s(name) < self.engine.policy.repair_after_s for name in self.assignment.ever(*key)
        )

    def keep(self, number: int) -> None:
        """Take a panel back: the owner multiplies itself from now on."""
        if number in self.kept:
            return
        self.kept.add(number)
        self.engine.ledger.kept += 1
        self.engine.note(
            "kept", "", f"the rules allow no placement for {self.panels[number].name}: the owner takes it back"
        )
        self.engine.changed()

    async def _repair_later(self) -> None:
        """After a while, give the cells of devices that stay away to others, so that replicas are whole again."""
        await asyncio.sleep(self.engine.policy.repair_after_s)
        for key in self.ready_on:
            if key[0] not in self.kept and len(self.holders(key)) < self.replicas and not self._may_return(key):
                await self._replace(key)
        self.engine.changed()

    # Arithmetic at the owner

    def used(self, number: int, samples: int) -> None:
        """Count a product; draw new check vectors on schedule."""
        self.engine.ledger.samples += samples
        self._uses[number] += 1
        if self._uses[number] >= self.engine.policy.renew_after:
            self.renew(number)

    async def anchor(self, number: int) -> None:
        """Draw new check vectors after a failure that is nobody's: every part is right and the sum is not."""
        self.renew(number)

    def renew(self, number: int) -> None:
        """Draw new check vectors in the background: an answer accepted or rejected says a little about the old ones."""
        if number in self._renewing:
            return
        self._renewing.add(number)
        self._uses[number] = 0
        self.engine.spawn(self._renew(number))

    async def _renew(self, number: int) -> None:
        try:
            self.checks[number] = await self.engine.compute(partial(self._redrawn, number))
        except ModelError as error:  # devices hold what the old secrets were drawn for: these stay
            self.engine.note("not renewed", "", str(error))
        finally:
            self._renewing.discard(number)

    def _redrawn(self, number: int) -> AnyCheck:
        """Draw secrets anew, after a look at one block, chosen at random.

        Raises:
            ModelError: the weights changed since they were scattered.
        """
        cells = self.panels[number].cells
        cell = cells[self.engine.entropy.below(len(cells))]
        self.matrices(number, cell.lane, cell.rows, [cell.column])
        return self.new_check(number)

    def multiply_here(self, number: int, x: Tensor, outputs: Outputs) -> Tensor:
        """Return the product of a panel that the owner took back."""
        grid, y = self.panels[number].grid, self.numbers[number].here(x)
        return torch.cat([y[:, grid.rows[row].start : grid.rows[row].stop] for row in outputs.rows], dim=1)
