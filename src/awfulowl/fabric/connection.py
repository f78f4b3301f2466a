"""A connection to a NATS broker: the client of nats-py, with bounded waits, strict TLS, and errors of ours."""

import asyncio
import importlib.util
import ipaddress
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nats import errors
from nats.aio.msg import Msg

from awfulowl.errors import BrokerError, ClosedError, InputError, LimitError
from awfulowl.fabric.base import Payload
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.strict_client import StrictClient
from awfulowl.limits import DEFAULT, MIB, Limits
from awfulowl.wire.frames import Frame

_log = logging.getLogger(__name__)

_SECURE: Final = {"nats": False, "ws": False, "tls": True, "wss": True}
_PING_S: Final = 10
_RETRY_S: Final = 0.2
_CLOSE_S: Final = 5.0
_COMMAND_BYTES: Final = 256
"""More than the client writes around a payload."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NatsConfig:
    """How to reach a broker, and how long to wait for it."""

    limits: Limits = DEFAULT

    connect_s: float = 5.0
    """A broker that has not let us in by then is not there."""

    reconnect_s: float = 30.0
    """A connection that is gone for longer is lost for good."""

    pending_bytes: int = 4 * MIB
    """Frames that wait for the socket; `send` waits while there are more. Throughput is best from 2 to 4 MiB."""

    ca_file: Path | None = None
    """Certificates to trust instead of the system's, for `tls://` and `wss://`."""

    allow_plain: bool = False
    """Let `nats://` and `ws://` leave this machine: whoever is on the way reads every frame."""


