"""What every fabric promises to the layers above, over every fabric."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from awfulowl.errors import ClosedError, InputError, LimitError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive
from awfulowl.fabric.faulty import FaultyFabric
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.fabric.nats import NatsFabric
from awfulowl.fabric.sealed import SealedFabric
from awfulowl.limits import KIB
from awfulowl.randomness import Entropy
from awfulowl.wire.frames import Frame
from tests.conftest import RunningBroker
from tests.loops import LOOPS, run, until

DEVICES = ["a", "b", "Device-2_x"]
Received = tuple[str, Channel, bytes]


class Everyone(Fabric):
    """Fabrics that belong to one identity each, as one."""

    def __init__(self, make: Callable[[str], Fabric]) -> None:
        self._make = make

    async def _join(self, me: str, receive: Receive) -> Link:
        return await self._make(me).join(me, receive)


def over_memory(_request: pytest.FixtureRequest) -> Fabric:
    return MemoryFabric()


def over_nats(request: pytest.FixtureRequest) -> Fabric:
    broker: RunningBroker = request.getfixturevalue("broker")
    return Everyone(lambda me: NatsFabric(broker.url, broker.identity(me)))


def without_faults(_request: pytest.FixtureRequest) -> Fabric:
    return FaultyFabric(MemoryFabric(), Entropy(1))


def sealed(inner: Fabric) -> Fabric:
    identities = {name: Identity.generate(name) for name in [OWNER, *DEVICES]}
    peers: Mapping[str, bytes] = {name: identity.enrolment.seal_public for name, identity in identities.items()}
    return Everyone(lambda me: SealedFabric(inner, identities[me], peers))


FABRICS: dict[str, Callable[[pytest.FixtureRequest], Fabric]] = {
    "memory": over_memory,
    "nats": over_nats,
    "faulty": without_faults,
    "sealed memory": lambda request: sealed(over_memory(request)),
    "sealed nats": lambda request: sealed(over_nats(request)),
}


class Meeting:
    """An owner and some devices on one fabric, and what each of them received."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.links: dict[str, Link] = {}
        self.received: dict[str, list[Received]] = {}

    async def join(self, name: str, receive: Receive | None = None) -> Link:
        frames = self.received[name] = []

        def note(peer: str, channel: Channel, payload: Payload) -> None:
            frames.append((peer, channel, bytes(payload)))

        link = self.links[name] = await self.fabric.join(name, receive or note)
        return link

    async def send(
        self, sender: str, receiver: str, payload: Payload | Frame, channel: Channel = Channel.MESSAGE
    ) -> None:
        await self.links[sender].send(receiver, payload, channel)

    def payloads(self, name: str, channel: Channel = Channel.MESSAGE) -> list[bytes]:
        return [payload for _, its, payload in self.received[name] if its is channel]

    async def settle(self) -> None:
        """Wait until all that was sent before must have arrived: one more frame each way has."""
        for name in self.links:
            if name != OWNER and not self.links[name].closed:
                for channel in Channel:
                    await self._mark(OWNER, name, channel)
                    await self._mark(name, OWNER, channel)

    async def _mark(self, sender: str, receiver: str, channel: Channel) -> None:
        mark = f"mark of {sender} {time.monotonic_ns()}".encode()
        await self.send(sender, receiver, mark, channel)
        await until(lambda: (sender, channel, mark) in self.received[receiver])
        self.received[receiver].remove((sender, channel, mark))


Scene = Callable[[Meeting], Awaitable[None]]
Play = Callable[[Scene], None]


@pytest.fixture(params=[(fabric, loop) for fabric in FABRICS for loop in LOOPS], ids=" on ".join)
def play(request: pytest.FixtureRequest) -> Play:
    """Run a scene with an owner and the devices, on each fabric and each kind of loop."""
    fabric, loop = request.param

    async def whole(scene: Scene) -> None:
        meeting = Meeting(FABRICS[fabric](request))
        try:
            for name in [OWNER, *DEVICES]:
                await meeting.join(name)
            await scene(meeting)
        finally:
            for link in meeting.links.values():
                await link.close()

    return lambda scene: run(whole(scene), loop_factory=LOOPS[loop])


