"""What a panel under training has been through since its last snapshot: enough to bring any device to the present."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.errors import InputError
from awfulowl.verification.training import Seen

Rule = Descent | Adaptation
"""What a step is taken by."""


@dataclass(eq=False, slots=True)
class Job:
    """A part of a step: inputs (batch, inputs, *space), gradients (batch, outputs, *space'), and what they add up to.

    The tensors are copies: nobody changes them, as long as a block may have to be rebuilt. `order` is that of the call
    among all, and of the part in its call.
    """

    number: int
    x: Tensor
    dy: Tensor
    order: tuple[int, int]
    seen: Seen | None = None

    @property
    def turn(self) -> int:
        """Which of several holders is asked first: they share the parts of a batch."""
        return self.order[1]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.x.nbytes + self.dy.nbytes


class Kept(NamedTuple):
    """Inputs of some cells that a device keeps under a number, in a session of it."""

    device: str
    session: bytes | None
    number: int
    cells: frozenset[int]


class Pass(NamedTuple):
    """Some samples of a batch that went forward: their place in it, and who keeps their inputs."""

    samples: slice
    kept: list[Kept]


@dataclass(eq=False, slots=True)
class Tape:
    """What a product leaves behind for its way back; `number` gives what kept inputs are known by."""

    number: Callable[[], int]
    keeps: bool = True
    """Whether devices keep the inputs: for a step, which a frozen panel does not take."""
    passes: list[Pass] = field(default_factory=list)

    def add(self, samples: slice) -> "Recorder":
        """Begin to record the pass of some samples."""
        kept: list[Kept] = []
        self.passes.append(Pass(samples, kept))
        return Recorder(self.number if self.keeps else lambda: 0, kept)


class Recorder(NamedTuple):
    """Takes note of who keeps the inputs of some samples."""

    number: Callable[[], int]
    kept: list[Kept]

    def note(self, device: str, session: bytes | None, cells: Iterable[int]) -> int:
        """Return the number under which a device is to keep the inputs of some cells."""
        self.kept.append(Kept(device, session, self.number(), frozenset(cells)))
        return self.kept[-1].number


class Taken(NamedTuple):
    """A step that was taken: by which rule, along the gradients of which jobs."""

    step: int
    jobs: tuple[Job, ...]
    rule: Rule


class Statement(NamedTuple):
    """What devices said that weights are after a step: an image of all of them, and who said it of which cell."""

    step: int
    image: Tensor
    devices: dict[int, str]


class Steadiness:
    """Lets any number of products be under way, or one step, which waits for them and keeps later ones waiting."""

    def __init__(self) -> None:
        self._products = 0
        self._stepping = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def product(self) -> AsyncIterator[None]:
        """Hold the weights where they are."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._stepping)
            self._products += 1
        try:
            yield
        finally:
            self._products -= 1
            async with self._changed:
                self._changed.notify_all()

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Hold products back."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._stepping)
            self._stepping = True
            await self._changed.wait_for(lambda: self._products == 0)
        try:
            yield
        finally:
            self._stepping = False
            async with self._changed:
                self._changed.notify_all()


@dataclass(eq=False, slots=True)
class History:
    """One panel's steps since the last snapshot, and the jobs of the next one.

    `lock` is held while a step or a snapshot is under way. `log` only grows; a snapshot begins a new one. `stated` is
    what was said along the way, where Adam moves the panel.
    """

    trainable: bool
    step: int = 0
    log: list[Taken] = field(default_factory=list)
    stated: list[Statement] = field(default_factory=list)
    pending: list[Job] = field(default_factory=list)
    failures: int = 0
    has_momentum: bool = False
    adaptive: bool = False
    """Whether Adam moves the panel, and nothing else."""
    adapted: int = 0
    """Steps of Adam, those before a checkpoint included: its means begin at 0."""
    spent: bool = False
    """Whether a step was taken along the pending jobs: they count again only after `forget`."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    steadiness: Steadiness = field(default_factory=Steadiness)

    @property
    def log_bytes(self) -> int:
        """Bytes of inputs and gradients that are kept for replays, and of what was stated."""
        jobs = sum(job.nbytes for taken in self.log for job in taken.jobs)
        return jobs + sum(one.image.nbytes for one in self.stated)

    def add(self, job: Job) -> None:
        """Note a job of the next step.

        Raises:
            InputError: the last step's gradients were not cleared.
        """
        if self.spent:
            raise InputError("gradients of the last step are still there: call optimizer.zero_grad() before backward()")
        self.pending.append(job)

    def forget(self) -> None:
        """Clear the gradients, as `zero_grad` does."""
        self.pending = []
        self.spent = False

    def jobs(self) -> tuple[Job, ...]:
        """Return the jobs of the next step, in an order that does not depend on who was faster."""
        return tuple(sorted(self.pending, key=lambda job: job.order))

    def take(self, rule: Rule) -> Taken:
        """Note that the next step is taken."""
        taken = Taken(self.step + 1, self.jobs(), rule)
        self.log.append(taken)
        self.step += 1
        self.adapted += self.adaptive
        self.pending = []
        self.spent = True
        self.has_momentum = self.has_momentum or rule.has_momentum
        return taken
