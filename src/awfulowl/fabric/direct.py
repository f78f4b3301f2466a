"""A connection of nats-py whose payloads go from the socket straight into memory of their own.

The transport that comes with the client copies each byte five times on its way in: into a stream, out of it in pieces
of 32 KiB, into a parser, and twice out of that. Here the reader asks for a line, or hands over the memory to be filled,
and the loop reads into it.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import ParseResult

from nats import errors
from nats.aio.transport import Transport

from awfulowl.limits import KIB

_LINES_BYTES: Final = 64 * KIB
"""More than the longest line of an honest broker: what it tells about itself."""


class DirectTransport(Transport):
    """TCP, upgraded to TLS if asked to."""

    def __init__(self) -> None:
        self._stream: Stream | None = None

    @property
    def stream(self) -> "Stream":
        """What is read from; another one after each connection and upgrade."""
        if self._stream is None:
            raise errors.ConnectionClosedError
        return self._stream

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:  # noqa: ARG002
        """Connect in the clear."""
        self.close()
        stream = Stream()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(connect_timeout):
            await loop.create_connection(lambda: stream, host=uri.hostname or "", port=uri.port or 0)
        self._stream = stream

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,  # noqa: ARG002
        connect_timeout: float,
    ) -> None:
        """Go on encrypted."""
        # A stream of its own: what came in the clear before must not be read as if it had been encrypted.
        plain, secured = self.stream, Stream()
        host = uri if isinstance(uri, str) else uri.hostname
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_timeout):
                transport = await loop.start_tls(plain.transport, secured, ssl_context, server_hostname=host)
        except BaseException:
            plain.transport.abort()
            plain.connection_lost(None)  # the loop tells the other stream, which nobody waits for
            raise
        if transport is None:
            raise errors.ConnectionClosedError
        secured.connection_made(transport)
        self._stream = secured

    def write(self, payload: bytes) -> None:
        """Send."""
        self.writelines([payload])

    def writelines(self, payload: Sequence[bytes]) -> None:
        """Send one after the other.

        Raises:
            OSError: the connection is lost.
        """
        try:
            self.stream.transport.writelines(payload)
        except RuntimeError as error:  # uvloop's for a socket that is closed already
            raise ConnectionResetError("the connection is lost") from error

    async def read(self, buffer_size: int) -> bytes:
        """Never called: who reads asks the stream."""
        raise NotImplementedError

    async def readline(self) -> bytes:
        """Return what is next up to the end of a line, or of the connection."""
        return await self.stream.readline()

    async def drain(self) -> None:
        """Wait until there is room to send."""
        await self.stream.drain()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        if self._stream is not None:
            await self._stream.closed.wait()

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.transport.close()

    def at_eof(self) -> bool:
        """Say whether the connection has ended and everything is read."""
        return self._stream is None or self._stream.at_eof()

    def __bool__(self) -> bool:
        """The client replaces a transport that is false by one of its own."""
        return True


class Stream(asyncio.BufferedProtocol):
    """Lines out of a small buffer, payloads into memory of the reader. One reader at a time.

    Invariant: while a payload is read, the buffer holds nothing that comes before its end.
    """

    transport: Any = None
    """Set when the connection is made; through TLS the first bytes may come before."""

    def __init__(self) -> None:
        self.closed: Final = asyncio.Event()
        self._buffer = bytearray(_LINES_BYTES)
        self._start = 0
        self._end = 0  # what is read and not asked for yet lies between
        self._target = memoryview(b"")  # the rest of the memory to be filled
        self._fills_target = False
        self._ended = False
        self._error: Exception | None = None
        self._paused = False
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # The loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self.transport = transport
        if self._paused:
            self.transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Say where to read to."""
        self._fills_target = len(self._target) > 0
        return self._target if self._fills_target else memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of what was read."""
        if self._fills_target:
            self._target = self._target[nbytes:]
            if len(self._target) > 0:
                return
        else:
            self._end += nbytes
            if self._end == len(self._buffer):
                self._paused = True
                if self.transport is not None:
                    self.transport.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        """Take note that nothing more will come."""
        self._ended = True
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits: it is over."""
        self._ended, self._error = True, exc
        self.closed.set()
        self._news.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """Let writers wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._writable.set()

    # The client calls these.

    async def readline(self) -> bytes:
        """Return a line with its end; at the end of the connection what is left.

        Raises:
            ProtocolError: it is longer than the buffer.
            OSError: the connection broke.
        """
        while (at := self._buffer.find(b"\n", self._start, self._end)) < 0:
            if self._end - self._start == len(self._buffer):
                raise errors.ProtocolError
            if not await self._more():
                return self._pop(self._end - self._start)
        return self._pop(at + 1 - self._start)

    async def read_into(self, memory: memoryview) -> None:
        """Fill `memory` with what is next.

        Raises:
            UnexpectedEOF: the connection ends before it is full.
            OSError: the connection broke.
        """
        count = min(len(memory), self._end - self._start)
        memory[:count] = memoryview(self._buffer)[self._start : self._start + count]
        self._start += count
        self._target = memory[count:]
        try:
            while len(self._target) > 0:
                if not await self._more():
                    raise errors.UnexpectedEOF
        finally:
            self._target = memoryview(b"")

    def at_eof(self) -> bool:
        """Say whether the connection has ended and everything is read."""
        return self._ended and self._start == self._end

    async def drain(self) -> None:
        """Wait until there is room to send.

        Raises:
            OSError: the connection is lost.
        """
        if self.closed.is_set():
            raise self._error or ConnectionResetError("the connection is lost")
        if self.transport.is_closing():
            await asyncio.sleep(0)  # or who writes again and again would never hear that it is lost
        await self._writable.wait()

    def _pop(self, count: int) -> bytes:
        data = bytes(memoryview(self._buffer)[self._start : self._start + count])
        self._start += count
        return data

    async def _more(self) -> bool:
        """Wait until more is there; false at the end of the connection."""
        if self._error is not None:
            raise self._error
        if self._ended:
            return False
        self._make_room()
        self._news.clear()
        await self._news.wait()
        return True

    def _make_room(self) -> None:
        """Move what is not asked for yet to the front."""
        rest = self._end - self._start
        self._buffer[:rest] = self._buffer[self._start : self._end]
        self._start, self._end = 0, rest
        if self._paused and rest < len(self._buffer):
            self._paused = False
            self.transport.resume_reading()
