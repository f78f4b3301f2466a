"""A fabric inside one process and one event loop, for simulations and as the baseline of the real one."""

import asyncio

from awfulowl.errors import InputError
from awfulowl.fabric.base import Channel, Fabric, Link, Payload, Receive
from awfulowl.limits import DEFAULT, Limits


class MemoryFabric(Fabric):
    """A hub: whoever joined it under a name gets what is sent to that name; the rest is lost."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self._links: dict[str, _MemoryLink] = {}

    async def _join(self, me: str, receive: Receive) -> Link:
        if me in self._links:
            raise InputError(f"{me!r} is on this fabric already; close its link first")
        link = self._links[me] = _MemoryLink(me, self._limits.max_payload_bytes, self._links, receive)
        return link


class _MemoryLink(Link):
    def __init__(self, me: str, max_payload_bytes: int, links: "dict[str, _MemoryLink]", receive: Receive) -> None:
        super().__init__(me, max_payload_bytes)
        self._links = links
        self._receive = receive

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        if (target := self._links.get(peer)) is not None:
            target.accept(self.me, channel, payload)
        # The turn of the loop that hands the frame over: no sender is ever further ahead than its last frame.
        await asyncio.sleep(0)

    def accept(self, sender: str, channel: Channel, payload: Payload) -> None:
        """Take a frame from `sender`."""
        self._hand_over(self._receive, sender, channel, payload)

    async def _close(self) -> None:
        del self._links[self.me]
