"""The whole system in one process: right answers, whatever the devices do."""

import asyncio

import pytest
import torch

from awfulowl.device.lies import KINDS, Kind, Liar
from awfulowl.errors import InputError, UnavailableError
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options, Shape
from tests.simulated.world import World, simulate

TWO_REPLICAS = Options(block=8, replicas=2, share=1.0)


@pytest.mark.parametrize("shape", ["columns", "rows", "rectangles", "scattered"])
@pytest.mark.parametrize("devices", [1, 2, 5])
def test_products_are_right_for_every_shape_of_cells(shape: Shape, devices: int) -> None:
    async def main() -> None:
        async with World(devices, options=Options(block=8, shape=shape, replicas=1, share=1.0)) as world:
            for batch in (1, 3, 70):
                x = world.inputs(batch)
                world.expect(await world.multiply(x), x)
            assert world.engine.ledger.requests_lost == 0

    simulate(main())


def test_large_batches_travel_in_parts() -> None:
    async def main() -> None:
        policy = Policy(part_bytes=64 * 4 * 10)
        async with World(3, policy=policy) as world:
            x = world.inputs(95)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.parts == 10

    simulate(main())


def test_requests_run_side_by_side() -> None:
    async def main() -> None:
        async with World(3) as world:
            inputs = [world.inputs(4) for _ in range(20)]
            outputs = await asyncio.gather(*(world.multiply(x) for x in inputs))
            for x, y in zip(inputs, outputs, strict=True):
                world.expect(y, x)

    simulate(main())


def test_a_killed_device_costs_no_request() -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            await world.kill("d2")
            x = world.inputs(5)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.requests_lost == 0

    simulate(main())


def test_without_replicas_blocks_are_placed_anew() -> None:
    async def main() -> None:
        async with World(4, options=Options(block=8, replicas=1, share=1.0)) as world:
            await world.kill("d2")
            x = world.inputs(5)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.replaced > 0

    simulate(main())


def test_a_device_that_returns_gets_its_blocks_again() -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            before = world.deployment.assignment.duties("d2", world.running)
            await world.kill("d2")
            world.start("d2")
            await asyncio.sleep(2)
            held = [key for key, holders in world.deployment.ready_on.items() if "d2" in holders]
            assert set(before) <= set(held)
            x = world.inputs(5)
            world.expect(await world.multiply(x), x)

    simulate(main())


def test_only_cells_without_a_live_holder_are_placed_anew_after_a_while() -> None:
    """While a replica is there nobody else gets to see a cell; when both are gone it is given away, and not sooner."""

    async def main() -> None:
        policy = Policy(repair_after_s=20)
        async with World(5, options=TWO_REPLICAS, policy=policy) as world:
            deployment, ledger = world.deployment, world.engine.ledger
            both = next(pair for holders in deployment.ready_on.values() if len(pair := sorted(holders)) == 2)
            orphans = {key for key, holders in deployment.ready_on.items() if holders == set(both)}
            await world.kill(both[0])
            await asyncio.sleep(100)
            assert ledger.replaced == 0
            await world.kill(both[1])
            await asyncio.sleep(policy.silence_s + policy.repair_after_s - 2)
            assert ledger.replaced == 0
            await asyncio.sleep(10)
            assert ledger.replaced == len(orphans) > 0
            # The dead are still noted as holders: they may come back with what they hold.
            alive = {key: holders - set(both) for key, holders in deployment.ready_on.items()}
            assert {key for key, holders in alive.items() if len(holders) < 2} > orphans, "replicas were made whole"
            assert all(alive.values())
            x = world.inputs(2)
            world.expect(await world.multiply(x), x)
            assert ledger.replaced == len(orphans)

    simulate(main())


@pytest.mark.parametrize("kind", KINDS)
def test_liars_are_caught_and_no_answer_is_wrong(kind: Kind) -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            liar = Liar(kind, 0.05)
            world.workers["d3"].tamper = liar
            for _ in range(5):
                x = world.inputs(6)
                world.expect(await world.multiply(x), x)
            assert liar.told > 0
            assert world.engine.ledger.lies_caught > 0
            assert world.engine.peers["d3"].standing is Standing.QUARANTINED
            assert [name for name, peer in world.engine.peers.items() if not peer.alive] == ["d3"]

    simulate(main())


