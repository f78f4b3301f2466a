"""The fabric of real fleets: core NATS, with a broker between the owner and devices that only dial out.

Subjects: `d.<device>.m` and `d.<device>.hb` to a device, `o.<device>.m` and `hb.<device>` from it. The broker holds
every key to its subjects (`broker`), so a device hears nothing of others and cannot speak in their name. Nobody uses
`_INBOX`: whoever may listen there hears all replies. Whoever runs the broker sees every frame: run it yourself, or
seal (`sealed`).
"""

import functools
from contextlib import AsyncExitStack

from nats.aio.msg import Msg

from awfulowl.errors import InputError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive
from awfulowl.fabric.connection import Connection, NatsConfig, check_url
from awfulowl.fabric.identity import Identity
from awfulowl.wire.frames import Frame


class NatsFabric(Fabric):
    """Joins the broker at `url` with the keys of `identity`, as the owner or the device that it names."""

    def __init__(self, url: str, identity: Identity, config: NatsConfig | None = None) -> None:
        """Check the address; nothing is sent before `join`.

        Raises:
            InputError: the address is not usable, or would send frames in the clear.
        """
        self._config = config if config is not None else NatsConfig()
        self._url = check_url(url, self._config)
        self._identity = identity

    async def _join(self, me: str, receive: Receive) -> Link:
        if me != self._identity.name:
            raise InputError(f"this identity is of {self._identity.name!r}: it cannot join as {me!r}")
        async with AsyncExitStack() as undo:
            connection = Connection(self._url, self._config)
            undo.push_async_callback(connection.close)
            await connection.open(self._identity)
            link = _NatsLink(me, connection, receive)
            await link.listen()
            undo.pop_all()
        return link


class _NatsLink(Link):
    def __init__(self, me: str, connection: Connection, receive: Receive) -> None:
        super().__init__(me, connection.max_payload_bytes)
        self._connection = connection
        self._receive = receive
        connection.ended.add_done_callback(lambda ended: self._end(ended.result()))

    async def listen(self) -> None:
        """Subscribe to what is meant for this end.

        Raises:
            BrokerError: the broker does not allow it.
        """
        for channel in Channel:
            subject = _from_device("*", channel) if self.me == OWNER else _to_device(self.me, channel)
            await self._connection.subscribe(subject, functools.partial(self._received, channel))
        await self._connection.confirm()

    async def _received(self, channel: Channel, message: Msg) -> None:
        peer = message.subject.split(".")[1] if self.me == OWNER else OWNER
        self._hand_over(self._receive, peer, channel, message.data)

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        await self._connection.publish(self._subject(peer, channel), payload)

    async def _send_pieces(self, peer: str, payload: Frame, channel: Channel) -> None:
        await self._connection.publish(self._subject(peer, channel), payload)

    def _subject(self, peer: str, channel: Channel) -> str:
        return _to_device(peer, channel) if self.me == OWNER else _from_device(self.me, channel)

    async def _close(self) -> None:
        await self._connection.close()


def _to_device(device: str, channel: Channel) -> str:
    return f"d.{device}.{channel.value}"


def _from_device(device: str, channel: Channel) -> str:
    return f"hb.{device}" if channel is Channel.HEARTBEAT else f"o.{device}.{channel.value}"
