"""Serving over networks that fail and with devices that answer nonsense: nothing is lost or wrong, and only devices
that answer nonsense are blamed."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from awfulowl.fabric.base import Fabric
from awfulowl.fabric.faulty import Faults, FaultyFabric
from awfulowl.owner.ledger import Ledger
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.randomness import Entropy
from tests.simulated.world import World, simulate

TWO_REPLICAS = Options(block=8, replicas=2, share=1.0)

FAULTS = {
    "loss": Faults(lose=0.1),
    "doubling": Faults(duplicate=0.3),
    "reordering": Faults(reorder=0.3),
    "delay": Faults(delay=0.5, late_s=0.3),
    "corruption": Faults(corrupt=0.1),
    "all": Faults(lose=0.05, duplicate=0.1, reorder=0.1, delay=0.1, corrupt=0.05),
}
REQUESTS = 24


def undisturbed(fabric: Fabric) -> FaultyFabric:
    return FaultyFabric(fabric, Entropy(0))


def network(world: World) -> FaultyFabric:
    """What lies between the owner and the devices of a world."""
    fabric = world.engine._fabric
    assert isinstance(fabric, FaultyFabric)
    return fabric


def standing(world: World, name: str) -> Standing:
    return world.engine.peers[name].standing


async def serve(options: Options, faults: Faults) -> tuple[float, Ledger]:
    """Ask for some dozens of products under faults in both directions; return the time and what was counted."""
    seeds = Entropy(1)

    def wrap(fabric: Fabric) -> Fabric:
        return FaultyFabric(fabric, seeds, to_devices=faults, to_owner=faults)

    async with World(4, options=options, policy=Policy(answer_timeout_s=1), wrap=wrap) as world:
        for _ in range(REQUESTS):
            x = world.inputs(3)
            world.expect(await world.multiply(x), x)
        assert all(peer.standing is not Standing.QUARANTINED for peer in world.engine.peers.values())
        return world.engine.now(), world.engine.ledger


@cache
def undisturbed_figures(options: Options) -> tuple[float, int]:
    time_s, ledger = simulate(serve(options, Faults()))
    return time_s, ledger.bytes_received


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("replicas", [1, 2])
def test_no_fault_of_the_network_loses_a_request_or_costs_a_device_its_place(replicas: int, faults: Faults) -> None:
    options = replace(TWO_REPLICAS, replicas=replicas)
    time_s, ledger = simulate(serve(options, faults))
    assert ledger.requests == REQUESTS
    assert ledger.requests_lost == ledger.kept == ledger.lies_caught == ledger.checks_failed == 0
    assert ledger.checks == 3 * REQUESTS
    if faults.corrupt:
        assert ledger.damaged > 0
    else:  # a flipped bit in the mark or version of a frame is no damage that a digest could tell
        assert ledger.violations == ledger.damaged == 0
    assert (time_s, ledger.bytes_received) > undisturbed_figures(options), "nothing was disturbed"


def test_silent_devices_lose_their_blocks_and_are_loaded_again() -> None:
    """After a partition longer than the lease the device is empty, and gets its blocks again when it is back."""

    async def main() -> None:
        async with World(3, options=TWO_REPLICAS, wrap=undisturbed) as world:
            policy, worker = world.engine.policy, world.workers["d1"]
            held = len(worker._store)
            assert held > 0
            network(world).cut("d1")
            await asyncio.sleep(policy.lease_s - 2 * policy.heartbeat_s)
            assert standing(world, "d1") is Standing.ABSENT
            assert len(worker._store) == held
            await asyncio.sleep(4 * policy.heartbeat_s)
            assert len(worker._store) == 0
            x = world.inputs(2)
            world.expect(await world.multiply(x), x)
            sent = world.engine.ledger.bytes_sent
            network(world).heal("d1")
            await asyncio.sleep(5)
            assert standing(world, "d1") is Standing.PRESENT
            assert len(worker._store) == held
            assert world.engine.ledger.bytes_sent - sent > worker._store.held_bytes
            await world.kill("d2")
            await world.kill("d3")
            world.expect(await world.multiply(x), x)

    simulate(main())


def test_a_partition_shorter_than_the_lease_costs_no_block() -> None:
    async def main() -> None:
        async with World(3, options=TWO_REPLICAS, wrap=undisturbed) as world:
            policy, worker = world.engine.policy, world.workers["d1"]
            held, handle = len(worker._store), world.engine.peers["d1"].session.handle
            network(world).cut("d1")
            await asyncio.sleep((policy.silence_s + policy.lease_s) / 2)
            assert standing(world, "d1") is Standing.ABSENT
            sent = world.engine.ledger.bytes_sent
            network(world).heal("d1")
            await asyncio.sleep(5)
            assert standing(world, "d1") is Standing.PRESENT
            assert world.engine.peers["d1"].session.handle == handle
            assert len(worker._store) == held
            assert world.engine.ledger.bytes_sent - sent < worker._store.held_bytes

    simulate(main())


Malformed = Callable[[list[Tensor]], list[Tensor]]


def each(change: Callable[[Tensor], Tensor]) -> Malformed:
    return lambda answers: [change(y) for y in answers]


MALFORMED: dict[str, Malformed] = {
    "another shape": each(lambda y: y[:, :-1]),
    "more rows": each(lambda y: torch.cat([y, y], dim=1)),
    "another rank": each(lambda y: y[..., None]),
    "samples side by side": each(lambda y: y.reshape(1, -1)),
    "no sample": each(lambda y: y[:0]),
    "fewer samples": each(lambda y: y[:-1]),
    "more samples": each(lambda y: torch.cat([y, y])),
    "a wider type": each(lambda y: y.double() if y.is_floating_point() else y.to(torch.int64)),
    "a type of another kind": each(lambda y: y.to(torch.int32) if y.is_floating_point() else y.float()),
    "too many": lambda answers: [*answers, answers[-1]],
    "none": lambda answers: [],
}
PARTS_MISSING: dict[str, Malformed] = {"one part of the integers": lambda answers: answers[:-1]}
NOT_FINITE: dict[str, Malformed] = {
    "all NaN": each(lambda y: torch.full_like(y, torch.nan)),
    "one NaN": each(lambda y: y.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan))),
    "one inf": each(lambda y: y.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.inf))),
    "all -inf": each(lambda y: torch.full_like(y, -torch.inf)),
}
CASES = [
    pytest.param(arithmetic, change, id=f"{arithmetic}: {name}")
    for arithmetic, kinds in (("float32", MALFORMED | NOT_FINITE), ("int8", MALFORMED | PARTS_MISSING))
    for name, change in kinds.items()
]


@pytest.mark.parametrize(("arithmetic", "change"), CASES)
def test_malformed_answers_are_never_used_and_cost_the_device_its_trust(arithmetic: str, change: Malformed) -> None:
    async def main() -> None:
        async with World(4, options=replace(TWO_REPLICAS, arithmetic=arithmetic)) as world:
            world.workers["d3"].tamper = lambda _, answers: change(answers)
            for _ in range(6):
                x = world.inputs(3)
                world.expect(await world.multiply(x), x)
            engine = world.engine
            assert engine.ledger.requests_lost == engine.ledger.kept == 0
            assert engine.peers["d3"].violations > 0 or engine.peers["d3"].standing is Standing.QUARANTINED
            assert engine.ledger.violations == engine.peers["d3"].violations
            assert all(engine.peers[name].alive for name in ("d1", "d2", "d4"))

    simulate(main())


@pytest.mark.parametrize("most", [1, 5])
def test_a_device_that_sends_too_much_that_cannot_be_accepted_is_quarantined_and_not_before(most: int) -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS, policy=Policy(max_violations=most)) as world:
            world.workers["d3"].tamper = lambda *_: []
            engine, peer = world.engine, world.engine.peers["d3"]
            for _ in range(most):
                await world.multiply(world.inputs(2))
            assert (peer.violations, peer.standing) == (most, Standing.PRESENT)
            await world.multiply(world.inputs(2))
            assert (peer.violations, peer.standing) == (most + 1, Standing.QUARANTINED)
            assert [event.device for event in engine.ledger.events if event.kind == "quarantined"] == ["d3"]
            for _ in range(5):
                x = world.inputs(2)
                world.expect(await world.multiply(x), x)
            await asyncio.sleep(60)
            assert peer.violations == engine.ledger.violations == most + 1, "it is not listened to any longer"
            assert engine.ledger.failovers == most + 1
            assert engine.ledger.requests_lost == 0

    simulate(main())
