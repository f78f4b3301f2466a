"""The transport that reads payloads into their own memory, against a server of a few lines."""

import asyncio
import contextlib
import random
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats import errors

from awfulowl.fabric.direct import DirectTransport, Stream
from awfulowl.limits import KIB
from tests.loops import LOOPS, run

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def connected(serve: Serve) -> AsyncIterator[DirectTransport]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    transport = DirectTransport()
    port = server.sockets[0].getsockname()[1]
    await transport.connect(urllib.parse.urlparse(f"nats://127.0.0.1:{port}"), 0, 5)
    try:
        yield transport
    finally:
        transport.close()
        await transport.wait_closed()
        server.close()


def saying(*pieces: bytes, end: bool = True) -> Serve:
    """Send these, each in a write of its own, and close, or wait until the other end does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if not end:
            await reader.read()
        writer.close()

    return serve


class Loop:
    """A connection under a stream, without a socket."""

    def __init__(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return False


def feed(stream: Stream, loop: Loop, data: bytes) -> bytes:
    """Read once from a socket that has `data`; return what is left there."""
    if loop.paused or not data:
        return data
    buffer = stream.get_buffer(-1)
    count = min(len(buffer), len(data))
    assert count > 0, "a loop treats an empty buffer as an error"
    buffer[:count] = data[:count]
    stream.buffer_updated(count)
    return data[count:]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_lines_and_payloads_come_as_they_were_sent(data: st.DataObject) -> None:
    """Whatever the sizes, and however the socket cuts what comes."""
    sizes = st.one_of(st.integers(0, 40), st.integers(0, 3 * 64 * KIB))
    wanted = data.draw(st.lists(st.tuples(st.integers(0, 60), sizes), max_size=6))
    seed = random.Random(data.draw(st.integers(0, 2**32)))
    messages = [(seed.randbytes(line).replace(b"\n", b"."), seed.randbytes(size)) for line, size in wanted]
    sent = b"".join(line + b"\n" + payload for line, payload in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
    pieces = [sent[a:b] for a, b in pairwise([0, *cuts, len(sent)])]

    async def scene() -> None:
        stream, loop = Stream(), Loop()
        stream.connection_made(loop)  # type: ignore[arg-type]

        async def socket() -> None:
            waiting = b""
            for piece in pieces:
                waiting += piece
                while waiting:
                    waiting = feed(stream, loop, waiting)
                    if loop.paused or seed.random() < 0.3:
                        await asyncio.sleep(0)
            stream.eof_received()

        feeding = asyncio.ensure_future(socket())
        for line, payload in messages:
            assert await stream.readline() == line + b"\n"
            memory = bytearray(len(payload))
            await stream.read_into(memoryview(memory))
            assert memory == payload
        assert await stream.readline() == b""
        assert stream.at_eof()
        await feeding

    run(scene())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_line_without_end_is_refused_when_the_buffer_is_full(loop: str) -> None:
    async def scene() -> None:
        async with connected(saying(b"x" * (1 << 20))) as transport:
            with pytest.raises(errors.ProtocolError):
                await transport.readline()

    run(scene(), loop_factory=LOOPS[loop])


@pytest.mark.parametrize("loop", LOOPS)
def test_an_end_in_the_middle_of_a_payload_is_an_error(loop: str) -> None:
    async def scene() -> None:
        async with connected(saying(b"line\nhalf a pay")) as transport:
            assert await transport.readline() == b"line\n"
            with pytest.raises(errors.UnexpectedEOF):
                await transport.stream.read_into(memoryview(bytearray(14)))
            assert transport.at_eof()
            assert await transport.readline() == b""

    run(scene(), loop_factory=LOOPS[loop])


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_left_without_a_line_end_comes_at_the_end(loop: str) -> None:
    async def scene() -> None:
        async with connected(saying(b"a\nb")) as transport:
            assert [await transport.readline() for _ in range(3)] == [b"a\n", b"b", b""]

    run(scene(), loop_factory=LOOPS[loop])


@pytest.mark.parametrize("loop", LOOPS)
def test_who_reads_nothing_stores_no_more_than_a_buffer(loop: str) -> None:
    written = 0

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(64 * KIB))
                await writer.drain()
                written += 64 * KIB

    async def scene() -> None:
        async with connected(serve) as transport:
            before = -1
            while before != written:  # until both sockets are full as well
                before = written
                await asyncio.sleep(0.1)
            assert len(transport.stream._buffer) == 64 * KIB

    run(scene(), loop_factory=LOOPS[loop])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_writer_waits_for_room_and_hears_of_the_end(loop: str) -> None:
    stop = asyncio.Event()

    async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stop.wait()
        writer.transport.abort()

    async def scene() -> None:
        async with connected(deaf) as transport:
            transport.writelines([bytes(1 << 24)])
            waiting = asyncio.ensure_future(transport.drain())
            done, _ = await asyncio.wait([waiting], timeout=0.05)
            assert not done
            stop.set()
            await waiting
            with pytest.raises(OSError, match=r"."):
                await transport.drain()

    run(scene(), loop_factory=LOOPS[loop])


def test_before_it_is_connected_there_is_nothing_to_read_or_close() -> None:
    async def scene() -> None:
        transport = DirectTransport()
        assert transport
        assert transport.at_eof()
        transport.close()
        await transport.wait_closed()
        with pytest.raises(errors.ConnectionClosedError):
            await transport.readline()

    run(scene())


@pytest.mark.parametrize("loop", LOOPS)
def test_an_upgrade_that_fails_leaves_nothing_to_wait_for(loop: str) -> None:
    async def scene() -> None:
        async with connected(saying(b"this is no TLS\n" * 100)) as transport:
            with pytest.raises((OSError, errors.Error)):
                await transport.connect_tls("localhost", ssl.create_default_context(), 0, 2)
            transport.close()
            await asyncio.wait_for(transport.wait_closed(), 1)

    run(scene(), loop_factory=LOOPS[loop])


@pytest.mark.parametrize("loop", LOOPS)
def test_connecting_again_closes_what_was_there(loop: str) -> None:
    async def scene() -> None:
        async with connected(saying(b"a\n", end=False)) as transport:
            first, address = transport.stream, transport.stream.transport.get_extra_info("peername")
            await transport.connect(urllib.parse.urlparse(f"nats://127.0.0.1:{address[1]}"), 0, 5)
            await asyncio.wait_for(first.closed.wait(), 1)
            assert await transport.readline() == b"a\n"

    run(scene(), loop_factory=LOOPS[loop])
