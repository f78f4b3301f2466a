"""The faults that the faulty fabric makes, one by one."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping

import pytest

from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload
from awfulowl.fabric.faulty import Faults, FaultyFabric
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.randomness import Entropy
from tests.loops import run, until

MANY = 2000


class Pair:
    """An owner and two devices, and the numbers that each received."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.heard: dict[str, list[bytes]] = {OWNER: [], "a": [], "b": []}
        self.links: dict[str, Link] = {}

    async def join(self) -> None:
        for name, heard in self.heard.items():
            self.links[name] = await self.fabric.join(name, Noting(heard))

    async def send(self, sender: str, receiver: str, count: int) -> None:
        for number in range(count):
            await self.links[sender].send(receiver, number.to_bytes(4, "big"))

    def numbers(self, name: str) -> list[int]:
        return [int.from_bytes(payload, "big") for payload in self.heard[name]]


class Noting:
    """A receiver that keeps what it gets."""

    def __init__(self, heard: list[bytes]) -> None:
        self._heard = heard

    def __call__(self, _peer: str, _channel: Channel, payload: Payload) -> None:
        self._heard.append(bytes(payload))


def send_many(faults: Mapping[str, Faults], count: int = MANY, seed: int = 1) -> Pair:
    """Send `count` numbers each way between the owner and the device a, and wait until all that comes has come."""

    async def scene() -> Pair:
        pair = Pair(FaultyFabric(MemoryFabric(), Entropy(seed), **faults))
        await pair.join()
        await pair.send(OWNER, "a", count)
        await pair.send("a", OWNER, count)
        await asyncio.sleep(0.05)
        for link in pair.links.values():
            await link.close()
        return pair

    return run(scene())


def within(share: float, count: int) -> tuple[float, float]:
    """Five standard deviations around the expected number: a false alarm in two million runs."""
    spread = 5 * (count * share * (1 - share)) ** 0.5
    return count * share - spread, count * share + spread


@pytest.mark.parametrize("direction", ["to_devices", "to_owner"])
def test_frames_are_lost_in_the_direction_that_loses(direction: str) -> None:
    lossy, whole = ("a", OWNER) if direction == "to_devices" else (OWNER, "a")
    pair = send_many({direction: Faults(lose=0.3)})
    low, high = within(0.7, MANY)
    assert low <= len(pair.numbers(lossy)) <= high
    assert pair.numbers(lossy) == sorted(set(pair.numbers(lossy)))
    assert pair.numbers(whole) == list(range(MANY))


@pytest.mark.parametrize("direction", ["to_devices", "to_owner"])
def test_frames_are_doubled(direction: str) -> None:
    pair = send_many({direction: Faults(duplicate=0.2)})
    name = "a" if direction == "to_devices" else OWNER
    counts = Counter(pair.numbers(name))
    assert set(counts) == set(range(MANY))
    assert set(counts.values()) == {1, 2}
    low, high = within(0.2, MANY)
    assert low <= sum(count == 2 for count in counts.values()) <= high


@pytest.mark.parametrize("direction", ["to_devices", "to_owner"])
def test_frames_overtake_one_another_and_none_is_lost(direction: str) -> None:
    pair = send_many({direction: Faults(reorder=0.2, late_s=0.01)})
    numbers = pair.numbers("a" if direction == "to_devices" else OWNER)
    assert sorted(numbers) == list(range(MANY))
    late = sum(after < before for before, after in itertools.pairwise(numbers))
    assert late > MANY / 20
    assert max(abs(number - place) for place, number in enumerate(numbers)) < 50


@pytest.mark.parametrize("direction", ["to_devices", "to_owner"])
def test_frames_are_late_and_none_is_lost(direction: str) -> None:
    pair = send_many({direction: Faults(delay=0.5, late_s=0.01)})
    numbers = pair.numbers("a" if direction == "to_devices" else OWNER)
    assert sorted(numbers) == list(range(MANY))
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("direction", ["to_devices", "to_owner"])
def test_one_bit_of_a_corrupt_frame_is_wrong(direction: str) -> None:
    pair = send_many({direction: Faults(corrupt=0.25)})
    numbers = pair.numbers("a" if direction == "to_devices" else OWNER)
    wrong = [(number ^ place).bit_count() for place, number in enumerate(numbers) if number != place]
    assert set(wrong) == {1}
    low, high = within(0.25, MANY)
    assert low <= len(wrong) <= high


