"""Changes of which nothing is heard are asked for again under the same id, a few times, and done once."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from awfulowl.errors import GoneError, PeerError
from awfulowl.fabric.base import Channel, Fabric, Link, Payload, Receive
from awfulowl.fabric.faulty import Faults, FaultyFabric
from awfulowl.placement.options import Options
from awfulowl.randomness import Entropy
from awfulowl.wire.messages import Load
from tests.simulated.memory_fleet import still_fleet
from tests.simulated.training import perceptron, twins
from tests.simulated.world import World, simulate

ALONE = Options(block=8, replicas=1, share=1.0)


class Losing(Fabric):
    """Loses the first frames that say some verb to or from one device, as many as it is told."""

    def __init__(self, inner: Fabric, verb: str, device: str = "d1", count: int = 1) -> None:
        self.count = count
        self.lost = 0
        self._inner = inner
        self._device = device
        self._mark = b"\xa4verb" + bytes([0xA0 + len(verb)]) + verb.encode()

    async def _join(self, me: str, receive: Receive) -> Link:
        inner = await self._inner.join(me, receive)
        return _LosingLink(inner, self)

    def loses(self, ends: Sequence[str], payload: Payload) -> bool:
        """Say whether this frame does not arrive."""
        if self.lost >= self.count or self._device not in ends or self._mark not in bytes(payload):
            return False
        self.lost += 1
        return True


class _LosingLink(Link):
    def __init__(self, inner: Link, fabric: Losing) -> None:
        super().__init__(inner.me, inner.max_payload_bytes)
        self._inner, self._fabric = inner, fabric
        inner.when_ended(self._end)

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        if not self._fabric.loses((self.me, peer), payload):
            await self._inner.send(peer, payload, channel)

    async def _close(self) -> None:
        await self._inner.close()


def losing(verb: str, count: int = 1) -> tuple[list[Losing], Callable[[Fabric], Fabric]]:
    """Return a list that gets the fabric of the owner and those of the devices, and what makes them."""
    made: list[Losing] = []

    def wrap(inner: Fabric) -> Fabric:
        made.append(Losing(inner, verb, count=count))
        return made[-1]

    return made, wrap


async def ask(world: World) -> None:
    x = world.inputs(3)
    world.expect(await world.multiply(x), x)


def test_a_load_that_is_lost_is_asked_for_again() -> None:
    async def main() -> None:
        made, wrap = losing("load")
        async with World(3, options=ALONE, wrap=wrap) as world:
            patience_s = world.engine.policy.answer_timeout_s
            assert sum(fabric.lost for fabric in made) == 1
            assert world.engine.now() == pytest.approx(patience_s, abs=2)
            assert world.engine.ledger.repeated == 1
            await ask(world)
            assert world.engine.ledger.replaced == world.engine.ledger.failovers == 0

    simulate(main())


def test_a_start_over_a_network_that_delays_half_of_all_frames_and_loses_the_first_load() -> None:
    async def main() -> None:
        _, wrap = losing("load")
        faults = Faults(delay=0.5, late_s=0.5)

        def late(inner: Fabric) -> Fabric:
            return FaultyFabric(wrap(inner), Entropy(3), to_devices=faults, to_owner=faults)

        async with World(3, options=ALONE, wrap=late) as world:
            assert world.engine.now() < 20
            await ask(world)

    simulate(main())


def test_a_load_whose_answer_is_lost_is_not_done_twice() -> None:
    async def main() -> None:
        _, wrap = losing("answer")
        world = World(1, options=ALONE, wrap=wrap)
        loads = []
        start = world.start

        def counting(name: str) -> Any:
            worker = start(name)
            load = worker._store.load
            worker._store.load = lambda *said: (loads.append(1), load(*said))[1]  # type: ignore[method-assign, func-returns-value]
            return worker

        world.start = counting  # type: ignore[method-assign]
        async with world:
            assert loads == [1]
            assert world.engine.ledger.repeated == 1
            await ask(world)

    simulate(main())


def test_a_device_that_hears_of_no_load_is_asked_a_few_times_only() -> None:
    async def main() -> None:
        made, wrap = losing("load", count=0)
        async with World(2, options=ALONE, wrap=wrap) as world:
            for fabric in made:
                fabric.count = 1000
            started, repeated = world.engine.now(), world.engine.ledger.repeated
            number, cell = next(key for key in world.deployment.ready_on if "d1" in world.deployment.ready_on[key])
            with pytest.raises(GoneError, match="no answer in time"):
                await world.deployment._send_load(world.engine.peers["d1"], number, [cell])
            assert world.engine.now() - started == pytest.approx(60, abs=3)
            assert world.engine.ledger.repeated - repeated == 2
            assert sum(fabric.lost for fabric in made) == 3

    simulate(main())


def test_nobody_is_asked_again_after_it_left() -> None:
    async def main() -> None:
        made, wrap = losing("load", count=0)
        async with World(2, options=ALONE, wrap=wrap) as world:
            for fabric in made:
                fabric.count = 1000
            number, cell = next(key for key in world.deployment.ready_on if "d1" in world.deployment.ready_on[key])
            load = asyncio.create_task(world.deployment._send_load(world.engine.peers["d1"], number, [cell]))
            await asyncio.sleep(1)
            world.workers["d1"].leave()
            with pytest.raises(PeerError, match="the device was stopped"):
                await load
            assert world.engine.ledger.repeated == 0

    simulate(main())


def test_what_changes_nothing_is_not_asked_for_again() -> None:
    """A product goes to somebody else, or is asked anew."""

    async def main() -> None:
        made, wrap = losing("apply")
        async with World(3, options=ALONE, wrap=wrap) as world:
            await ask(world)
            assert sum(fabric.lost for fabric in made) > 0
            assert world.engine.ledger.repeated == 0

    simulate(main())


def test_a_step_that_is_lost_is_asked_for_again() -> None:
    made, wrap = losing("step")
    with still_fleet(3, wrap=wrap) as fleet:
        pair = twins(fleet, perceptron(), momentum=0.9)
        pair.step(3)
        pair.agree()
        assert sum(fabric.lost for fabric in made) == 1
        assert pair.fleet.statistics["repeated"] == 1
        assert pair.fleet.statistics["behind"] == pair.fleet.statistics["replayed"] == 0


def test_loads_stay_what_they_are_while_they_are_asked_for_again() -> None:
    """The bytes that come the second time are those of the first."""

    async def main() -> None:
        _, wrap = losing("load")
        async with World(1, options=ALONE, wrap=wrap) as world:
            held = torch.cat([sheet.weights.planes[0] for sheet in world.workers["d1"]._store._sheets], dim=1)
            assert held.numel() == world.weights["layer"].numel()
            torch.testing.assert_close(held.sum(), world.weights["layer"].sum(), rtol=1e-4, atol=1e-4)
            assert Load.changes

    simulate(main())
