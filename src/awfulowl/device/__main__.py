"""A device process of a fleet on one machine; it ends when the process that started it does."""

import argparse
import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch

from awfulowl.allocator import keep_memory
from awfulowl.device.control import Command, Corrupt, Delay, Join, Report, Stray, Told
from awfulowl.device.dense import full_precision
from awfulowl.device.lies import Liar, Misstep
from awfulowl.device.worker import Offer, Worker
from awfulowl.errors import AwfulOwlError
from awfulowl.fabric.identity import Identity
from awfulowl.fabric.loop import new_event_loop
from awfulowl.fabric.nats import NatsFabric

_log = logging.getLogger(__name__)


def main() -> int:
    """Say who we are, wait for an address, and serve."""
    options = _options()
    logging.basicConfig(level=logging.WARNING, format=f"{options.name}: %(message)s")
    torch.set_num_threads(options.threads)
    full_precision()
    keep_memory()
    identity = _identity(options.identity, options.name)
    _say(identity.enrolment)
    commands = _commands()
    join = next(commands, None)
    if not isinstance(join, Join):
        return 0
    offer = Offer(memory_bytes=options.memory_bytes, threads=options.threads, accelerator=options.accelerator)
    fabric = NatsFabric(join.url, identity)
    with asyncio.Runner(loop_factory=new_event_loop) as runner, ThreadPoolExecutor(1) as executor:
        worker = Worker(options.name, fabric, offer, executor=executor)
        try:
            runner.run(_serve(worker, commands))
        except AwfulOwlError as error:
            print(f"{options.name}: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m awfulowl.device", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--identity", type=Path, required=True, help="key file, made when it is not there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-bytes", type=int, default=4 << 30)
    parser.add_argument("--accelerator", default="cpu")
    return parser.parse_args()


def _identity(path: Path, name: str) -> Identity:
    if path.exists():
        return Identity.load(path)
    identity = Identity.generate(name)
    identity.save(path)
    return identity


def _say(line: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def _commands() -> Iterator[Command]:
    """Yield the lines of standard input as they come."""
    decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
    # Unbuffered: a thread that waits in a buffered reader holds its lock when the interpreter shuts down.
    with open(0, "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            yield decoder.decode(line)


async def _serve(worker: Worker, commands: Iterator[Command]) -> None:
    """Work until the owner says bye or standard input ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def listen() -> None:
        # The loop is closed once the owner has said bye; then nobody is left to command.
        with contextlib.suppress(RuntimeError):
            for command in commands:
                loop.call_soon_threadsafe(_obey, worker, command)
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=listen, daemon=True).start()
    work = loop.create_task(worker.run_in_order())
    stop = loop.create_task(ended.wait())
    try:
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        work.cancel()
        stop.cancel()
        await asyncio.gather(work, stop, return_exceptions=True)


def _obey(worker: Worker, command: Command) -> None:
    match command:
        case Corrupt(kind=kind, size=size, probability=probability):
            worker.tamper = Liar(kind, size, probability)
        case Stray(kind=step_kind, size=by, probability=probability):
            worker.learner.tamper = Misstep(step_kind, by, probability)
        case Report():
            _say(Told(tuple(worker.tamper.requests) if isinstance(worker.tamper, Liar) else ()))
        case Delay(delay_s=delay_s):
            worker.delay_s = delay_s
        case Join():
            _log.warning("joined already")


if __name__ == "__main__":
    sys.exit(main())
