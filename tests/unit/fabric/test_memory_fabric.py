"""The fabric inside one process."""

import asyncio

import pytest

from awfulowl.errors import InputError, LimitError
from awfulowl.fabric.base import OWNER, Channel, Payload
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.limits import Limits
from tests.loops import run


def test_a_name_is_taken_until_its_link_is_closed() -> None:
    async def scene() -> None:
        fabric = MemoryFabric()
        first = await fabric.device("a", lambda *_: None)
        with pytest.raises(InputError, match="'a' is on this fabric already"):
            await fabric.device("a", lambda *_: None)
        await first.close()
        await fabric.device("a", lambda *_: None)

    run(scene())


def test_two_fabrics_do_not_meet() -> None:
    async def scene() -> None:
        here, there = MemoryFabric(), MemoryFabric()
        heard: list[bytes] = []
        owner = await here.owner(lambda *_: None)
        await there.device("a", lambda _peer, _channel, payload: heard.append(bytes(payload)))
        await owner.send("a", b"?")
        await asyncio.sleep(0)
        assert heard == []

    run(scene())


def test_no_sender_is_called_back_before_it_has_returned_to_the_loop() -> None:
    async def scene() -> None:
        fabric = MemoryFabric()
        events: list[str] = []
        owner = await fabric.owner(lambda *_: None)
        await fabric.device("a", lambda *_: events.append("received"))
        sending = asyncio.ensure_future(owner.send("a", b""))
        sending.add_done_callback(lambda _: events.append("sent"))
        await sending
        assert events == ["received", "sent"]

    run(scene())


def test_what_is_under_way_is_bounded_by_the_number_of_senders() -> None:
    async def scene() -> None:
        fabric = MemoryFabric()
        sent = received = worst = 0

        def receive(_peer: str, _channel: Channel, _payload: Payload) -> None:
            nonlocal received
            received += 1

        async def sender() -> None:
            nonlocal sent, worst
            for _ in range(100):
                sent += 1
                worst = max(worst, sent - received)
                await owner.send("a", b"x")

        owner = await fabric.owner(lambda *_: None)
        await fabric.device("a", receive)
        await asyncio.gather(*(sender() for _ in range(5)))
        assert received == 500
        assert worst <= 2 * 5

    run(scene())


def test_the_limit_is_the_one_it_was_given() -> None:
    async def scene() -> None:
        link = await MemoryFabric(Limits(max_payload_bytes=3)).device("a", lambda *_: None)
        await link.send(OWNER, b"123")
        with pytest.raises(LimitError, match="4 bytes is over max_payload_bytes=3"):
            await link.send(OWNER, b"1234")

    run(scene())
