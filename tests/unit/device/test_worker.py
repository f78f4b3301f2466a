"""What a worker does when its fabric fails it."""

import asyncio

import pytest

from awfulowl.device.worker import Offer, Worker
from awfulowl.errors import ClosedError
from awfulowl.fabric.base import Channel, Fabric, Link, Payload, Receive
from tests.loops import run


class _LostLink(Link):
    """A link that was lost for good, as every send says."""

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        raise ClosedError("the broker is lost")

    async def _close(self) -> None:
        return


class _LostFabric(Fabric):
    async def _join(self, me: str, receive: Receive) -> Link:
        await asyncio.sleep(0)
        return _LostLink(me, 1 << 20)


def test_a_fabric_that_is_lost_is_one_error_and_no_group_of_them() -> None:
    with pytest.raises(ClosedError, match="the broker is lost"):
        run(Worker("d1", _LostFabric(), Offer()).run())
