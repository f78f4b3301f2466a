"""The embedded broker: a NATS server on this machine, run by the owner, with one key and few rights per device.

Rights: the owner publishes `d.>` and hears `o.>` and `hb.>`; a device hears `d.<name>.>` and publishes `o.<name>.>`
and `hb.<name>`, nothing else. So no device hears another, speaks in its name, or meets an `_INBOX`.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from awfulowl.errors import BrokerError, InputError
from awfulowl.fabric.base import OWNER, check_name
from awfulowl.fabric.broker_binary import find_binary, verify_binary
from awfulowl.fabric.identity import check_nkey
from awfulowl.fabric.private_files import write_private
from awfulowl.fabric.tether import tethered
from awfulowl.files import Scratch
from awfulowl.limits import DEFAULT, GIB, KIB, Limits

_LISTENING: Final = re.compile(r"Listening for client connections on \S+:(\d+)$")
_READY: Final = re.compile(r"Server is ready$")
_RELOADED: Final = re.compile(r"(Reloaded|Failed to reload) server configuration")
_STOP_S: Final = 5.0
_COLLECTOR: Final = {"GOGC": "1000", "GOMEMLIMIT": "1GiB"}
"""How far, in percent, the server lets garbage grow before it collects, and up to how much memory: at Go's 100 that was
a third of its time. The environment may say otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerConfig:
    """How to run a broker."""

    port: int | None = None
    """On the loopback interface; without one the server takes a free one."""

    limits: Limits = DEFAULT

    max_pending_bytes: int = 1 * GIB
    """What may wait for one slow client before the server drops it: the credit of 32 devices, for the owner."""

    ping_s: int = 10
    """A client that misses two of these in a row is gone."""

    write_deadline_s: int = 10
    """A client that takes nothing for so long is dropped."""

    patience_s: float = 10.0
    """The server has so long to start, and to take in a change."""

    search_path: bool = False
    """Take a `nats-server` from the search path when the package is missing; its digest must be right all the same."""

    sha256: str | None = None
    """The digest of a server of one's own, instead of the recorded ones."""


