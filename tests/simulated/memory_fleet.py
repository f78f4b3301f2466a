"""A fleet in this process: the real owner and the real devices, over the memory fabric."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from awfulowl.device.worker import Offer, Worker
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.fleet.fleet import Fleet
from awfulowl.owner.loop import LoopThread
from awfulowl.owner.policy import Policy
from awfulowl.placement.naming import name_devices


class MemoryFleet(Fleet):
    """A fleet whose devices are tasks of its own loop, so that tests can look at them."""

    workers: dict[str, Worker]

    @property
    def held_blocks(self) -> int:
        """Blocks that all devices hold together."""
        return sum(len(worker._store) for worker in self.workers.values())


@contextmanager
def memory_fleet(devices: int | Mapping[str, str] = 3, policy: Policy | None = None) -> Iterator[MemoryFleet]:
    """Open a fleet of devices d1, d2, ... in this process."""
    loop = LoopThread("awfulowl-test")
    fabric = MemoryFabric()
    workers = {device.name: Worker(device.name, fabric, Offer()) for device in name_devices(devices)}
    tasks: list[asyncio.Task[None]] = []

    async def start() -> None:
        tasks.extend(asyncio.get_running_loop().create_task(worker.run()) for worker in workers.values())

    loop.run(start())
    with MemoryFleet(fabric, name_devices(devices), policy=policy, loop=loop) as fleet:
        fleet.workers = workers
        fleet.wait_for_devices(10)
        yield fleet
