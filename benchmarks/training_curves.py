"""Train scattered and plain from the same seeds: do they go the same way, and end in the same place?

    python -m benchmarks.training_curves [--json FILE] [--recipes digits cifar10 text FILE] [--cifar PATH] [--text PATH]
                                         [--seeds 0 1 2] [--orders 3] [--devices 2] [--accelerator cpu] [--faults]
                                         [--steps N] [--at-once 1]

For each recipe and seed: a plain run, the same in some other orders of addition, and a run on a fleet, with the same
fresh weights, the same batches in the same order. Printed: the largest difference of the losses over the first 100
steps, from the plain run, of the fleet and of the other orders; the largest difference of the weights at the end; and
the figures on held-back data. float32 sums in another order differ in their last bits, and training makes that grow
without bound: the other orders say how much of a difference means nothing. `training_stretches` holds a fleet to a
bound, over stretches too short for that.

It returns 1 if over the seeds the mean of the fleet's figures is more than .5 points, or .02 nats, from that of the
plain runs (of fewer seeds than three, or less than the recipe, no figure is judged), or if without --faults an answer
was refused, or with it the liar was not found.

--faults: of ten devices one lies at random, in a tenth of its steps and one in twenty answers, and one other is killed
every 20 steps, and comes back as itself 5 steps later.
"""

import argparse
import itertools
import json
import multiprocessing
import platform
import random
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import awfulowl as owl
from awfulowl.fleet.local import LocalFleet
from awfulowl.recipes.loop import Between, Progress
from awfulowl.recipes.recipe import Recipe, changed, find_recipe
from awfulowl.recipes.run import FleetRun, Outcome, train_here, train_on_fleet
from awfulowl.recipes.task import make_task
from benchmarks.claims import Claim, verdict

FIRST = 100
FAULTY_DEVICES = 10
APART = {"accuracy": 0.005, "nats": 0.02}
"""By how much final figures may differ."""
SEEDS = 3
Where = Literal["here", "fleet", "faulty"]


class Training(NamedTuple):
    """One of the trainings of a seed: where it happens, and here in which order sums are made, 0 is PyTorch's own."""

    recipe: Recipe
    where: Where
    order: int
    devices: int
    accelerator: str

    def run(self) -> Outcome:
        """Train."""
        task = make_task(self.recipe)
        if self.where == "here":
            reorder(task.model, self.order)
            return train_here(self.recipe, task, self._tell)
        between: Between = self._tell
        names = device_names(self.devices, faults=self.where == "faulty")
        with owl.local_fleet(devices={name: name for name in names}, accelerator=self.accelerator) as fleet:
            plan = owl.plan(task.model, task.example, devices=fleet, replicas=1)
            if self.where == "faulty":
                between = with_faults(fleet, names, between)
            return train_on_fleet(self.recipe, task, FleetRun(fleet, plan), between)

    def _tell(self, progress: Progress) -> bool:
        if progress.step % 100 == 0:
            where = f"{self.recipe.name}, seed {self.recipe.seed}, {self.where}, order {self.order}"
            print(f"{where}: step {progress.step}, loss {progress.losses[-1]:.4f}", file=sys.stderr, flush=True)
        return True


def reorder(model: nn.Module, order: int) -> None:
    """Let dense layers and convolutions add in another order: over inputs, and in gradients over samples; 0: as ever.

    Inside of layers, so that what is drawn at random between them, such as dropout, is the same for each sample.
    """
    if order:
        generator = torch.Generator().manual_seed(order)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                vars(module)["forward"] = partial(_multiply_in_order, module, generator)


def _multiply_in_order(module: nn.Linear | nn.Conv2d, generator: torch.Generator, x: Tensor) -> Tensor:
    axis = -1 if isinstance(module, nn.Linear) else 1
    samples = torch.randperm(len(x), generator=generator)
    inputs = torch.randperm(x.shape[axis], generator=generator)
    x, weight = x[samples].index_select(axis, inputs), module.weight[:, inputs]
    if isinstance(module, nn.Linear):
        y = functional.linear(x, weight, module.bias)
    else:
        y = functional.conv2d(x, weight, module.bias, module.stride, module.padding, module.dilation)
    return y[samples.argsort()]


def trainings(recipe: Recipe, options: argparse.Namespace) -> list[Training]:
    """Return the plain run of a recipe, that on a fleet, and those in other orders."""
    plain = Training(recipe, "here", 0, options.devices, options.accelerator)
    fleet: Where = "faulty" if options.faults else "fleet"
    others = [plain._replace(order=number + 1) for number in range(options.orders)]
    return [plain, plain._replace(where=fleet), *others]


