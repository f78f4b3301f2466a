"""One product y = W x on the fleet: ask, hedge, fail over, add, check, and find the liar."""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor

from awfulowl.arithmetic.packing import unpack
from awfulowl.blocks.grid import take
from awfulowl.blocks.kernels import output_shape
from awfulowl.errors import GoneError, InputError, PeerError, UnavailableError
from awfulowl.owner.deployment import Deployment, KeptError
from awfulowl.owner.engine import Engine, together
from awfulowl.owner.history import Recorder, Tape
from awfulowl.owner.layout import Layout, Outputs, Piece, add_up, evenly
from awfulowl.owner.numbers import AnyCheck, AnyExpectation, Entered, Exact, Floats
from awfulowl.owner.peer import LastAsked
from awfulowl.veil.base import SharedInputs
from awfulowl.verification.sums import is_quick
from awfulowl.wire.buffers import empty

T = TypeVar("T")

_NOBODY: frozenset[str] = frozenset()

_LITTLE: Final = 1 << 14
"""Inputs and outputs of a request up to which its arithmetic takes no longer than a hop to another thread."""

_WORTH_SHARING: Final = 1 << 17
"""Outputs from which on more than one thread checks them: a call of a thread costs as much as some thousands."""

_AGAIN_S: Final = 0.1
"""Before a device is asked again that failed, and has what nobody else has: at least."""


class Batch(NamedTuple):
    """Some samples of a request, what devices get of them, and the event that the first is cut: others wait for it."""

    entered: Entered
    shared: SharedInputs
    asked: asyncio.Event
    turn: int = 0
    recorder: Recorder | None = None
    """Of who keeps the inputs for the way back, where there is one."""

    @property
    def x(self) -> Tensor:
        """The inputs in the panel's numbers."""
        return self.entered.x


class Postponed(NamedTuple):
    """What an answer is held to, computed when it is there: where that takes less than a hop to another thread."""

    check: AnyCheck
    x: Tensor
    rows: Sequence[int] | None

    def samples(self, part: slice) -> "Postponed":
        """Return what is expected of some samples of the batch."""
        return self._replace(x=self.x[part])

    def accepts(self, y: Tensor) -> Tensor:
        """Say for each sample whether y is W x: (batch,) bool."""
        return self.check.accepts(self.x, y, rows=self.rows)


