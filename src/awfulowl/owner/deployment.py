"""One plan on the fleet: who is asked for what, and what is done when somebody is gone."""

import asyncio
import math
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from awfulowl.compiling import WORTH_COMPILING
from awfulowl.errors import LocalError, ModelError, PeerError, RuleError, ScatteredError, UnavailableError
from awfulowl.owner.engine import Engine, together
from awfulowl.owner.holdings import Holdings
from awfulowl.owner.layout import Layouts, Outputs, Piece
from awfulowl.owner.loading import CellKey, Meter, Progress
from awfulowl.owner.numbers import AnyCheck, Floats
from awfulowl.owner.peer import Peer, Standing
from awfulowl.placement.plan import Plan
from awfulowl.verification import compiled
from awfulowl.wire.messages import Release


class KeptError(LocalError):
    """The rules allow no placement for this panel: the owner multiplies itself."""


class Deployment(Holdings):
    """A plan at work: finds for every cell a device that can be asked."""

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        weights: Mapping[str, Sequence[Tensor]],
        on_change: Callable[[Plan], None] | None = None,
    ) -> None:
        super().__init__(engine, plan, weights)
        self.kept: set[int] = set()
        self._on_change = on_change
        self._loading: dict[tuple[str, CellKey], asyncio.Task[None]] = {}
        self._uses = [0] * len(self.panels)
        self._renewing: set[int] = set()
        self._held: set[int] = set()
        """Panels that were taken back, and whose weights are what they were."""
        self.users: weakref.WeakSet[Any] | None = None
        """What asks for products, once there is a model: its parts may outlive it."""

    @property
    def is_abandoned(self) -> bool:
        """Whether the model is gone with all its parts, and nobody said that it is not needed any longer."""
        return self.users is not None and len(self.users) == 0

    async def start(self, timeout_s: float, progress: Progress | None = None) -> None:
        """Round weights, draw check vectors, wait for the devices, and load every block.

        Raises:
            UnavailableError: devices are missing, or blocks could not be loaded in time.
            ModelError: weights are not finite.
        """
        if sum(prod(panel.grid.shape) for panel in self.panels) >= WORTH_COMPILING:
            await self.engine.compute(compiled.prepare)
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
        """Let the devices forget this plan's blocks, and watch them no longer; doing it again does nothing."""
        if self.stopped:
            return
        self.stopped = True
        self.engine.unwatch(self)
        for task in self._loading.values():
            task.cancel()
        slices = tuple(handle for panel in self.panels for handle in panel.slice_handles)
        for peer in self.engine.peers.values():
            if peer.alive:
                with suppress(PeerError):  # it is gone, or will be: its blocks go with it
                    await peer.ask(Release(slices), [], timeout_s=self.engine.policy.answer_timeout_s)
        self.engine.changed()

    def lost(self, _: Peer) -> None:
        """Look for replacements if the device stays away; what it holds counts again if it comes back with it."""
        self.engine.spawn(self._repair_later())

    def opened(self, peer: Peer, *, fresh: bool) -> None:
        """Give a device that came back its old blocks again, and place what was taken back if that is allowed now."""
        super().opened(peer, fresh=fresh)
        if self.kept:
            self.engine.spawn(self._give_out())

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
            ScatteredError: the model was released.
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
            if self.stopped:
                raise ScatteredError("this model was released: scatter it again")
            if key[0] in self.kept:
                raise KeptError(self.panels[key[0]].title)
            holders = self.holders(key, avoid)
            if not holders and self.waits and self.coming[key] > 0:
                await self.engine.change()
                continue
            if not holders and await self._replace(key, avoid):
                holders = self.holders(key, avoid)
                if not holders:
                    continue  # who took it was found out, or left, while it was loaded
            holders = holders or self.holders(key)
            if holders:
                return holders
            if self._alive() and not self._awaited(key):
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
        for device in loading or self._takers(key, avoid):
            if await self._settle(device, key):
                return True
        return False

    async def relieve(self, number: int, cells: Sequence[int], device: str, avoid: Collection[str]) -> bool:
        """Load what a slow device serves alone onto quicker ones as well, and ask it last from then on.

        Nothing is loaded where the rules leave nobody for one of the cells: who is merely slow still answers, so the
        owner takes nothing back. Devices under training step together, and wait for the slowest anyway.

        Returns:
            Whether every cell has another live holder now.
        """
        if self.waits:
            return False
        others = self._alive({*avoid, device})
        slow = set(self.engine.peers) - self.engine.pace.quicker(device, others, self.engine.policy.straggler_factor)
        keys = [(number, cell) for cell in cells if not self.holders((number, cell), {*avoid, device})]
        if not all(self._takers(key, slow) for key in keys):
            return False
        for key in keys:
            if not await self._replace(key, slow):
                return False
        for cell in cells:
            self.assignment.demote(number, cell, {device})
        self.engine.note("late", device, f"again and again: others take its cells of {self.panels[number].title}")
        return True

    def _takers(self, key: CellKey, avoid: Collection[str]) -> list[str]:
        """Return who may be loaded with a cell, those first who were given it before."""
        known = [device for device in self.assignment.ever(*key) if device in self._alive(avoid) - self.ready_on[key]]
        return [*known, *self.assignment.candidates(*key, self._alive(avoid))]

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
            self.engine.note("replaced", device, f"takes a cell of {self.panels[key[0]].title}")
            task = self.engine.spawn(self._load(self.engine.peers[device], key[0], [key[1]]))
            self._loading[device, key] = task
            task.add_done_callback(lambda _: self._loading.pop((device, key), None))
        try:
            await asyncio.shield(task)
        except PeerError as error:
            self.engine.note("load failed", device, str(error))
            return False
        return True

    @property
    def _patience_s(self) -> float:
        """How long a device may be gone that may hold what nobody who is there may, before `keep`."""
        policy = self.engine.policy
        return max(policy.repair_after_s, policy.return_s) if self.waits else policy.repair_after_s

    def _awaited(self, key: CellKey) -> bool:
        """Say whether somebody who held a cell, or may hold it, is there or may yet come."""
        names = (*self.assignment.ever(*key), *self.assignment.candidates(*key, self.engine.peers))
        return self._expected(names, self._patience_s)

    def _expected(self, names: Iterable[str], within_s: float) -> bool:
        """Say whether one of these devices is there, or away for so short that it may come back."""
        return any(self.engine.absent_s(name) < within_s for name in names)

    def keep(self, number: int) -> None:
        """Take a panel back: the owner multiplies itself from now on."""
        if number in self.kept:
            return
        self.kept.add(number)
        self.engine.ledger.kept += 1
        self.engine.note(
            "kept", "", f"the rules allow no placement for {self.panels[number].title}: the owner takes it back"
        )
        self.engine.changed()

    async def _load(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        await super()._load(peer, number, cells)
        self._return(number)

    async def _give_out(self) -> None:
        """Place what panels that were taken back lack, each as a whole: a part of one would be seen for nothing."""
        for number in list(self.kept):
            missing = [key for key in self.ready_on if key[0] == number and not self.holders(key)]
            alive = self._alive()
            # Who was given a cell before, and is back, is being loaded with it (`load_duties`).
            missing = [key for key in missing if alive.isdisjoint(self.assignment.ever(*key))]
            if all(self._takers(key, ()) for key in missing):
                for key in missing:
                    await self._replace(key)
            self._return(number)

    def _return(self, number: int) -> None:
        """Ask devices for a panel again once every cell has a live holder."""
        if number in self.kept and self.has_others(number, range(len(self.panels[number].cells)), ()):
            self.kept.discard(number)
            self.engine.ledger.given_out += 1
            self.engine.note("given out", "", f"{self.panels[number].title} is on devices again")

    async def _repair_later(self) -> None:
        """After a while, give cells that nobody holds any longer to others, before they are asked for.

        A cell that still has a holder waits until that fails to answer: whoever gets it has seen it for ever, and what
        the rules leave to be seen is needed then.
        """
        after_s = self.engine.policy.repair_after_s
        await asyncio.sleep(after_s)
        for key in self.ready_on:
            if not self.stopped and key[0] not in self.kept and not self._expected(self.assignment.ever(*key), after_s):
                try:
                    await self._replace(key)
                except ModelError as error:  # whoever asks for the cell is told, too
                    self.engine.note("load failed", "", str(error))
        self.engine.changed()
        await asyncio.sleep(self._patience_s - after_s)
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
        """Draw secrets anew, and hold all that they were drawn from to the old ones.

        In this order: what changed before or during the draw is found afterwards, and what changes later is in neither.

        Raises:
            ModelError: the weights changed since they were scattered.
        """
        drawn = self.new_check(number)
        self.numbers[number].hold(self.checks[number])
        return drawn

    def steady(self, number: int) -> AbstractAsyncContextManager[None]:
        """Return what keeps the weights of a panel where they are while a product is under way."""
        del number
        return nullcontext()

    async def excuses(self, number: int, piece: Piece, x: Tensor) -> bool:
        """Say whether an answer that the check rejects is right all the same: never, where weights stay as they are."""
        del number, piece, x
        return False

    def largest_weight(self, number: int) -> float:
        """Return a number that no absolute weight of a panel of floats is larger than."""
        numbers = self.numbers[number]
        return numbers.largest_weight() if isinstance(numbers, Floats) else math.inf

    def multiply_here(self, number: int, x: Tensor, outputs: Outputs) -> Tensor:
        """Return the product of a panel that the owner took back, of the weights that devices had.

        Raises:
            ModelError: the weights changed since they were scattered, and before they were multiplied here first.
        """
        if number not in self._held:
            self.numbers[number].hold(self.checks[number])
            self._held.add(number)
        grid, y = self.panels[number].grid, self.numbers[number].here(x)
        return torch.cat([y[:, grid.rows[row].start : grid.rows[row].stop] for row in outputs.rows], dim=1)