def test_equal_seeds_give_equal_faults() -> None:
    faults = Faults(lose=0.1, duplicate=0.1, corrupt=0.1)
    first, again, other = (send_many({"to_devices": faults, "to_owner": faults}, 300, seed).heard for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_an_empty_frame_has_no_bit_to_flip() -> None:
    async def scene() -> None:
        pair = Pair(FaultyFabric(MemoryFabric(), Entropy(1), to_devices=Faults(corrupt=1.0)))
        await pair.join()
        await pair.links[OWNER].send("a", b"")
        assert pair.heard["a"] == [b""]

    run(scene())


def test_the_last_frame_held_back_comes_in_the_end() -> None:
    async def scene() -> None:
        pair = Pair(FaultyFabric(MemoryFabric(), Entropy(1), to_devices=Faults(reorder=1.0, late_s=0.01)))
        await pair.join()
        await pair.links[OWNER].send("a", b"alone")
        assert pair.heard["a"] == []
        await until(lambda: pair.heard["a"] == [b"alone"])

    run(scene())


def test_a_device_that_is_cut_off_is_alone_until_it_is_healed() -> None:
    async def scene() -> None:
        fabric = FaultyFabric(MemoryFabric(), Entropy(1))
        pair = Pair(fabric)
        await pair.join()
        fabric.cut("a")
        for name in ["a", "b"]:
            await pair.links[OWNER].send(name, b"down")
            await pair.links[name].send(OWNER, f"up from {name}".encode())
        assert pair.heard == {OWNER: [b"up from b"], "a": [], "b": [b"down"]}
        fabric.heal("a")
        fabric.heal("b")
        await pair.links[OWNER].send("a", b"again")
        await pair.links["a"].send(OWNER, b"again")
        assert pair.heard == {OWNER: [b"up from b", b"again"], "a": [b"again"], "b": [b"down"]}

    run(scene())


def test_what_was_late_when_a_device_was_cut_off_is_lost() -> None:
    async def scene() -> None:
        faults = Faults(reorder=1.0, late_s=0.02)
        fabric = FaultyFabric(MemoryFabric(), Entropy(1), to_devices=faults, to_owner=faults)
        pair = Pair(fabric)
        await pair.join()
        await pair.links[OWNER].send("a", b"down")
        await pair.links["a"].send(OWNER, b"up")
        fabric.cut("a")
        await pair.links[OWNER].send("b", b"mark")
        await until(lambda: pair.heard["b"])
        assert pair.heard["a"] == pair.heard[OWNER] == []

    run(scene())


def test_nothing_late_comes_after_closing() -> None:
    async def scene() -> None:
        faults = Faults(delay=0.5, reorder=0.5, late_s=0.01)
        pair = Pair(FaultyFabric(MemoryFabric(), Entropy(3), to_devices=faults, to_owner=faults))
        await pair.join()
        await pair.send(OWNER, "a", 20)
        await pair.send("a", OWNER, 20)
        await pair.links[OWNER].close()
        for _ in range(5):  # what had left before is handed over
            await asyncio.sleep(0)
        before = {name: list(heard) for name, heard in pair.heard.items()}
        await asyncio.sleep(0.03)
        assert pair.heard == before

    run(scene())


def test_faults_happen_also_to_devices_that_joined_the_fabric_inside() -> None:
    async def scene() -> None:
        inside = MemoryFabric()
        outside = FaultyFabric(inside, Entropy(1), to_devices=Faults(lose=1.0), to_owner=Faults(lose=1.0))
        heard: dict[str, list[bytes]] = {OWNER: [], "a": []}
        owner = await outside.owner(Noting(heard[OWNER]))
        device = await inside.device("a", Noting(heard["a"]))
        await owner.send("a", b"down")
        await device.send(OWNER, b"up")
        await asyncio.sleep(0.01)
        assert heard == {OWNER: [], "a": []}

    run(scene())
