"""Addresses, TLS, and brokers that lie."""

import asyncio
import contextlib
import datetime
import importlib.util
import ipaddress
import json
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from awfulowl.errors import BrokerError, ClosedError, InputError
from awfulowl.fabric import connection
from awfulowl.fabric.base import OWNER, Channel, Link, Payload
from awfulowl.fabric.broker_binary import find_binary
from awfulowl.fabric.connection import NatsConfig, check_url
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.nats import NatsFabric
from awfulowl.fabric.tether import tethered
from awfulowl.limits import KIB, MIB, Limits
from awfulowl.wire.frames import Frame
from tests.loops import run, until
from tests.missing import need

IMPATIENT = NatsConfig(connect_s=1.0, reconnect_s=0.5)


def ignore(_peer: str, _channel: Channel, _payload: Payload) -> None:
    """Receive and forget."""


@pytest.mark.parametrize(
    "url",
    [
        "nats://127.0.0.1:4222",
        "nats://localhost",
        "nats://[::1]:4222",
        "tls://broker.example.org:4222",
        "tls://10.0.0.1",
        "wss://broker.example.org",
        "ws://127.0.0.1:8080",
    ],
)
def test_addresses_of_brokers_are_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert check_url(url, NatsConfig()) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://broker.example.org", "in the clear: use tls://.*a tunnel's end on this machine"),
        ("nats://10.0.0.1:4222", "in the clear"),
        ("nats://0.0.0.0:4222", "in the clear"),
        ("ws://broker.example.org", "in the clear"),
        ("nats://localhost.example.org", "in the clear"),
        ("http://localhost", "no address of a broker"),
        ("localhost:4222", "no address of a broker"),
        ("", "no address of a broker"),
        ("tls://", "no address of a broker"),
        ("tls://host:port", "is not one"),
        ("tls://host:99999", "is not one"),
        ("tls://[::1", "is not one"),
    ],
)
def test_other_addresses_are_refused_with_a_reason(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        NatsFabric(url, Identity.generate("a"))


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    for url in ["nats://user:hunter2@localhost", "tls://hunter2@broker.example.org"]:
        with pytest.raises(InputError, match="password") as caught:
            check_url(url, NatsConfig())
        assert "hunter2" not in str(caught.value)


def test_plain_addresses_can_be_allowed() -> None:
    config = NatsConfig(allow_plain=True)
    assert check_url("nats://10.0.0.1:4222", config) == "nats://10.0.0.1:4222"


def test_web_sockets_without_their_package_are_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'awfulowl\[websocket\]'"):
        check_url("wss://broker.example.org", NatsConfig())
    assert check_url("tls://broker.example.org", NatsConfig())


def test_certificates_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"nothing")
    for file in [tmp_path / "missing", tmp_path / "empty"]:
        fabric = NatsFabric("tls://localhost:4222", Identity.generate("a"), NatsConfig(ca_file=file))
        with pytest.raises(InputError, match=f"ca_file {file}"):
            run(fabric.device("a", ignore))


class Certificates:
    """A certificate for this machine that vouches for itself."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a broker")])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def server(self) -> dict[str, str]:
        """The part of a server's settings that names them."""
        return {"cert_file": str(self.certificate), "key_file": str(self.key)}


@contextlib.contextmanager
def server(folder: Path, settings: dict[str, Any], identities: Sequence[Identity]) -> Iterator[dict[str, int]]:
    """Run a NATS server that is not ours; gives the ports on which it says that it listens."""
    users = [{"nkey": identity.enrolment.nkey_public} for identity in identities]
    file = folder / "server.json"
    file.write_text(json.dumps({"listen": "127.0.0.1:-1", "authorization": {"users": users}, **settings}))
    command = tethered([str(find_binary()), "-c", str(file)])
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ports = {}
        for line in process.stderr:
            if (listening := re.search(r"Listening for (client|websocket) .*:(\d+)$", line)) is not None:
                ports[listening[1]] = int(listening[2])
            if "Server is ready" in line:
                break
        try:
            yield ports
        finally:
            process.kill()


async def talk(url: str, owner: Identity, device: Identity, config: NatsConfig) -> None:
    """Send a frame each way, and one in pieces."""
    heard: list[bytes] = []
    at_owner = await NatsFabric(url, owner, config).owner(lambda *frame: heard.append(bytes(frame[2])))
    at_device = await NatsFabric(url, device, config).device(device.name, lambda *frame: heard.append(bytes(frame[2])))
    await at_owner.send(device.name, b"down" * KIB)
    await at_device.send(OWNER, b"up" * KIB)
    await at_device.send(OWNER, Frame([b"head", memoryview(b"tail" * 8 * KIB)]))
    await until(lambda: len(heard) == 3)
    assert set(heard) == {b"down" * KIB, b"up" * KIB, b"head" + b"tail" * 8 * KIB}
    await at_owner.close()
    await at_device.close()


