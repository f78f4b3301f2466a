"""What the check of training lets pass, of honest devices and of liars: one block, without a fleet.

    python benchmarks/training_checks.py [--quick] [--json FILE] [--only honest lies adaptive] [--no-loops]

honest      10^5 consecutive verified steps of a dense block and of a convolution, at a constant rate and at one that
            falls to 1e-6, with secrets renewed every 1,000 steps: false alarms, and the largest residues in deviations
            (a check accepts 10).
lies        A device changes its weights by E after some honest steps, and the next batch is checked: 10^4 trials for
            each kind at the size 1e-3, 10^3 at other sizes. The size is |E x| / |W x|. Caught: a sample is refused.
            Steps that were skipped, doubled, scaled, or taken along the gradient of the batch before (stale) have the
            size that they have.
adaptive    A liar that knows everything but the secrets moves its weights in one direction for 10^5 steps, always a
            share of what rounding is allowed, and is never caught: how far it gets, against the bound that is printed
            (times renewed x drift), and what that does to a classifier's accuracy.

Checks run in compiled loops, as in a fleet with models of 2^22 weights or more; without: --no-loops.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.arithmetic.descent import Descent, descend
from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, backward, gradient, product
from awfulowl.models.digits import read_digits
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled
from awfulowl.verification.training import TrainingCheck

RENEWED_EVERY: Final = 1000
REQUIRED: Final = 1e-3
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


def honest(steps: int) -> Iterator[dict[str, Any]]:
    for shape in SHAPES:
        for name, schedule in (("constant", constant), ("falling to 1e-6", falling)):
            yield {"block": shape.name, "rate": name, "steps": steps, **run_honest(shape, schedule, steps)}


def run_honest(shape: Shape, schedule: Callable[[float], float], steps: int) -> dict[str, Any]:
    device, entropy = Device(shape, 0), Entropy(1)
    check = device.check(entropy)
    alarms, states = 0, 0
    largest = [0.0, 0.0]
    for number in range(steps):
        x = device.draw()
        y = device.multiply(x)
        dy = device.gradient_of(x, y)
        dx = backward(shape.kernel, device.weight, dy, shape.inputs[2:])
        ways = ((check.expect(x), y), (check.expect_transposed(dy, shape.inputs[2:]), dx))
        for way, (expected, answer) in enumerate(ways):
            alarms += int((~expected.accepts(answer)).sum())
            if number % 10 == 0:
                largest[way] = max(largest[way], float(expected.residue(answer).max()))
        move = rule(schedule(number / steps), 0.9, first=number == 0)
        check.move(move, [check.see(x, dy)])
        device.step(move, x, dy)
        if (number + 1) % RENEWED_EVERY == 0:
            states += int(not check.matches_whole(device.state))
            check = device.check(entropy)
    return {
        "samples": 2 * steps * shape.inputs[0],
        "alarms": alarms,
        "states_refused": states,
        "largest_y": largest[0],
        "largest_dx": largest[1],
    }


def lies(trials: int) -> Iterator[dict[str, Any]]:
    for shape in SHAPES:
        for kind in ("random", "one row", "two rows", "one column", "low rank"):
            for size in SIZES:
                count = trials if size == REQUIRED else trials // 10
                yield tried(shape, f"weights: {kind}", count, partial(altered, change(kind), size))
        for kind, lie in STEPS.items():
            yield tried(shape, f"step {kind}", trials // 10, lie)


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

    x: Tensor
    before: list[Tensor]
    last: tuple[Descent, Tensor, Tensor]
    one_but_last: tuple[Descent, Tensor, Tensor]


Lie = Callable[[Device, Moment, torch.Generator], None]


def altered(
    error: Callable[[Tensor, torch.Generator], Tensor],
    size: float,
    device: Device,
    moment: Moment,
    generator: torch.Generator,
) -> None:
    """Change a device's weights so that the next batch's answer is off by `size`."""
    drawn = error(device.weight, generator)
    scale = product(device.shape.kernel, drawn, moment.x).norm() / device.multiply(moment.x).norm()
    device.weight += drawn * (size / scale)


def scaled(by: float, device: Device, moment: Moment, _: torch.Generator) -> None:
    """Take the last step along so many times its gradient."""
    restore(device, moment.before)
    device.step(*moment.last, by)


def stale(device: Device, moment: Moment, _: torch.Generator) -> None:
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


def tried(shape: Shape, kind: str, trials: int, lie: Lie) -> dict[str, Any]:
    """Return how often the next batch gives a lie away: secrets are fresh every time, the device goes on honestly.

    Args:
        shape: of the block.
        kind: the name of the lie.
        trials: how many.
        lie: changes the device before the next batch.
    """
    device, entropy = Device(shape, 2), Entropy(3)
    generator = torch.Generator().manual_seed(4)
    caught, sizes = 0, 0.0
    for number in range(trials):
        check, steps = device.check(entropy), []
        for _ in range(3):
            before = [part.clone() for part in device.state]
            x = device.draw()
            dy = device.gradient_of(x, device.multiply(x))
            move = rule(0.5, 0.9, first=number == 0)
            check.move(move, [check.see(x, dy)])
            device.step(move, x, dy)
            steps.append((move, x, dy))
        true = [part.clone() for part in device.state]
        x = device.draw()
        right = device.multiply(x)
        lie(device, Moment(x, before, steps[-1], steps[-2]), generator)
        answer = device.multiply(x)
        sizes += float((answer - right).norm() / right.norm())
        caught += int(not bool(check.expect(x).accepts(answer).all()))
        restore(device, true)
    return {"block": shape.name, "kind": kind, "trials": trials, "caught": caught, "size": sizes / trials}


def restore(device: Device, state: list[Tensor]) -> None:
    for own, before in zip(device.state, state, strict=True):
        own.copy_(before)


def adaptive(steps: int) -> Iterator[dict[str, Any]]:
    """Let a linear classifier of digits be trained by a liar, and by nobody but honest devices."""
    for share in (0.0, 0.1, 0.15):
        yield {"share": share, "steps": steps, **run_adaptive(share, steps)}


def run_adaptive(share: float, steps: int) -> dict[str, Any]:
    """Train; the liar moves against the gradient of the mean loss, as far as `share` of what is allowed it."""
    data = read_digits(0)
    inputs, labels = data.train.inputs.flatten(1), data.train.labels
    generator, entropy = torch.Generator().manual_seed(5), Entropy(6)
    weight, lost = torch.zeros(10, 64), torch.zeros(10, 64)
    weight += 0.01 * torch.randn(10, 64, generator=generator)
    grid = make_grid((10, 64), Dense(), 1, block=32)
    check = TrainingCheck([weight, lost], grid, entropy)
    strayed, bound, alarms, told = torch.zeros(10, 64, dtype=torch.float64), 0.0, 0, torch.zeros(10, 64)
    for number in range(steps):
        chosen = torch.randint(len(inputs), (32,), generator=generator)
        x = inputs[chosen]
        y = x @ weight.T
        alarms += int((~check.expect(x).accepts(y)).sum())
        dy = (functional.softmax(y, 1) - functional.one_hot(labels[chosen], 10)) / 32
        alarms += int((~check.expect_transposed(dy, ()).accepts(dy @ weight)).sum())
        move = Descent.sgd(0.05, weight_decay=5e-4)
        check.move(move, [check.see(x, dy)])
        descend(move, [weight, lost], dy.T @ x)
        if share and number % 10 == 9:
            allowed = share * check.drift * float(weight.norm())
            direction = functional.softmax(inputs[:256] @ weight.T, 1) - functional.one_hot(labels[:256], 10)
            against = direction.T @ inputs[:256]
            wanted = against * (allowed / float(against.norm()))
            whole = weight.double() + lost.double() + (wanted - told).double()
            weight.copy_(whole)  # split as rounding would: any other split is refused at once
            lost.copy_(whole - weight.double())
            strayed += (wanted - told).double()
            told = wanted
        if (number + 1) % RENEWED_EVERY == 0:
            alarms += int(not check.matches_whole([weight, lost, torch.zeros_like(weight)]))
            bound += check.drift
            check, told = TrainingCheck([weight, lost], grid, entropy), torch.zeros(10, 64)
    right = (data.test.inputs.flatten(1) @ weight.T).argmax(1) == data.test.labels
    moved = float(strayed.norm()) / float(weight.norm())
    return {"alarms": alarms, "moved": moved, "bound": bound, "accuracy": float(right.float().mean())}


PARTS: Final[dict[str, Callable[[int], Iterator[dict[str, Any]]]]] = {
    "honest": honest,
    "lies": lies,
    "adaptive": adaptive,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--loops", action=argparse.BooleanOptionalAction, default=True, help="check in compiled loops")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loops = options.loops and compiled.prepare()
    print(f"checks in {'compiled loops' if loops else 'PyTorch'}", flush=True)
    results: dict[str, Any] = {
        "benchmark": "training checks",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "loops": loops,
    }
    for name in options.only:
        start = time.perf_counter()
        count = {"honest": 100_000, "lies": 10_000, "adaptive": 100_000}[name] // (100 if options.quick else 1)
        rows = []
        for row in PARTS[name](count):
            rows.append(row)
            print(name, json.dumps(row), flush=True)
        results[name] = {"rows": rows, "seconds": time.perf_counter() - start}
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
