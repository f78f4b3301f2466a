"""Train scattered and plain from the same seeds: do they go the same way, and end in the same place?

    python benchmarks/training_curves.py [--json FILE] [--recipes digits cifar10 text] [--cifar PATH] [--text PATH]
                                         [--seeds 0 1 2] [--devices 2] [--faults] [--steps N]

For each recipe and seed: a plain run, the same with another order of summation (one thread more or less), and a
run on a fleet, with the same fresh weights, the same batches in the same order. Printed: the largest difference
of the losses over the first 100 steps, from the plain run, of the fleet and of the other order; the largest
difference of the weights at the end; and the figures on held-back data. float32 sums in another order differ in
their last bits, and training makes that grow: the other order says how much of a difference means nothing.

--faults: of ten devices one lies at random, in a tenth of its steps and one in twenty answers, and one other is killed
every 20 steps, and comes back as itself 5 steps later.
"""

import argparse
import json
import platform
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import awfulowl as owl
from awfulowl.fleet.local import LocalFleet
from awfulowl.recipes.loop import Progress
from awfulowl.recipes.recipe import Recipe, changed, find_recipe
from awfulowl.recipes.run import FleetRun, Outcome, go_on, train_here, train_on_fleet
from awfulowl.recipes.task import make_task

FIRST = 100


def runs(recipe: Recipe, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each seed."""
    for seed in options.seeds:
        seeded = changed(recipe, seed=seed, checkpoint_every=0)
        threads = torch.get_num_threads()
        plain = train_here(seeded, make_task(seeded))
        torch.set_num_threads(1 if threads > 1 else 2)
        other = train_here(seeded, make_task(seeded))
        torch.set_num_threads(threads)
        scattered = faulty(seeded) if options.faults else on_fleet(seeded, options.devices)
        yield {
            "recipe": recipe.name,
            "seed": seed,
            "steps": plain.trained.steps,
            "faults": options.faults,
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


def on_fleet(recipe: Recipe, devices: int) -> Outcome:
    """Train on so many honest devices."""
    task = make_task(recipe)
    with owl.local_fleet(devices=devices) as fleet:
        plan = owl.plan(task.model, task.example, devices=fleet, replicas=1)
        return train_on_fleet(recipe, task, FleetRun(fleet, plan))


def faulty(recipe: Recipe) -> Outcome:
    """Train among ten devices of which one lies and others die."""
    task = make_task(recipe)
    names = [f"d{number}" for number in range(10)]
    with owl.local_fleet(devices={name: name for name in names}) as fleet:
        plan = owl.plan(task.model, task.example, devices=fleet, replicas=1)
        fleet.lead_astray(names[0], "scaled", 0.1, probability=0.1)
        return train_on_fleet(recipe, task, FleetRun(fleet, plan), between=deaths(fleet, names[1:]))


def deaths(fleet: LocalFleet, names: list[str]) -> Callable[[Progress], bool]:
    """Return what kills one of some devices every 20 steps, and starts it again 5 steps later."""
    chance = random.Random(0)  # noqa: S311  repeatable on purpose
    dead: list[str] = []

    def between(progress: Progress) -> bool:
        if progress.step % 20 == 10:
            dead.append(chance.choice(names))
            fleet.kill(dead[-1])
        if progress.step % 20 == 15 and dead:
            fleet.restart(dead.pop())
        return go_on(progress)

    return between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--recipes", nargs="+", choices=["digits", "cifar10", "text"], default=["digits"])
    parser.add_argument("--cifar", metavar="PATH", help="CIFAR-10, an archive or its folder")
    parser.add_argument("--text", metavar="PATH", help="any text")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 steps")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = [0], 40
    rows = []
    for name in options.recipes:
        path = {"cifar10": options.cifar, "text": options.text}.get(name)
        for row in runs(changed(find_recipe(name), path=path, steps=options.steps), options):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        found = {"python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
