"""Told and caught can be compared: lies that could enter an answer are told from those that nobody read."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from awfulowl.device.lies import Liar
from awfulowl.device.worker import Worker
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.wire.messages import Apply
from awfulowl.wire.session.events import Requested
from tests.simulated.world import World, simulate

TWO_REPLICAS = Options(block=8, replicas=2, share=1.0)


def used(world: World, name: str, liar: Liar) -> set[int]:
    """Return the requests that a device answered falsely, and whose answers went into a sum."""
    return set(liar.requests) & set(world.engine.peers[name].used)


@pytest.mark.parametrize("at_once", [1, 8])
def test_every_lie_that_was_used_is_caught(at_once: int) -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            await world.multiply(world.inputs(4))
            liar = world.workers["d3"].tamper = Liar("random", 0.01)
            inputs = [world.inputs(4) for _ in range(at_once)]
            outputs = await asyncio.gather(*map(world.multiply, inputs))
            for x, y in zip(inputs, outputs, strict=True):
                world.expect(y, x)
            assert len(used(world, "d3", liar)) == world.engine.ledger.lies_caught > 0

    simulate(main())


def test_lies_in_cover_traffic_are_not_used() -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            liar = world.workers["d3"].tamper = Liar("zeros", None)
            await world.multiply(world.inputs(2))
            await asyncio.sleep(4)
            assert liar.told > 1
            assert len(used(world, "d3", liar)) == world.engine.ledger.lies_caught == 1

    simulate(main())


@pytest.mark.parametrize("batch", [1, 3])
def test_cover_traffic_shows_nothing_that_is_written_later(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of a request are the caller's tensor where they can be: what goes out again is a copy."""
    seen: list[Tensor] = []
    honest = Worker._do

    def noting(worker: Worker, request: Requested) -> Sequence[Tensor]:
        if worker.name == "d1" and isinstance(request.body, Apply):
            seen.extend(one.clone() for one in request.tensors if isinstance(one, Tensor))
        return honest(worker, request)

    monkeypatch.setattr(Worker, "_do", noting)

    async def main() -> None:
        async with World(2, options=Options(block=64, replicas=2, share=1.0)) as world:
            world.workers["d1"].tamper = Liar("zeros", None)
            while not world.engine.ledger.lies_caught:
                x = world.inputs(batch)
                world.expect(await world.multiply(x), x)
            caught, sent = len(seen), seen[-1]
            x.fill_(777)
            await asyncio.sleep(40)
            assert len(seen) > caught
            assert all(torch.equal(one, sent) for one in seen[caught:])

    simulate(main())


def test_lies_that_came_too_late_are_not_used() -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS, policy=Policy(hedge_first_s=0.1)) as world:
            liar = world.workers["d3"].tamper = Liar("zeros", None)
            world.workers["d3"].delay_s = 1.0
            x = world.inputs(2)
            world.expect(await world.multiply(x), x)
            await asyncio.sleep(5)
            assert liar.told == 1
            assert used(world, "d3", liar) == set()
            assert world.engine.ledger.lies_caught == 0

    simulate(main())


def test_lies_that_are_not_checked_are_used_and_not_caught() -> None:
    """Otherwise told and caught would agree whatever the check does."""

    async def main() -> None:
        async with World(4, options=TWO_REPLICAS, policy=Policy(verify=False)) as world:
            liar = world.workers["d3"].tamper = Liar("zeros", None)
            x = world.inputs(2)
            assert not torch.allclose(await world.multiply(x), x @ world.weights["layer"].T, rtol=1e-3, atol=1e-3)
            assert len(used(world, "d3", liar)) == 1
            assert world.engine.ledger.lies_caught == 0

    simulate(main())