class Connection:
    """One connection, from `open` to the end; it comes back by itself after a break."""

    def __init__(self, url: str, config: NatsConfig) -> None:
        self.ended: Final[asyncio.Future[str | None]] = asyncio.get_running_loop().create_future()
        """Done when it is closed (None) or lost for good (why)."""
        self._url = url
        self._config = config
        self._client = StrictClient(config.limits.max_payload_bytes)
        self._up = asyncio.Event()
        self._trouble = "no answer"
        self._patience: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that both the broker and our limits allow."""
        return min(self._client.max_payload, self._config.limits.max_payload_bytes)

    async def open(self, identity: Identity) -> None:
        """Connect and log in.

        Raises:
            BrokerError: nobody answers in time, or the broker refuses this identity.
        """
        if not await self._completes(self._client.connect(**self._options(identity)), self._config.connect_s):
            raise BrokerError(self._why_not_joined())
        self._up.set()

    def _options(self, identity: Identity) -> dict[str, Any]:
        return {
            "servers": [self._url],
            "name": identity.name,
            "nkeys_seed_str": identity.nkey_seed,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
            "connect_timeout": self._config.connect_s,
            "reconnect_time_wait": _RETRY_S,
            # The client would count attempts, each of which may take long; the timers here count seconds.
            "max_reconnect_attempts": -1,
            "ping_interval": _PING_S,
            "pending_size": self._config.pending_bytes,
            "flush_timeout": self._config.reconnect_s,
            **({"tls": _trust(self._config.ca_file)} if _SECURE[urlsplit(self._url).scheme] else {}),
        }

    async def subscribe(self, subject: str, call: Callable[[Msg], Awaitable[None]]) -> None:
        """Let `call` have what is published on `subject`.

        The client drops messages, telling a log only, when the queue of a subscription is full; so it has no bound
        here. It needs none: `call` never waits, and the queue holds what one read of the socket brought.

        Raises:
            BrokerError: the connection is lost already.
        """
        try:
            await self._client.subscribe(subject, cb=call, pending_msgs_limit=0, pending_bytes_limit=0)
        except (errors.Error, OSError) as error:
            self._trouble = _describe(error)
            raise BrokerError(self._why_not_joined()) from error

    async def confirm(self) -> None:
        """Wait until the broker has seen all of the above.

        Raises:
            BrokerError: it refused some of it, or does not answer.
        """
        for _ in range(2):  # the first PING may overtake what waits in the client's buffer
            try:
                answered = await self._completes(self._client.flush(), self._config.connect_s)
            except errors.Error as error:
                self._trouble, answered = _describe(error), False
            if not answered or self.ended.done():
                raise BrokerError(self._why_not_joined())

    def _why_not_joined(self) -> str:
        if self.ended.done():
            return self._farewell()
        silence = f"no broker lets us in at {self._url} within {self._config.connect_s:g} s ({self._trouble})"
        return f"{silence}: is it running, and is the address right?"

    async def publish(self, subject: str, payload: Payload | Frame) -> None:
        """Send, once there is a connection and room.

        Raises:
            ClosedError: the connection is closed or lost for good.
            LimitError: the broker to which it came back takes less than the first one.
        """
        while True:
            await self._up.wait()
            try:
                await self._publish_now(subject, payload)
            except errors.OutboundBufferLimitError:
                # The connection broke a moment ago, and what waits for the next one fills the buffer.
                await asyncio.sleep(_RETRY_S)
            except errors.MaxPayloadError as error:
                raise LimitError(f"the broker takes {self._client.max_payload} bytes, not {len(payload)}") from error
            except errors.ConnectionClosedError as error:
                raise ClosedError(self._farewell()) from error
            else:
                return

    async def _publish_now(self, subject: str, payload: Payload | Frame) -> None:
        publishing = self._client.publish(subject, payload)  # type: ignore[arg-type]  # views are sent as they are
        if self._client.pending_data_size + len(payload) + _COMMAND_BYTES <= self._config.pending_bytes:
            await publishing
        # The client's own wait for room swallows cancellations, and lasts for ever if it is closed meanwhile.
        elif not await self._completes(publishing):
            raise ClosedError(self._farewell())

    async def _completes(self, work: Coroutine[Any, Any, None], timeout_s: float | None = None) -> bool:
        """Return whether `work` is done before the connection ends or the time is over; raise what it raises."""
        task = asyncio.ensure_future(work)
        waits: set[asyncio.Future[Any]] = {task, self.ended}
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _farewell(self) -> str:
        reason = self.ended.result() if self.ended.done() else None
        return reason or f"the connection to the broker at {self._url} is closed"

    async def close(self) -> None:
        """Send what waits, then leave."""
        self._finish(None)
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _finish(self, reason: str | None) -> None:
        """End, once; the client is closed in the background."""
        if self._patience is not None:
            self._patience.cancel()
        if not self.ended.done():
            self.ended.set_result(reason)
            self._up.set()
            self._closing = asyncio.ensure_future(self._close_client())

    async def _close_client(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._client.close()
        except (OSError, RuntimeError) as error:  # uvloop's for a socket that is closed already
            _log.warning("the broker at %s did not take the last frames: %s", self._url, _describe(error))

    async def _on_error(self, error: Exception) -> None:
        self._trouble = _describe(error)
        _log.debug("%s: %s", self._url, self._trouble)
        if (reason := _hopeless(error)) is not None:
            self._finish(f"the broker at {self._url} {reason}")

    async def _on_disconnected(self) -> None:
        self._up.clear()
        if not self.ended.done():
            _log.warning("the broker at %s is gone; trying again for %g s", self._url, self._config.reconnect_s)
            self._patience = asyncio.get_running_loop().call_later(self._config.reconnect_s, self._give_up)

    def _give_up(self) -> None:
        patience_s = self._config.reconnect_s
        self._finish(f"the broker at {self._url} is lost: no connection for {patience_s:g} s ({self._trouble})")

    async def _on_reconnected(self) -> None:
        _log.info("the broker at %s is back", self._url)
        if self._patience is not None:
            self._patience.cancel()
        self._up.set()

    async def _on_closed(self) -> None:
        error = self._client.last_error
        reason = _hopeless(error) or f"closed the connection ({_describe(error)})"
        self._finish(f"the broker at {self._url} {reason}")


def _hopeless(error: Exception | None) -> str | None:
    """Return why trying again is of no use, or None if it may be of use."""
    text = str(error).lower()
    if isinstance(error, errors.AuthorizationError) or "authorization violation" in text:
        return "does not know this identity: it was not enrolled there, or was revoked"
    if "permissions violation" in text:
        return f"allows this identity less than its name needs ({_describe(error)}): enrol it under this name"
    if isinstance(error, errors.SecureConnRequiredError):
        return "offers no TLS, but its address asks for it: somebody may sit in between"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not trusted ({error.verify_message}): name its authority in `ca_file`"
    return None


def _describe(error: Exception | None) -> str:
    return str(error) or type(error).__name__


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise InputError(f"ca_file {ca_file} holds no certificates: {error}") from error


def check_url(url: str, config: NatsConfig) -> str:
    """Return `url` if frames may go there.

    Raises:
        InputError: no address of a broker, with a password in it, or unencrypted to another machine.
    """
    try:
        parts = urlsplit(url)
        host, secure = parts.hostname, _SECURE.get(parts.scheme)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"the broker's address is not one: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise InputError("the broker's address names a user or a password; the key of the identity is all it takes")
    if host is None or secure is None:
        raise InputError(f"{url!r:.200} is no address of a broker: it is like tls://host:4222 or wss://host:443")
    if not secure and not config.allow_plain and not _is_this_machine(host):
        raise InputError(
            f"{url} would send frames in the clear: use tls:// or wss://, or nats:// to a tunnel's end on this machine"
        )
    if parts.scheme in {"ws", "wss"} and importlib.util.find_spec("aiohttp") is None:
        raise InputError(f"{parts.scheme}:// needs aiohttp, which is not installed: pip install 'awfulowl[websocket]'")
    return url


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
