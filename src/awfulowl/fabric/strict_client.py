"""The client of nats-py, strict and direct: the broker must encrypt if asked to, and may not fill our memory.

Large payloads are read into their final memory (`direct`) and sent from where they lie: copies were most of their time.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final

from nats import errors
from nats.aio.client import Client, Srv
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from awfulowl.fabric.direct import DirectTransport, Stream
from awfulowl.limits import KIB, MIB
from awfulowl.wire.buffers import BUFFERS
from awfulowl.wire.frames import Frame

_MESSAGE: Final = re.compile(rb"(H)?MSG +(\S+) +(\d{1,18}) +(?:\S+ +)?(?(1)(\d{1,18}) +)(\d{1,18}) *\r\n")
"""MSG subject sid [reply] bytes, HMSG subject sid [reply] header-bytes bytes."""

_LINE_END: Final = b"\r\n"

_WORTH_PIECES: Final = 16 * KIB
"""Frames below are joined: the system takes longer for another piece."""


class StrictClient(Client):
    """Says nothing in the clear if TLS was asked for, stores nothing that is too large, and closes after a break."""

    def __init__(self, max_payload_bytes: int) -> None:
        super().__init__()
        self._most_bytes = max_payload_bytes + MIB  # headers, and over WebSockets what one read brings beyond
        self._ps = _StrictParser(self, self._most_bytes)

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport is None and s.uri.scheme in {"nats", "tls"}:
            self._transport = DirectTransport()
        await super()._connect_to_server(s)

    async def _read_loop(self) -> None:
        if not isinstance(self._transport, DirectTransport):
            await super()._read_loop()  # a WebSocket brings frames of its own
            return
        try:
            await self._read_messages(self._transport.stream)
        except asyncio.CancelledError:
            return
        except (errors.Error, OSError) as error:
            await self._error_cb(error)
            await self._process_op_err(error)

    async def _read_messages(self, stream: Stream) -> None:
        while line := await stream.readline():
            try:
                if (message := _MESSAGE.fullmatch(line)) is not None:
                    await self._read_message(stream, message)
                else:
                    await self._ps.parse(line)
            except (ValueError, AttributeError) as error:  # what the base class makes of lines that it does not expect
                raise errors.ProtocolError from error
            if self._ps.buf or self._ps.state != AWAITING_CONTROL_LINE:
                raise errors.ProtocolError
        raise errors.UnexpectedEOF

    async def _read_message(self, stream: Stream, message: re.Match[bytes]) -> None:
        _, subject, subscription, header, total = message.groups()
        headers, size = int(header or 0), int(total)
        if not headers <= size <= self._most_bytes:
            raise errors.ProtocolError
        memory = BUFFERS.take(size + len(_LINE_END))
        await stream.read_into(memory)
        if bytes(memory[size:]) != _LINE_END:
            raise errors.ProtocolError
        payload: Any = memory[headers:size].toreadonly()  # the base class hands it on as it is, and says bytes
        await self._process_msg(int(subscription), subject, b"", payload, b"")

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes | Frame, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        if reply or headers is not None:
            await super()._send_publish(subject, reply, bytes(payload), payload_size, headers)
            return
        # The base class joins command and payload; here the payload goes to the socket as it is.
        command = b"PUB %b %d\r\n" % (subject.encode(), payload_size)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        self._pending += [command, *filter(len, self._parts(payload))]  # uvloop takes no empty pieces
        self._pending_data_size += len(command) + payload_size
        await self._send_command(_LINE_END)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _parts(self, payload: bytes | Frame) -> Sequence[Any]:
        if not isinstance(payload, Frame):
            return [payload]
        apart = len(payload) >= _WORTH_PIECES and isinstance(self._transport, DirectTransport)
        return payload.parts if apart else [bytes(payload)]  # a WebSocket would make a frame of its own of each

    def _connect_command(self) -> bytes:
        # The base class encrypts when the server says so, whatever the address: who sits in between has only to deny
        # it. This is called last before anything is sent, at the first connection and at every later one.
        server = self._current_server
        if server is not None and server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise errors.SecureConnRequiredError
        command: bytes = super()._connect_command()
        return command

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._flush_queue is None:
            self._status = status  # it never got as far as a connection
            return
        if self._transport is None or not self.is_connected or self._transport.at_eof():
            # The base class would write what waits to a socket that is closed, and leave its tasks behind.
            self._pending.clear()
            self._pending_data_size = 0
        await super()._close(status, do_cbs)


class _StrictParser(Parser):
    """The base class stores as many bytes as the server announces, or sends without an end of line."""

    def __init__(self, client: Client, most_bytes: int) -> None:
        super().__init__(client)
        self._most_bytes = most_bytes

    async def parse(self, data: bytes = b"") -> None:
        await super().parse(data)
        if max(self.needed, len(self.buf)) > self._most_bytes:
            self.needed = 0
            raise errors.ProtocolError
