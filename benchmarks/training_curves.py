"""Train scattered and plain from the same seeds: do they go the same way, and end in the same place?

    python benchmarks/training_curves.py [--json FILE] [--recipes digits cifar10 text FILE] [--cifar PATH] [--text PATH]
                                         [--seeds 0 1 2] [--devices 2] [--accelerator cpu] [--faults] [--steps N]
                                         [--at-once 1]

For each recipe and seed: a plain run, the same with another order of summation (one thread more or less), and a
run on a fleet, with the same fresh weights, the same batches in the same order. Printed: the largest difference
of the losses over the first 100 steps, from the plain run, of the fleet and of the other order; the largest
difference of the weights at the end; and the figures on held-back data. float32 sums in another order differ in
their last bits, and training makes that grow: the other order says how much of a difference means nothing.

--faults: of ten devices one lies at random, in a tenth of its steps and one in twenty answers, and one other is killed
every 20 steps, and comes back as itself 5 steps later.
"""

import argparse
import itertools
import json
import multiprocessing
import platform
import random
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import awfulowl as owl
from awfulowl.fleet.local import LocalFleet
from awfulowl.recipes.loop import Progress
from awfulowl.recipes.recipe import Recipe, changed, find_recipe
from awfulowl.recipes.run import FleetRun, Outcome, train_here, train_on_fleet
from awfulowl.recipes.task import make_task

FIRST = 100
Where = Literal["here", "fleet", "faulty"]


class Training(NamedTuple):
    """One of the trainings of a seed: where it happens, and with how many threads of ours."""

    recipe: Recipe
    where: Where
    threads: int
    devices: int
    accelerator: str

    def run(self) -> Outcome:
        """Train."""
        torch.set_num_threads(self.threads)
        task = make_task(self.recipe)
        between: Callable[[Progress], bool] = self._tell
        if self.where == "here":
            return train_here(self.recipe, task, between)
        names = [f"d{number}" for number in range(10 if self.where == "faulty" else self.devices)]
        with owl.local_fleet(devices={name: name for name in names}, accelerator=self.accelerator) as fleet:
            plan = owl.plan(task.model, task.example, devices=fleet, replicas=1)
            if self.where == "faulty":
                fleet.lead_astray(names[0], "scaled", 0.1, probability=0.1)
                fleet.corrupt(names[0], "random", 0.01, probability=0.05)
                between = deaths(fleet, names[1:], between)
            return train_on_fleet(self.recipe, task, FleetRun(fleet, plan), between)

    def _tell(self, progress: Progress) -> bool:
        if progress.step % 100 == 0:
            name, seed = self.recipe.name, self.recipe.seed
            told = f"{name}, seed {seed}, {self.where}, {self.threads} threads: step {progress.step}"
            print(f"{told}, loss {progress.losses[-1]:.4f}", file=sys.stderr, flush=True)
        return True


def trainings(recipe: Recipe, options: argparse.Namespace) -> tuple[Training, Training, Training]:
    """Return the plain run of a recipe, that in another order of summation, and that on a fleet."""
    threads = torch.get_num_threads()
    plain = Training(recipe, "here", threads, options.devices, options.accelerator)
    fleet: Where = "faulty" if options.faults else "fleet"
    return plain, plain._replace(threads=1 if threads > 1 else 2), plain._replace(where=fleet)


def row(recipe: Recipe, faults: bool, plain: Outcome, other: Outcome, scattered: Outcome) -> dict[str, Any]:
    """Return what is found of a seed."""
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "steps": plain.trained.steps,
        "faults": faults,
        "loss_differs": first_difference(plain, scattered),
        "loss_differs_by_order": first_difference(plain, other),
        "weights_differ": weights_difference(plain.state, scattered.state),
        "weights_differ_by_order": weights_difference(plain.state, other.state),
        "metric": plain.trained.metric,
        "plain": plain.trained.figure,
        "other_order": other.trained.figure,
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


def deaths(fleet: LocalFleet, names: list[str], between: Callable[[Progress], bool]) -> Callable[[Progress], bool]:
    """Return what kills one of some devices every 20 steps, and starts it again 5 steps later."""
    chance = random.Random(0)  # noqa: S311  repeatable on purpose
    dead: list[str] = []

    def kill(progress: Progress) -> bool:
        if progress.step % 20 == 10:
            dead.append(chance.choice(names))
            fleet.kill(dead[-1])
        if progress.step % 20 == 15 and dead:
            fleet.restart(dead.pop())
        return between(progress)

    return kill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--recipes", nargs="+", default=["digits"], help="digits, cifar10, text, or TOML files")
    parser.add_argument("--cifar", metavar="PATH", help="CIFAR-10, an archive or its folder")
    parser.add_argument("--text", metavar="PATH", help="any text")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--accelerator", default="cpu", help="where devices multiply: cpu, cuda")
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time, each with its threads")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 steps")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = [0], 40
    rows = []
    with ProcessPoolExecutor(options.at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        begun: list[tuple[Recipe, list[Future[Outcome]]]] = []
        for name, seed in itertools.product(options.recipes, options.seeds):
            read = find_recipe(name)
            path = {"cifar10": options.cifar, "text": options.text}.get(read.data)
            recipe = changed(read, path=path, steps=options.steps, seed=seed, checkpoint_every=0)
            begun.append((recipe, [pool.submit(Training.run, training) for training in trainings(recipe, options)]))
        for recipe, three in begun:
            rows.append(row(recipe, options.faults, *(training.result() for training in three)))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        found = {"python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
