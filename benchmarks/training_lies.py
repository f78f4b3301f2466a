"""One block as an honest device trains it, and liars of each kind; for `training_checks`."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent, descend
from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, backward, gradient, product
from awfulowl.owner.policy import Policy
from awfulowl.owner.snapshots import worn
from awfulowl.randomness import Entropy
from awfulowl.verification.training import TrainingCheck

RENEWED_EVERY: Final = 1000
REQUIRED: Final = 1e-3
AGES: Final = (0, 10, 100, 500, 900)
SIZES: Final = (1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)


class Shape(NamedTuple):
    """A block, and the inputs of a batch."""

    name: str
    kernel: Kernel
    weight: tuple[int, ...]
    inputs: tuple[int, ...]


DENSE: Final = Shape("dense 128 x 128", Dense(), (128, 128), (32, 128))
CONVOLUTION: Final = Shape(
    "convolution 16 x 16 x 3 x 3", Convolution((1, 1), (1, 1), (1, 1)), (16, 16, 3, 3), (8, 16, 8, 8)
)
SHAPES: Final = (DENSE, CONVOLUTION)


class Device:
    """One block as an honest device trains it."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.generator = torch.Generator().manual_seed(seed)
        self.grid: Grid = make_grid(shape.weight, shape.kernel, 1, block=64)
        scale = 1 / torch.Size(shape.weight[1:]).numel() ** 0.5
        self.weight = torch.randn(shape.weight, generator=self.generator) * scale
        self.lost, self.momentum = torch.zeros(shape.weight), torch.zeros(shape.weight)
        self.target = torch.randn(shape.weight, generator=self.generator) * scale

    @property
    def state(self) -> list[Tensor]:
        """Weights, what was lost in rounding, momentum."""
        return [self.weight, self.lost, self.momentum]

    def multiply(self, x: Tensor) -> Tensor:
        """Return W x."""
        return product(self.shape.kernel, self.weight, x)

    def answer(self, way: int, asked: tuple[Tensor, Tensor], weight: Tensor | None = None) -> Tensor:
        """Return W x, or the gradient of x for way 1."""
        weight, (x, dy) = self.weight if weight is None else weight, asked
        if way == 0:
            return product(self.shape.kernel, weight, x)
        return backward(self.shape.kernel, weight, dy, self.shape.inputs[2:])

    def draw(self) -> Tensor:
        """Return inputs as a layer behind a ReLU sees them: half of them 0, all others of one sign."""
        return torch.randn(self.shape.inputs, generator=self.generator).relu()

    def gradient_of(self, x: Tensor, y: Tensor) -> Tensor:
        """Return dy of the mean square distance to what a fixed other block answers, with noise."""
        noise = torch.randn(y.shape, generator=self.generator)
        return (y - product(self.shape.kernel, self.target, x) + noise) / y.numel()

    def step(self, rule: Descent, x: Tensor, dy: Tensor, by: float = 1.0) -> None:
        """Take a step along so many times the gradient."""
        moved = gradient(self.shape.kernel, self.shape.weight[2:], x, dy) * by
        descend(rule, self.state if rule.has_momentum else self.state[:2], moved.contiguous())

    def check(self, entropy: Entropy) -> TrainingCheck:
        """Draw secrets that know the state of now."""
        return TrainingCheck([self.weight, self.lost], self.grid, entropy, momentum=[self.momentum])


def rule(rate: float, momentum: float, *, first: bool) -> Descent:
    return Descent.sgd(rate, momentum=momentum, weight_decay=5e-4, first=first)


def constant(_: float) -> float:
    return 1.0


def falling(done: float) -> float:
    """From 1 to 1e-6, by the same factor at each step."""
    return float(10.0 ** (-6 * done))


RATES: Final = {"constant": constant, "falling to 1e-6": falling}