def test_a_liar_in_every_pair_of_replicas() -> None:
    async def main() -> None:
        async with World(6, options=TWO_REPLICAS) as world:
            for name in ("d1", "d3", "d5"):
                world.workers[name].tamper = Liar("random", 0.01)
            for _ in range(20):
                x = world.inputs(6)
                world.expect(await world.multiply(x), x)
            assert world.engine.ledger.requests_lost == 0

    simulate(main())


def test_quarantined_devices_go_on_getting_old_inputs() -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            liar = world.workers["d3"].tamper = Liar("zeros", None)
            await world.multiply(world.inputs(2))
            told = liar.told
            await asyncio.sleep(4)
            assert liar.told > told
            await asyncio.sleep(60)
            told = liar.told
            await asyncio.sleep(60)
            assert liar.told == told

    simulate(main())


def test_when_all_lie_the_request_fails_and_says_so() -> None:
    async def main() -> None:
        async with World(2, options=TWO_REPLICAS) as world:
            for worker in world.workers.values():
                worker.tamper = Liar("zeros", None)
            with pytest.raises(UnavailableError, match="lying"):
                await world.multiply(world.inputs(2))
            assert world.engine.ledger.requests_lost == 1

    simulate(main())


def test_when_all_are_gone_the_request_fails_in_time() -> None:
    async def main() -> None:
        policy = Policy(request_timeout_s=20)
        async with World(2, options=TWO_REPLICAS, policy=policy) as world:
            for name in world.running:
                await world.kill(name)
            started = world.engine.now()
            with pytest.raises(UnavailableError, match="20 s"):
                await world.multiply(world.inputs(2))
            assert world.engine.now() - started == pytest.approx(20, abs=1)

    simulate(main())


def test_a_request_waits_for_a_device_to_return() -> None:
    async def main() -> None:
        async with World(2, options=TWO_REPLICAS) as world:
            for name in world.running:
                await world.kill(name)
            x = world.inputs(2)
            request = asyncio.create_task(world.multiply(x))
            await asyncio.sleep(10)
            world.start("d1")
            world.expect(await request, x)

    simulate(main())


def test_rules_are_not_broken_by_deaths_the_layer_is_kept_instead() -> None:
    async def main() -> None:
        options = Options(block=8, replicas=1, share=0.5)
        async with World(2, options=options) as world:
            await world.kill("d1")
            await asyncio.sleep(10)
            x = world.inputs(3)
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.kept == 1
            assert any(event.kind == "kept" for event in world.engine.ledger.events)

    simulate(main())


def test_a_slow_device_is_hedged_and_then_passed_over() -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            for _ in range(10):
                await world.multiply(world.inputs(2))
            world.workers["d1"].delay_s = 9.0
            times = []
            for _ in range(20):
                x = world.inputs(2)
                started = world.engine.now()
                world.expect(await world.multiply(x), x)
                times.append(world.engine.now() - started)
            assert world.engine.ledger.hedged > 0
            assert sorted(times)[10] < 0.01
            assert max(times) < 3.0

    simulate(main())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_our_fault_not_the_devices(bad: float) -> None:
    async def main() -> None:
        async with World(3) as world:
            x = world.inputs(2)
            x[1, 5] = bad
            with pytest.raises(InputError, match="not finite"):
                await world.multiply(x)
            assert all(peer.alive for peer in world.engine.peers.values())
            x = world.inputs(2)
            world.expect(await world.multiply(x), x)

    simulate(main())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_kills_lose_nothing(seed: int) -> None:
    """Two replicas on twelve devices; one is killed before every request, and comes back a little later."""

    async def main() -> None:
        options = Options(block=4, replicas=2)
        async with World(12, options=options, seed=seed) as world:
            random = torch.Generator().manual_seed(seed)
            for _ in range(200):
                name = world.running[int(torch.randint(len(world.running), (1,), generator=random))]
                await world.kill(name)
                x = world.inputs(2)
                world.expect(await world.multiply(x), x)
                world.start(name)
                await asyncio.sleep(float(torch.rand(1, generator=random)) * 2)
            assert world.engine.ledger.requests_lost == 0
            assert world.engine.ledger.requests == 200

    simulate(main())
