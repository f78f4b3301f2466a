"""What each device holds of a plan right now, and how it gets it."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Final

from torch import Tensor

from awfulowl.errors import LocalError, ModelError, PeerError, RefusedError
from awfulowl.owner.engine import Engine, together
from awfulowl.owner.layout import Layouts
from awfulowl.owner.loading import CellKey, Meter, in_sheets, rows_of, stack
from awfulowl.owner.numbers import AnyCheck, Numbers, numbers_of
from awfulowl.owner.peer import Peer
from awfulowl.placement.assignment import Assignment
from awfulowl.placement.plan import Plan
from awfulowl.placement.plan import weights as weights_in
from awfulowl.veil.shares import sharing_of
from awfulowl.wire.messages import Load, Release
from awfulowl.wire.parts import Sheet

_LOADS_AT_ONCE: Final = 2
"""Of all devices together: each takes a copy of its sheet, and the owner's memory is to stay near the model's."""

_LOAD_TIMEOUT_FACTOR: Final = 6.0
"""Loads are larger than answers, and a device may be busy with another."""


class Holdings:
    """Holds the assignment, the check vectors and references to the model's weights: no copy of them."""

    waits: ClassVar[bool] = False
    """Whether a cell waits for a holder that is being loaded, before another device gets to see it."""

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        weights: Mapping[str, Sequence[Tensor]],
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
        self.ready_on: dict[CellKey, set[str]] = {
            (number, cell): set() for number, panel in enumerate(self.panels) for cell in range(len(panel.cells))
        }
        self._loads = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._lanes: dict[tuple[int, int, str], int] = {}
        """The lane that each domain was given of each column, by panel, column and domain."""
        self.loading_onto: dict[str, asyncio.Lock] = {}
        self.coming: Counter[CellKey] = Counter()
        """Cells that holders which came, came back or were behind are being loaded with."""
        self.stopped = False
        """Whether devices were told to forget all of it: nothing is loaded any longer."""
        self._retrying: set[str] = set()
        self._failures: Counter[str] = Counter()

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
        return self.numbers[key[0]].held_bytes(cell.lane) * weights_in(panel.grid, cell.column, cell.rows)

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
                except (PeerError, ModelError) as error:  # of the model: other panels are loaded all the same
                    self._load_failed(peer, error)
                else:
                    self._failures.pop(peer.name, None)
            if meter is not None:
                meter.add(sum(self._cell_bytes((number, cell)) for cell in cells))

        missing = [key for key in duties if peer.name not in self.ready_on[key]]
        batches = in_sheets(missing, self.layouts, self._cell_bytes, self.engine.policy.load_bytes)
        self.coming.update(missing)
        try:
            await together(one(number, cells) for number, cells in batches)
        finally:
            self.coming.subtract(missing)

    def _load_failed(self, peer: Peer, error: PeerError | ModelError) -> None:
        """Try again later, as long as the device is there, each time after twice as long."""
        self.engine.note("load failed", peer.name, str(error))
        if peer.alive and peer.name not in self._retrying:
            self._retrying.add(peer.name)
            self._failures[peer.name] += 1
            delay_s = self.engine.policy.repair_after_s * 2 ** min(self._failures[peer.name], 8)
            self.engine.spawn(self._load_later(peer, delay_s))

    async def _load_later(self, peer: Peer, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._retrying.discard(peer.name)
        if peer.alive:
            await self.load_duties(peer)

    async def _load(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        """Load cells of one lane and equal rows onto a device; one load at a time, none twice."""
        async with self.loading_onto.setdefault(peer.name, asyncio.Lock()):
            cells = [cell for cell in cells if peer.name not in self.ready_on[number, cell]]
            if not cells or self.stopped:
                return
            since = self.known(number)
            try:
                await self._send_load(peer, number, cells)
            except RefusedError:  # it holds them among others that it was to serve before
                await self._release(peer, number, cells)
                await self._send_load(peer, number, cells)
            await self.catch_up(peer, number, cells, since)
            for cell in cells:
                self.ready_on[number, cell].add(peer.name)
        self.engine.changed()

    async def _release(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        slices = tuple(dict.fromkeys(handle for cell in cells for handle in self.slices(number, cell)))
        await peer.ask(Release(slices), [], timeout_s=self.engine.policy.answer_timeout_s)

    def known(self, number: int) -> object:
        """Return what tells whether blocks that are loaded from now on are old when they have arrived."""
        return number

    async def catch_up(self, peer: Peer, number: int, cells: Sequence[int], since: object) -> None:
        """Bring blocks that were just loaded to the present: nothing to do for weights that stay what they are."""

    async def _send_load(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        panel, layouts, numbers = self.panels[number], self.layouts[number], self.numbers[number]
        lane, rows = panel.cells[cells[0]].lane, panel.cells[cells[0]].rows
        columns = [panel.cells[cell].column for cell in cells]
        self._guard(number, lane, columns, peer.name)
        step, parts = numbers.step, numbers.parts
        sent = await self.engine.compute(lambda: numbers.sent(self.checks[number], lane, rows, columns))
        sheets = tuple(
            Sheet(
                rows=tuple(panel.row_handles[row] for row in rows),
                row_sizes=tuple(panel.grid.rows[row].size for row in rows),
                slices=tuple(panel.slice_handle(column, matrix) for column in columns),
                slice_sizes=tuple(panel.grid.columns[column].span.size for column in columns),
                kernel=panel.grid.kernel,
                groups=panel.grid.columns[columns[0]].groups,
                apart=len(own) > 1,
            )
            for matrix, own in zip(layouts.matrices(lane), sent[::parts], strict=True)
        )
        tensors = [tensor for own in sent for tensor in own]
        patience_s = self.engine.policy.answer_timeout_s
        body, timeout_s = Load(sheets, parts=parts, step=step), _LOAD_TIMEOUT_FACTOR * patience_s
        await peer.ask(body, tensors, timeout_s=timeout_s, repeat_s=patience_s)

    def _guard(self, number: int, lane: int, columns: Iterable[int], device: str) -> None:
        """Refuse to give a domain two lanes of a column, whoever planned it: what was sent cannot be taken back.

        Raises:
            LocalError: the device's domain was given another lane.
        """
        domain = self.domain(device)
        for column in columns:
            if self._lanes.setdefault((number, column, domain), lane) != lane:
                raise LocalError(
                    f"domain '{domain}' would get two shares of {self.panels[number].title}, column {column}; nothing "
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
