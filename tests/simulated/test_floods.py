"""Devices that send too much of what is harmless once, and honest ones that are slow, or at the end of a bad line."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from awfulowl.fabric.base import Fabric
from awfulowl.fabric.faulty import Faults, FaultyFabric
from awfulowl.limits import DEFAULT
from awfulowl.owner.peer import Peer, Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.randomness import Entropy
from awfulowl.wire.codec import encode
from awfulowl.wire.messages import Answer, Bye, Evict
from awfulowl.wire.session.states import Cue
from tests.simulated.world import World, simulate

TWO_REPLICAS = Options(block=8, replicas=2, share=1.0)

Send = Callable[[World, int], None]


def say(world: World, body: Answer | Evict | Bye, session: bytes | None = None, tensors: Sequence[Tensor] = ()) -> None:
    """Let d1 send whatever somebody likes to say, in its session."""
    own = world.workers["d1"]._session
    handle = session or own.handle
    assert handle is not None
    world.workers["d1"]._outbox.put_nowait(list(own._line.frames(encode(handle, 0, body, tensors, DEFAULT))))


def unasked_answer(world: World, turn: int) -> None:
    say(world, Answer(to=turn))


def answer_again(world: World, turn: int) -> None:
    """To something that was asked and answered: once."""
    del turn
    say(world, Answer(to=world.engine.peers["d1"].session._next_id - 1))


def answer_in_an_old_session(world: World, turn: int) -> None:
    session = world.engine.peers["d1"].session
    old = b"o" * 16
    session._line.retire(old)
    say(world, Answer(to=turn), old)


def call_again(world: World, turn: int) -> None:
    del turn
    worker = world.workers["d1"]
    worker._outbox.put_nowait(worker._session.hello(worker._now()))


def damaged_frame(world: World, turn: int) -> None:
    world.workers["d1"]._outbox.put_nowait([turn.to_bytes(100, "little")])


def new_boot(world: World, turn: int) -> None:
    world.workers["d1"]._session._end_session(Cue.LEASE_END)
    call_again(world, turn)


def dropped_blocks(world: World, turn: int) -> None:
    del turn
    panel = world.deployment.panels[0]
    say(world, Evict(tuple(panel.slice_handles), "no room"))


FLOODS = [
    (unasked_answer, 5000, "max_unasked"),
    (answer_again, 5000, "max_unasked"),
    (answer_in_an_old_session, 5000, "max_unasked"),
    (call_again, 5000, "max_unasked"),
    (damaged_frame, 2000, "max_damaged"),
    (new_boot, 500, "max_starts"),
    (dropped_blocks, 500, "max_starts"),
]


@pytest.mark.parametrize(("send", "count", "limit"), FLOODS, ids=[send.__name__ for send, *_ in FLOODS])
def test_a_flood_costs_its_sender_its_place_and_no_request(send: Send, count: int, limit: str) -> None:
    async def main() -> None:
        async with World(4, options=TWO_REPLICAS) as world:
            x = world.inputs(3)
            world.expect(await world.multiply(x), x)
            loads: list[str] = []
            load = world.deployment._send_load

            async def counted(peer: Peer, *what: Any) -> None:
                loads.append(peer.name)
                await load(peer, *what)

            world.deployment._send_load = counted  # type: ignore[method-assign, assignment]
            for turn in range(count):
                if world.engine.peers["d1"].muted:
                    break
                send(world, turn)
                await asyncio.sleep(0.001)
            assert world.engine.peers["d1"].standing is Standing.QUARANTINED
            bound = getattr(Policy(), limit)
            assert bound <= turn < bound + 20
            assert len(loads) < 4 * bound
            (event,) = [event for event in world.engine.ledger.events if event.kind == "quarantined"]
            assert event.device == "d1"
            assert limit in event.text
            received = world.engine.ledger.bytes_received
            world.workers["d1"]._outbox.put_nowait([bytes(1 << 16)] * 100)
            await asyncio.sleep(1)
            assert world.engine.ledger.bytes_received - received < 1 << 16
            world.expect(await world.multiply(x), x)
            assert world.engine.ledger.requests_lost == 0

    simulate(main())


@pytest.mark.parametrize(("send", "count", "limit"), FLOODS, ids=[send.__name__ for send, *_ in FLOODS])
def test_as_much_over_a_long_time_is_no_flood(send: Send, count: int, limit: str) -> None:
    async def main() -> None:
        policy = Policy(max_unasked=8, max_damaged=8, max_starts=8)
        async with World(4, options=TWO_REPLICAS, policy=policy) as world:
            x = world.inputs(3)
            world.expect(await world.multiply(x), x)
            for turn in range(40):
                send(world, turn)
                await asyncio.sleep(policy.flood_s / getattr(policy, limit) * 1.5)
            assert count > 40
            assert world.engine.peers["d1"].standing is Standing.PRESENT

    simulate(main())


def test_what_was_asked_of_a_device_that_floods_is_asked_of_others_at_once() -> None:
    async def main() -> None:
        policy = Policy(hedge_first_s=9.0, hedge_min_s=9.0)
        async with World(4, options=TWO_REPLICAS, policy=policy) as world:
            for worker in world.workers.values():
                worker.delay_s = 0.5
            x = world.inputs(3)
            request = asyncio.create_task(world.multiply(x))
            await asyncio.sleep(0.1)
            for turn in range(600):
                unasked_answer(world, turn)
            world.expect(await request, x)
            assert world.engine.peers["d1"].muted
            assert world.engine.now() < 3

    simulate(main())


@pytest.mark.parametrize("batch", [2, 3])
def test_late_answers_of_an_honest_device_are_not_counted(batch: int) -> None:
    """Whoever is hedged and cancelled may have answered already, and so may one whose time is over."""

    async def main() -> None:
        policy = Policy(max_unasked=3, flood_s=86400, hedge_first_s=0.1)
        async with World(4, options=TWO_REPLICAS, policy=policy) as world:
            for _ in range(5):
                await world.multiply(world.inputs(batch))
            world.workers["d1"].delay_s = 1.0
            world.workers["d1"]._session._replay.cancel = lambda request_id: False  # type: ignore[method-assign]
            for _ in range(60):
                x = world.inputs(batch)
                world.expect(await world.multiply(x), x)
                world.engine.pace._slowness.clear()  # else it is not asked for long
            await asyncio.sleep(100)
            session = world.engine.peers["d1"].session
            assert session.ignored > 20
            assert session.unasked <= policy.max_unasked
            assert world.engine.peers["d1"].standing is Standing.PRESENT
            assert world.engine.ledger.hedged > 20

    simulate(main())


def test_an_honest_device_on_a_bad_line_stays() -> None:
    """Half of all frames are damaged or doubled; what comes whole makes up for it."""

    async def main() -> None:
        faults = Faults(corrupt=0.25, duplicate=0.25, reorder=0.1)
        policy = Policy(max_damaged=32, request_timeout_s=600, answer_timeout_s=1.0)

        def wrap(inner: Fabric) -> Fabric:
            return FaultyFabric(inner, Entropy(5), to_devices=faults, to_owner=faults)

        async with World(4, options=TWO_REPLICAS, policy=policy, wrap=wrap) as world:
            for _ in range(150):
                x = world.inputs(2)
                world.expect(await world.multiply(x), x)
            assert world.engine.ledger.damaged > 4 * policy.max_damaged
            assert all(peer.standing is not Standing.QUARANTINED for peer in world.engine.peers.values())

    simulate(main())
