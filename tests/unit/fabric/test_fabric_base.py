"""What the base classes do for every fabric."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import ClosedError, InputError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive, check_name
from tests.loops import run


class Fragile(Link):
    """A link that breaks when it is told to."""

    def __init__(self) -> None:
        super().__init__("a", 100)
        self.sent: list[tuple[str, bytes, Channel]] = []
        self.closings = 0

    def break_down(self, reason: str) -> None:
        self._end(reason)

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        self.sent.append((peer, bytes(payload), channel))

    async def _close(self) -> None:
        self.closings += 1


def test_a_lost_link_says_why_to_whoever_sends_or_waits() -> None:
    async def scene() -> None:
        link = Fragile()
        reasons: list[str | None] = []
        link.when_ended(reasons.append)
        waiting = [asyncio.ensure_future(link.wait_closed()) for _ in range(2)]
        await asyncio.sleep(0)
        link.break_down("the cable was cut")
        link.break_down("and once more")
        for task in waiting:
            with pytest.raises(ClosedError, match="the cable was cut"):
                await task
        for _ in range(2):
            with pytest.raises(ClosedError, match="the cable was cut"):
                await link.send(OWNER, b"")
        assert link.closed
        assert reasons == ["the cable was cut"]

    run(scene())


def test_a_waiter_that_is_cancelled_leaves_the_link_alone() -> None:
    async def scene() -> None:
        link = Fragile()
        waiting = asyncio.ensure_future(link.wait_closed())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await link.send(OWNER, b"still there", Channel.HEARTBEAT)
        assert link.sent == [(OWNER, b"still there", Channel.HEARTBEAT)]
        await link.close()
        await link.close()
        assert link.closings == 1

    run(scene())


def test_a_fabric_is_asked_only_for_names_that_are_names() -> None:
    joined: list[str] = []

    class Noting(Fabric):
        async def _join(self, me: str, receive: Receive) -> Link:
            joined.append(me)
            return Fragile()

    async def scene() -> None:
        fabric = Noting()
        await fabric.owner(lambda *_: None)
        await fabric.device("a", lambda *_: None)
        await fabric.join(OWNER, lambda *_: None)
        for name in [OWNER, "a.b", "d.>"]:
            with pytest.raises(InputError):
                await fabric.device(name, lambda *_: None)

    run(scene())
    assert joined == [OWNER, "a", OWNER]


@given(st.text(max_size=80))
def test_a_name_is_one_token_of_a_subject_or_refused(text: str) -> None:
    try:
        name = check_name(text)
    except InputError:
        return
    assert name == text
    assert 1 <= len(name) <= 64
    assert name.isascii()
    assert not set(name) & set(".*> \t\r\n/\\\0")


def test_a_refused_name_is_not_quoted_at_length() -> None:
    with pytest.raises(InputError) as caught:
        check_name("x" * 10_000)
    assert len(str(caught.value)) < 200
