"""Hold training on a fleet to plain training over short stretches, from the same weights and momentum each time.

    python -m benchmarks.training_stretches [--json FILE] [--recipes digits cifar10 text FILE] [--cifar PATH]
                                            [--text PATH] [--seeds 0 1 2] [--orders 3] [--devices 2] [--faults]
                                            [--every 20] [--steps N]

Over hundreds of steps rounding grows until any two orders of addition have parted (`training_curves`). So every 20
steps the state of the fleet is fetched and verified, as for a checkpoint, and a plain twin gets its weights, momentum
and random state. Both take the next 20 steps on the same batches, and so does the twin in some other orders of
addition. Then, layer by layer: the length of the difference of the weights from the twin's, relative to the weights.

It is held to a bound: what `fleet.drift` grew by in that stretch, at whose start secrets were drawn anew, plus (steps +
1) u. The first is how far devices may have moved the weights unseen, the second how far the twin may, which rounds its
weights at every step, and fetching them, which rounds once. What twin and owner round between layers is in neither;
there it takes an activation over an edge now and then, its gradient jumps, and the runs go one of two ways. So the
other orders are held to the same bound, and all to the nearest plain run besides. Of each list the first is the fleet,
the others are orders.

differs, losses_differ   largest differences from the twin
of_bound, within         the largest in units of the bound, and in how many stretches no layer was beyond it
of_bound_nearest, ...    the same, from that plain run of the stretch, the twin or one in another order, that is nearest
refused                  answers of single devices

It returns 1 if the fleet is beyond the bound of the nearest more often than other orders are (95 % intervals of the
shares do not meet), if without --faults a device was refused, or if with it the liar was not found.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import awfulowl as owl
from awfulowl.fleet.local import LocalFleet
from awfulowl.models.seeding import seeded
from awfulowl.owner.checkpoint import Checkpoint
from awfulowl.owner.policy import Policy
from awfulowl.placement.plan import Plan
from awfulowl.recipes import loop
from awfulowl.recipes.loop import Progress
from awfulowl.recipes.recipe import Recipe, changed
from awfulowl.recipes.task import Task, make_task
from awfulowl.results import wilson
from awfulowl.verification.rounding import UNIT_ROUNDOFF
from benchmarks.claims import Claim, verdict
from benchmarks.training_curves import add_recipes, device_names, read_recipes, reorder, with_faults, write


class State(NamedTuple):
    """What a fleet came to after a step, fetched and verified, the losses so far, and what `fleet.drift` says."""

    found: Checkpoint
    losses: list[float]
    drift: dict[str, float]


class Reached(NamedTuple):
    """What came of a stretch: weights, and a loss for every step."""

    weights: dict[str, Tensor]
    losses: list[float]


class Stretch(NamedTuple):
    """What is found of one, see above, of the fleet and of other orders; and the least and the largest bound."""

    differs: list[float]
    losses: list[float]
    of_bound: list[float]
    of_bound_nearest: list[float]
    bounds: list[float]


def train_twin(recipe: Recipe, task: Task, start: Checkpoint, end: int, order: int) -> Reached:
    """Train here from a state of the fleet to a step, in some order of addition."""
    model = copy.deepcopy(task.model)
    model.load_state_dict(start.model)
    reorder(model, order)
    optimizer = loop.plain_optimizer(model, recipe)
    for name, parameter in model.named_parameters():
        for kept in (f"momentum/{name.removesuffix('.weight')}", f"momentum.{name}"):  # of devices, of the owner
            if kept in start.training:
                optimizer.state[parameter]["momentum_buffer"] = start.training[kept].view_as(parameter).clone()
    progress = Progress(losses=[0.0] * start.facts.step)
    with torch.random.fork_rng(devices=[]):
        start.restore_random_state()
        loop.train(model, optimizer, task, changed(recipe, eval_every=0), progress, lambda now: now.step < end)
    return Reached(model.state_dict(), progress.losses[start.facts.step :])


def compare(recipe: Recipe, task: Task, between: tuple[State, State], plan: Plan, orders: int) -> Stretch:
    """Hold what a fleet did between two states to what plain training does."""
    start, end = between
    first, last = start.found.facts.step, end.found.facts.step
    plain = [train_twin(recipe, task, start.found, last, order) for order in range(1 + orders)]
    twin, *others = plain
    all_ = [Reached(end.found.model, end.losses[first:last]), *others]
    bounds = torch.tensor(
        [end.drift[panel.name] - start.drift[panel.name] + (last - first + 1) * UNIT_ROUNDOFF for panel in plan.panels]
    )
    differs = [[apart(one.weights, other.weights, plan) for other in plain] for one in all_]
    ratios = [
        [float((found / bounds).max()) for found, other in zip(row, plain, strict=True) if other is not one]
        for row, one in zip(differs, all_, strict=True)
    ]
    return Stretch(
        differs=[float(from_twin.max()) for from_twin, *_ in differs],
        losses=[max(abs(a - b) for a, b in zip(one.losses, twin.losses, strict=True)) for one in all_],
        of_bound=[from_twin for from_twin, *_ in ratios],
        of_bound_nearest=[min(row) for row in ratios],
        bounds=[float(bounds.min()), float(bounds.max())],
    )


def apart(one: dict[str, Tensor], other: dict[str, Tensor], plan: Plan) -> Tensor:
    """Return for each scattered layer the length of the difference of the weights, relative to the weights."""
    found = []
    for panel in plan.panels:
        names = [f"{member.product}.weight" for member in panel.members]
        mine, theirs = (torch.cat([weights[name].double().flatten() for name in names]) for weights in (one, other))
        found.append((mine - theirs).norm() / theirs.norm())
    return torch.stack(found)


def follow(fleet: LocalFleet, recipe: Recipe, options: argparse.Namespace) -> list[Stretch]:
    """Train on a fleet, and hold every whole stretch to the twin."""
    task = make_task(recipe)
    plan = owl.plan(task.model, task.example, devices=fleet, replicas=1)
    stretches = []
    with seeded(recipe.seed), tempfile.TemporaryDirectory() as folder:
        scattered = fleet.scatter(task.model, plan, train=True)
        optimizer = fleet.optimizer(scattered, algorithm=recipe.optimizer, **loop.options(recipe))

        def state(losses: Sequence[float]) -> State:
            path = fleet.checkpoint(scattered, optimizer, folder, keep=1).result()
            return State(owl.read_checkpoint(path), list(losses), fleet.drift(scattered))

        last = state([])

        def pause(progress: Progress) -> bool:
            nonlocal last
            if progress.step % options.every == 0:
                now = state(progress.losses)
                stretches.append(compare(recipe, task, (last, now), plan, options.orders))
                last = now
            return True

        names = device_names(options.devices, faults=options.faults)
        among = with_faults(fleet, names, pause) if options.faults else pause
        loop.train(scattered, optimizer, task, recipe, Progress(), among)
    return stretches


def row(recipe: Recipe, options: argparse.Namespace, stretches: Sequence[Stretch]) -> dict[str, Any]:
    """Return the largest of everything, the fleet's first, then those of the other orders."""
    least, most = zip(*(stretch.bounds for stretch in stretches), strict=True)
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "faults": options.faults,
        "every": options.every,
        "stretches": len(stretches),
        "bounds": [min(least), max(most)],
        "differs": largest([stretch.differs for stretch in stretches]),
        "losses_differ": largest([stretch.losses for stretch in stretches]),
    }
    for name, rows in (
        ("", [stretch.of_bound for stretch in stretches]),
        ("_nearest", [stretch.of_bound_nearest for stretch in stretches]),
    ):
        found[f"of_bound{name}"] = largest(rows)
        found[f"within{name}"] = [sum(ratio <= 1 for ratio in column) for column in zip(*rows, strict=True)]
    return found


