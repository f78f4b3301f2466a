"""NATS with the embedded broker: who may do what, and what happens when it goes away."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from awfulowl.errors import BrokerError, ClosedError, InputError, LimitError
from awfulowl.fabric.base import OWNER, Channel, Link, Payload, Receive
from awfulowl.fabric.broker import Broker, BrokerConfig
from awfulowl.fabric.connection import NatsConfig
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.nats import NatsFabric
from awfulowl.limits import KIB, MIB, Limits
from tests.conftest import RunningBroker
from tests.loops import run, until

pytestmark = pytest.mark.usefixtures("needs_broker")

IMPATIENT = NatsConfig(connect_s=1.0, reconnect_s=0.5)


def ignore(_peer: str, _channel: Channel, _payload: Payload) -> None:
    """Receive and forget."""


class Fleet:
    """A broker of its own, with an owner and the devices a and b."""

    def __init__(self, config: BrokerConfig | None = None) -> None:
        self.identities = {name: Identity.generate(name) for name in (OWNER, "a", "b")}
        keys = {name: identity.enrolment.nkey_public for name, identity in self.identities.items()}
        self.broker = Broker(keys.pop(OWNER), keys, config)
        self._links: list[Link] = []

    async def join(self, name: str, receive: Receive = ignore, config: NatsConfig | None = None) -> Link:
        link = await NatsFabric(self.broker.url, self.identities[name], config).join(name, receive)
        self._links.append(link)
        return link

    async def leave(self) -> None:
        for link in self._links:
            await link.close()
        await self.broker.stop()


def with_fleet(scene: Callable[[Fleet], Awaitable[None]], config: BrokerConfig | None = None) -> None:
    async def whole() -> None:
        fleet = Fleet(config)
        await fleet.broker.start()
        try:
            await scene(fleet)
        finally:
            await fleet.leave()

    run(whole())


class Pirate:
    """A client that holds the key of one device and says what it likes to the broker."""

    def __init__(self) -> None:
        self.client = Client()
        self.refusals: list[str] = []
        self.heard: list[str] = []

    async def join(self, url: str, identity: Identity) -> "Pirate":
        await self.client.connect(url, nkeys_seed_str=identity.nkey_seed, error_cb=self.note_refusal)
        return self

    async def note_refusal(self, error: Exception) -> None:
        self.refusals.append(str(error))

    async def note(self, message: Msg) -> None:
        self.heard.append(message.subject)

    async def settle(self) -> None:
        for _ in range(2):
            await self.client.flush()


@pytest.mark.parametrize(
    "subject", ["d.b.>", "d.b.m", "d.*.m", "d.>", ">", "*.*.*", "o.>", "o.a.>", "o.b.m", "hb.*", "_INBOX.>", "$SYS.>"]
)
def test_a_device_may_not_listen_to_what_is_not_its_own(broker: RunningBroker, subject: str) -> None:
    async def scene() -> None:
        pirate = await Pirate().join(broker.url, broker.identity("a"))
        owner = await NatsFabric(broker.url, broker.identity(OWNER)).owner(ignore)
        device = await NatsFabric(broker.url, broker.identity("b")).device("b", ignore)
        await pirate.client.subscribe(subject, cb=pirate.note)
        await pirate.settle()
        assert len(pirate.refusals) == 1
        assert "permissions violation for subscription" in pirate.refusals[0]
        await owner.send("b", b"secret")
        await device.send(OWNER, b"secret")
        await device.send(OWNER, b"secret", Channel.HEARTBEAT)
        await pirate.settle()
        assert pirate.heard == []
        for end in (pirate.client, owner, device):
            await end.close()

    run(scene())


@pytest.mark.parametrize("subject", ["o.b.m", "o.b.x", "hb.b", "d.a.m", "d.b.m", "o.a", "hb", "hb.a.x", "_INBOX.x"])
def test_a_device_may_not_speak_for_others(broker: RunningBroker, subject: str) -> None:
    async def scene() -> None:
        heard: list[str] = []
        owner = await NatsFabric(broker.url, broker.identity(OWNER)).owner(lambda peer, *_: heard.append(peer))
        device = await NatsFabric(broker.url, broker.identity("b")).device("b", lambda *_: heard.append("owner"))
        pirate = await Pirate().join(broker.url, broker.identity("a"))
        await pirate.client.publish(subject, b"forged")
        await pirate.settle()
        assert len(pirate.refusals) == 1
        assert "permissions violation for publish" in pirate.refusals[0]
        await pirate.client.publish("o.a.m", b"genuine")
        await until(lambda: heard)
        assert heard == ["a"]
        for end in (pirate.client, owner, device):
            await end.close()

    run(scene())


def test_a_device_may_not_take_part_in_the_frames_of_a_group(broker: RunningBroker) -> None:
    async def scene() -> None:
        pirate = await Pirate().join(broker.url, broker.identity("a"))
        await pirate.client.subscribe("d.b.>", queue="workers", cb=pirate.note)
        await pirate.settle()
        assert len(pirate.refusals) == 1
        await pirate.client.close()

    run(scene())


def test_frames_on_subjects_that_mean_nothing_are_not_received(broker: RunningBroker) -> None:
    async def scene() -> None:
        heard: list[bytes] = []
        owner = await NatsFabric(broker.url, broker.identity(OWNER)).owner(lambda *frame: heard.append(bytes(frame[2])))
        pirate = await Pirate().join(broker.url, broker.identity("a"))
        for subject in ["o.a.hb", "o.a.x", "o.a.m.x", "o.a.m"]:
            await pirate.client.publish(subject, subject.encode())
        await until(lambda: heard)
        assert heard == [b"o.a.m"]
        assert pirate.refusals == []
        for end in (pirate.client, owner):
            await end.close()

    run(scene())


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"user": "a", "password": "a"},
        {"token": "a"},
        {"nkeys_seed_str": Identity.generate("a").nkey_seed},
    ],
    ids=["nothing", "password", "token", "key"],
)
def test_who_has_no_key_of_ours_is_not_let_in(broker: RunningBroker, credentials: dict[str, str]) -> None:
    async def scene() -> None:
        client = Client()
        options: dict[str, Any] = {"allow_reconnect": False, "error_cb": Pirate().note_refusal, **credentials}
        with pytest.raises(errors.Error, match="Authorization Violation"):
            await client.connect(broker.url, **options)
        await client.close()

    run(scene())


def test_an_identity_that_was_not_enrolled_is_told_so(broker: RunningBroker) -> None:
    with pytest.raises(BrokerError, match="does not know this identity: it was not enrolled"):
        run(NatsFabric(broker.url, Identity.generate("a")).device("a", ignore))


def test_an_identity_enrolled_under_another_name_is_told_so(broker: RunningBroker) -> None:
    for name in ["b", OWNER]:
        disguised = dataclasses.replace(broker.identity("a"), name=name)
        with pytest.raises(BrokerError, match=r"less than its name needs.*enrol it under this name"):
            run(NatsFabric(broker.url, disguised).join(name, ignore))


def test_an_identity_joins_under_its_own_name_only(broker: RunningBroker) -> None:
    with pytest.raises(InputError, match="of 'a': it cannot join as 'b'"):
        run(NatsFabric(broker.url, broker.identity("a")).device("b", ignore))


def test_an_enrolled_device_joins_while_others_go_on() -> None:
    async def scene(fleet: Fleet) -> None:
        heard: list[str] = []
        await fleet.join(OWNER, lambda peer, *_: heard.append(peer))
        device = await fleet.join("a")
        fleet.identities["c"] = Identity.generate("c")
        with pytest.raises(BrokerError, match="does not know"):
            await fleet.join("c")
        await fleet.broker.enrol("c", fleet.identities["c"].enrolment.nkey_public)
        late = await fleet.join("c")
        await device.send(OWNER, b"")
        await late.send(OWNER, b"")
        await until(lambda: len(heard) == 2)
        assert sorted(heard) == ["a", "c"]

    with_fleet(scene)


def test_a_revoked_device_is_cut_off_at_once_and_for_good() -> None:
    async def scene(fleet: Fleet) -> None:
        heard: list[str] = []
        owner = await fleet.join(OWNER, lambda peer, *_: heard.append(peer))
        revoked, other = await fleet.join("a"), await fleet.join("b")
        await fleet.broker.revoke("a")
        with pytest.raises(ClosedError, match="was revoked"):
            await revoked.wait_closed()
        with pytest.raises(ClosedError, match="was revoked"):
            await revoked.send(OWNER, b"still here?")
        with pytest.raises(BrokerError, match="was revoked"):
            await fleet.join("a")
        await owner.send("a", b"for nobody")
        await other.send(OWNER, b"")
        await until(lambda: heard)
        assert heard == ["b"]

    with_fleet(scene)


def test_a_broker_that_dies_is_reported_after_the_patience_is_over() -> None:
    async def scene(fleet: Fleet) -> None:
        owner, device = await fleet.join(OWNER, config=IMPATIENT), await fleet.join("a", config=IMPATIENT)
        waiting = asyncio.ensure_future(owner.wait_closed())
        await fleet.broker.stop()
        for _ in range(3):
            with pytest.raises(ClosedError, match=r"the broker at nats://127.0.0.1:\d+ is lost: .* for 0.5 s"):
                await flood(device)
        with pytest.raises(ClosedError, match="is lost"):
            await waiting

    with_fleet(scene)


def test_closing_does_not_wait_for_a_broker_that_is_gone() -> None:
    async def scene(fleet: Fleet) -> None:
        patient = NatsConfig(reconnect_s=1000.0)
        owner, device = await fleet.join(OWNER, config=patient), await fleet.join("a", config=patient)
        await fleet.broker.stop()
        sending = asyncio.ensure_future(flood(device))
        await asyncio.sleep(0.05)
        await owner.close()
        await device.close()
        with pytest.raises(ClosedError):
            await sending

    with_fleet(scene)


async def flood(link: Link) -> None:
    while True:
        await link.send(OWNER, bytes(512 * KIB))
        await asyncio.sleep(0)


def test_a_broker_that_comes_back_finds_everybody_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(fleet: Fleet) -> None:
        heard: list[bytes] = []
        owner = await fleet.join(OWNER, lambda *frame: heard.append(bytes(frame[2])))
        device = await fleet.join("a", lambda *frame: heard.append(bytes(frame[2])))
        port = int(fleet.broker.url.rsplit(":", 1)[1])
        await fleet.broker.stop()
        keys = {name: identity.enrolment.nkey_public for name, identity in fleet.identities.items()}
        fleet.broker = Broker(keys[OWNER], {"a": keys["a"]}, BrokerConfig(port=port))
        waiting = asyncio.ensure_future(device.send(OWNER, b"while it is away"))
        await fleet.broker.start()
        await waiting
        while not {b"down", b"up"} <= set(heard):
            await owner.send("a", b"down")
            await device.send(OWNER, b"up")
            await asyncio.sleep(0.05)
        assert not owner.closed
        assert not device.closed

    with caplog.at_level(logging.INFO, logger="awfulowl"):
        with_fleet(scene)
    assert "is gone; trying again for 30 s" in caplog.text
    assert "is back" in caplog.text


def test_nobody_there_is_an_error_in_bounded_time() -> None:
    with pytest.raises(BrokerError, match=r"no broker lets us in at nats://127.0.0.1:9 within 1 s .*refused|failed"):
        run(NatsFabric("nats://127.0.0.1:9", Identity.generate("a"), IMPATIENT).device("a", ignore))


def test_joining_that_is_cancelled_leaves_nothing_behind(broker: RunningBroker) -> None:
    async def scene() -> None:
        for delay in [0.0, 0.0, 0.001, 0.002, 0.004]:
            joining = asyncio.ensure_future(NatsFabric(broker.url, broker.identity("a")).device("a", ignore))
            await asyncio.sleep(delay)
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            if not joining.cancelled():
                await joining.result().close()
        assert len(asyncio.all_tasks()) == 1

    run(scene())


def test_the_smaller_of_both_limits_counts() -> None:
    async def scene(fleet: Fleet) -> None:
        link = await fleet.join(OWNER)
        assert link.max_payload_bytes == 64 * KIB
        with pytest.raises(LimitError):
            await link.send("a", bytes(64 * KIB + 1))
        assert (await fleet.join("a", config=NatsConfig(limits=Limits(max_payload_bytes=KIB)))).max_payload_bytes == KIB

    with_fleet(scene, BrokerConfig(limits=Limits(max_payload_bytes=64 * KIB)))


def test_many_receivers_that_are_busy_lose_nothing_of_what_the_client_queues() -> None:
    """The client of nats-py would drop what is over its limits of a subscription, and only log it."""

    async def scene(fleet: Fleet) -> None:
        heard: list[int] = []

        def busy(_peer: str, _channel: Channel, payload: Payload) -> None:
            if len(heard) % 100 == 0:
                time.sleep(0.005)
            heard.append(int.from_bytes(payload[:4], "big"))

        await fleet.join("a", busy)
        owner = await fleet.join(OWNER)
        for number in range(3000):
            await owner.send("a", number.to_bytes(4, "big") * 2048)
        await until(lambda: len(heard) == 3000)
        assert heard == list(range(3000))

    with_fleet(scene)


def test_what_waits_at_the_sender_is_bounded(broker: RunningBroker) -> None:
    async def scene() -> None:
        pending = 1 * MIB
        config = NatsConfig(pending_bytes=pending)
        owner = await NatsFabric(broker.url, broker.identity(OWNER), config).owner(ignore)
        client = owner._connection._client  # type: ignore[attr-defined]
        worst = 0
        for _ in range(200):
            await owner.send("a", bytes(256 * KIB))
            worst = max(worst, client.pending_data_size)
        assert 0 < worst <= pending + 257 * KIB
        await owner.close()

    run(scene())


def test_the_client_never_uses_an_inbox(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects: list[str] = []
    subscribe = Client.subscribe

    async def noting(client: Client, subject: str, *arguments: Any, **options: Any) -> Any:
        subjects.append(subject)
        return await subscribe(client, subject, *arguments, **options)

    monkeypatch.setattr(Client, "subscribe", noting)

    async def scene() -> None:
        for name in (OWNER, "a"):
            await (await NatsFabric(broker.url, broker.identity(name)).join(name, ignore)).close()

    run(scene())
    assert subjects == ["o.*.m", "hb.*", "d.a.m", "d.a.hb"]