class Product:
    """One panel's product for one batch. Lives as long as the request."""

    def __init__(self, deployment: Deployment, panel: int, rows: Sequence[int], tape: Tape | None = None) -> None:
        """Prepare to multiply.

        Args:
            deployment: where the blocks are.
            panel: its number.
            rows: of its grid, those that are wanted.
            tape: filled with what the way back needs; None where there is none.
        """
        self._tape = tape
        self._deployment = deployment
        self._engine: Engine = deployment.engine
        self._number = panel
        self._panel = deployment.panels[panel]
        self._grid = self._panel.grid
        self._layouts = deployment.layouts[panel]
        self._numbers = deployment.numbers[panel]
        self._outputs = Outputs.of(self._grid, rows)
        self._parts_left = 0
        self._little = False
        self._started_s = 0.0

    async def multiply(self, x: Tensor) -> Tensor:
        """Return the wanted rows of W x: (batch, rows) or (batch, rows, *space), float32, checked.

        Args:
            x: (batch, inputs) or (batch, inputs, *space), float32.

        Raises:
            UnavailableError: nothing honest is left that could answer, or not in time.
            InputError: x, or the product, is not finite.
        """
        ledger = self._engine.ledger
        ledger.requests += 1
        self._started_s = self._engine.now()
        try:
            async with asyncio.timeout(self._engine.policy.request_timeout_s), self._deployment.steady(self._number):
                return await self._all_parts(x)
        except KeptError:
            return await self._engine.compute(lambda: self._deployment.multiply_here(self._number, x, self._outputs))
        except TimeoutError as error:
            ledger.requests_lost += 1
            raise UnavailableError(
                f"{self._panel.title}: no answer within {self._engine.policy.request_timeout_s:g} s; see fleet.events"
            ) from error
        except UnavailableError:
            ledger.requests_lost += 1
            raise

    async def _compute(self, work: Callable[[], T]) -> T:
        """Run arithmetic on this request's numbers, where that is quickest."""
        return await self._engine.compute(work, here=self._little)

    async def _all_parts(self, x: Tensor) -> Tensor:
        """Cut the batch into parts that travel while others are multiplied."""
        shape = output_shape(self._grid.kernel, self._outputs.size, self._grid.size, x.shape)
        y = empty(shape)
        self._little = x.numel() + y.numel() < _LITTLE
        bytes_per_sample = max(4, self._numbers.width) * max(x[0].numel(), y[0].numel())
        count = max(1, math.ceil(bytes_per_sample * x.shape[0] / self._engine.policy.part_bytes))
        slots = asyncio.Semaphore(self._engine.policy.parts_in_flight)
        self._parts_left = count

        async def one(turn: int, part: slice) -> None:
            recorder = None if self._tape is None else self._tape.add(part)
            async with slots:
                await self._part(await self._enter(x[part]), y[part], turn, recorder)
                self._parts_left -= 1

        await together(one(turn, part) for turn, part in enumerate(evenly(x.shape[0], count)))
        self._deployment.used(self._number, x.shape[0])
        return y

    async def _enter(self, x: Tensor) -> Entered:
        """Turn inputs into the panel's numbers; floats are passed on as they are."""
        if isinstance(self._numbers, Floats):
            return self._numbers.enter(x)
        return await self._compute(lambda: self._numbers.enter(x))

    async def _part(self, entered: Entered, out: Tensor, turn: int, recorder: Recorder | None) -> None:
        """Fill `out` with a checked product; every round that fails costs at least one liar its place."""
        self._engine.ledger.parts += 1
        batch = Batch(entered, await self._split(entered.x), asyncio.Event(), turn, recorder)
        expecting = asyncio.ensure_future(self._expect(batch))
        try:
            pieces = await self._cover(range(len(self._panel.cells)), batch, _NOBODY)
            batch.asked.set()
            for _ in range(2 + len(self._engine.peers)):
                for piece in pieces:
                    self._engine.peers[piece.device].used.append(piece.request)
                check, expectation = await expecting
                if check is not None and check is not self._check:  # renewed since the devices were asked
                    _, expectation = await self._expect(batch)
                if await self._finish(pieces, batch, out, expectation):
                    return
                pieces = await self._blame(pieces, batch)
                expecting = asyncio.ensure_future(self._expect(batch))
        finally:
            expecting.cancel()
        raise UnavailableError(f"{self._panel.title}: answers keep failing the check; see fleet.events")

    async def _split(self, x: Tensor) -> SharedInputs:
        """Share inputs afresh; with a single share there is nothing to compute."""
        if self._deployment.sharing.shares == 1:
            return self._numbers.split(x, self._engine.entropy)
        return await self._compute(lambda: self._numbers.split(x, self._engine.entropy))

    @property
    def _check(self) -> AnyCheck:
        return self._deployment.checks[self._number]

    async def _expect(self, batch: Batch) -> tuple[AnyCheck | None, AnyExpectation | Postponed | None]:
        """Compute what the answer is held to, at first while devices multiply; None where nothing is checked."""
        if not self._engine.policy.verify:
            return None, None
        check = self._check
        rows = None if len(self._outputs.rows) == len(self._grid.rows) else self._outputs.rows
        if is_quick(self._grid.kernel, batch.x):
            return check, Postponed(check, batch.x, rows)
        await batch.asked.wait()
        return check, await self._compute(lambda: check.expect(batch.x, rows=rows))

    async def _finish(
        self, pieces: Sequence[Piece], batch: Batch, out: Tensor, expectation: AnyExpectation | Postponed | None
    ) -> bool:
        """Add the pieces into `out` and check the total; count what was checked."""
        if not all(self._layouts.fits(piece, batch.x) for piece in pieces):
            return False
        # While there are other parts, each has a thread to itself; the last one would leave the others idle.
        alone = self._parts_left == 1 and out.numel() > _WORTH_SHARING
        parts = evenly(out.shape[0], self._engine.policy.math_threads if alone else 1)
        counts = await together(
            self._compute(partial(self._add_and_check, pieces, batch, out, expectation, part)) for part in parts
        )
        accepted, checked = sum(count[0] for count in counts), sum(count[1] for count in counts)
        self._engine.ledger.checks += checked
        self._engine.ledger.checks_failed += checked - accepted
        return accepted == checked

    def _add_and_check(
        self,
        pieces: Sequence[Piece],
        batch: Batch,
        out: Tensor,
        expectation: AnyExpectation | Postponed | None,
        part: slice,
    ) -> tuple[int, int]:
        """Return how many samples of `part` were accepted, of how many that were checked."""
        total = self._numbers.total(out[part])
        add_up([piece.samples(part) for piece in pieces], self._layouts, self._outputs, total)
        accepted = None if expectation is None else expectation.samples(part).accepts(total)
        self._numbers.leave(total, batch.entered.samples(part), self._outputs.rows, out[part])
        return (0, 0) if accepted is None else (int(accepted.sum()), accepted.numel())

    async def _blame(self, pieces: Sequence[Piece], batch: Batch) -> list[Piece]:
        """Check every device singly, quarantine the liars, and have their cells done by others.

        Raises:
            InputError: nobody lied: the inputs or the true product are not finite.
        """
        wrong = [piece for piece in pieces if not await self._engine.compute(partial(self._is_right, piece, batch))]
        guilty = [piece for piece in wrong if not await self._deployment.excuses(self._number, piece, batch.x)]
        self._check_range(batch.x)
        if not guilty:
            # Every part is right and the sum is not: bad luck at the edge of the tolerance, under these vectors.
            await self._deployment.anchor(self._number)
            return await self._cover(range(len(self._panel.cells)), batch, _NOBODY)
        for piece in guilty:
            self._engine.ledger.lies_caught += 1
            self._engine.quarantine(
                self._engine.peers[piece.device], f"an answer for {self._panel.title} failed the check"
            )
        self._deployment.renew(self._number)
        again = [cell for piece in guilty for cell in piece.layout.cells]
        honest = [piece for piece in pieces if piece not in guilty]
        return honest + await self._cover(again, batch, frozenset(piece.device for piece in guilty))

    def _is_right(self, piece: Piece, batch: Batch) -> bool:
        """Check one device's answer by itself; to shares, which have no check of their own, it is computed again."""
        if not self._layouts.fits(piece, batch.x):
            return False
        check = self._check
        if self._deployment.sharing.shares > 1 and isinstance(self._numbers, Exact):
            inputs = batch.shared.inputs(piece.layout.lane, piece.layout.columns, self._deployment.domain(piece.device))
            wanted = self._numbers.answer(check, piece.layout, inputs)
            return all(map(torch.equal, wanted, piece.tensors))
        return all(
            bool(
                check.accepts(
                    take(batch.x, self._grid, term.columns),
                    unpack(parts, self._numbers.width) if self._numbers.width else parts[0],
                    columns=term.columns,
                    rows=term.rows,
                ).all()
            )
            for term, parts in self._layouts.sums(piece)
        )

    def _check_range(self, x: Tensor) -> None:
        """Blame nobody for numbers that float32 cannot hold.

        Raises:
            InputError: x is not finite, or so large that a product may not be.
        """
        if not isinstance(self._numbers, Floats):
            return
        name, largest = self._panel.title, float(x.abs().max())
        if not math.isfinite(largest):
            raise InputError(f"{name}: the inputs are not finite, so no product can be checked")
        bound = largest * self._grid.inputs * math.prod(self._grid.size) * self._deployment.largest_weight(self._number)
        if bound > torch.finfo(torch.float32).max:
            raise InputError(f"{name}: inputs of {largest:.1e} may lead out of the range of float32")

    async def _cover(self, cells: Iterable[int], batch: Batch, avoid: frozenset[str]) -> list[Piece]:
        """Get these cells done by devices other than `avoid`, as far as there are others."""
        turn = 0 if batch.recorder is None else batch.turn
        shares = await self._deployment.route(self._number, cells, avoid, turn)
        done = await together(self._obtain(device, share, batch, avoid) for (device, _), share in shares.items())
        return [piece for pieces in done for piece in pieces]

    async def _obtain(self, device: str, cells: Sequence[int], batch: Batch, avoid: frozenset[str]) -> list[Piece]:
        """Ask one device; ask replicas too when it is slow, and instead of it when it fails."""
        layout = self._layouts.lay_out(tuple(cells), self._outputs.rows)
        if not layout.terms:
            return []
        spawn = asyncio.get_running_loop().create_task
        first: asyncio.Task[list[Piece]] = spawn(self._ask(device, layout, batch))
        running = {first}
        try:
            done, _ = await asyncio.wait(running, timeout=self._patience_s(batch.x))
            if not done and await self._has_others(first, device, cells, batch, avoid):
                self._engine.ledger.hedged += 1
                running.add(spawn(self._cover(cells, batch, avoid | {device})))
            return await self._first(running, first, device, cells, batch, avoid)
        finally:
            for task in running:
                task.cancel()

    async def _has_others(
        self, first: asyncio.Task[list[Piece]], device: str, cells: Sequence[int], batch: Batch, avoid: frozenset[str]
    ) -> bool:
        """Say whether others can be asked for what a device is slow with; find some when it is late again and again."""
        deployment, pace, policy = self._deployment, self._engine.pace, self._engine.policy
        kind, waited_s, late_s = self._kind(batch.x), self._patience_s(batch.x), self._late_s(batch.x)
        asked_s = self._engine.now() - waited_s
        if deployment.has_others(self._number, cells, avoid | {device}):
            pace.observe(device, kind, waited_s, finished=False)
            return True
        done, _ = await asyncio.wait({first}, timeout=late_s - waited_s)
        if done:
            return False
        pace.observe(device, kind, late_s, finished=False)
        if pace.late(device, asked_s, self._engine.now()) < policy.straggler_after:
            return False
        # Beside this request: when the answer comes first, the next one finds others all the same.
        relief = self._engine.spawn(deployment.relieve(self._number, cells, device, avoid))
        await asyncio.wait({first, relief}, return_when=asyncio.FIRST_COMPLETED)
        return not first.done() and relief.result()

    async def _first(
        self,
        running: set[asyncio.Task[list[Piece]]],
        first: asyncio.Task[list[Piece]],
        device: str,
        cells: Sequence[int],
        batch: Batch,
        avoid: frozenset[str],
    ) -> list[Piece]:
        """Return the first success among the running; when only the device was asked and failed, ask others."""
        failure: BaseException | None = None
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                running.discard(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, PeerError | UnavailableError):
                    raise error
                if task is first:
                    self._engine.note("failover", device, str(error))
                else:
                    failure = error
        if failure is not None:
            raise failure
        self._engine.ledger.failovers += 1
        if device in avoid:  # there is no other: give it time, ever more, up to that of the request
            await asyncio.sleep(max(_AGAIN_S, (self._engine.now() - self._started_s) / 4))
        return await self._cover(cells, batch, avoid | {device})

    def _kind(self, x: Tensor) -> tuple[int, int, int]:
        return (id(self._deployment), self._number, x.shape[0].bit_length())

    def _patience_s(self, x: Tensor) -> float:
        usual = self._engine.pace.usual_s(self._kind(x))
        policy = self._engine.policy
        return policy.hedge_first_s if usual is None else max(policy.hedge_min_s, policy.hedge_factor * usual)

    def _late_s(self, x: Tensor) -> float:
        policy = self._engine.policy
        return max(policy.straggler_min_s, policy.straggler_factor * self._patience_s(x))

    async def _ask(self, device: str, layout: Layout, batch: Batch) -> list[Piece]:
        peer = self._engine.peers[device]
        if not peer.alive:
            raise GoneError(f"{device}: it is gone")
        started = self._engine.now()
        domain = self._deployment.domain(device)
        inputs = await self._compute(lambda: batch.shared.inputs(layout.lane, layout.columns, domain))
        batch.asked.set()
        size = self._layouts.answer_bytes(layout, batch.x)
        peer.last = LastAsked(layout.body, inputs, size)
        body = layout.body
        if batch.recorder is not None:
            number = batch.recorder.note(device, peer.session.handle, layout.cells)
            body = msgspec.structs.replace(body, keep=number)
        answer = await peer.ask(body, inputs, timeout_s=self._engine.policy.answer_timeout_s, answer_bytes=size)
        elapsed_s = self._engine.now() - started
        if elapsed_s < self._late_s(batch.x):
            self._engine.pace.punctual(device)
        self._engine.pace.observe(device, self._kind(batch.x), elapsed_s)
        return [Piece(device, layout, answer.tensors, answer.request)]
