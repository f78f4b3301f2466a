"""Devices that leave in order, or drop blocks, say so: nobody waits until a silence is long enough."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from torch import Tensor

from awfulowl.errors import UnavailableError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive
from awfulowl.owner.peer import Standing
from awfulowl.placement.options import Options
from awfulowl.wire.messages import Apply
from tests.simulated.world import World, simulate

ALONE = Options(block=8, replicas=1, share=1.0)


def at(world: World, device: str) -> list[tuple[int, int]]:
    """Return the cells that a device is asked for."""
    return [key for key in world.deployment.ready_on if device in world.deployment.holders(key)]


def kinds(world: World, device: str) -> list[str]:
    """Return what happened to a device, in short."""
    return [event.kind for event in world.engine.ledger.events if event.device == device]


async def ask(world: World) -> None:
    x = world.inputs(3)
    world.expect(await world.multiply(x), x)


def test_who_does_not_come_is_named_with_what_to_look_at() -> None:
    async def main() -> None:
        async with World(4, options=ALONE) as world:
            world.workers["d1"].leave()
            await asyncio.sleep(0.1)
            await world.engine.present(["d2", "d3"], timeout_s=1)
            with pytest.raises(UnavailableError, match="1 of 2 devices did not come within 1 s: d1; does each run"):
                await world.engine.present(["d1", "d2"], timeout_s=1)

    simulate(main())


def test_the_owner_knows_at_once_that_a_device_was_stopped() -> None:
    async def main() -> None:
        async with World(4, options=ALONE) as world:
            world.workers["d1"].leave()
            await asyncio.sleep(0.1)
            assert world.engine.peers["d1"].standing is Standing.ABSENT
            assert "the device was stopped" in [event.text for event in world.engine.ledger.events]
            started = world.engine.now()
            await ask(world)
            assert world.engine.now() - started < 0.1
            assert world.engine.ledger.requests_lost == 0

    simulate(main())


def test_a_device_that_is_interrupted_says_goodbye_on_its_way_out() -> None:
    async def main() -> None:
        async with World(3, options=ALONE) as world:
            await world.kill("d2")
            await asyncio.sleep(10)
            worker = world.start("d2")
            world._running.pop("d2").cancel()
            serving = asyncio.create_task(worker.run_in_order())
            await asyncio.sleep(3)
            assert world.engine.peers["d2"].alive
            assert at(world, "d2")
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert world.engine.peers["d2"].standing is Standing.ABSENT
            assert len(worker._store) == 0
            await ask(world)

    simulate(main())


def test_a_device_that_leaves_can_come_back() -> None:
    async def main() -> None:
        async with World(3, options=ALONE) as world:
            before = at(world, "d1")
            world.workers["d1"].leave()
            await asyncio.sleep(1)
            world.start("d1")
            await asyncio.sleep(2)
            assert at(world, "d1") == before
            await ask(world)
            assert world.engine.ledger.replaced == 0

    simulate(main())


def test_whom_the_owner_left_says_nothing_more() -> None:
    """A worker whose owner said goodbye has no session to say goodbye in."""

    async def main() -> None:
        async with World(2, options=ALONE) as world:
            await world.engine.close()
            await asyncio.sleep(1)
            assert all(task.done() and task.exception() is None for task in world._running.values())

    simulate(main())


class _Stuck(Fabric):
    """Carries frames until it is told to hang."""

    def __init__(self, inner: Fabric) -> None:
        self.hangs = False
        self._inner = inner

    async def _join(self, me: str, receive: Receive) -> Link:
        inner = await self._inner.join(me, receive)
        return inner if me == OWNER else _StuckLink(inner, self)


class _StuckLink(Link):
    def __init__(self, inner: Link, fabric: _Stuck) -> None:
        super().__init__(inner.me, inner.max_payload_bytes)
        self._inner, self._fabric = inner, fabric

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        if self._fabric.hangs:
            await asyncio.Event().wait()
        await self._inner.send(peer, payload, channel)

    async def _close(self) -> None:
        await self._inner.close()


def test_a_goodbye_that_does_not_get_away_keeps_nobody() -> None:
    async def main() -> None:
        fabrics: list[_Stuck] = []

        def wrap(inner: Fabric) -> Fabric:
            fabrics.append(_Stuck(inner))
            return fabrics[-1]

        async with World(2, options=ALONE, wrap=wrap) as world:
            for fabric in fabrics:
                fabric.hangs = True
            started = world.engine.now()
            world.workers["d1"].leave()
            await world._running["d1"]
            assert world.engine.now() - started == pytest.approx(2, abs=0.5)

    simulate(main())


@contextmanager
def short_of_memory(world: World, device: str) -> Iterator[list[int]]:
    """Let a device fail for want of memory at every product; yields a list of what it was asked for then."""
    store, asked = world.workers[device]._store, list[int]()

    def fail(request: Apply, x: Tensor) -> Sequence[Tensor]:
        asked.append(len(request.slices))
        raise MemoryError(len(x))

    store.apply = fail  # type: ignore[method-assign, assignment]
    yield asked


@pytest.mark.parametrize("replicas", [1, 2])
def test_blocks_that_a_device_has_no_memory_for_go_to_others(replicas: int) -> None:
    async def main() -> None:
        async with World(4, options=Options(block=8, replicas=replicas, share=1.0)) as world:
            held = len(world.workers["d1"]._store)
            with short_of_memory(world, "d1") as asked:
                for _ in range(4):
                    await ask(world)
                await asyncio.sleep(60)
                assert asked
                times = len(asked)
                for _ in range(4):
                    await ask(world)
                assert len(asked) == times
            assert held
            assert at(world, "d1") == []
            assert "evicted" in kinds(world, "d1")
            assert world.engine.peers["d1"].alive
            assert world.engine.ledger.requests_lost == world.engine.ledger.kept == 0

    simulate(main())