class Broker:
    """Runs from `start` to `stop`, inside one event loop, and no longer than the thread of that loop.

    `owner` and the values of `devices` are public NKeys (`Enrolment.nkey_public`).
    """

    def __init__(
        self, owner: str, devices: Mapping[str, str] | None = None, config: BrokerConfig | None = None
    ) -> None:
        """Check the keys.

        Raises:
            InputError: a name or a key is none, or is there twice.
        """
        self._owner = check_nkey(owner)
        self._devices: dict[str, str] = {}
        for name, key in (devices or {}).items():
            self._devices = self._with(name, key)
        self._config = config if config is not None else BrokerConfig()
        self._changing = asyncio.Lock()
        self._folder: Scratch | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._journal = _Journal()
        self._port = 0
        self._stopping = False

    @property
    def url(self) -> str:
        """The address, once it is started."""
        if self._process is None:
            raise BrokerError("the broker is not running: start it first")
        return f"nats://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Verify the program, start it, and return when it can be reached.

        Raises:
            BrokerError: there is no program, it is another one, the port is in use, or it does not start.
        """
        if self._process is not None:
            raise BrokerError("the broker is running already")
        binary = find_binary(search_path=self._config.search_path)
        await asyncio.to_thread(verify_binary, binary, self._config.sha256)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.stop)
            self._folder = Scratch("broker")
            self._write(self._devices)
            await self._launch(binary)
            undo.pop_all()

    async def _launch(self, binary: Path) -> None:
        self._journal, self._stopping = _Journal(), False
        listening, ready = self._journal.expect(_LISTENING), self._journal.expect(_READY)
        # Started in the thread of the loop, whose end is the end of the server; a session of its own keeps the
        # terminal's Ctrl-C from it, so that it is still there while the fleet says goodbye.
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220
                tethered([str(binary), "-c", str(self._file)]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                env={**_COLLECTOR, **os.environ},
            )
        except OSError as error:
            raise BrokerError(f"the broker {binary} cannot be started: {error.strerror}") from error
        await asyncio.get_running_loop().connect_read_pipe(lambda: self._journal, self._process.stderr)
        try:
            async with asyncio.timeout(self._config.patience_s):
                if await ready is None:
                    raise BrokerError(self._why_not_started())
                port = await listening
        except TimeoutError as error:
            raise BrokerError(f"the broker did not start within {self._config.patience_s:g} s") from error
        self._port = int(port[1]) if port is not None else 0

    def _why_not_started(self) -> str:
        if "address already in use" in self._journal.last:
            return (
                f"port {self._config.port} is in use on this machine: stop what uses it, give another port, "
                "or let a free one be taken: owl broker --port 0"
            )
        return f"the broker did not start: {self._journal.last}"

    async def wait(self) -> None:
        """Wait until it is stopped.

        Raises:
            BrokerError: it was not running, or ended by itself.
        """
        if self._process is None:
            raise BrokerError("the broker is not running: start it first")
        await self._journal.ended.wait()
        if not self._stopping:
            raise BrokerError(f"the broker ended by itself; its last words: {self._journal.last}")

    async def stop(self) -> None:
        """Stop the server, at the latest by force, and remove what it wrote. Stopping again does nothing."""
        self._stopping = True
        if self._process is not None:
            for end in (self._process.terminate, self._process.kill):
                end()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_S):
                        await self._journal.ended.wait()
                        break
            self._process.wait()
            self._process = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    async def enrol(self, name: str, nkey_public: str) -> None:
        """Let a device in; returns when the server knows it. Enrolling the same again does nothing.

        Raises:
            InputError: the name or the key is none, or is taken.
            BrokerError: the server is not running, or does not take the change in.
        """
        async with self._changing:
            await self._change(self._with(name, nkey_public))

    async def revoke(self, name: str) -> None:
        """Cut a device off and forget its key; returns when that is done.

        Raises:
            InputError: no such device is enrolled.
            BrokerError: the server is not running, or does not take the change in.
        """
        async with self._changing:
            if name not in self._devices:
                raise InputError(f"no device {name!r:.80} is enrolled")
            await self._change({other: key for other, key in self._devices.items() if other != name})

    def _with(self, name: str, key: str) -> dict[str, str]:
        if check_name(name) == OWNER:
            raise InputError(f"a device cannot be called {OWNER!r}: that is the owner's name")
        if self._devices.get(name, check_nkey(key)) != key:
            raise InputError(f"a device {name!r} with another key is enrolled; revoke it first")
        if any(key == other and name != taken for taken, other in [*self._devices.items(), (OWNER, self._owner)]):
            raise InputError(f"the key of {name!r} is enrolled under another name")
        return {**self._devices, name: key}

    async def _change(self, devices: dict[str, str]) -> None:
        """Reload the server with other rights; they hold when it says so, also for who is connected."""
        if self._process is None or self._journal.ended.is_set():
            raise BrokerError(f"the broker is not running any more; its last words: {self._journal.last}")
        self._write(devices)
        outcome = self._journal.expect(_RELOADED)
        self._process.send_signal(signal.SIGHUP)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.patience_s):
                await outcome
        match = outcome.result() if not outcome.cancelled() else None
        if match is None or match[1] == "Failed to reload":
            self._write(self._devices)
            raise BrokerError(f"the broker did not take in a change of its devices: {self._journal.last}")
        self._devices = devices

    @property
    def _file(self) -> Path:
        if self._folder is None:
            raise BrokerError("the broker is not running: start it first")
        return self._folder.path / "broker.json"

    def _write(self, devices: Mapping[str, str]) -> None:
        write_private(self._file, msgspec.json.encode(_settings(self._config, self._owner, devices)))


def _settings(config: BrokerConfig, owner: str, devices: Mapping[str, str]) -> dict[str, Any]:
    """The server's configuration file, which may be written as JSON."""
    users = [_user(owner, publish=["d.>"], subscribe=["o.>", "hb.>"])]
    for name, key in devices.items():
        users.append(_user(key, publish=[f"o.{name}.>", f"hb.{name}"], subscribe=[f"d.{name}.>"]))
    return {
        "listen": f"127.0.0.1:{-1 if config.port is None else config.port}",
        "max_payload": config.limits.max_payload_bytes,
        "max_pending": config.max_pending_bytes,
        "ping_interval": f"{config.ping_s}s",
        "ping_max": 2,
        "write_deadline": f"{config.write_deadline_s}s",
        "authorization": {"users": users},
    }


def _user(key: str, publish: list[str], subscribe: list[str]) -> dict[str, Any]:
    return {"nkey": key, "permissions": {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}}


class _Journal(asyncio.Protocol):
    """What the server writes about itself: the last lines, and who waits for which line."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._lines: deque[str] = deque(["it has written nothing"], maxlen=20)
        self._rest = b""
        self._waiting: list[tuple[re.Pattern[str], asyncio.Future[re.Match[str] | None]]] = []

    @property
    def last(self) -> str:
        """The last line, without its time."""
        return re.sub(r"^\[\d+\] \S+ \S+ ", "", self._lines[-1])

    def expect(self, pattern: re.Pattern[str]) -> asyncio.Future[re.Match[str] | None]:
        """Return a future of the first line from now on that matches, or of None if the server ends before."""
        future: asyncio.Future[re.Match[str] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pattern, future))
        return future

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-64 * KIB :]
        for line in filter(None, lines):
            self._read(line.decode(errors="replace"))

    def _read(self, line: str) -> None:
        self._lines.append(line)
        for pattern, future in self._waiting:
            if not future.done() and (match := pattern.search(line)) is not None:
                future.set_result(match)
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop when the server has ended."""
        del error
        if self._rest:
            self._read(self._rest.decode(errors="replace"))
        for _, future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
        self.ended.set()
