"""A model under training: steps in lockstep, snapshots, and how a device is brought to the present.

Every holder of a block gets every job and every step, so replicas stay equal; a device that missed one is *behind*: its
blocks are loaded anew from the last snapshot, and the jobs and steps since then are replayed to it. The owner keeps
those jobs (inputs and gradients, not weights) until the next snapshot.
"""

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

import torch
from torch import Tensor

from awfulowl.errors import GoneError, InputError, PeerError, UnavailableError
from awfulowl.owner.auditing import state_weights
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.engine import Engine, to_the_end, together
from awfulowl.owner.history import History, Job, Rule, Taken
from awfulowl.owner.layout import Piece
from awfulowl.owner.numbers import Numbers
from awfulowl.owner.peer import Peer
from awfulowl.owner.snapshots import due, take
from awfulowl.owner.states import ADAPTATION_PARTS, Trained, Vault
from awfulowl.owner.transposing import TransposedLayouts
from awfulowl.owner.witness import witness
from awfulowl.placement.plan import Plan
from awfulowl.verification.training import TrainingCheck
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Step
from awfulowl.wire.parts import Term

STEP_TIMEOUT_FACTOR: Final = 6.0
"""A step computes the gradient of all blocks of a panel, which takes longer than a product."""


class TrainedDeployment(Deployment):
    """A deployment whose weights move."""

    waits = True

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        weights: Mapping[str, Sequence[Tensor]],
        trainable: Sequence[bool],
        on_change: Callable[[Plan], None] | None = None,
        states: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """Prepare to train.

        Args:
            engine: of the fleet.
            plan: which block goes where.
            weights: of the model, by product.
            trainable: for each panel, whether it takes steps.
            on_change: as for `Fleet.scatter`.
            states: by product, what devices held when a checkpoint was made (`states.PARTS`); None begins anew.
        """
        super().__init__(engine, plan, weights, on_change)
        self.histories = [History(own) for own in trainable]
        self.anchors = [torch.zeros((), requires_grad=own) for own in trainable]
        """For each panel what ties its products into PyTorch's graph, where it is trained."""
        self.number = itertools.count(1).__next__
        """Numbers of jobs and of kept inputs, none twice."""
        self.micro = threading.local()
        """`batch`: which micro-batch of a step this thread works on, where several are under way at once."""
        self.rebuilt: list[set[str]] = [set() for _ in trainable]
        """For each panel that Adam moves, who rebuilt blocks since devices stated their weights."""
        self._drift = [0.0 for _ in trainable]
        self._calls = itertools.count()
        self._resumed = states
        self._vault = Vault()
        self._transposed: dict[int, TransposedLayouts] = {}

    def make_numbers(self, number: int) -> Numbers:
        """Return the numbers of a panel as they are now: those of the model."""
        panel = self.panels[number]
        numbers = Trained(panel, number, self.weights[number], self.sharing, self._vault)
        if self._resumed is not None:
            own = [self._resumed[member.product] for member in panel.members]
            numbers.anchor([torch.cat(list(parts)) for parts in zip(*own, strict=True)])
        return numbers

    def transposed(self, number: int) -> TransposedLayouts:
        """Return the requests for a panel's gradients."""
        if number not in self._transposed:
            self._transposed[number] = TransposedLayouts(self.layouts[number])
        return self._transposed[number]

    def check(self, number: int) -> TrainingCheck:
        """Return the check of a panel."""
        check = self.checks[number]
        if not isinstance(check, TrainingCheck):
            raise InputError(f"{self.panels[number].title} is not trained")
        return check

    def state(self, number: int) -> Trained:
        """Return what is known of a panel."""
        found = self.numbers[number]
        if not isinstance(found, Trained):
            raise InputError(f"{self.panels[number].title} is not trained")
        return found

    def adapt(self, numbers: Iterable[int]) -> None:
        """Let panels be moved by Adam, and by nothing else from then on.

        Raises:
            InputError: they have replicas, or one was moved otherwise; all stay as they were.
        """
        if self.replicas > 1:
            raise InputError(
                "replicas round differently, and weights that Adam moves are held to what one of them states: plan "
                "with replicas=1; blocks of a device that is gone are rebuilt"
            )
        new = [number for number in numbers if not self.histories[number].adaptive]
        if any(self.histories[number].step or self.state(number).parts > 1 for number in new):
            raise InputError("SGD has moved this model: go on with it, or gather the model and scatter it again")
        for number in new:
            self.histories[number].adaptive = True
            self.state(number).fetched = ADAPTATION_PARTS
            self.check(number).stated = True

    # Jobs

    def call(self) -> int:
        """Return where the jobs of a backward pass that begins now in this thread stand among those of the step.

        Micro-batches that are worked on at once count by their number, not by who comes first.
        """
        return (getattr(self.micro, "batch", 0) << 32) + next(self._calls)

    def add(self, number: int, x: Tensor, dy: Tensor, order: tuple[int, int]) -> Job:
        """Note a part of the next step; x and dy are the job's from now on."""
        job = Job(self.number(), x, dy, order)
        self.histories[number].add(job)
        return job

    def drop(self, number: int, job: Job) -> None:
        """Take a job back, as when its gradients turn out not to be finite."""
        history = self.histories[number]
        history.pending = [one for one in history.pending if one is not job]

    def forget(self) -> None:
        """Clear all gradients."""
        for history in self.histories:
            history.forget()

    @property
    def is_spent(self) -> bool:
        """Whether a step was taken along all gradients that there are."""
        return any(one.spent for one in self.histories) and not any(one.pending for one in self.histories)

    async def see(self, number: int, job: Job) -> None:
        """Compute what a job adds to the images of the gradient.

        Raises:
            InputError: gradients or inputs are not finite.
        """
        check = self.check(number)
        seen = await self.engine.compute(partial(check.see, job.x, job.dy))
        if not all(side.is_finite for side in seen):
            name = self.panels[number].title
            raise InputError(
                f"{name}: gradients are not finite, or too large for float32 (is the loss?); they were dropped, and "
                "nothing has moved"
            )
        if check is self.check(number):
            job.seen = seen
        else:  # a snapshot was taken meanwhile
            await self.see(number, job)

    async def give(self, peer: Peer, number: int, cells: Sequence[int], job: Job) -> None:
        """Give a device a job with everything that belongs to it, and ask for no product."""
        layouts = self.transposed(number)
        layout = layouts.lay_out(tuple(cells), ())
        body = layout.body
        body = type(body)(rows=body.rows, slices=body.slices, terms=(), space=tuple(job.x.shape[2:]), job=job.number)
        tensors = [layouts.gradients(layout, job.dy), layouts.inputs(layout, job.x)]
        await peer.ask(body, tensors, timeout_s=self.engine.policy.answer_timeout_s * STEP_TIMEOUT_FACTOR)

    # Steps

    async def step(self, rules: Mapping[int, Rule]) -> None:
        """Let panels take a step along the gradients of their jobs; those without jobs stay.

        Who is cancelled does not wait for it any longer, but it is taken.

        Raises:
            UnavailableError: it was taken, and nothing honest is left that could say what weights are by now.
        """
        works = [self._step(number, rule) for number, rule in rules.items() if self.histories[number].pending]
        await asyncio.shield(self.engine.spawn(to_the_end(works)))

    async def look_after(self) -> None:
        """Take the snapshots that are due.

        Raises:
            UnavailableError: nothing honest is left that could give one.
        """
        for number in due(self):
            await self.snapshot(number)

    async def _step(self, number: int, rule: Rule) -> None:
        history = self.histories[number]
        async with history.steadiness.step(), history.lock:
            check, holders = self.check(number), self.in_step(number)
            taken = history.take(rule)
            self.engine.ledger.steps += 1
            following = asyncio.ensure_future(self._follow(check, taken))
            await together(self._one_step(device, number, cells, taken) for device, cells in holders.items())
            await following
            if history.adaptive and self.engine.policy.verify:
                await state_weights(self, number)

    async def _follow(self, check: TrainingCheck, taken: Taken) -> None:
        """Move the images; what was not verified cannot be from then on."""
        seen = [job.seen for job in taken.jobs if job.seen is not None]
        if len(seen) == len(taken.jobs):
            await self.engine.compute(partial(check.move, taken.rule.linear, seen))
        for job in taken.jobs:
            job.seen = None

    async def _one_step(self, device: str, number: int, cells: Sequence[int], taken: Taken) -> None:
        try:
            await self._ask_step(self.engine.peers[device], number, cells, taken)
        except PeerError as error:
            self.engine.note("behind", device, f"{self.panels[number].title}: {error}")
            self.behind(device, number, cells)

    async def _ask_step(self, peer: Peer, number: int, cells: Sequence[int], taken: Taken) -> None:
        jobs = tuple(job.number for job in taken.jobs)
        body = Step(terms=self.rectangles(number, cells), step=taken.step, jobs=jobs, rule=taken.rule)
        patience_s = self.engine.policy.answer_timeout_s
        await peer.ask(body, [], timeout_s=patience_s * STEP_TIMEOUT_FACTOR, repeat_s=patience_s)

    def known(self, number: int) -> object:
        """Return the log of what happened since the last snapshot: a later one begins another."""
        return self.histories[number].log

    async def catch_up(self, peer: Peer, number: int, cells: Sequence[int], since: object) -> None:
        """Replay to a device, whose blocks are those of the last snapshot, all that happened since.

        When this returns nothing is missing, as long as the caller does not wait for anything.

        Raises:
            GoneError: a snapshot was taken meanwhile, so that its blocks are of the one before.
        """
        history = self.histories[number]
        log, given, position = history.log, set[int](), 0
        while True:
            if history.log is not since:
                raise GoneError(f"{peer.name}: there is a newer snapshot of {self.panels[number].title}")
            taken = log[position] if position < len(log) else None
            jobs = history.pending if taken is None else taken.jobs
            job = next((job for job in jobs if job.number not in given), None)
            if job is not None:
                given.add(job.number)
                await self.give(peer, number, cells, job)
            elif taken is not None:
                position += 1
                self.engine.ledger.replayed += 1
                await self._ask_step(peer, number, cells, taken)
            else:
                if position and history.adaptive:
                    self.rebuilt[number].add(peer.name)
                return

    def rectangles(self, number: int, cells: Iterable[int]) -> tuple[Term, ...]:
        """Return cells as rectangles of blocks: those of equal rows in one."""
        panel, by_rows = self.panels[number], dict[tuple[int, ...], list[bytes]]()
        for cell in cells:
            by_rows.setdefault(panel.cells[cell].rows, []).extend(self.slices(number, cell))
        return tuple(
            Term(rows=tuple(panel.row_handles[row] for row in rows), slices=tuple(slices))
            for rows, slices in by_rows.items()
        )

    # Snapshots

    def drifted(self, number: int) -> float:
        """Return how far devices may have moved a panel's weights unseen so far, relative to their length.

        There is no such bound for Adam (`auditing`).
        """
        return math.inf if self.histories[number].adaptive else self._drift[number] + self.check(number).drift

    def strayed(self, number: int, drift: float) -> None:
        """Add how far devices may have moved a panel's weights unseen until a snapshot."""
        self._drift[number] += drift

    def renew(self, number: int) -> None:
        """Count a failed check: secrets are drawn anew with the next snapshot, not in between."""
        self.histories[number].failures += 1

    async def anchor(self, number: int) -> None:
        """Look at what the weights are: images may have strayed further than we believed, or others rebuilt them."""
        if self.histories[number].adaptive:
            await state_weights(self, number)
        else:
            await self.snapshot(number)

    async def excuses(self, number: int, piece: Piece, x: Tensor) -> bool:
        """Say whether an answer that the check rejects is what the device's own blocks give, which are as they should.

        Inputs that are equal bit by bit add up what their columns strayed, which the check takes for independent. And
        whoever rebuilt blocks of Adam holds other bits than were stated: it is asked to state its own (`anchor`).
        """
        layouts = self.layouts[number]
        if piece.device in self.rebuilt[number]:
            return True
        if not layouts.fits(piece, x):
            return False
        try:
            found = await witness(self, number, piece.layout.cells, self.engine.peers[piece.device])
        except PeerError:
            return False
        if found is None:
            return False
        answers = list(layouts.sums(piece))
        return await self.engine.compute(lambda: all(found.multiplies(term, x, answer) for term, (answer,) in answers))

    def largest_weight(self, number: int) -> float:
        """Return a number that no absolute weight of a panel is larger than by now, as far as its images tell."""
        return self.check(number).largest_weight

    def steady(self, number: int) -> AbstractAsyncContextManager[None]:
        """Return what holds a step of a panel back while a product is under way, and products while it steps."""
        return self.histories[number].steadiness.product()

    def used(self, number: int, samples: int) -> None:
        """Count a product."""
        del number
        self.engine.ledger.samples += samples

    def keep(self, number: int) -> None:
        """Give up: where the weights are now is known to devices only.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(
            f"{self.panels[number].title}: too few devices are left, the rules allow none of them these blocks. "
            "Nothing has moved: add devices and resume from a checkpoint"
        )

    async def snapshot(self, number: int) -> list[Tensor]:
        """Take a snapshot of a panel: see `snapshots.take`."""
        return await take(self, number)

    # Lockstep

    def holders_of(self, number: int, cells: Iterable[int]) -> dict[str, list[int]]:
        """Return the live holders of some cells, and which of these each holds."""
        found: dict[str, list[int]] = {}
        for cell in cells:
            for device in self.holders((number, cell)):
                found.setdefault(device, []).append(cell)
        return found

    def in_step(self, number: int) -> dict[str, list[int]]:
        """Return the live holders of a panel; all others have missed something from now on."""
        cells = range(len(self.panels[number].cells))
        found = self.holders_of(number, cells)
        for cell in cells:
            self.ready_on[number, cell] = {
                device for device in self.ready_on[number, cell] if cell in found.get(device, ())
            }
        return found

    def behind(self, device: str, number: int, cells: Iterable[int]) -> None:
        """Take note that a device missed a job or a step of some cells, and have it loaded anew."""
        self.engine.ledger.behind += 1
        for cell in cells:
            self.ready_on[number, cell].discard(device)
        peer = self.engine.peers[device]
        if peer.alive:
            self.engine.spawn(self._reload(peer, number, list(cells)))

    async def _reload(self, peer: Peer, number: int, cells: Sequence[int]) -> None:
        try:
            async with self.loading_onto.setdefault(peer.name, asyncio.Lock()):
                await self._release(peer, number, cells)
        except PeerError as error:
            self.engine.note("load failed", peer.name, str(error))
        await self.load_duties(peer)

    def digest(self, number: int, cell: int) -> Tensor:
        """Return the digest of the first matrix of a cell at the last snapshot, as its holders should state it."""
        placed = self.panels[number].cells[cell]
        found = self.matrices(number, placed.lane, placed.rows, [placed.column])
        missing = self.state(number).fetched - len(found)
        return digest([*found, *[torch.zeros_like(found[0])] * missing])
