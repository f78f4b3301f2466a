"""What somebody else's broker can and cannot do to sealed frames."""

import asyncio

import pytest

from awfulowl.errors import InputError
from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload, Receive
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.fabric.sealed import OVERHEAD_BYTES, SALTS, WINDOW, SealedFabric, SealedLink
from tests.loops import run

Frame = tuple[str, str, Channel, bytes]


class EvilBroker(Fabric):
    """Writes down every frame (sender, receiver, channel, bytes), and delivers only what it is told to."""

    def __init__(self, *, honest: bool = True) -> None:
        self.honest = honest
        self.seen: list[Frame] = []
        self.receivers: dict[str, Receive] = {}

    async def _join(self, me: str, receive: Receive) -> Link:
        self.receivers[me] = receive
        return _EvilLink(me, self)

    def deliver(self, frame: Frame) -> None:
        sender, receiver, channel, payload = frame
        self.receivers[receiver](sender, channel, payload)


class _EvilLink(Link):
    def __init__(self, me: str, broker: EvilBroker) -> None:
        super().__init__(me, 100_000)
        self._broker = broker

    async def _send(self, peer: str, payload: Payload, channel: Channel) -> None:
        frame = (self.me, peer, channel, bytes(payload))
        self._broker.seen.append(frame)
        if self._broker.honest:
            self._broker.deliver(frame)

    async def _close(self) -> None:
        pass


class Party:
    """Owner, devices a and b, all sealed, over an evil broker."""

    def __init__(self) -> None:
        self.broker = EvilBroker()
        self.identities = {name: Identity.generate(name) for name in (OWNER, "a", "b")}
        self.peers = {name: identity.enrolment.seal_public for name, identity in self.identities.items()}
        self.links: dict[str, SealedLink] = {}
        self.heard: dict[str, list[tuple[str, Channel, bytes]]] = {name: [] for name in self.identities}

    async def join(self, *names: str) -> "Party":
        for name in names or (OWNER, "a", "b"):
            fabric = SealedFabric(self.broker, self.identities[name], self.peers)
            link = await fabric.join(name, self._noting(name))
            assert isinstance(link, SealedLink)
            self.links[name] = link
        return self

    def _noting(self, name: str) -> Receive:
        def note(peer: str, channel: Channel, payload: Payload) -> None:
            self.heard[name].append((peer, channel, bytes(payload)))

        return note

    async def capture(self, sender: str, receiver: str, payload: Payload = b"payload") -> Frame:
        """Let `sender` send something that is not delivered."""
        self.broker.honest = False
        await self.links[sender].send(receiver, payload)
        self.broker.honest = True
        return self.broker.seen[-1]


def test_the_broker_sees_no_payload_and_no_two_frames_are_equal() -> None:
    async def scene() -> None:
        party = await Party().join()
        for _ in range(10):
            await party.links[OWNER].send("a", b"the same secret weights")
            await party.links["a"].send(OWNER, b"the same secret weights", Channel.HEARTBEAT)
        frames = [frame[3] for frame in party.broker.seen]
        assert len(set(frames)) == 20
        assert all(b"secret" not in frame for frame in frames)
        assert {len(frame) for frame in frames} == {len(b"the same secret weights") + OVERHEAD_BYTES}
        assert party.heard["a"] == [(OWNER, Channel.MESSAGE, b"the same secret weights")] * 10
        assert party.heard[OWNER] == [("a", Channel.HEARTBEAT, b"the same secret weights")] * 10

    run(scene())


def test_a_frame_altered_at_any_byte_is_dropped_and_counted() -> None:
    async def scene() -> None:
        party = await Party().join()
        sender, receiver, channel, payload = await party.capture(OWNER, "a")
        for place in range(len(payload)):
            altered = bytearray(payload)
            altered[place] ^= 0x40
            party.broker.deliver((sender, receiver, channel, bytes(altered)))
        for cut in range(len(payload)):
            party.broker.deliver((sender, receiver, channel, payload[:cut]))
        party.broker.deliver((sender, receiver, channel, payload + b"\0"))
        assert party.heard["a"] == []
        assert party.links["a"].refused == 2 * len(payload) + 1
        party.broker.deliver((sender, receiver, channel, payload))
        assert party.heard["a"] == [(OWNER, Channel.MESSAGE, b"payload")]

    run(scene())


def test_a_frame_is_of_one_pair_one_direction_and_one_channel() -> None:
    async def scene() -> None:
        party = await Party().join()
        down = await party.capture(OWNER, "a")
        up = await party.capture("a", OWNER)
        moved: list[Frame] = [
            (OWNER, "b", Channel.MESSAGE, down[3]),
            (OWNER, "a", Channel.HEARTBEAT, down[3]),
            ("a", OWNER, Channel.MESSAGE, down[3]),
            (OWNER, "a", Channel.MESSAGE, up[3]),
            ("b", OWNER, Channel.MESSAGE, up[3]),
        ]
        for frame in moved:
            party.broker.deliver(frame)
        assert party.heard == {OWNER: [], "a": [], "b": []}
        assert {name: link.refused for name, link in party.links.items()} == {OWNER: 2, "a": 2, "b": 1}

    run(scene())


