"""A fleet in this process: the real owner and the real devices, over the memory fabric."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch

from awfulowl.device.worker import Offer, Worker
from awfulowl.errors import AwfulOwlError
from awfulowl.fabric.base import Fabric
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.fleet.fleet import Fleet
from awfulowl.limits import DEFAULT, Limits
from awfulowl.owner.loop import LoopThread
from awfulowl.owner.policy import Policy
from awfulowl.placement.naming import name_devices
from awfulowl.randomness import Entropy
from tests.simulated.still_loop import StillLoop

ACCELERATORS: Final = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
"""Where devices multiply: what is promised of them is promised on a GPU, too, where there is one."""


class MemoryFleet(Fleet):
    """A fleet whose devices are tasks of its own loop, so that tests can look at them, kill them, and start them."""

    workers: dict[str, Worker]
    running: dict[str, asyncio.Task[None]]
    fabric: Fabric
    limits: Limits
    accelerator: str

    @property
    def held_blocks(self) -> int:
        """Blocks that all devices hold together."""
        return sum(len(worker._store) for worker in self.workers.values())

    def start(self, name: str, limits: Limits | None = None) -> Worker:
        """Start a device, as itself and without blocks."""

        async def begin() -> Worker:
            return self._begin(name, limits or self.limits)

        return self._loop.run(begin())

    def start_later(self, name: str, seconds: float) -> None:
        """Start a device when some time has passed, whatever happens until then."""

        async def later() -> None:
            asyncio.get_running_loop().call_later(seconds, self._begin, name, self.limits)

        self._loop.run(later())

    def _begin(self, name: str, limits: Limits) -> Worker:
        worker = Worker(name, self.fabric, Offer(accelerator=self.accelerator), limits=limits)
        self.workers[name] = worker
        self.running[name] = asyncio.get_running_loop().create_task(worker.run())
        return worker

    def kill(self, name: str) -> None:
        """End a device without a word."""

        async def end() -> None:
            task = self.running.pop(name)
            task.cancel()
            try:
                await task
            except (asyncio.CancelledError, AwfulOwlError):
                return

        self._loop.run(end())

    def stop_in_the_middle(self, name: str) -> None:
        """End a device from within what it does just now: it never says that it is done."""
        task = self.running.pop(name, None)
        if task is not None:
            task.cancel()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._loop.run(asyncio.sleep(seconds))


@contextmanager
def memory_fleet(
    devices: int | Mapping[str, str] = 3,
    policy: Policy | None = None,
    *,
    loop: LoopThread | None = None,
    wrap: Callable[[Fabric], Fabric] = lambda fabric: fabric,
    limits: Limits = DEFAULT,
    accelerator: str = "cpu",
) -> Iterator[MemoryFleet]:
    """Open a fleet of devices d1, d2, ... in this process."""
    fabric = wrap(MemoryFabric())
    names = name_devices(devices)
    with MemoryFleet(fabric, names, policy=policy, loop=loop or LoopThread()) as fleet:
        fleet.workers, fleet.running = {}, {}
        fleet.fabric, fleet.limits, fleet.accelerator = fabric, limits, accelerator
        for device in names:
            fleet.start(device.name)
        fleet.wait_for_devices(10)
        yield fleet


@contextmanager
def still_fleet(
    devices: int | Mapping[str, str] = 3,
    policy: Policy | None = None,
    *,
    wrap: Callable[[Fabric], Fabric] = lambda fabric: fabric,
    limits: Limits = DEFAULT,
    accelerator: str = "cpu",
) -> Iterator[MemoryFleet]:
    """Open a fleet in which nothing happens between calls, and nobody waits: see `still_loop`.

    The owner's arithmetic runs in the loop as well, and its secrets are the same every time.
    """
    policy = replace(policy or Policy(), math_threads=1)
    with memory_fleet(devices, policy, loop=StillLoop(), wrap=wrap, limits=limits, accelerator=accelerator) as fleet:
        fleet._engine._executor = None
        fleet._engine.entropy = Entropy(0)
        yield fleet