def change(kind: str) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return what draws an error of the weights, of any scale."""

    def random(weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(weight.shape, generator=generator)

    def rows(count: int) -> Callable[[Tensor, torch.Generator], Tensor]:
        def some(weight: Tensor, generator: torch.Generator) -> Tensor:
            error = torch.zeros_like(weight)
            for row in torch.randperm(len(weight), generator=generator)[:count]:
                error[row] = torch.randn(weight.shape[1:], generator=generator)
            return error

        return some

    def column(weight: Tensor, generator: torch.Generator) -> Tensor:
        error = torch.zeros_like(weight)
        place = torch.randint(weight.shape[1], (), generator=generator)
        error[:, place] = torch.randn(error[:, place].shape, generator=generator)
        return error

    def low_rank(weight: Tensor, generator: torch.Generator) -> Tensor:
        left = torch.randn(len(weight), 1, generator=generator)
        right = torch.randn(1, weight[0].numel(), generator=generator)
        return (left @ right).view(weight.shape)

    kinds = {"random": random, "one row": rows(1), "two rows": rows(2), "one column": column, "low rank": low_rank}
    return kinds[kind]


class Moment(NamedTuple):
    """When a device lies: between its last step and the next batch. A step is a rule, x and dy."""

    asked: tuple[Tensor, Tensor]
    before: list[Tensor]
    last: tuple[Descent, Tensor, Tensor]
    one_but_last: tuple[Descent, Tensor, Tensor]


Lie = Callable[[Device, Moment, int, torch.Generator], None]
"""Changes a device that is asked for y (0) or dx (1)."""


def altered(
    error: Callable[[Tensor, torch.Generator], Tensor],
    size: float,
    device: Device,
    moment: Moment,
    way: int,
    generator: torch.Generator,
) -> None:
    """Change a device's weights so that the next batch's answer is off by `size`."""
    drawn = error(device.weight, generator)
    right = device.answer(way, moment.asked)
    device.weight += drawn * (size * right.norm() / device.answer(way, moment.asked, drawn).norm())


def scaled(by: float, device: Device, moment: Moment, _: int, __: torch.Generator) -> None:
    """Take the last step along so many times its gradient."""
    restore(device, moment.before)
    device.step(*moment.last, by)


def stale(device: Device, moment: Moment, _: int, __: torch.Generator) -> None:
    """Take the last step along the gradient of the batch before."""
    restore(device, moment.before)
    device.step(moment.last[0], *moment.one_but_last[1:])


STEPS: Final[dict[str, Lie]] = {
    "skipped": partial(scaled, 0.0),
    "doubled": partial(scaled, 2.0),
    "scaled by 1.1": partial(scaled, 1.1),
    "scaled by 1.01": partial(scaled, 1.01),
    "stale": stale,
}

LIES: Final[dict[tuple[str, float | None], Lie]] = {
    **{
        (f"weights: {kind}", size): partial(altered, change(kind), size)
        for kind in ("random", "one row", "two rows", "one column", "low rank")
        for size in SIZES
    },
    **{(f"step {kind}", None): lie for kind, lie in STEPS.items()},
}


def lies(trials: int) -> Iterator[dict[str, Any]]:
    for shape in SHAPES:
        for rate, schedule in RATES.items():
            yield from told(shape, rate, trials // len(RATES), schedule)


def told(shape: Shape, rate: str, trials: int, schedule: Callable[[float], float]) -> Iterator[dict[str, Any]]:
    """Train over whole periods, lie after every step, and yield how often each kind of lie is given away.

    Args:
        shape: of the block.
        rate: the name of the schedule.
        trials: of each kind, at the required size.
        schedule: the rate by the share of steps taken.
    """
    device, entropy, policy = Device(shape, 2), Entropy(3), Policy()
    generator = torch.Generator().manual_seed(4)
    steps = RENEWED_EVERY * max(1, trials // RENEWED_EVERY)
    check, age, renewed, alarms, drift = device.check(entropy), 0, 0, 0, 0.0
    tallies = {lie: Tally() for lie in LIES}
    last: list[tuple[Descent, Tensor, Tensor]] = []
    before: list[Tensor] = []
    for number in range(steps):
        x = device.draw()
        y = device.multiply(x)
        asked = x, device.gradient_of(x, y)
        expected = check.expect(x), check.expect_transposed(asked[1], shape.inputs[2:])
        right = y, device.answer(1, asked)
        alarms += sum(int((~one.accepts(answer)).sum()) for one, answer in zip(expected, right, strict=True))
        for place, ((kind, size), lie) in enumerate(LIES.items()):
            every = steps // (trials if size in (REQUIRED, None) else max(1, trials // 10))
            if len(last) == 2 and number % every == place % every:
                moment, true = Moment(asked, before, last[1], last[0]), [part.clone() for part in device.state]
                for way in (0, 1):
                    lie(device, moment, way, generator)
                    answer = device.answer(way, asked)
                    caught = not bool(expected[way].accepts(answer).all())
                    tallies[kind, size].add(way, float((answer - right[way]).norm() / right[way].norm()), age, caught)
                    restore(device, true)
        before, move = [part.clone() for part in device.state], rule(schedule(number / steps), 0.9, first=number == 0)
        check.move(move, [check.see(*asked)])
        device.step(move, *asked)
        last, age, drift = [*last[-1:], (move, *asked)], age + 1, max(drift, check.drift)
        if worn(check, age, policy):
            alarms += int(not check.matches_whole(device.state))
            check, age, renewed = device.check(entropy), 0, renewed + 1
    about = {"block": shape.name, "rate": rate}
    yield {**about, "steps": steps, "renewed": renewed, "largest_drift": drift, "alarms": alarms}
    for (kind, size), tally in tallies.items():
        yield {**about, "kind": kind, "size": size, **tally.told}


class Tally:
    """How often a kind of lie was told and caught, by y and by dx, and how often where it had the required size."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, float, int, bool]] = []

    def add(self, way: int, size: float, age: int, caught: bool) -> None:
        """Count a lie, so many steps after secrets were drawn."""
        self._seen.append((way, size, age, caught))

    @property
    def told(self) -> dict[str, Any]:
        """Trials, mean size and how many were caught; of the required size: by steps since secrets were drawn."""
        found: dict[str, Any] = {}
        for way, name in enumerate(("y", "dx")):
            seen = [one for one in self._seen if one[0] == way]
            large = [one for one in seen if one[1] >= 0.99 * REQUIRED]
            found[name] = {
                "trials": len(seen),
                "caught": sum(one[3] for one in seen),
                "size": sum(one[1] for one in seen) / max(1, len(seen)),
                "large": len(large),
                "large_caught": sum(one[3] for one in large),
                "by_age": {
                    str(first): [sum(kept := [one[3] for one in large if first <= one[2] < end]), len(kept)]
                    for first, end in pairwise((*AGES, RENEWED_EVERY))
                },
            }
        return found


def restore(device: Device, state: list[Tensor]) -> None:
    for own, before in zip(device.state, state, strict=True):
        own.copy_(before)