def test_frames_arrive_in_both_directions(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        await at.send(OWNER, "a", b"down")
        await at.send("a", OWNER, b"up")
        await until(lambda: at.received["a"] and at.received[OWNER])
        assert at.received["a"] == [(OWNER, Channel.MESSAGE, b"down")]
        assert at.received[OWNER] == [("a", Channel.MESSAGE, b"up")]

    play(scene)


def test_an_owner_tells_its_devices_apart(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        for name in DEVICES:
            await at.send(name, OWNER, f"from {name}".encode())
        await until(lambda: len(at.received[OWNER]) == len(DEVICES))
        assert {peer: payload for peer, _, payload in at.received[OWNER]} == {
            name: f"from {name}".encode() for name in DEVICES
        }

    play(scene)


def test_a_device_hears_only_what_is_meant_for_it(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        for name in DEVICES:
            await at.send(OWNER, name, f"for {name}".encode())
            await at.send(name, OWNER, b"an answer")
        await at.settle()
        for name in DEVICES:
            assert at.received[name] == [(OWNER, Channel.MESSAGE, f"for {name}".encode())]

    play(scene)


def test_heartbeats_come_on_their_own_channel(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        await at.send(OWNER, "a", b"beat", Channel.HEARTBEAT)
        await at.send("a", OWNER, b"beat back", Channel.HEARTBEAT)
        await at.send("a", OWNER, b"message")
        await until(lambda: at.received["a"] and len(at.received[OWNER]) == 2)
        assert at.received["a"] == [(OWNER, Channel.HEARTBEAT, b"beat")]
        assert sorted(at.received[OWNER], key=lambda frame: frame[1].value) == [
            ("a", Channel.HEARTBEAT, b"beat back"),
            ("a", Channel.MESSAGE, b"message"),
        ]

    play(scene)


def test_an_empty_frame_arrives(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        for channel in Channel:
            await at.send(OWNER, "a", b"", channel)
            await at.send("a", OWNER, b"", channel)
        await until(lambda: len(at.received["a"]) == len(at.received[OWNER]) == len(Channel))
        assert {payload for _, _, payload in at.received["a"] + at.received[OWNER]} == {b""}

    play(scene)


def test_any_bytes_arrive_as_they_were(play: Play) -> None:
    payload = bytes(range(256)) + b"\r\nPUB o.b.m 3\r\nabc\r\n" + bytes(range(255, -1, -1))

    async def scene(at: Meeting) -> None:
        await at.send("a", OWNER, payload)
        await at.send(OWNER, "a", payload)
        await until(lambda: at.received[OWNER] and at.received["a"])
        assert at.payloads(OWNER) == at.payloads("a") == [payload]

    play(scene)


@pytest.mark.parametrize("sizes", [(), (0,), (3, 0, 4), (64, 100 * KIB, 0, 300 * KIB, 7), (0, 20 * KIB, 0)])
def test_pieces_arrive_as_one_frame(play: Play, sizes: tuple[int, ...]) -> None:
    parts = [memoryview(bytes([65 + number]) * size) for number, size in enumerate(sizes)]

    async def scene(at: Meeting) -> None:
        for _ in range(2):
            await at.send("a", OWNER, b"before")
            await at.send("a", OWNER, Frame(parts))
            await at.send(OWNER, "b", Frame(parts))
            await at.send("a", OWNER, Frame(parts), Channel.HEARTBEAT)
        await at.settle()
        assert at.payloads(OWNER) == 2 * [b"before", b"".join(parts)]
        assert at.payloads("b") == at.payloads(OWNER, Channel.HEARTBEAT) == 2 * [b"".join(parts)]

    play(scene)


def test_pieces_are_counted_together(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        size = at.links["a"].max_payload_bytes
        whole = [bytes(size // 2), bytes(range(256)), bytes(size - size // 2 - 256)]
        await at.send("a", OWNER, Frame(whole))
        with pytest.raises(LimitError, match="max_payload_bytes"):
            await at.send("a", OWNER, Frame([*whole, b"x"]))
        await at.settle()
        assert at.payloads(OWNER) == [b"".join(whole)]

    play(scene)


def test_the_largest_payload_arrives_and_one_byte_more_is_refused(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        for sender, receiver in [(OWNER, "a"), ("a", OWNER)]:
            size = at.links[sender].max_payload_bytes
            payload = (b"0123456789" * (size // 10 + 1))[:size]
            await at.send(sender, receiver, payload)
            with pytest.raises(LimitError, match="max_payload_bytes"):
                await at.send(sender, receiver, payload + b"x")
            await at.settle()
            assert at.payloads(receiver) == [payload]

    play(scene)


def test_frames_of_one_sender_keep_their_order(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        sizes = [1, 100 * KIB, 0, 70 * KIB, 3, 600 * KIB, 2, 2]
        expected = [bytes([number]) * size for number, size in enumerate(sizes)]
        for payload in expected:
            await at.send("a", OWNER, payload)
            await at.send(OWNER, "b", payload)
        await at.settle()
        assert at.payloads(OWNER) == expected
        assert at.payloads("b") == expected

    play(scene)


def test_a_burst_arrives_whole(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        burst = [number.to_bytes(4, "little") * 256 for number in range(1000)]
        for payload in burst:
            await at.send(OWNER, "a", payload)
        await until(lambda: len(at.received["a"]) == len(burst))
        assert at.payloads("a") == burst

    play(scene)


def test_senders_at_the_same_time_lose_nothing(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        async def sender(name: str, worker: int) -> None:
            for number in range(50):
                payload = bytes([worker, number]) * 4 * KIB
                await at.send(OWNER, name, payload)
                await at.send(name, OWNER, payload)

        await asyncio.gather(*(sender(name, worker) for name in DEVICES for worker in range(4)))
        await at.settle()
        for name in DEVICES:
            assert len(set(at.payloads(name))) == len(at.payloads(name)) == 200
        assert len(at.received[OWNER]) == 200 * len(DEVICES)

    play(scene)


def test_a_slow_receiver_gets_more_than_any_buffer_holds(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        sizes: list[int] = []

        def slow(_peer: str, _channel: Channel, payload: Payload) -> None:
            time.sleep(0.0005)
            sizes.append(len(payload))

        await at.links["a"].close()
        await at.join("a", slow)
        for number in range(96):
            await at.send(OWNER, "a", bytes(512 * KIB + number))
        await until(lambda: len(sizes) == 96)
        assert sizes == [512 * KIB + number for number in range(96)]

    play(scene)


def test_what_was_sent_before_closing_arrives(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        frames = [bytes([number]) * 100 * KIB for number in range(20)]
        for payload in frames:
            await at.send("a", OWNER, payload)
        await at.links["a"].close()
        await until(lambda: len(at.received[OWNER]) == len(frames))
        assert at.payloads(OWNER) == frames

    play(scene)


def test_a_frame_for_nobody_is_lost_without_an_error(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        await at.links["b"].close()
        await at.send(OWNER, "b", b"nobody is there")
        await at.settle()
        await at.join("b")
        await at.settle()
        assert at.received["b"] == []

    play(scene)


def test_a_closed_link_sends_and_receives_nothing(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        link = at.links["a"]
        states = [link.closed]
        await link.close()
        assert [*states, link.closed] == [False, True]
        with pytest.raises(ClosedError):
            await link.send(OWNER, b"too late")
        await at.send(OWNER, "a", b"too late")
        await at.settle()
        assert at.received["a"] == []

    play(scene)


def test_closing_twice_and_waiting_for_the_end_are_harmless(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        link = at.links["a"]
        ended: list[str | None] = []
        link.when_ended(ended.append)
        waiting = asyncio.ensure_future(link.wait_closed())
        await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.gather(link.close(), link.close())
        await link.close()
        await waiting
        await link.wait_closed()
        assert ended == [None]

    play(scene)


def test_a_device_can_come_back(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        for round_ in range(3):
            await at.links["a"].close()
            await at.join("a")
            await at.send(OWNER, "a", bytes([round_]))
            await at.send("a", OWNER, bytes([round_]))
            await at.settle()
            assert at.payloads("a") == [bytes([round_])]
        assert at.payloads(OWNER) == [b"\0", b"\1", b"\2"]

    play(scene)


def test_a_receiver_that_fails_is_logged_without_the_payload(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(at: Meeting) -> None:
        heard: list[bytes] = []

        def fails_once(_peer: str, _channel: Channel, payload: Payload) -> None:
            heard.append(bytes(payload))
            if len(heard) == 1:
                raise RuntimeError("the receiver stumbled")

        await at.links["a"].close()
        await at.join("a", fails_once)
        await at.send(OWNER, "a", b"a secret payload")
        await at.send(OWNER, "a", b"the next")
        await until(lambda: len(heard) == 2)
        assert heard == [b"a secret payload", b"the next"]

    with caplog.at_level(logging.DEBUG):
        play(scene)
    assert "the receiver stumbled" in caplog.text
    assert "secret" not in caplog.text


def test_a_receiver_may_answer_at_once(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        tasks: list[asyncio.Task[Any]] = []

        def echo(_peer: str, channel: Channel, payload: Payload) -> None:
            tasks.append(asyncio.ensure_future(at.links["a"].send(OWNER, payload, channel)))

        await at.links["a"].close()
        await at.join("a", echo)
        for number in range(100):
            await at.send(OWNER, "a", bytes([number]))
        await until(lambda: len(at.received[OWNER]) == 100)
        await asyncio.gather(*tasks)
        assert at.payloads(OWNER) == [bytes([number]) for number in range(100)]

    play(scene)


def test_names_that_are_none_are_refused_everywhere(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        for name in ["", "a.b", "*", ">", "a b", "a\r\nPUB x 0", "a\n", "-a", "ä", "x" * 65]:
            with pytest.raises(InputError):
                await at.fabric.device(name, lambda *_: None)
            with pytest.raises(InputError):
                await at.send(OWNER, name, b"")

    play(scene)


def test_a_device_speaks_to_its_owner_only(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        with pytest.raises(InputError, match="owner only"):
            await at.send("a", "b", b"psst")
        with pytest.raises(InputError, match="cannot be called"):
            await at.fabric.device(OWNER, lambda *_: None)
        await at.settle()
        assert at.received["b"] == []

    play(scene)


def test_a_send_that_is_cancelled_ends_and_harms_nothing(play: Play) -> None:
    async def scene(at: Meeting) -> None:
        payload = bytes(at.links[OWNER].max_payload_bytes)
        sends = [asyncio.ensure_future(at.send(OWNER, "a", payload)) for _ in range(8)]
        await asyncio.sleep(0)
        for send in sends:
            send.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        await at.send(OWNER, "a", b"the last")
        await until(lambda: b"the last" in at.payloads("a"))

    play(scene)