def row(recipe: Recipe, faults: bool, plain: Outcome, scattered: Outcome, *others: Outcome) -> dict[str, Any]:
    """Return what is found of a seed."""
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "steps": plain.trained.steps,
        "faults": faults,
        "loss_differs": first_difference(plain, scattered),
        "loss_differs_by_order": [first_difference(plain, other) for other in others],
        "weights_differ": weights_difference(plain.state, scattered.state),
        "weights_differ_by_order": [weights_difference(plain.state, other.state) for other in others],
        "metric": plain.trained.metric,
        "plain": plain.trained.figure,
        "other_orders": [other.trained.figure for other in others],
        "scattered": scattered.trained.figure,
        "plain_seconds": plain.trained.seconds,
        "scattered_seconds": scattered.trained.seconds,
        "drift": max(scattered.trained.drift.values()),
        "statistics": {name: count for name, count in scattered.trained.statistics.items() if count},
    }


def first_difference(one: Outcome, other: Outcome) -> float:
    """Return the largest difference of the losses over the first steps."""
    pairs = zip(one.trained.losses[:FIRST], other.trained.losses[:FIRST], strict=True)
    return max(abs(left - right) for left, right in pairs)


def weights_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of two weights, relative to the longest absolute weight of their tensor."""
    found = 0.0
    for name, tensor in one.items():
        if tensor.is_floating_point():
            found = max(found, float((other[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-12)))
    return found


def device_names(devices: int, *, faults: bool) -> list[str]:
    return [f"d{number}" for number in range(FAULTY_DEVICES if faults else devices)]


def with_faults(fleet: LocalFleet, names: Sequence[str], between: Between) -> Between:
    """Let the first device lie; return what kills one of the others every 20 steps, and starts it 5 steps later."""
    liar, *others = names
    fleet.lead_astray(liar, "scaled", 0.1, probability=0.1)
    fleet.corrupt(liar, "random", 0.01, probability=0.05)
    chance = random.Random(0)  # noqa: S311  repeatable on purpose
    dead: list[str] = []

    def kill(progress: Progress) -> bool:
        if progress.step % 20 == 10:
            dead.append(chance.choice(others))
            fleet.kill(dead[-1])
        if progress.step % 20 == 15 and dead:
            fleet.restart(dead.pop())
        return between(progress)

    return kill


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Let what is trained, and where, be chosen."""
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--recipes", nargs="+", default=["digits"], help="digits, cifar10, text, or TOML files")
    parser.add_argument("--cifar", metavar="PATH", help="CIFAR-10, an archive or its folder")
    parser.add_argument("--text", metavar="PATH", help="any text")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--orders", type=int, default=3, help="other orders of addition (default: 3)")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--accelerator", default="cpu", help="where devices multiply: cpu, cuda")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, one other order, 40 steps")


def read_recipes(options: argparse.Namespace) -> Iterator[Recipe]:
    """Return the recipes that were chosen, for each seed."""
    if options.quick:
        options.seeds, options.orders, options.steps = [0], 1, 40
    for name, seed in itertools.product(options.recipes, options.seeds):
        read = find_recipe(name)
        path = {"cifar10": options.cifar, "text": options.text}.get(read.data)
        yield changed(read, path=path, steps=options.steps, seed=seed, checkpoint_every=0)


def claims(rows: Iterable[Mapping[str, Any]], *, whole: bool) -> Iterator[Claim]:
    """Yield what has to be so on any machine; final figures only if recipes ran as a whole."""
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], []).append(row)
    for recipe, own in by_recipe.items():
        if whole and len(own) >= SEEDS:
            plain, scattered = (statistics.fmean(row[kind] for row in own) for kind in ("plain", "scattered"))
            metric = own[0]["metric"]
            text = f"{recipe}: means within {APART[metric]:g} ({metric}): plain {plain:.5g}, fleet {scattered:.5g}"
            yield Claim(text, abs(scattered - plain) <= APART[metric])
        for row in own:
            caught, where = row["statistics"].get("lies_caught", 0), f"{recipe}, seed {row['seed']}"
            if row["faults"]:
                yield Claim(f"{where}: the liar is found", caught > 0)
            else:
                yield Claim(f"{where}: no honest answer is refused: {caught} were", caught == 0)


def write(file: str | None, rows: Sequence[dict[str, Any]]) -> None:
    """Keep results, where there is a file for them."""
    if file:
        found = {"python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        Path(file).write_text(json.dumps(found, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipes(parser)
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time, each with its threads")
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(options.at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        begun: list[tuple[Recipe, list[Future[Outcome]]]] = [
            (recipe, [pool.submit(Training.run, training) for training in trainings(recipe, options)])
            for recipe in read_recipes(options)
        ]
        for recipe, runs in begun:
            rows.append(row(recipe, options.faults, *(run.result() for run in runs)))
            print(json.dumps(rows[-1]), flush=True)
    write(options.json, rows)
    return verdict(claims(rows, whole=options.steps is None))


if __name__ == "__main__":
    sys.exit(main())
