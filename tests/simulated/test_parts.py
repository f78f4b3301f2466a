"""Batches in parts: how their messages travel, and that each sample is checked whoever adds it up."""

import asyncio
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.device.lies import KINDS, Kind, Liar
from awfulowl.errors import GoneError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive
from awfulowl.limits import KIB, Limits
from awfulowl.owner import product
from awfulowl.owner.layout import evenly
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.wire import messages as verbs
from tests.simulated.world import World, simulate

TWO_REPLICAS = Options(block=8, replicas=2, share=1.0)


class Watched(Fabric):
    """Notes what the owner sends, and to whom."""

    def __init__(self, inner: Fabric) -> None:
        self.sent: list[tuple[str, int]] = []
        self._inner = inner

    async def _join(self, me: str, receive: Receive) -> Link:
        inner = await self._inner.join(me, receive)
        return _WatchedLink(inner, self.sent) if me == OWNER else inner


class _WatchedLink(Link):
    def __init__(self, inner: Link, sent: list[tuple[str, int]]) -> None:
        super().__init__(inner.me, 4 * KIB)  # small frames: every message takes several
        inner.when_ended(self._end)
        self._inner = inner
        self._sent = sent

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        if channel is Channel.MESSAGE:
            self._sent.append((peer, int.from_bytes(payload[8:16], "little")))
        await self._inner.send(peer, payload, channel)

    async def _close(self) -> None:
        await self._inner.close()


@pytest.mark.parametrize(("samples", "count"), [(0, 3), (1, 4), (7, 1), (7, 3), (100, 7), (3, 3)])
def test_parts_are_of_one_size_and_make_up_the_batch(samples: int, count: int) -> None:
    parts = list(evenly(samples, count))
    assert [index for part in parts for index in range(samples)[part]] == list(range(samples))
    sizes = {part.stop - part.start for part in parts}
    assert len(parts) == min(samples, count)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_messages_of_requests_leave_one_after_the_other() -> None:
    watched: list[Watched] = []

    def wrap(fabric: Fabric) -> Fabric:
        watched.append(Watched(fabric))
        return watched[-1]

    async def main() -> None:
        policy = Policy(part_bytes=64 * KIB)
        async with World(4, policy=policy, wrap=wrap) as world:
            sent = watched[0].sent
            sent.clear()
            x = world.inputs(2048)
            world.expect(await world.multiply(x), x)
            runs = [key for key, before in zip(sent, [None, *sent], strict=False) if key != before]
            frames: defaultdict[tuple[str, int], int] = defaultdict(int)
            for key in sent:
                frames[key] += 1
            assert max(frames.values()) > 3, "the test needs messages of several frames"
            assert len(runs) == len(set(runs)), "a message was interrupted by another"

    simulate(main())


def test_a_message_to_who_left_in_the_middle_is_not_finished() -> None:
    async def main() -> None:
        async with World(2) as world:
            peer = world.engine.peers["d1"]
            sent = 0
            send = peer._link._send

            async def leave(name: str, payload: Payload, channel: Channel) -> None:
                nonlocal sent
                sent += channel is Channel.MESSAGE
                if sent == 2:
                    peer.abandon("it left")
                await send(name, payload, channel)

            peer._link._send = leave  # type: ignore[method-assign, assignment]
            peer.session._line._limits = Limits(chunk_bytes=4 * KIB)
            panel = world.plan.panels[0]
            body = verbs.Apply(slices=panel.slice_handles[:1], terms=())
            with pytest.raises(GoneError, match="it left"):
                await peer.ask(body, [torch.zeros(8, 64 * KIB)], timeout_s=5)
            assert sent == 2

    simulate(main())


class SomeSamples:
    """Lies about the samples that hold a large number, and says nothing else wrong."""

    def __init__(self, kind: Kind, where: slice) -> None:
        self._liar = Liar(kind, 0.01)
        self._where = where

    def __call__(self, request: int, answers: list[Tensor]) -> list[Tensor]:
        false = [answer.clone() for answer in answers]
        for mine, theirs in zip(false, self._liar(request, answers), strict=True):
            mine[self._where] = theirs[self._where]
        return false


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("where", "part_bytes"),
    [
        (slice(0, 1), 1 << 20),
        (slice(-1, None), 1 << 20),
        (slice(0, 8), 1 << 20),
        (slice(8, None), 1 << 20),
        (slice(0, 1), 512),
        (slice(-1, None), 512),
    ],
    ids=str,
)
def test_a_lie_about_any_sample_of_any_part_is_caught(
    kind: Kind, where: slice, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "_WORTH_SHARING", 0)  # the last part goes to all threads, however small

    async def main() -> None:
        policy = Policy(part_bytes=part_bytes, math_threads=3)
        async with World(4, options=TWO_REPLICAS, policy=policy) as world:
            world.workers["d2"].tamper = SomeSamples(kind, where)
            x = world.inputs(16)
            world.expect(await world.multiply(x), x)
            ledger = world.engine.ledger
            assert ledger.lies_caught >= 1
            assert [event.device for event in ledger.events if event.kind == "quarantined"] == ["d2"]
            assert ledger.checks_failed > 0

    simulate(main())


def test_answers_are_held_to_the_check_of_now() -> None:
    """A check that was renewed since the devices were asked counts no more."""

    async def main() -> None:
        async with World(2) as world:
            used: list[int] = []
            number, old = 0, world.deployment.checks[0]
            for worker in world.workers.values():
                worker.delay_s = 1.0

            x = world.inputs(4)
            asking = asyncio.ensure_future(world.multiply(x))
            await asyncio.sleep(0.5)
            world.deployment.renew(number)
            await asyncio.sleep(0.1)
            new = world.deployment.checks[number]
            assert new is not old
            expect = new.expect

            def noting(x: Tensor, **options: Any) -> Any:
                used.append(1)
                return expect(x, **options)

            new.expect = noting  # type: ignore[method-assign]
            world.expect(await asking, x)
            assert used == [1]

    simulate(main())