def test_a_repeated_frame_is_dropped() -> None:
    async def scene() -> None:
        party = await Party().join()
        for number in range(5):
            await party.links[OWNER].send("a", bytes([number]))
        for frame in party.broker.seen * 3:
            party.broker.deliver(frame)
        assert [payload for _, _, payload in party.heard["a"]] == [b"\0", b"\1", b"\2", b"\3", b"\4"]
        assert party.links["a"].refused == 15

    run(scene())


def test_frames_may_overtake_one_another_within_the_window() -> None:
    async def scene() -> None:
        party = await Party().join()
        frames = [await party.capture(OWNER, "a", number.to_bytes(4, "big")) for number in range(WINDOW + 1)]
        for frame in reversed(frames):
            party.broker.deliver(frame)
        assert len(party.heard["a"]) == WINDOW
        assert party.links["a"].refused == 1

    run(scene())


def test_frames_of_earlier_connections_stay_spent() -> None:
    async def scene() -> None:
        party = await Party().join()
        for _ in range(SALTS - 1):
            await party.links[OWNER].send("a", b"once")
            await party.join(OWNER)
        count = len(party.heard["a"])
        for frame in list(party.broker.seen):
            party.broker.deliver(frame)
        assert len(party.heard["a"]) == count == SALTS - 1

    run(scene())


def test_forged_frames_push_nothing_out_of_memory() -> None:
    async def scene() -> None:
        party = await Party().join()
        await party.links[OWNER].send("a", b"once")
        genuine = party.broker.seen[-1]
        for number in range(4 * SALTS):
            forged = number.to_bytes(16, "big") + genuine[3][16:]
            party.broker.deliver((OWNER, "a", Channel.MESSAGE, forged))
        party.broker.deliver(genuine)
        assert len(party.heard["a"]) == 1

    run(scene())


def test_a_restart_uses_other_keys() -> None:
    async def scene() -> None:
        party = await Party().join()
        first = await party.capture(OWNER, "a", b"x" * 64)
        await party.join(OWNER)
        again = await party.capture(OWNER, "a", b"x" * 64)
        assert first[3][:16] != again[3][:16]
        assert first[3][16:28] == again[3][16:28]
        assert first[3][28:] != again[3][28:]
        for frame in (first, again):
            party.broker.deliver(frame)
        assert len(party.heard["a"]) == 2

    run(scene())


def test_who_holds_another_key_is_not_heard() -> None:
    async def scene() -> None:
        party = await Party().join()
        pirate = Identity("a", Identity.generate("a").nkey_seed, Identity.generate("a").seal_private)
        link = await SealedFabric(party.broker, pirate, party.peers).device("a", lambda *_: None)
        await link.send(OWNER, b"I am a")
        assert party.heard[OWNER] == []
        assert party.links[OWNER].refused == 1

    run(scene())


def test_peers_come_and_go_while_it_runs() -> None:
    async def scene() -> None:
        party = await Party().join()
        owner, device = party.links[OWNER], party.links["a"]
        key = party.peers.pop("a")
        with pytest.raises(InputError, match="no key of 'a' is known"):
            await owner.send("a", b"")
        await device.send(OWNER, b"unheard")
        assert party.heard[OWNER] == []
        assert owner.refused == 1

        party.peers["a"] = key
        await device.send(OWNER, b"heard")
        assert party.heard[OWNER] == [("a", Channel.MESSAGE, b"heard")]

        party.identities["a"] = Identity.generate("a")
        party.peers["a"] = party.identities["a"].enrolment.seal_public
        await device.send(OWNER, b"the old key")
        await party.join("a")
        await party.links["a"].send(OWNER, b"the new key")
        assert [payload for _, _, payload in party.heard[OWNER]] == [b"heard", b"the new key"]

    run(scene())


@pytest.mark.parametrize("key", [bytes(32), (1).to_bytes(32, "little"), b"\xff" * 5])
def test_a_key_that_gives_everybody_the_same_secret_is_refused(key: bytes) -> None:
    async def scene() -> None:
        party = await Party().join()
        party.peers["a"] = key
        with pytest.raises(InputError, match="enrol it again"):
            await party.links[OWNER].send("a", b"")

    run(scene())


def test_an_identity_joins_under_its_own_name_only() -> None:
    async def scene() -> None:
        fabric = SealedFabric(MemoryFabric(), Identity.generate("a"), {})
        for name in [OWNER, "b"]:
            with pytest.raises(InputError, match="cannot join"):
                await fabric.join(name, lambda *_: None)

    run(scene())


def test_it_ends_with_the_fabric_inside() -> None:
    async def scene() -> None:
        party = await Party().join()
        inner = party.links["a"]._inner
        await inner.close()
        await asyncio.sleep(0)
        assert party.links["a"].closed

    run(scene())
