"""One layer that an honest device trains, beside its weights in float64 and the check that follows it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.descent import Descent, descend
from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import backward, gradient, product
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Expectation
from awfulowl.verification.training import TrainingCheck
from tests.unit.verification.shapes import Layer, convolution, dense

Batch = tuple[Tensor, Tensor]
"""Inputs x, and gradients dy of outputs."""

LAYERS: dict[str, Layer] = {
    "dense": dense(24, 40),
    "wide": dense(6, 96, 12),
    "conv1d": convolution((6, 4, 3), (9,), 4),
    "conv2d": convolution((6, 4, 3, 3), (5, 6), 4),
    "grouped": convolution((8, 2, 3, 3), (5, 5), 4, groups=4, block=4),
    "strided": convolution((5, 4, 3, 2), (8, 7), 4, stride=2, padding=2),
    "dilated": convolution((5, 4, 3), (12,), 4, dilation=3, padding=0),
}

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, decay": {"weight_decay": 5e-4},
    "momentum": {"momentum": 0.9},
    "momentum, decay": {"momentum": 0.9, "weight_decay": 5e-4},
    "much momentum": {"momentum": 0.99, "weight_decay": 1e-7},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "dampening": {"momentum": 0.9, "dampening": 0.5, "scale": 0.25},
    "decoupled": {"momentum": 0.9, "weight_decay": 5e-4, "decoupled": True},
    "decoupled, much momentum": {"momentum": 0.99, "weight_decay": 1e-7, "decoupled": True},
}


PAIRS: list[tuple[str, str]] = [
    *(("dense", rule) for rule in RULES),
    *((name, rule) for name in LAYERS for rule in ("nesterov", "decoupled, much momentum") if name != "dense"),
]
"""Every rule once, and every layer twice."""


@st.composite
def rules(draw: st.DrawFn, most: int) -> list[Descent]:
    """Steps of every variant, all with momentum or all without."""
    momenta = [0.5, 0.9, 0.99] if draw(st.booleans()) else [0.0]
    return [
        Descent.sgd(
            draw(st.floats(1e-6, 1.0)),
            momentum=draw(st.sampled_from(momenta)),
            dampening=draw(st.sampled_from([0.0, 0.3])),
            weight_decay=draw(st.sampled_from([0.0, 1e-7, 5e-4, 0.1])),
            nesterov=draw(st.booleans()),
            decoupled=draw(st.booleans()),
            scale=draw(st.sampled_from([1.0, -1.0, 0.01])),
            first=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(0, most)))
    ]


def batch_of(layer: Layer, seed: int = 1) -> Batch:
    """The layer's inputs with normal gradients of its outputs."""
    return layer.x, torch.randn(layer.y.shape, generator=torch.Generator().manual_seed(seed))


# What is written out, in float64


def true_gradient(grid: Grid, x: Tensor, dy: Tensor) -> Tensor:
    """The gradient of the weights, by automatic differentiation."""
    weight = torch.zeros(grid.shape, dtype=torch.float64, requires_grad=True)
    y = product(grid.kernel, weight, x.double(), grid.groups)
    return torch.autograd.grad(y, weight, dy.double())[0]


def true_backward(grid: Grid, weight: Tensor, dy: Tensor, space: Sequence[int]) -> Tensor:
    """The gradient of the inputs, by automatic differentiation."""
    x = torch.zeros(len(dy), grid.inputs, *space, dtype=torch.float64, requires_grad=True)
    y = product(grid.kernel, weight.double(), x, grid.groups)
    return torch.autograd.grad(y, x, dy.double())[0]


def moved(rule: Descent, weight: Tensor, momentum: Tensor, along: Tensor) -> Batch:
    """The weights and the momentum after a step; PyTorch leaves a momentum alone that is not used."""
    if not rule.has_momentum:
        return (1 + rule.weight_weight) * weight + rule.weight_gradient * along, momentum
    momentum = rule.momentum_momentum * momentum + rule.momentum_weight * weight + rule.momentum_gradient * along
    weight = (1 + rule.weight_weight) * weight + rule.weight_momentum * momentum + rule.weight_gradient * along
    return weight, momentum


def full(grid: Grid, weight: Tensor) -> Tensor:
    """The weights with zeros where a group does not see the inputs of another: (outputs, inputs, *size)."""
    whole = torch.zeros(grid.outputs, grid.inputs, *grid.size, dtype=torch.float64)
    height, width = grid.outputs // grid.groups, grid.inputs // grid.groups
    for group, part in enumerate(weight.double().chunk(grid.groups)):
        whole[group * height : (group + 1) * height, group * width : (group + 1) * width] = part
    return whole


def projected(grid: Grid, secret: Tensor, weight: Tensor, *, transposed: bool = False) -> Tensor:
    """The image of weights: (*size, k, inputs) from the left, (*size, k, outputs) from the right."""
    return torch.einsum("ki,oi...->...ko" if transposed else "ko,oi...->...ki", secret.double(), full(grid, weight))


# Devices


