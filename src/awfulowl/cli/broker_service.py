"""The embedded broker in the foreground."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from awfulowl.cli import json_output
from awfulowl.errors import InputError
from awfulowl.fabric.base import OWNER
from awfulowl.fabric.broker import Broker, BrokerConfig
from awfulowl.fabric.identity import Enrolment
from awfulowl.fabric.loop import new_event_loop


class BrokerReport(msgspec.Struct, frozen=True):
    """A broker that runs, and whom it lets in."""

    url: str
    devices: tuple[str, ...]


def serve(owner: Enrolment, devices: Sequence[Enrolment], port: int, json: Path | None, console: Console) -> None:
    """Run a broker until it is interrupted, and say where once it can be reached.

    Raises:
        InputError: an enrolment is not of whom it should be.
        BrokerError: there is no program, the port is in use, or the broker ended by itself.
    """
    if owner.name != OWNER:
        raise InputError(f"the owner's enrolment is of {owner.name!r}: make one with owl identity {OWNER}")
    names = tuple(device.name for device in devices)
    if len(set(names)) < len(names):
        raise InputError("two devices share a name: each needs an identity of its own")
    broker = Broker(
        owner.nkey_public,
        {device.name: device.nkey_public for device in devices},
        BrokerConfig(port=port or None),
    )

    async def keep() -> None:
        async with broker:
            json_output.write(BrokerReport(broker.url, names), json)
            console.print(Text(f"{broker.url} for {', '.join(names)}; Ctrl-C ends it"), soft_wrap=True)
            await broker.wait()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(keep())
