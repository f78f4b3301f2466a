"""What every fabric is: a way to move frames of bytes between one owner and its devices.

A fabric promises nothing. Without a fault, each frame arrives once, and the frames that one sender gives to one
channel arrive in the order of the calls; with one they may be lost, late, doubled, out of order or altered, and the
session above must live with that. What a fabric does keep: a device sees only what is meant for it, and the name that
an owner sees beside a frame is that of the sender (NATS: by the broker's rights; sealed: by the sender's key).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Final, final

import msgspec

from awfulowl.errors import ClosedError, InputError, LimitError
from awfulowl.wire.frames import Frame
from awfulowl.wire.messages import Name

OWNER: Final = "owner"
"""The name of the owner, the only peer of a device; no device may have it."""


class Channel(Enum):
    """What a frame belongs to; heartbeats travel apart, so that they need not wait to be understood."""

    MESSAGE = "m"
    HEARTBEAT = "hb"


Payload = bytes | memoryview
"""What a frame carries as it arrives: a view is read-only, and keeps its memory from being used for other frames."""

Receive = Callable[[str, Channel, Payload], None]
"""(name of the peer, channel, payload): called in the event loop, must not block. What it raises is logged.

Frames of peers that the owner never enrolled may come too, from a broker of others: it looks names up.
"""


def check_name(name: str) -> str:
    """Return `name` if a peer may have it: the pattern leaves no room for dots, blanks and wildcards of subjects.

    Raises:
        InputError: it may not.
    """
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise InputError(
            f"{name!r:.80} is no name of a device: 1 to 64 letters, digits, '-' and '_', not '-' or '_' first"
        ) from None


class Link(ABC):
    """One end of a fabric, of the owner or of a device; made by `Fabric`, used in the loop that made it."""

    def __init__(self, me: str, max_payload_bytes: int) -> None:
        self.me: Final = me
        self.max_payload_bytes: Final = max_payload_bytes
        self._ended: Final[asyncio.Future[str | None]] = asyncio.get_running_loop().create_future()

    @property
    @final
    def closed(self) -> bool:
        """Whether it was closed, or lost for good."""
        return self._ended.done()

    @final
    async def send(self, peer: str, payload: Payload | Frame, channel: Channel = Channel.MESSAGE) -> None:
        """Hand over one frame; waits while too much is under way.

        When it returns the frame is on its way, no more: who needs to know asks for an answer. The payload must not
        change afterwards: it may still be read. If it is cancelled nobody knows whether the frame was sent.

        Raises:
            ClosedError: this link was closed, or is lost for good.
            LimitError: the payload is larger than `max_payload_bytes`.
            InputError: `peer` is not a name; for a device, not `OWNER`.
        """
        self._check_open()
        if self.me == OWNER:
            check_name(peer)
        elif peer != OWNER:
            raise InputError(f"a device sends to its owner only, not to {peer!r:.80}")
        if len(payload) > self.max_payload_bytes:
            raise LimitError(f"a frame of {len(payload)} bytes is over max_payload_bytes={self.max_payload_bytes}")
        if isinstance(payload, Frame):
            await self._send_pieces(peer, payload, channel)
        else:
            await self._send(peer, payload, channel)

    @final
    async def close(self) -> None:
        """Leave the fabric; nothing is received from now on. Closing again does nothing."""
        if not self.closed:
            self._end(None)
            await self._close()

    @final
    async def wait_closed(self) -> None:
        """Wait until the link is closed.

        Raises:
            ClosedError: nobody closed it: it is lost for good, and says why.
        """
        if (reason := await asyncio.shield(self._ended)) is not None:
            raise ClosedError(reason)

    @final
    def when_ended(self, call: Callable[[str | None], None]) -> None:
        """Call back with the reason why the link was lost, or with None when it was closed."""
        self._ended.add_done_callback(lambda ended: call(ended.result()))

    def _hand_over(self, receive: Receive, peer: str, channel: Channel, payload: Payload) -> None:
        """Call `receive` in the next turn of the loop, which logs what it raises and goes on."""

        # A closure, not arguments: the loop would log the arguments, and with them the payload.
        def hand_over() -> None:
            if not self.closed:
                receive(peer, channel, payload)

        asyncio.get_running_loop().call_soon(hand_over)

    def _end(self, reason: str | None) -> None:
        """Let nothing more through; `reason` says why when the link was lost rather than closed."""
        if not self.closed:
            self._ended.set_result(reason)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(self._ended.result() or f"the link of {self.me!r} is closed")

    @abstractmethod
    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        """Called by `send` with what it has checked."""

    async def _send_pieces(self, peer: str, payload: Frame, channel: Channel) -> None:
        """Called by `send` in place of `_send`: joins them, where a fabric has no better way."""
        await self._send(peer, bytes(payload), channel)

    @abstractmethod
    async def _close(self) -> None:
        """Called once, by `close`."""


class Fabric(ABC):
    """Where an owner and its devices meet."""

    @final
    async def owner(self, receive: Receive) -> Link:
        """Join as the owner; see `join`."""
        return await self.join(OWNER, receive)

    @final
    async def device(self, name: str, receive: Receive) -> Link:
        """Join as the device `name`; see `join`."""
        if name == OWNER:
            raise InputError(f"a device cannot be called {OWNER!r}: that is the owner's name")
        return await self.join(name, receive)

    @final
    async def join(self, me: str, receive: Receive) -> Link:
        """Join under a name; frames for `me` go to `receive` from now on.

        Raises:
            InputError: the name cannot be one, or is taken.
            BrokerError: the broker is not there, or does not let `me` in.
        """
        return await self._join(check_name(me), receive)

    @abstractmethod
    async def _join(self, me: str, receive: Receive) -> Link:
        """Called by `join` with what it has checked."""