class Trainee:
    """A device with the whole layer, what its weights would be without rounding, and what the owner has of them."""

    def __init__(
        self, layer: Layer, seed: int = 3, apart: Iterable[Collection[int]] | None = None, *, follow: bool = False
    ) -> None:
        self.layer = layer
        self.grid = layer.grid
        self.state = [layer.weights.clone(), torch.zeros_like(layer.weights), torch.zeros_like(layer.weights)]
        self.exact = layer.weights.double(), torch.zeros_like(layer.weights).double()
        self.check = TrainingCheck([layer.weights], layer.grid, Entropy(seed), apart=apart)
        self._follow = follow

    def y(self, x: Tensor) -> Tensor:
        """Its answer to inputs."""
        return product(self.grid.kernel, self.state[0], x, self.grid.groups)

    def dx(self, dy: Tensor, space: Sequence[int]) -> Tensor:
        """Its answer to gradients."""
        return backward(self.grid.kernel, self.state[0], dy, tuple(space), self.grid.groups)

    def expectations(self, x: Tensor, dy: Tensor) -> list[tuple[Expectation, Tensor]]:
        """What its two answers are held to."""
        space = x.shape[2:]
        return [
            (self.check.expect(x), self.y(x)),
            (self.check.expect_transposed(dy, space), self.dx(dy, space)),
        ]

    def passes(self, x: Tensor, dy: Tensor) -> list[bool]:
        """Whether its two answers are accepted, all samples of each."""
        return [bool(expectation.accepts(answer).all()) for expectation, answer in self.expectations(x, dy)]

    def residue(self, x: Tensor, dy: Tensor) -> list[float]:
        """The largest residues of its two answers."""
        return [float(expectation.residue(answer).max()) for expectation, answer in self.expectations(x, dy)]

    def gradient(self, batches: Sequence[Batch]) -> Tensor:
        """The gradient as it computes it."""
        total = torch.zeros_like(self.state[0])
        for x, dy in batches:
            total += gradient(self.grid.kernel, self.grid.size, x, dy, self.grid.groups)
        return total

    def descend(self, rule: Descent, along: Tensor) -> None:
        """Take a step, and tell nobody."""
        descend(rule, self.state if rule.has_momentum else self.state[:2], along.clone())

    def announce(self, rule: Descent, batches: Sequence[Batch]) -> None:
        """Let the owner and the weights in float64 take a step."""
        self.check.move(rule, [self.check.see(x, dy) for x, dy in batches])
        if self._follow:
            along = torch.stack([true_gradient(self.grid, x, dy) for x, dy in batches]).sum(dim=0)
            self.exact = moved(rule, *self.exact, along)

    def step(self, rule: Descent, *batches: Batch) -> None:
        """Let all of them take a step."""
        self.announce(rule, batches)
        self.descend(rule, self.gradient(batches))

    def renew(self, seed: int = 4) -> None:
        """Let the owner fetch the state, and draw secrets anew."""
        weight, lost, momentum = self.state
        self.check = TrainingCheck([weight, lost], self.grid, Entropy(seed), momentum=[momentum])
        self.exact = weight.double() + lost.double(), momentum.double()

    @property
    def error(self) -> Tensor:
        """How far its weights have strayed from those without rounding."""
        return self.state[0].double() + self.state[1].double() - self.exact[0]


# What it is trained with

Inputs = Callable[[tuple[int, ...], torch.Generator], Tensor]


def _half_dead(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator).relu()
    x[:, ::2] = 0
    return x


def _heavy_tailed(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) / torch.rand(shape, generator=generator).sqrt().clamp_min(1e-3)


def _of_all_sizes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    sizes = 10.0 ** torch.linspace(-4, 3, shape[1])
    return torch.randn(shape, generator=generator) * sizes.view(1, -1, *[1] * (len(shape) - 2))


INPUTS: dict[str, Inputs] = {
    "normal": lambda shape, generator: torch.randn(shape, generator=generator),
    "large mean": lambda shape, generator: 2 * (torch.randn(shape, generator=generator) + 3).relu(),
    "half dead": _half_dead,
    "heavy-tailed": _heavy_tailed,
    "of all sizes": _of_all_sizes,
    "always the same": lambda shape, generator: torch.randn(shape, generator=torch.Generator().manual_seed(0)),
    "ones": lambda shape, generator: torch.ones(shape),
}


class Teacher:
    """Makes batches and rules: inputs of a kind, gradients towards other weights, and rates that fall to 1e-6."""

    def __init__(self, trainee: Trainee, inputs: str, options: dict[str, Any], steps: int, seed: int = 1) -> None:
        self._trainee = trainee
        self._inputs = INPUTS[inputs]
        self._options = options
        self._steps = steps
        self._taken = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._target = torch.randn(trainee.grid.shape, generator=self._generator)
        x = self._draw()
        self._unit = float(self._wanted(x).square().mean().sqrt())
        self._energy = float(x.square().sum() / len(x))

    def _draw(self) -> Tensor:
        return self._inputs(tuple(self._trainee.layer.x.shape), self._generator)

    def _wanted(self, x: Tensor) -> Tensor:
        return product(self._trainee.grid.kernel, self._target, x, self._trainee.grid.groups)

    def batch(self) -> Batch:
        """The next batch, with the gradients that the trainee's own outputs lead to."""
        x = self._draw()
        y = self._trainee.y(x)
        noise = 0.3 * torch.randn(y.shape, generator=self._generator)
        error = ((y - self._wanted(x)) / self._unit + noise).clamp(-3, 3)
        return x, error / (y.numel() / y.shape[1]) ** 0.5

    def rule(self) -> Descent:
        """The next step."""
        rate = 0.1 * 1e-5 ** (self._taken / self._steps)
        self._taken += 1
        return Descent.sgd(rate * self._unit / self._energy, **self._options, first=self._taken == 1)


def trained(
    layer: Layer, rule: str = "momentum, decay", steps: int = 12, *, follow: bool = False
) -> tuple[Trainee, Teacher]:
    """Return a device after some honest steps, and who goes on teaching it."""
    trainee = Trainee(layer, follow=follow)
    teacher = Teacher(trainee, "normal", RULES[rule], steps=1000)
    for _ in range(steps):
        trainee.step(teacher.rule(), teacher.batch())
    return trainee, teacher
