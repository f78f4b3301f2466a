"""A device in the foreground, for a broker elsewhere."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import torch
from rich.console import Console
from rich.text import Text

from awfulowl.allocator import keep_memory
from awfulowl.device.dense import full_precision
from awfulowl.device.worker import Offer, Worker
from awfulowl.errors import InputError
from awfulowl.fabric.base import OWNER, Fabric
from awfulowl.fabric.identity import Enrolment, Identity
from awfulowl.fabric.loop import new_event_loop
from awfulowl.fabric.nats import NatsFabric
from awfulowl.fabric.sealed import SealedFabric

_PAUSE_S: Final = 1.0
"""Between a goodbye and the next call, so that an owner that sends us away is not called without end."""


class DeviceReport(msgspec.Struct, frozen=True):
    """What a device offers, and where."""

    name: str
    url: str
    sealed: bool
    memory_bytes: int
    threads: int
    accelerator: str


def serve(url: str, identity: Identity, owner: Enrolment | None, offer: Offer, console: Console, *, once: bool) -> None:
    """Serve one owner after the other, or `once`, until interrupted.

    Args:
        url: the broker's address.
        identity: of the device.
        owner: whose frames are opened, and for whom ours are sealed; None: nothing is sealed.
        offer: memory and threads.
        console: where to say what goes on.
        once: return at the first goodbye.

    Raises:
        InputError: the address, the identity or the owner's enrolment is not usable.
        BrokerError: the broker is not there, or does not let this device in.
        ClosedError: the broker is lost for good.
    """
    torch.set_num_threads(offer.threads)
    full_precision()
    keep_memory()
    fabric = _fabric(url, identity, owner)

    async def work() -> None:
        while True:
            with ThreadPoolExecutor(1, thread_name_prefix="awfulowl-math") as executor:
                await Worker(identity.name, fabric, offer, executor=executor).run_in_order()
            console.print(Text(f"{identity.name}: the owner said goodbye; all blocks are dropped"), soft_wrap=True)
            if once:
                return
            await asyncio.sleep(_PAUSE_S)

    console.print(Text(f"{identity.name}: calling the owner at {url}; Ctrl-C ends it"), soft_wrap=True)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(work())


def _fabric(url: str, identity: Identity, owner: Enrolment | None) -> Fabric:
    if identity.name == OWNER:
        raise InputError("this identity is an owner's: a device needs one of its own, made by owl identity NAME")
    fabric: Fabric = NatsFabric(url, identity)
    if owner is None:
        return fabric
    if owner.name != OWNER:
        raise InputError(f"the owner's enrolment is of {owner.name!r}: ask the owner for its line of owl identity")
    return SealedFabric(fabric, identity, {OWNER: owner.seal_public})