def test_tls_works_with_a_certificate_that_is_trusted_only(tmp_path: Path, needs_broker: None) -> None:
    certificates = Certificates(tmp_path)
    owner, device = Identity.generate(OWNER), Identity.generate("a")
    with server(tmp_path, {"tls": certificates.server()}, [owner, device]) as ports:
        url = f"tls://localhost:{ports['client']}"
        run(talk(url, owner, device, NatsConfig(ca_file=certificates.certificate)))
        with pytest.raises(BrokerError, match=r"certificate that is not trusted.*ca_file"):
            run(NatsFabric(url, device, IMPATIENT).device("a", ignore))


def test_a_certificate_of_another_host_is_refused(tmp_path: Path, needs_broker: None) -> None:
    certificates = Certificates(tmp_path)
    device = Identity.generate("a")
    config = NatsConfig(ca_file=certificates.certificate)
    elsewhere = {"listen": "127.0.0.2:-1", "tls": certificates.server()}
    with server(tmp_path, elsewhere, [device]) as ports, pytest.raises(BrokerError, match=r"not trusted.*127\.0\.0\.2"):
        run(NatsFabric(f"tls://127.0.0.2:{ports['client']}", device, config).device("a", ignore))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_web_sockets_work(tmp_path: Path, needs_broker: None, scheme: str) -> None:
    need("aiohttp")
    certificates = Certificates(tmp_path)
    owner, device = Identity.generate(OWNER), Identity.generate("a")
    web = {"listen": "127.0.0.1:-1", **({"tls": certificates.server()} if scheme == "wss" else {"no_tls": True})}
    with server(tmp_path, {"websocket": web}, [owner, device]) as ports:
        port = ports["websocket"]

        async def scene() -> None:
            config = NatsConfig(ca_file=certificates.certificate)
            await talk(f"{scheme}://localhost:{port}", owner, device, config)
            # aiohttp takes its time to close TLS after it has said that it is closed.
            await until(lambda: not connections_to(port))

        run(scene())


def connections_to(port: int) -> list[Any]:
    """The connections of this process to `port` that are not closed."""
    return [each for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == port]


Scene = Callable[[Link], Awaitable[None]]
Answer = Callable[[bytes, asyncio.StreamWriter], None]


class Impostor:
    """Speaks enough of the protocol to be taken for a broker, then does what it likes."""

    def __init__(self, answer: Answer, **info: Any) -> None:
        self.lines: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._info = {"server_id": "x", "version": "2.15.1", "headers": True, "max_payload": MIB, "nonce": "x", **info}

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with listener:
            yield listener.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"INFO " + json.dumps(self._info).encode() + b"\r\n")
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.lines.append(line)
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                self._answer(line, writer)
                await writer.drain()
        writer.close()


def nothing(_line: bytes, _writer: asyncio.StreamWriter) -> None:
    """Answer no more than the protocol asks for."""


@contextlib.asynccontextmanager
async def joined(port: int, heard: list[bytes], config: NatsConfig) -> AsyncIterator[Link]:
    fabric = NatsFabric(f"nats://127.0.0.1:{port}", Identity.generate("a"), config)
    link = await fabric.device("a", lambda *frame: heard.append(frame[2]))
    try:
        yield link
    finally:
        await link.close()


def test_who_sits_in_between_and_denies_tls_learns_nothing() -> None:
    async def scene() -> None:
        impostor = Impostor(nothing)
        async with impostor.listen() as port:
            fabric = NatsFabric(f"tls://127.0.0.1:{port}", Identity.generate("a"))
            with pytest.raises(BrokerError, match="offers no TLS, but its address asks for it"):
                await fabric.device("a", ignore)
        assert impostor.connections == 1
        assert impostor.lines == []

    run(scene())


def test_a_frame_that_is_announced_as_huge_is_not_stored() -> None:
    def announce(line: bytes, writer: asyncio.StreamWriter) -> None:
        if line.startswith(b"SUB d.a.m "):
            writer.write(b"MSG d.a.m 1 2000000000\r\n" + bytes(100 * KIB))

    async def scene() -> None:
        impostor, heard = Impostor(announce), list[bytes]()
        config = NatsConfig(limits=Limits(max_payload_bytes=64 * KIB), connect_s=2.0, reconnect_s=0.5)
        async with impostor.listen() as port:
            with contextlib.suppress(BrokerError):
                async with joined(port, heard, config):
                    await until(lambda: impostor.connections > 1)
            assert heard == []

    run(scene())


