"""Devices that answer in time, but only just, and that nobody else can stand in for at first."""

import asyncio
from collections.abc import Sequence

import pytest

from awfulowl.owner.pace import Pace
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from tests.simulated.world import World, simulate

LATE_S = 9.9
"""Just under the answer's time limit."""


async def timed(world: World, count: int) -> list[float]:
    """Ask some times in a row, and return how long each took."""
    times = []
    for _ in range(count):
        x = world.inputs(2)
        started = world.engine.now()
        world.expect(await world.multiply(x), x)
        times.append(world.engine.now() - started)
    return times


def served_by(world: World, device: str) -> list[tuple[int, int]]:
    """Return the cells that a device is asked for."""
    return [key for key in world.deployment.ready_on if device in world.deployment.holders(key)]


def partners(world: World, device: str) -> Sequence[str]:
    """Return who serves blocks together with a device."""
    names = {name for key in served_by(world, device) for name in world.deployment.holders(key)}
    return sorted(names - {device})


def test_a_straggler_whose_partner_is_dead_is_relieved_by_others() -> None:
    async def main() -> None:
        async with World(5, options=Options(block=32, replicas=2, share=1.0)) as world:
            await timed(world, 5)
            late = next(device for device in world.running if len(partners(world, device)) == 1)
            (partner,) = partners(world, late)
            await world.kill(partner)
            await asyncio.sleep(60)
            world.workers[late].delay_s = LATE_S
            times = await timed(world, 20)
            assert sorted(times)[10] < 0.1
            assert sum(time > 5 for time in times) < world.engine.policy.straggler_after
            assert world.engine.ledger.replaced > 0
            assert world.engine.ledger.requests_lost == world.engine.ledger.kept == 0
            assert any(event.kind == "late" and event.device == late for event in world.engine.ledger.events)

    simulate(main())


def test_a_relieved_straggler_is_not_asked_first_again() -> None:
    async def main() -> None:
        async with World(4, options=Options(block=8, replicas=1, share=1.0)) as world:
            await timed(world, 5)
            before = served_by(world, "d1")
            world.workers["d1"].delay_s = LATE_S
            await timed(world, 4)
            assert before
            assert all(world.deployment.holders(key)[0] != "d1" for key in before)
            assert max(await timed(world, 10)) < 0.1

    simulate(main())


def test_one_late_answer_moves_nothing() -> None:
    async def main() -> None:
        async with World(4, options=Options(block=8, replicas=1, share=1.0)) as world:
            for _ in range(5):
                await timed(world, 3)
                world.workers["d1"].delay_s = LATE_S
                await timed(world, world.engine.policy.straggler_after - 1)
                world.workers["d1"].delay_s = 0.0
            assert world.engine.ledger.replaced == 0

    simulate(main())


def test_many_requests_that_one_pause_makes_late_count_once() -> None:
    async def main() -> None:
        async with World(4, options=Options(block=8, replicas=1, share=1.0)) as world:
            await timed(world, 5)
            world.workers["d1"].delay_s = 0.5  # the eighth waits for four seconds
            await asyncio.gather(*(world.multiply(world.inputs(2)) for _ in range(8)))
            assert world.engine.ledger.replaced == 0

    simulate(main())


def test_a_fleet_that_is_busy_everywhere_moves_nothing() -> None:
    async def main() -> None:
        async with World(4, options=Options(block=8, replicas=1, share=1.0)) as world:
            await timed(world, 5)
            for worker in world.workers.values():
                worker.delay_s = 3.0
            await timed(world, 20)
            assert world.engine.ledger.replaced == 0

    simulate(main())


def test_nobody_gets_what_the_rules_forbid_because_another_is_slow() -> None:
    async def main() -> None:
        async with World(2, options=Options(block=8, replicas=1, share=0.5)) as world:
            await timed(world, 5)
            world.workers["d1"].delay_s = LATE_S
            assert min(await timed(world, 8)) == pytest.approx(LATE_S, abs=0.1)
            assert world.engine.ledger.replaced == world.engine.ledger.kept == 0

    simulate(main())


def test_a_straggler_that_holds_shares_is_relieved_within_the_rules_of_domains() -> None:
    """Each device is a domain: whoever takes a lane over never had another one of its columns."""

    async def main() -> None:
        options = Options(block=8, replicas=1, share=1.0, arithmetic="int8", sharing="inputs:2")
        devices = {f"d{number}": f"party{number}" for number in range(1, 7)}
        async with World(devices, options=options) as world:
            await timed(world, 5)
            world.workers["d1"].delay_s = LATE_S
            times = await timed(world, 12)
            assert sum(time > 5 for time in times) < 12
            lanes: dict[tuple[int, str], set[int]] = {}
            panel = world.deployment.panels[0]
            for (_, number), holders in world.deployment.ready_on.items():
                cell = panel.cells[number]
                for name in holders:
                    lanes.setdefault((cell.column, devices[name]), set()).add(cell.lane)
            assert all(len(seen) == 1 for seen in lanes.values())
            assert world.engine.ledger.requests_lost == world.engine.ledger.kept == 0

    simulate(main())


def test_a_policy_may_move_blocks_sooner() -> None:
    async def main() -> None:
        policy = Policy(straggler_after=1)
        async with World(4, options=Options(block=8, replicas=1, share=1.0), policy=policy) as world:
            await timed(world, 5)
            world.workers["d1"].delay_s = LATE_S
            assert max(await timed(world, 5)) == pytest.approx(policy.straggler_min_s, abs=0.1)

    simulate(main())


def test_lateness_counts_in_a_row_and_once_for_what_overlaps() -> None:
    pace = Pace()
    assert [pace.late("d", asked, now) for asked, now in [(0, 2), (1, 3), (2, 4), (5, 6)]] == [1, 1, 2, 3]
    pace.punctual("d")
    assert pace.late("d", 7, 8) == 1
