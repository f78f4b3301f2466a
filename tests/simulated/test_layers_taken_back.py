"""Layers that no device may hold: the owner multiplies itself, says so, and stops as soon as devices may again."""

import asyncio
import logging

import pytest
import torch

from awfulowl.placement.ledger import UNKNOWN, Device
from awfulowl.placement.options import Options
from tests.simulated.world import World, simulate

LAYERS = ("first", "second")


def halves() -> World:
    """Return two devices, each of which may see half of each of two layers."""
    generator = torch.Generator().manual_seed(7)
    weights = {name: torch.randn(24, 64, generator=generator) for name in LAYERS}
    return World(2, weights=weights, options=Options(block=8, replicas=1, share=0.5))


async def ask_both(world: World) -> int:
    """Ask for both layers; return how many samples were checked, which are those that devices multiplied."""
    before = world.engine.ledger.checks
    for layer in LAYERS:
        x = world.inputs(3, layer)
        world.expect(await world.multiply(x, layer), x, layer)
    return world.engine.ledger.checks - before


def test_layers_that_were_taken_back_are_on_devices_again_when_these_are_back(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with halves() as world:
            await world.kill("d1")
            await asyncio.sleep(10)
            assert await ask_both(world) == 0
            assert world.deployment.kept == {0, 1}
            world.start("d1")
            await asyncio.sleep(5)
            assert world.deployment.kept == set()
            assert await ask_both(world) == 6
            assert (world.engine.ledger.kept, world.engine.ledger.given_out) == (2, 2)
            assert world.engine.ledger.replaced == 0
            assert [event.kind for event in world.engine.ledger.events].count("given out") == 2

    with caplog.at_level(logging.INFO):
        simulate(main())
    loud = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message for message in loud if "the owner takes it back" in message] == loud
    assert len(loud) == 2


def test_a_device_that_still_holds_its_blocks_is_asked_again() -> None:
    """It was only out of reach, for less than its lease."""

    async def main() -> None:
        async with halves() as world:
            peer = world.engine.peers["d1"]
            world.workers["d1"]._session.beat = lambda now: b""  # type: ignore[method-assign]
            await asyncio.sleep(12)
            assert not peer.alive
            assert await ask_both(world) == 0
            loads = world.engine.ledger.bytes_sent
            del world.workers["d1"]._session.beat
            await asyncio.sleep(3)
            assert world.deployment.kept == set()
            assert world.engine.ledger.bytes_sent - loads < 24 * 64 * 4 / 2
            assert await ask_both(world) == 6

    simulate(main())


def test_a_new_device_gets_what_was_taken_back() -> None:
    async def main() -> None:
        async with halves() as world:
            await world.kill("d1")
            await asyncio.sleep(10)
            await ask_both(world)
            world.deployment.assignment.add(Device("d3", UNKNOWN))
            world.engine.enrol(["d3"])
            world.start("d3")
            await asyncio.sleep(5)
            assert world.deployment.kept == set()
            assert await ask_both(world) == 6

    simulate(main())


def test_what_nobody_may_hold_stays_and_nothing_of_it_is_shown() -> None:
    """A second device that comes back to what it has does not bring the other's half."""

    async def main() -> None:
        async with halves() as world:
            await world.kill("d1")
            await asyncio.sleep(10)
            await ask_both(world)
            await world.kill("d2")
            world.start("d2")
            await asyncio.sleep(5)
            assert world.deployment.kept == {0, 1}
            assert await ask_both(world) == 0
            assert (world.engine.ledger.replaced, world.engine.ledger.given_out) == (0, 0)

    simulate(main())