@pytest.mark.parametrize(
    "line",
    [
        b"MSG d.a.m 1 -5",
        b"MSG d.a.m 1 9999999999999999999",
        b"MSG\td.a.m\t1\t5\r\nhello",
        b"MSG d.a.m 1 5\r\nhello, too long",
        b"MSG \xff.\xfe 1 5\r\nhello",
        b"HMSG d.a.m 1 9 5\r\nhello",
        b"INFO not json",
        b"-ERR ",
        b"what is this",
    ],
)
def test_whatever_the_broker_says_ends_in_another_try(line: bytes) -> None:
    """A reader that died of it would leave a connection that nobody hears."""

    def say(heard: bytes, writer: asyncio.StreamWriter) -> None:
        if heard.startswith(b"SUB d.a.hb"):
            writer.write(line + b"\r\n")

    async def scene() -> None:
        impostor, heard = Impostor(say), list[bytes]()
        async with impostor.listen() as port:
            with contextlib.suppress(BrokerError):
                async with joined(port, heard, NatsConfig(connect_s=2.0, reconnect_s=0.5)):
                    await until(lambda: impostor.connections > 1)
            assert impostor.connections > 1
            assert heard == []

    run(scene())


@pytest.mark.parametrize("pings", [1, 100, 3000])
def test_a_broker_that_leaves_while_it_is_answered_is_tried_again(pings: int) -> None:
    def ask_and_leave(heard: bytes, writer: asyncio.StreamWriter) -> None:
        if heard.startswith(b"SUB d.a.hb"):
            writer.write(b"PING\r\n" * pings)
            writer.close()

    async def scene() -> None:
        impostor, heard = Impostor(ask_and_leave), list[bytes]()
        async with impostor.listen() as port:
            with contextlib.suppress(BrokerError):
                async with joined(port, heard, NatsConfig(connect_s=2.0, reconnect_s=0.5)):
                    await until(lambda: impostor.connections > 1)
            await until(lambda: impostor.connections > 1)

    run(scene())


def test_a_line_without_an_end_is_not_stored() -> None:
    stored: list[int] = []

    def babble(line: bytes, writer: asyncio.StreamWriter) -> None:
        if line.startswith(b"SUB d.a.hb"):
            writer.write(b"M" * (4 * MIB))

    async def scene() -> None:
        impostor = Impostor(babble)
        config = NatsConfig(limits=Limits(max_payload_bytes=64 * KIB), connect_s=2.0, reconnect_s=0.5)
        async with impostor.listen() as port:
            with contextlib.suppress(BrokerError):
                async with joined(port, [], config) as link:
                    parser = link._connection._client._ps  # type: ignore[attr-defined]
                    while impostor.connections == 1:
                        stored.append(len(parser.buf))
                        await asyncio.sleep(0)
        assert max(stored, default=0) <= 64 * KIB + 2 * MIB

    run(scene())


def test_a_frame_of_a_stranger_keeps_its_name() -> None:
    """An owner may hear of names that it never enrolled, from a broker of others; it looks them up."""

    def introduce(line: bytes, writer: asyncio.StreamWriter) -> None:
        if line.startswith(b"SUB o.*.m"):
            writer.write(b"MSG o.stranger.m 1 5\r\nhello\r\n")

    async def scene() -> None:
        heard: list[str] = []
        async with Impostor(introduce).listen() as port:
            fabric = NatsFabric(f"nats://127.0.0.1:{port}", Identity.generate(OWNER))
            link = await fabric.owner(lambda peer, *_: heard.append(peer))
            await until(lambda: heard)
            await link.close()
        assert heard == ["stranger"]

    run(scene())


@pytest.fixture
def at_deaf_broker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], None]:
    """Play a scene at a broker that lets a device in and then reads nothing more."""
    monkeypatch.setattr(connection, "_CLOSE_S", 0.1)
    return with_deaf_broker


def with_deaf_broker(scene: Scene) -> None:

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload": 1048576, "nonce": "x", "headers": true}\r\n')
        pings = 0
        while pings < 3 and (line := await reader.readline()):
            if line.startswith(b"PING"):
                pings += 1
                writer.write(b"PONG\r\n")
        await leave.wait()
        writer.close()

    async def whole() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0, limit=64 * KIB)
        async with listener:
            config = NatsConfig(pending_bytes=1 * MIB)
            async with joined(listener.sockets[0].getsockname()[1], [], config) as link:
                await scene(link)
            leave.set()

    leave = asyncio.Event()
    run(whole())


async def fill(link: Link) -> "asyncio.Task[None]":
    """Send until there is no more room; returns the send that waits."""
    while True:
        sending = asyncio.ensure_future(link.send(OWNER, bytes(512 * KIB)))
        done, _ = await asyncio.wait({sending}, timeout=0.2)
        if not done:
            return sending


def test_a_send_waits_for_room_and_can_be_cancelled(at_deaf_broker: Callable[[Scene], None]) -> None:
    async def scene(link: Link) -> None:
        waiting = await fill(link)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.send(OWNER, bytes(512 * KIB))
        assert not link.closed

    at_deaf_broker(scene)


def test_closing_ends_a_send_that_waits(at_deaf_broker: Callable[[Scene], None]) -> None:
    async def scene(link: Link) -> None:
        waiting = await fill(link)
        await link.close()
        with pytest.raises(ClosedError):
            await waiting

    at_deaf_broker(scene)
