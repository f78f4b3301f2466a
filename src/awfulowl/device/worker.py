"""A device at work: one link to the owner, one thread that multiplies."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

import torch
from torch import Tensor

from awfulowl.device.learning import Learner
from awfulowl.device.shortage import is_shortage
from awfulowl.device.store import Store
from awfulowl.errors import AwfulOwlError, PeerError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload
from awfulowl.limits import DEFAULT, GIB, Limits
from awfulowl.randomness import SYSTEM, expanded
from awfulowl.wire import messages as verbs
from awfulowl.wire.digest import digest
from awfulowl.wire.frames import Frame
from awfulowl.wire.session import (
    Cancelled,
    Closed,
    DeviceSession,
    LeaseExpired,
    Opened,
    Repeat,
    Requested,
    Violation,
)

_log = logging.getLogger(__name__)

_GOODBYE_S: Final = 2.0
"""A goodbye that does not get away by then is not waited for: the owner notices the silence."""

Reply = Callable[[], list[Frame]]
Tamper = Callable[[int, list[Tensor]], list[Tensor]]
"""(request id, right answers) -> the answers that are sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a device offers to its owner."""

    memory_bytes: int = 4 * GIB
    """Weights that it will hold."""

    threads: int = 1
    """Threads of a product."""

    accelerator: str = "cpu"
    """Where blocks are held and multiplied, as PyTorch names it: cpu, cuda, cuda:1."""


class Worker:
    """Serves one owner until it says bye: receives, queues, multiplies in order, answers.

    `tamper` and `delay_s`, set only by tests, benchmarks and demonstrations, falsify answers and hold them back; so
    does `learner.tamper` with steps.
    """

    def __init__(
        self,
        name: str,
        fabric: Fabric,
        offer: Offer,
        *,
        executor: Executor | None = None,
        limits: Limits = DEFAULT,
    ) -> None:
        self.name = name
        self.tamper: Tamper | None = None
        self.delay_s = 0.0
        self._fabric = fabric
        self._offer = offer
        self._executor = executor
        self._store = Store(limits, offer.memory_bytes, offer.accelerator)
        self.learner = Learner(self._store, limits)
        self._limits = limits
        self._session = self._new_session(limits)
        self._queue: asyncio.Queue[Requested] = asyncio.Queue()
        self._cancelled: set[int] = set()
        self._outbox: asyncio.Queue[Sequence[bytes | Frame]] = asyncio.Queue()
        self._closed = asyncio.Event()

    async def run(self) -> None:
        """Serve until the owner says bye, or `leave`, or until cancelled; the blocks are dropped in any case.

        Raises:
            AwfulOwlError: the fabric cannot be joined, or is lost for good.
        """
        link = await self._fabric.device(self.name, self._receive)
        self._session = self._new_session(self._limits.fitting(link.max_payload_bytes))
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._pulse(link)),
                    tasks.create_task(self._send(link)),
                    tasks.create_task(self._work()),
                ]
                await self._closed.wait()
                for task in running:
                    task.cancel()
            await self._say_goodbye(link)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # the others only say that the same link is lost
        finally:
            self._drop()
            await link.close()

    async def run_in_order(self) -> None:
        """Serve as `run` does, but say goodbye first when cancelled: nobody has to wait for a silence to be sure.

        Raises:
            AwfulOwlError: as `run`.
        """
        work = asyncio.ensure_future(self.run())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if self._session.is_open:
                self.leave()
            else:
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            raise

    def leave(self) -> None:
        """End `run` in order: the owner is told."""
        self._closed.set()

    async def _say_goodbye(self, link: Link) -> None:
        """Tell an owner that did not say goodbye itself."""
        with contextlib.suppress(AwfulOwlError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                for frame in self._session.bye("the device was stopped"):
                    await link.send(OWNER, frame)

    def _new_session(self, limits: Limits) -> DeviceSession:
        return DeviceSession(self.name, limits, SYSTEM, self._offer.memory_bytes, self._offer.threads)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _receive(self, _peer: str, channel: Channel, payload: Payload) -> None:
        if channel is Channel.HEARTBEAT:
            events = self._session.receive_beat(payload, self._now())
        else:
            events = self._session.receive(payload, self._now())
        for event in events:
            self._handle(event)

    def _handle(self, event: object) -> None:
        match event:
            case Requested():
                self._queue.put_nowait(event)
            case Cancelled(id=id_):
                self._cancelled.add(id_)
            case Repeat(frames=frames):
                self._outbox.put_nowait(frames)
            case Opened(fresh=fresh):
                if fresh:
                    self._forget()
            case LeaseExpired():
                _log.warning("%s: the owner is silent; blocks dropped", self.name)
                self._forget()
            case Closed(reason=reason):
                _log.info("%s: the owner said bye: %s", self.name, reason)
                self._closed.set()
            case Violation(error=error):
                _log.warning("%s: refused: %s", self.name, error)
            case _:
                raise TypeError(f"no session event: {type(event).__name__}")

    def _drop(self) -> None:
        self._store.clear()
        self.learner.clear()

    def _forget(self) -> None:
        self._drop()
        self._cancelled.clear()
        while not self._queue.empty():
            self._queue.get_nowait()

    async def _pulse(self, link: Link) -> None:
        """Say hello until a session is open, then keep it alive."""
        while True:
            for event in self._session.tick(self._now()):
                self._handle(event)
            beat = self._session.beat(self._now())
            if beat:
                await link.send(OWNER, beat, Channel.HEARTBEAT)
            await asyncio.sleep(self._session.heartbeat_s)

    async def _send(self, link: Link) -> None:
        while True:
            for frame in await self._outbox.get():
                await link.send(OWNER, frame)

    async def _work(self) -> None:
        while True:
            request = await self._queue.get()
            if request.id in self._cancelled:
                self._cancelled.discard(request.id)
                continue
            handle = self._session.handle
            reply = await self._reply(request)
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self._session.handle == handle:
                self._outbox.put_nowait(reply())

    async def _reply(self, request: Requested) -> Reply:
        """Do what is asked; what the owner is told is made up later, when the session is known to be the same."""
        try:
            if self._executor is None:
                tensors = self._do(request)
            else:
                tensors = await asyncio.get_running_loop().run_in_executor(self._executor, self._do, request)
        except PeerError as error:
            return partial(self._session.refuse, request.id, str(error))
        except (AwfulOwlError, RuntimeError, MemoryError) as error:
            _log.exception("%s: request %d failed", self.name, request.id)
            if is_shortage(error):
                self._evict(request.body)
            return partial(self._session.error, request.id, type(error).__name__)
        return partial(self._session.answer, request.id, tensors)

    def _evict(self, body: verbs.Request) -> None:
        """Drop the blocks that cannot be multiplied for want of memory, and say so: others are given them."""
        slices = body.slices if isinstance(body, verbs.Apply | verbs.ApplyTransposed) else ()
        gone = self._store.give_up(slices)
        self.learner.forget(gone)
        if gone:
            self._outbox.put_nowait(self._session.evict(gone, "out of memory"))

    def _do(self, request: Requested) -> Sequence[Tensor]:
        with torch.inference_mode():
            match request.body:
                case verbs.Load() as body:
                    self._store.load(body, request.tensors)
                case verbs.Step() as body:
                    self.learner.step(body)
                case verbs.Freeze(terms=terms, number=number):
                    self._store.freeze(terms, number)
                case verbs.Release(slices=slices):
                    self._store.release(slices)
                    self.learner.forget(slices)
                case body:
                    return self._answer(request.id, body, [expanded(tensor) for tensor in request.tensors])
            return []

    def _answer(self, id_: int, body: verbs.Question, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        match body:
            case verbs.Apply():
                return self._apply(id_, body, tensors)
            case verbs.ApplyTransposed():
                return self._tampered(id_, self.learner.apply_transposed(body, tensors))
            case verbs.Measure():
                return [self.learner.measure(body)]
            case verbs.Fetch(rows=rows, slices=slices, parts=parts, frozen=frozen):
                return self._store.fetch(rows, slices, parts, frozen)
            case verbs.Commit(rows=rows, slices=slices, parts=parts):
                return [digest(self._store.fetch(rows, slices, parts))]
            case never:
                assert_never(never)

    def _apply(self, id_: int, body: verbs.Apply, tensors: Sequence[Tensor]) -> list[Tensor]:
        x = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
        answers = self._store.apply(body, x)
        if body.keep:
            self.learner.keep(body, x)
        return self._tampered(id_, answers)

    def _tampered(self, id_: int, answers: list[Tensor]) -> list[Tensor]:
        return answers if self.tamper is None else self.tamper(id_, answers)
