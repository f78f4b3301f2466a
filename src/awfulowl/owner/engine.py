"""The owner's end of all conversations: peers, heartbeats, and who is there."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar

import torch

from awfulowl.errors import DamagedError, GoneError, PeerError, ProtocolError, UnavailableError
from awfulowl.fabric.base import Channel, Fabric, Link, Payload
from awfulowl.limits import DEFAULT, Limits
from awfulowl.owner.floods import Nuisance
from awfulowl.owner.ledger import Ledger
from awfulowl.owner.pace import Pace
from awfulowl.owner.peer import LastAsked, Peer, Standing
from awfulowl.owner.policy import Policy
from awfulowl.randomness import SYSTEM, Entropy
from awfulowl.wire import session as wire

T = TypeVar("T")


class Watcher(Protocol):
    """Told by the engine when devices come and go; must not block."""

    def opened(self, peer: Peer, *, fresh: bool) -> None:
        """A session is open; `fresh` says that the device holds nothing."""

    def lost(self, peer: Peer, /) -> None:
        """A device is gone or quarantined: what it held is out of reach."""

    def evicted(self, peer: Peer, slices: Sequence[bytes]) -> None:
        """A device dropped these slices."""


class Engine:
    """Keeps one session with every enrolled device alive. All methods run in the event loop.

    `executor` takes the arithmetic out of the loop's thread; without one it runs inline, which is what
    simulations under a fake clock want.
    """

    def __init__(
        self,
        fabric: Fabric,
        policy: Policy,
        *,
        limits: Limits = DEFAULT,
        entropy: Entropy = SYSTEM,
        executor: Executor | None = None,
    ) -> None:
        self.policy = policy
        self.limits = limits
        self.entropy = entropy
        self.ledger = Ledger()
        self.pace = Pace()
        self.peers: dict[str, Peer] = {}
        self._fabric = fabric
        self._executor = executor
        self._link: Link | None = None
        self._watchers: list[Watcher] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sending = asyncio.Lock()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Join the fabric and begin to listen."""
        self._link = await self._fabric.owner(self._receive)
        self.limits = self.limits.fitting(self._link.max_payload_bytes)
        self.spawn(self._pulse())

    async def close(self) -> None:
        """Say goodbye to every device and leave the fabric."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self.peers.values():
            if peer.standing is not Standing.ABSENT:
                await peer.send(peer.session.bye("the fleet is closed"))
            peer.abandon("the fleet is closed")
            peer.standing = Standing.ABSENT
        if self._link is not None:
            await self._link.close()

    def now(self) -> float:
        """Return the loop's time in seconds."""
        return asyncio.get_running_loop().time()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine beside everything else, until the engine closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def compute(self, work: Callable[[], T], *, here: bool = False) -> T:
        """Run arithmetic outside the loop's thread, without gradients.

        Args:
            work: what is computed.
            here: whether it is so little that a hop to another thread would take longer.
        """

        def quietly() -> T:
            with torch.no_grad():
                return work()

        if here or self._executor is None:
            return quietly()
        return await asyncio.get_running_loop().run_in_executor(self._executor, quietly)

    def enrol(self, names: Iterable[str]) -> None:
        """Expect these devices; messages of others are ignored."""
        if self._link is None:
            raise UnavailableError("the engine is not started")
        for name in names:
            if name not in self.peers:
                timing = wire.Timing(
                    lease_s=self.policy.lease_s,
                    heartbeat_s=self.policy.heartbeat_s,
                    silence_s=self.policy.silence_s,
                )
                session = wire.OwnerSession(name, self.limits, self.entropy, timing)
                self.peers[name] = Peer(name, self._link, session, self.ledger, self._sending)

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` from now on when devices come and go."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Stop telling `watcher`, if it is told."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    async def present(self, names: Sequence[str], timeout_s: float) -> None:
        """Wait until all of these devices are there.

        Raises:
            UnavailableError: some are not, after `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not all(self.peers[name].alive for name in names):
                    await self.change()
        except TimeoutError as error:
            missing = [name for name in names if not self.peers[name].alive]
            raise UnavailableError(
                f"{len(missing)} of {len(names)} devices did not come within {timeout_s:g} s: {', '.join(missing[:8])}"
                "; does each run, at this broker and with this owner's enrolment?"
            ) from error

    async def change(self) -> None:
        """Wait until a device comes or goes, or a load is done."""
        self._changed.clear()
        await self._changed.wait()

    def changed(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()

    def absent_s(self, name: str) -> float:
        """Return for how long a device has been away; infinite when it must not come back, 0 while it is there."""
        peer = self.peers[name]
        if peer.standing is Standing.QUARANTINED:
            return math.inf
        return 0.0 if peer.alive else self.now() - peer.left_at_s

    def note(self, kind: str, device: str, text: str) -> None:
        """Record an event."""
        self.ledger.note(self.now(), kind, device, text)

    def quarantine(self, peer: Peer, reason: str) -> None:
        """Trust this device no more; it is not told, and goes on getting old inputs for a random time."""
        if peer.standing is Standing.QUARANTINED:
            return
        peer.standing = Standing.QUARANTINED
        self.note("quarantined", peer.name, reason)
        for watcher in self._watchers:
            watcher.lost(peer)
        self.changed()
        self.spawn(self._cover(peer, None if peer.last is None else peer.last.copied()))
        peer.last = None

    async def _cover(self, peer: Peer, last: LastAsked | None) -> None:
        """Send the last inputs again at random times, so that the device does not learn when it was caught."""
        shortest, longest = self.policy.cover_s
        draw = self.entropy.uniform(64).tolist()
        end = self.now() + shortest + (longest - shortest) * draw[0]
        turn = 0
        while self.now() < end and last is not None and peer.session.is_open:
            turn += 1
            await asyncio.sleep(0.05 + 0.9 * draw[turn % len(draw)])
            try:
                await peer.ask(
                    last.body, last.inputs, timeout_s=self.policy.answer_timeout_s, answer_bytes=last.answer_bytes
                )
            except PeerError:
                continue
        if peer.session.is_open:
            peer.post(peer.session.bye("no longer needed"))
        # A session that ends by our own word tells of nothing.
        peer.abandon("it is in quarantine, and its session over")

    def _receive(self, name: str, channel: Channel, payload: Payload) -> None:
        peer = self.peers.get(name)
        if peer is None or peer.muted:
            return
        self.ledger.bytes_received += len(payload)
        unasked = peer.session.unasked
        if channel is Channel.HEARTBEAT:
            events = peer.session.receive_beat(payload, self.now())
        else:
            events = peer.session.receive(payload, self.now())
        if peer.session.unasked > unasked:
            self._count_nuisance(peer, Nuisance.UNASKED)
        for event in events:
            self._handle(peer, event)

    def _handle(self, peer: Peer, event: wire.OwnerEvent) -> None:
        match event:
            case wire.Answered(id=id_, tensors=tensors):
                peer.floods.forgive(Nuisance.DAMAGED)
                peer.settle(id_, tensors)
            case wire.Refused(id=id_, reason=reason):
                peer.refuse(id_, f"refused: {reason}")
            case wire.Failed(id=id_, reason=reason):
                peer.refuse(id_, f"failed: {reason}")
            case wire.Expired(id=id_):
                peer.settle(id_, GoneError(f"{peer.name}: no answer in time"))
            case wire.Opened(fresh=fresh, frames_to_send=frames):
                if self._count_nuisance(peer, Nuisance.STARTS if fresh else Nuisance.UNASKED):
                    return
                peer.post(frames)
                self._open(peer, fresh=fresh)
            case wire.Evicted(slices=slices, reason=reason):
                if self._count_nuisance(peer, Nuisance.STARTS):
                    return
                self.note("evicted", peer.name, f"{len(slices)} slices: {reason}")
                for watcher in self._watchers:
                    watcher.evicted(peer, slices)
            case wire.Gone(reason=reason):
                self._lose(peer, reason)
            case wire.Violation(error=error):
                self._count_violation(peer, error)

    def _open(self, peer: Peer, *, fresh: bool) -> None:
        if peer.standing is Standing.QUARANTINED:
            return
        if fresh or peer.standing is Standing.ABSENT:
            self.note("opened", peer.name, "a session is open" + ("" if fresh else ", blocks still there"))
        peer.standing = Standing.PRESENT
        for watcher in self._watchers:
            watcher.opened(peer, fresh=fresh)
        self.changed()

    def _lose(self, peer: Peer, reason: str) -> None:
        if peer.standing is not Standing.PRESENT:
            return
        peer.standing = Standing.ABSENT
        peer.left_at_s = self.now()
        self.note("gone", peer.name, reason)
        for watcher in self._watchers:
            watcher.lost(peer)
        self.changed()

    def _count_violation(self, peer: Peer, error: ProtocolError) -> None:
        if isinstance(error, DamagedError):
            self.ledger.damaged += 1
            self._count_nuisance(peer, Nuisance.DAMAGED)
            return
        self.ledger.violations += 1
        peer.violations += 1
        if peer.violations > self.policy.max_violations:
            self._mute(peer, f"too many frames that cannot be accepted; the last: {error}")

    def _count_nuisance(self, peer: Peer, nuisance: Nuisance) -> bool:
        """Count what is no violation by itself; say whether the device is not listened to any longer."""
        if peer.floods.add(nuisance, self.now(), self.policy):
            self._mute(peer, f"a flood: more than {nuisance.value} in {self.policy.flood_s:g} s")
        return peer.muted

    def _mute(self, peer: Peer, reason: str) -> None:
        """Quarantine a device, and hear nothing more of it: what it was asked is asked of others."""
        if peer.muted:
            return
        peer.muted = True
        self.quarantine(peer, reason)
        peer.abandon(reason)

    async def _pulse(self) -> None:
        """Beat to every device, and notice those that are silent and requests that are over time."""
        if self._link is None:
            raise UnavailableError("the engine is not started")
        while True:
            for peer in self.peers.values():
                for event in peer.session.tick(self.now()):
                    self._handle(peer, event)
                beat = peer.session.beat(self.now())
                if beat:
                    await self._link.send(peer.name, beat, Channel.HEARTBEAT)
            await asyncio.sleep(min(self.policy.heartbeat_s, self.policy.answer_timeout_s / 4))


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all of these at once; when one fails, cancel the others and raise its error as it is."""
    tasks = [asyncio.get_running_loop().create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def to_the_end(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of these at once, the others also when one fails; then raise its error."""
    for error in await asyncio.gather(*works, return_exceptions=True):
        if error is not None:
            raise error
