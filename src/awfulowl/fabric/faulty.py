"""A fabric that fails as real ones do, for tests: frames are lost, late, doubled, out of order, altered, or cut off."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from awfulowl.errors import ClosedError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive
from awfulowl.randomness import Entropy

_RESOLUTION: Final = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """The probability of each fault per frame of one direction; all are drawn independently."""

    lose: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Hold a frame back until the next one to the same peer has passed, or `late_s` is over."""
    corrupt: float = 0.0
    """Flip one bit."""
    late_s: float = 0.05
    """A delay is uniform between 0 and this many seconds."""


class FaultyFabric(Fabric):
    """Puts faults between the owner and its devices; all of them happen at the owner's end of `inner`.

    So it does the same whether devices join this object, `inner`, or the same broker from another process. Equal
    seeds of `entropy` and equal frames give equal faults.
    """

    def __init__(
        self,
        inner: Fabric,
        entropy: Entropy,
        *,
        to_devices: Faults = Faults(),
        to_owner: Faults = Faults(),
    ) -> None:
        self._inner = inner
        self._entropy = entropy
        self._to_devices = to_devices
        self._to_owner = to_owner
        self._cut: set[str] = set()

    def cut(self, name: str) -> None:
        """Let nothing more through to and from the device, until `heal`; neither end is told."""
        self._cut.add(name)

    def heal(self, name: str) -> None:
        """Undo `cut`; what was sent meanwhile is lost."""
        self._cut.discard(name)

    async def _join(self, me: str, receive: Receive) -> Link:
        if me != OWNER:
            return await self._inner.join(me, receive)
        arriving = _Disturbance(self._to_owner, self._entropy, self._cut)

        def disturbed(peer: str, channel: Channel, payload: Payload) -> None:
            def deliver(frame: Payload) -> None:
                receive(peer, channel, frame)

            for frame in arriving.admit(peer, payload, deliver):
                deliver(frame)

        inner = await self._inner.join(me, disturbed)
        inner.when_ended(lambda _: arriving.end())
        return _FaultyLink(inner, _Disturbance(self._to_devices, self._entropy, self._cut))


class _FaultyLink(Link):
    def __init__(self, inner: Link, leaving: "_Disturbance") -> None:
        super().__init__(inner.me, inner.max_payload_bytes)
        inner.when_ended(self._end)
        self._inner = inner
        self._leaving = leaving
        self._sends: set[asyncio.Task[None]] = set()

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        def deliver(frame: Payload) -> None:
            task = asyncio.ensure_future(self._send_late(peer, frame, channel))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

        for frame in self._leaving.admit(peer, payload, deliver):
            await self._inner.send(peer, frame, channel)

    async def _send_late(self, peer: str, frame: Payload, channel: Channel) -> None:
        with contextlib.suppress(ClosedError):
            await self._inner.send(peer, frame, channel)

    async def _close(self) -> None:
        self._leaving.end()
        await self._inner.close()


class _Disturbance:
    """What happens to the frames of one direction."""

    def __init__(self, faults: Faults, entropy: Entropy, cut: set[str]) -> None:
        self._faults = faults
        self._entropy = entropy
        self._cut = cut
        self._timers: set[asyncio.TimerHandle] = set()
        self._held: dict[str, list[Callable[[], None]]] = {}

    def admit(self, peer: str, payload: Payload, deliver: Callable[[Payload], None]) -> list[Payload]:
        """Return what goes on at once; what comes later is given to `deliver` in its time."""
        if peer in self._cut or self._happens(self._faults.lose):
            return []
        frame = self._flipped(payload) if self._happens(self._faults.corrupt) else payload
        for release in self._held.pop(peer, []):
            asyncio.get_running_loop().call_soon(release)
        at_once = []
        for _ in range(2 if self._happens(self._faults.duplicate) else 1):
            if self._happens(self._faults.delay):
                self._later(self._uniform() * self._faults.late_s, peer, frame, deliver)
            elif self._happens(self._faults.reorder):
                release = self._later(self._faults.late_s, peer, frame, deliver)
                self._held.setdefault(peer, []).append(release)
            else:
                at_once.append(frame)
        return at_once

    def end(self) -> None:
        """Forget what is still to come."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._held.clear()

    def _later(
        self, wait_s: float, peer: str, frame: Payload, deliver: Callable[[Payload], None]
    ) -> Callable[[], None]:
        """Deliver after `wait_s`, or when the returned function is called if that is sooner."""

        def release() -> None:
            if timer in self._timers:
                timer.cancel()
                self._timers.discard(timer)
                if peer not in self._cut:
                    deliver(frame)

        timer = asyncio.get_running_loop().call_later(wait_s, release)
        self._timers.add(timer)
        return release

    def _uniform(self) -> float:
        return self._entropy.below(_RESOLUTION) / _RESOLUTION

    def _happens(self, probability: float) -> bool:
        return probability > 0.0 and self._uniform() < probability

    def _flipped(self, payload: Payload) -> Payload:
        if not payload:
            return payload
        bit = self._entropy.below(8 * len(payload))
        altered = bytearray(payload)
        altered[bit // 8] ^= 1 << bit % 8
        return bytes(altered)
