"""Training on a fleet, and beside it the same training of a plain model in float64: they have to agree."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.owner.optimizer import FleetOptimizer
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.placement.request import plan_model
from awfulowl.randomness import Entropy
from tests.simulated.memory_fleet import MemoryFleet, still_fleet

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

SMALL = Options(block=(4, 2), replicas=1, share=1.0, domain_share=1.0)
"""Several columns of every layer for each of some devices."""

REPLICAS = Options(block=(4, 2), replicas=2, share=1.0, domain_share=1.0)

ROUNDING = 1e-5
"""How far float32 may be off after some dozens of steps of these models: measured, at most 1e-6 over all tests."""


def perceptron(seed: int = 0) -> nn.Sequential:
    """Two layers, 12 to 8 to 3. Smooth, so that rounding never decides on which side of an edge a number is."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def image_model(seed: int = 0) -> nn.Sequential:
    """A convolution and a linear layer, 4 x 5 x 5 to 3."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(150, 3))


def squares(model: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
    """The mean square of what the answer is off."""
    return functional.mse_loss(model(x), wanted)


@dataclass
class Twins:
    """A model under training on a fleet, and its twin."""

    fleet: MemoryFleet
    scattered: nn.Module
    ours: FleetOptimizer
    plain: nn.Module
    theirs: torch.optim.Optimizer
    loss: Loss = squares
    outputs: int = 3
    samples: int = 6
    seed: int = 0
    inputs: tuple[int, ...] = (12,)

    @property
    def each(self) -> Iterator[tuple[nn.Module, Any, Callable[[Tensor], Tensor]]]:
        """Both models, their optimizers, and what turns a tensor into one of theirs."""
        yield self.plain, self.theirs, Tensor.double
        yield self.scattered, self.ours, Tensor.float

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next batch of inputs and what the answers should be."""
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.samples, *self.inputs, generator=generator)
        return x, torch.randn(self.samples, self.outputs, generator=generator)

    def differentiate(self) -> None:
        """Forward and backward of both, with the same loss."""
        x, wanted = self.batch()
        losses = []
        for model, _, cast in self.each:
            loss = self.loss(model, cast(x), cast(wanted))
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
        assert abs(losses[0] - losses[1]) <= ROUNDING * (1 + abs(losses[0]))

    def differentiate_ours(self) -> None:
        """Forward and backward of the fleet's only."""
        self.loss(self.scattered, *self.batch()).backward()  # type: ignore[no-untyped-call]

    def step(self, count: int = 1) -> None:
        """Take steps with both."""
        for _ in range(count):
            for _, optimizer, _ in self.each:
                optimizer.zero_grad()
            self.differentiate()
            for _, optimizer, _ in self.each:
                optimizer.step()

    def agree(self, tolerance: float = ROUNDING) -> None:
        """Require that all weights and buffers are the same up to rounding."""
        ours, theirs = self.fleet.gather(self.scattered), self.plain.state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name].to(value.dtype), value, rtol=0.0, atol=tolerance, msg=name)


def twins(
    fleet: MemoryFleet,
    model: nn.Module,
    example: object = None,
    *,
    options: Options = SMALL,
    groups: Callable[[nn.Module], Any] = nn.Module.parameters,
    algorithm: str = "sgd",
    lr: float = 0.1,
    seed: int = 0,
    **settings: Any,
) -> Twins:
    """Scatter a model to be trained, with its plan's `options`, and give both twins optimizers with `settings`.

    `groups` chooses the parameters, or groups of them, of either model; equal seeds place the blocks alike.
    """
    example = torch.zeros(1, 12) if example is None else example
    plan = plan_model(model, example, fleet.devices, options, Entropy(seed))
    plain = copy.deepcopy(model).double()
    scattered = fleet.scatter(model, plan, train=True)
    ours = fleet.optimizer(scattered, _trainable(groups(scattered)), lr=lr, algorithm=algorithm, **settings)
    theirs: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[algorithm]
    theirs = theirs(_trainable(groups(plain)), lr=lr, **settings)
    inputs = tuple(example.shape[1:]) if isinstance(example, Tensor) else ()
    return Twins(fleet, scattered, ours, plain, theirs, inputs=inputs)


def _trainable(parameters: Any) -> Any:
    """Leave out frozen parameters, as users of `torch.optim` do."""
    return [one for one in parameters if isinstance(one, dict) or one.requires_grad]


@contextmanager
def training(
    devices: int = 2, policy: Policy | None = None, model: nn.Module | None = None, **settings: Any
) -> Iterator[Twins]:
    """Open a fleet and train twins of the small perceptron on it."""
    with still_fleet(devices, policy) as fleet:
        yield twins(fleet, model or perceptron(), **settings)