def largest(rows: Sequence[Sequence[float]]) -> list[float]:
    return [max(column) for column in zip(*rows, strict=True)]


def claims(rows: Sequence[Mapping[str, Any]]) -> Iterator[Claim]:
    """Yield what has to be so on any machine."""
    for row in rows:
        where = f"{row['recipe']}, seed {row['seed']}"
        if row["faults"]:
            yield Claim(f"{where}: the liar is found", row["refused"] > 0)
        else:
            yield Claim(f"{where}: no honest answer is refused: {row['refused']} were", row["refused"] == 0)
    stretches = sum(row["stretches"] for row in rows)
    within = [row["within_nearest"] for row in rows]
    orders, fleet = sum(len(own) - 1 for own in within), stretches - sum(own[0] for own in within)
    if stretches and orders:
        others = sum(row["stretches"] * len(own[1:]) - sum(own[1:]) for row, own in zip(rows, within, strict=True))
        made = sum(row["stretches"] * len(own[1:]) for row, own in zip(rows, within, strict=True))
        text = f"the fleet is in bounds as often as other orders: beyond in {fleet} of {stretches}, {others} of {made}"
        yield Claim(text, wilson(fleet, stretches).low <= wilson(others, made).high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipes(parser)
    parser.add_argument("--every", type=int, default=20, help="steps of a stretch (default: 20)")
    options = parser.parse_args()
    rows = []
    for recipe in read_recipes(options):
        names = device_names(options.devices, faults=options.faults)
        policy = Policy(snapshot_after=options.every)  # draws new secrets
        parties = {name: name for name in names}
        with owl.local_fleet(devices=parties, accelerator=options.accelerator, policy=policy) as fleet:
            found = row(recipe, options, follow(fleet, recipe, options))
            rows.append(found | {"refused": fleet.statistics["lies_caught"]})
        print(json.dumps(rows[-1]), flush=True)
    write(options.json, rows)
    return verdict(claims(rows))


if __name__ == "__main__":
    sys.exit(main())
