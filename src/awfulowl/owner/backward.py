"""One transposed product dx = Wᵀ dy on the fleet, and the part of the next step that goes with it.

The total is checked by the images from the right, of which there is one set for all devices: when it fails, nothing
tells yet whose fault it is. So the owner fetches the blocks themselves, which the images from the left verify column by
column, and multiplies.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import msgspec
import torch
from torch import Tensor

from awfulowl.errors import GoneError, InputError, PeerError, RefusedError, UnavailableError
from awfulowl.owner.engine import together
from awfulowl.owner.history import Job, Kept, Pass, Tape
from awfulowl.owner.peer import Peer
from awfulowl.owner.training import TrainedDeployment
from awfulowl.owner.transposing import TransposedLayout, TransposedPiece
from awfulowl.owner.witness import Witness, witness
from awfulowl.verification.freivalds import Expectation
from awfulowl.verification.sums import is_quick
from awfulowl.wire.buffers import empty

_NOBODY: frozenset[str] = frozenset()

_AGAIN_S: Final = 0.5
"""Before a device is asked again that refused, and has what nobody else has."""


class TransposedProduct:
    """One panel's way back for one batch. Lives as long as the request."""

    def __init__(self, deployment: TrainedDeployment, panel: int) -> None:
        self._deployment = deployment
        self._engine = deployment.engine
        self._number = panel
        self._panel = deployment.panels[panel]
        self._grid = self._panel.grid
        self._layouts = deployment.transposed(panel)

    async def multiply(self, x: Tensor, dy: Tensor, tape: Tape, order: int, *, wanted: bool, learnt: bool) -> Tensor:
        """Return dx (batch, inputs, *space), checked, and let every holder learn of x and dy.

        Args:
            x: what went forward, (batch, inputs, *space), float32.
            dy: (batch, outputs, *space'), float32.
            tape: of the way forward.
            order: places the jobs of this batch among those of the step.
            wanted: whether dx is needed; otherwise it is empty, and only jobs are given.
            learnt: whether the gradients count in the next step, where the panel takes any.

        Raises:
            UnavailableError: nothing honest is left that could answer, or not in time.
            InputError: x, dy or dx are not finite.
        """
        ledger = self._engine.ledger
        ledger.requests += 1
        dx = empty(x.shape if wanted else (0,))
        trained = learnt and self._deployment.histories[self._number].trainable
        jobs = [
            self._job(x[one.samples], dy[one.samples], (order, turn), new=trained)
            for turn, one in enumerate(tape.passes)
        ]
        slots = asyncio.Semaphore(self._engine.policy.parts_in_flight)

        async def one(went: Pass, job: Job) -> None:
            async with slots:
                await self._part(job, went.kept, dx[went.samples] if wanted else None)

        try:
            async with asyncio.timeout(self._engine.policy.request_timeout_s), self._deployment.steady(self._number):
                await together(one(went, job) for went, job in zip(tape.passes, jobs, strict=True))
        except (UnavailableError, InputError, TimeoutError) as error:
            for job in jobs:
                self._deployment.drop(self._number, job)
            ledger.requests_lost += 1
            if isinstance(error, TimeoutError):
                raise UnavailableError(
                    f"{self._panel.title}: no gradient within {self._engine.policy.request_timeout_s:g} s; "
                    "see fleet.events"
                ) from error
            raise
        return dx

    def _job(self, x: Tensor, dy: Tensor, order: tuple[int, int], *, new: bool) -> Job:
        """Make a job of some samples; one without a number, which is no part of a step, where nothing is trained."""
        if not new:
            return Job(0, x.contiguous(), dy.contiguous(), order)
        copies = [part.clone(memory_format=torch.contiguous_format) for part in (x, dy)]
        return self._deployment.add(self._number, copies[0], copies[1], order)

    async def _part(self, job: Job, kept: Sequence[Kept], out: Tensor | None) -> None:
        """Fill `out` with a checked product, if wanted; every round that fails costs at least one liar its place."""
        verify = self._engine.policy.verify
        seeing = asyncio.ensure_future(self._deployment.see(self._number, job)) if job.number and verify else None
        try:
            cells = range(len(self._panel.cells))
            expecting = asyncio.ensure_future(self._expect(job))
            pieces = await self._cover(cells, job, kept, _NOBODY, answered=out is not None)
            expectation = await expecting
            if seeing is not None:
                await seeing
            if out is None:
                return
            for _ in range(2 + len(self._engine.peers)):
                if await self._finish(pieces, job, expectation, out):
                    return
                pieces = await self._blame(pieces, job, kept)
                expectation = await self._expect(job)
        finally:
            if seeing is not None:
                seeing.cancel()
        raise UnavailableError(f"{self._panel.title}: answers keep failing the check; see fleet.events")

    async def _expect(self, job: Job) -> Callable[[], Expectation] | None:
        """Return what says what dx is held to, computed by now if it takes long; None where nothing is checked."""
        if not self._engine.policy.verify:
            return None
        check = self._deployment.check(self._number)
        compute = partial(check.expect_transposed, job.dy, tuple(job.x.shape[2:]))
        if is_quick(self._panel.grid.kernel, job.dy):
            return compute
        found = await self._engine.compute(compute)
        return lambda: found

    async def _finish(
        self, pieces: Sequence[TransposedPiece], job: Job, expectation: Callable[[], Expectation] | None, out: Tensor
    ) -> bool:
        """Add the pieces into `out` and check the total; count what was checked."""
        if not all(self._layouts.fits(piece, job.x) for piece in pieces):
            return False

        def add_and_check() -> Tensor | None:
            self._layouts.add_up(pieces, out)
            return None if expectation is None else expectation().accepts(out)

        accepted = await self._engine.compute(add_and_check)
        if accepted is None:
            return True
        right = int(accepted.sum())
        self._engine.ledger.checks += len(accepted)
        self._engine.ledger.checks_failed += len(accepted) - right
        return right == len(accepted)

    # Who lied

    async def _blame(self, pieces: Sequence[TransposedPiece], job: Job, kept: Sequence[Kept]) -> list[TransposedPiece]:
        """Check every device singly by its own blocks, and have the cells of liars done by others.

        Raises:
            InputError: nobody lied: the gradients or the true product are not finite.
        """
        self._check_range(job)
        self._deployment.renew(self._number)
        verdicts = [await self._is_right(piece, job) for piece in pieces]
        wrong = [piece for piece, right in zip(pieces, verdicts, strict=True) if not right]
        if not wrong:
            # Every block and every part is right, and the sum is not: images that strayed further than we believed.
            await self._deployment.anchor(self._number)
            return list(pieces)
        again = [cell for piece in wrong for cell in piece.layout.answered]
        avoid = frozenset(piece.device for piece in wrong)
        honest = [piece for piece in pieces if piece not in wrong]
        return honest + await self._cover(again, job, kept, avoid)

    async def _is_right(self, piece: TransposedPiece, job: Job) -> bool:
        """Multiply with a device's own blocks; a liar loses its place."""
        if piece.device in self._deployment.rebuilt[self._number]:
            return True  # it will be asked what it holds
        peer = self._engine.peers[piece.device]
        reason = f"gradients for {self._panel.title} are not those of its blocks"
        if self._layouts.fits(piece, job.x):
            try:
                found = await witness(self._deployment, self._number, piece.layout.answered, peer)
            except PeerError as error:
                self._engine.note("failover", piece.device, str(error))
                return False
            if found is None:
                reason = f"blocks of {self._panel.title} are not what they should be by now"
            elif await self._engine.compute(lambda: self._multiplies(found, piece, job)):
                return True
        self._engine.ledger.lies_caught += 1
        self._engine.quarantine(peer, reason)
        return False

    def _multiplies(self, found: Witness, piece: TransposedPiece, job: Job) -> bool:
        space = tuple(job.x.shape[2:])
        answers = zip(piece.layout.terms, piece.tensors, strict=True)
        return all(found.multiplies_back(term, job.dy, space, answer) for term, answer in answers)

    def _check_range(self, job: Job) -> None:
        """Blame nobody for numbers that float32 cannot hold.

        Raises:
            InputError: dy is not finite, or so large that a product may not be.
        """
        largest = float(job.dy.abs().max())
        if not math.isfinite(largest):
            raise InputError(f"{self._panel.title}: gradients are not finite (is the loss?); nothing has moved")
        grid = self._grid
        bound = largest * grid.outputs * math.prod(grid.size) * self._deployment.largest_weight(self._number)
        if bound > torch.finfo(torch.float32).max / 4:
            raise InputError(f"{self._panel.title}: gradients of {largest:.1e} may lead out of the range of float32")

    # Who is asked

    async def _cover(
        self, cells: Iterable[int], job: Job, kept: Sequence[Kept], avoid: frozenset[str], *, answered: bool = True
    ) -> list[TransposedPiece]:
        """Get these cells done, each by one device other than `avoid` as far as there are others, and learnt by all."""
        cells = list(cells)
        shares: dict[str, list[int]] = {}
        if answered:
            routed = await self._deployment.route(self._number, cells, avoid, job.turn)
            shares = {device: own for (device, _), own in routed.items()}
        learners = self._deployment.holders_of(self._number, cells) if job.number else {}
        devices = list(dict.fromkeys([*shares, *learners]))
        done = await together(
            self._obtain(device, (shares.get(device, []), learners.get(device, [])), job, kept, avoid)
            for device in devices
        )
        return [piece for pieces in done for piece in pieces]

    async def _obtain(
        self,
        device: str,
        cells: tuple[Sequence[int], Sequence[int]],
        job: Job,
        kept: Sequence[Kept],
        avoid: frozenset[str],
    ) -> list[TransposedPiece]:
        """Ask one device to answer for some cells and to learn of some; where it fails to answer, ask others.

        One that fails to learn will not be able to step.
        """
        answered, learnt = cells
        layout = self._layouts.lay_out(tuple(dict.fromkeys([*answered, *learnt])), tuple(answered))
        try:
            tensors = await self._ask(self._engine.peers[device], layout, job, kept)
        except PeerError as error:
            self._engine.note("failover", device, str(error))
            if not answered:
                return []
            self._engine.ledger.failovers += 1
            if device in avoid:  # there is no other: give it time, up to that of the request
                await asyncio.sleep(_AGAIN_S)
            return await self._cover(answered, job, kept, avoid | {device})
        return [TransposedPiece(device, layout, tensors)] if answered else []

    async def _ask(self, peer: Peer, layout: TransposedLayout, job: Job, kept: Sequence[Kept]) -> list[Tensor]:
        if not peer.alive:
            raise GoneError(f"{peer.name}: it is gone")
        number = self._kept_by(peer, layout, kept) if job.number else 0
        try:
            return await self._send(peer, layout, job, number)
        except RefusedError:
            if not number:
                raise
            return await self._send(peer, layout, job, 0)  # it may have had no room to keep the inputs

    async def _send(self, peer: Peer, layout: TransposedLayout, job: Job, kept: int) -> list[Tensor]:
        started = self._engine.now()
        body = msgspec.structs.replace(layout.body, space=tuple(job.x.shape[2:]), job=job.number, kept=kept)
        tensors = [self._layouts.gradients(layout, job.dy)]
        if job.number and not kept:
            tensors.append(self._layouts.inputs(layout, job.x))
        size = self._layouts.answer_bytes(layout, job.x)
        timeout_s = self._engine.policy.answer_timeout_s
        answer = await peer.ask(body, tensors, timeout_s=timeout_s, answer_bytes=size)
        if layout.terms:
            self._engine.pace.observe(peer.name, self._kind(job), self._engine.now() - started)
        return answer.tensors

    def _kind(self, job: Job) -> tuple[int, int, int]:
        return (id(self._deployment), self._number, job.x.shape[0].bit_length())

    def _kept_by(self, peer: Peer, layout: TransposedLayout, kept: Sequence[Kept]) -> int:
        wanted = set(layout.cells)
        found = (
            one.number
            for one in kept
            if one.device == peer.name and one.session == peer.session.handle and wanted <= one.cells
        )
        return next(found, 0)
