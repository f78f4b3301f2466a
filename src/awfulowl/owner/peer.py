"""One device, as the owner knows it: its session, its open requests, its standing."""

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from torch import Tensor

from awfulowl.errors import GoneError, PeerError, RefusedError
from awfulowl.fabric.base import Link
from awfulowl.owner.floods import Floods
from awfulowl.owner.ledger import Ledger
from awfulowl.randomness import Seeded
from awfulowl.wire import messages as verbs
from awfulowl.wire.session import OwnerSession

_REMEMBERED_ANSWERS: Final = 4096

_REPEATS: Final = 2
"""Times that a change is asked for again."""


class Answer(NamedTuple):
    """What a device sent back, and the id of the request that it answers."""

    request: int
    tensors: list[Tensor]


class LastAsked(NamedTuple):
    """The last product that a device was asked for: its message, its inputs, and the bytes of its answer."""

    body: verbs.Apply
    inputs: Sequence[Tensor | Seeded]
    answer_bytes: int

    def copied(self) -> "LastAsked":
        """Return the same with inputs of its own: they may be the caller's, who writes others there later."""
        return self._replace(inputs=[one.clone() if isinstance(one, Tensor) else one for one in self.inputs])


class Standing(Enum):
    """What the owner thinks of a device."""

    ABSENT = "absent"
    PRESENT = "present"
    QUARANTINED = "quarantined"


class Peer:
    """Asks one device and waits for its answers, within its byte credit."""

    def __init__(self, name: str, link: Link, session: OwnerSession, ledger: Ledger, sending: asyncio.Lock) -> None:
        self.name = name
        self.session = session
        self.standing = Standing.ABSENT
        self.left_at_s = -math.inf
        self.violations = 0
        self.floods = Floods()
        self.muted = False
        """Whether nothing is listened to that comes from it."""
        self.last: LastAsked | None = None
        self.used: deque[int] = deque(maxlen=_REMEMBERED_ANSWERS)
        """The last requests whose answers went into a sum. Answers to cover traffic, and those that lost against a
        replica's, never do."""
        self._link = link
        self._sending = sending
        self._ledger = ledger
        self._waiting: dict[int, asyncio.Future[list[Tensor]]] = {}
        self._freed = asyncio.Event()
        self._sends: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> bool:
        """True while the device is there and trusted with requests."""
        return self.standing is Standing.PRESENT

    async def ask(
        self,
        body: verbs.Request,
        tensors: Sequence[Tensor | Seeded],
        *,
        timeout_s: float,
        answer_bytes: int = 0,
        repeat_s: float = math.inf,
    ) -> Answer:
        """Send a request and return its answer; with `repeat_s` ask again for a change when nothing was heard so long.

        It is asked for under the same id, at most `_REPEATS` times, after twice as long each time: what is merely slow,
        as a large load is, must not be sent too often. The tensors must not change meanwhile.

        Raises:
            GoneError: the device left, or is silent, or there was no credit in `timeout_s`, or no answer in as long
                after that.
            RefusedError: it refused, or failed.
        """
        loop = asyncio.get_running_loop()
        sent_bytes = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
        await self._wait_for_credit(answer_bytes + sent_bytes, timeout_s)
        deadline = loop.time() + timeout_s
        id_, frames = self.session.request(body, tensors, deadline=deadline, answer_bytes=answer_bytes)
        future: asyncio.Future[list[Tensor]] = loop.create_future()
        self._waiting[id_] = future
        try:
            await self._send_all(frames, future)
            for turn in range(_REPEATS if math.isfinite(repeat_s) else 0):
                done, _ = await asyncio.wait({future}, timeout=repeat_s * 2**turn)
                if done or not self.session.is_open:
                    break
                self._ledger.repeated += 1
                _, frames = self.session.request(
                    body, tensors, deadline=deadline, answer_bytes=answer_bytes, repeat_of=id_
                )
                await self._send_all(frames, future)
            return Answer(id_, await future)
        finally:
            if self._waiting.pop(id_, None) is not None and not future.done():
                self.post(self.session.cancel(id_))
            self._freed.set()

    async def _send_all(self, frames: Iterable[bytes], future: asyncio.Future[list[Tensor]]) -> None:
        # All devices share the owner's line. If messages shared it too, all would be complete at the end, and until
        # then nobody could multiply.
        async with self._sending:
            for frame in frames:
                if future.done():
                    return  # the device is gone, or its time is over
                await self._send(frame)

    async def _wait_for_credit(self, size: int, timeout_s: float) -> None:
        """Wait until `size` bytes fit the credit; a request larger than all credit goes alone."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._waiting and size > self.session.free_credit_bytes:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError as error:
            raise GoneError(f"{self.name}: no credit within {timeout_s} s") from error

    async def send(self, frames: Iterable[bytes]) -> None:
        """Hand frames to the fabric, in order, between those of requests."""
        for frame in frames:
            await self._send(frame)

    async def _send(self, frame: bytes) -> None:
        self._ledger.bytes_sent += len(frame)
        await self._link.send(self.name, frame)

    def post(self, frames: Iterable[bytes]) -> None:
        """Send without waiting: for messages that nobody waits for."""
        task = asyncio.get_running_loop().create_task(self.send(frames))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    def settle(self, id_: int, result: list[Tensor] | PeerError) -> None:
        """Give the answer of a request to whoever waits for it."""
        future = self._waiting.pop(id_, None)
        self._freed.set()
        if future is None or future.done():
            return
        if isinstance(result, PeerError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def refuse(self, id_: int, reason: str) -> None:
        """Settle a request that the device refused or failed at."""
        self.settle(id_, RefusedError(f"{self.name}: {reason}"))

    def abandon(self, reason: str) -> None:
        """Fail everything that is open: the device is gone."""
        for id_ in list(self._waiting):
            self.settle(id_, GoneError(f"{self.name}: {reason}"))
