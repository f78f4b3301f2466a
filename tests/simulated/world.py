"""A whole system in one process: owner and devices over the memory fabric, under a clock that jumps.

Nothing here waits: when every task sleeps, the clock jumps to the next one that wakes (trio's MockClock does the
same), so a lease of 30 seconds passes in no time, and equal seeds give equal runs.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from awfulowl.arithmetic.local import LocalProduct
from awfulowl.arithmetic.numbers import integers
from awfulowl.blocks.kernels import Dense
from awfulowl.device.worker import Offer, Worker
from awfulowl.errors import AwfulOwlError
from awfulowl.fabric.base import Fabric
from awfulowl.fabric.memory import MemoryFabric
from awfulowl.limits import DEFAULT, Limits
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.engine import Engine
from awfulowl.owner.policy import Policy
from awfulowl.owner.product import Product
from awfulowl.placement.cutting import Layer
from awfulowl.placement.naming import name_devices
from awfulowl.placement.options import Options
from awfulowl.placement.planner import make_plan
from awfulowl.randomness import Entropy

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is not None:
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps over all waiting."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def simulate(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` under a clock that jumps."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class World:
    """An owner with a plan for some dense layers, and devices that can be killed, started again and corrupted."""

    def __init__(
        self,
        devices: int | Sequence[str] | Mapping[str, str] = 4,
        *,
        weights: Mapping[str, Tensor] | None = None,
        options: Options | None = None,
        policy: Policy | None = None,
        wrap: Callable[[Fabric], Fabric] = lambda fabric: fabric,
        seed: int = 0,
        limits: Limits = DEFAULT,
    ) -> None:
        self.devices = name_devices(devices)
        generator = torch.Generator().manual_seed(seed)
        self.weights = weights or {"layer": torch.randn(24, 64, generator=generator)}
        self.generator = generator
        self.fabric = MemoryFabric()
        self.engine = Engine(wrap(self.fabric), policy or Policy(), limits=limits, entropy=Entropy(seed))
        options = options or Options(block=8)
        layers = [
            Layer(name, tuple(weight.shape), arithmetic=options.arithmetic) for name, weight in self.weights.items()
        ]
        self.plan = make_plan(layers, self.devices, options, Entropy(seed))
        numbers = integers(options.arithmetic)
        self.twins = {
            name: LocalProduct([weight], Dense(), 1, numbers) for name, weight in self.weights.items() if numbers
        }
        self.deployment = Deployment(self.engine, self.plan, {name: (weight,) for name, weight in self.weights.items()})
        self.workers: dict[str, Worker] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wrap = wrap

    async def __aenter__(self) -> Self:
        await self.engine.start()
        for device in self.devices:
            self.start(device.name)
        await self.deployment.start(60)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()
        for name in list(self._running):
            await self.kill(name)

    def start(self, name: str) -> Worker:
        """Start a device, as itself and without blocks."""
        worker = Worker(name, self._wrap(self.fabric), Offer())
        self.workers[name] = worker
        self._running[name] = asyncio.get_running_loop().create_task(worker.run())
        return worker

    async def kill(self, name: str) -> None:
        """End a device without a word."""
        task = self._running.pop(name)
        task.cancel()
        try:
            await task
        except (asyncio.CancelledError, AwfulOwlError):
            return

    @property
    def running(self) -> list[str]:
        """The names of the devices that run."""
        return list(self._running)

    def inputs(self, batch: int, layer: str = "layer") -> Tensor:
        return torch.randn(batch, self.weights[layer].shape[1], generator=self.generator)

    async def multiply(self, x: Tensor, layer: str = "layer") -> Tensor:
        """Return the fleet's W x."""
        number = list(self.weights).index(layer)
        rows = range(len(self.plan.panels[number].grid.rows))
        return await Product(self.deployment, number, rows).multiply(x)

    def expect(self, y: Tensor, x: Tensor, layer: str = "layer") -> None:
        """Require that y is W x: bit for bit in exact integers, else up to the rounding of sums of 64 products."""
        if self.twins:
            assert torch.equal(y, self.twins[layer](x))
            return
        torch.testing.assert_close(y, x @ self.weights[layer].T, rtol=1e-4, atol=1e-4)
