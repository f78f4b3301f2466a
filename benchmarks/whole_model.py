"""What is stolen beyond the blocks of one layer: a whole model, a layer from its traffic, how fine is fine enough.

    python -m benchmarks.whole_model [--quick] [--cifar PATH] [--only PART ...] [--seeds 1 2 3] [--json FILE]
    python -m benchmarks.whole_model --only --read FILE ...

cut: a share of .3 of a whole network, scattered blocks against whole columns on 20 devices, with the floors and a
foreign network through the same pipeline, and what each has over the others, paired by seeds and test images; wants
CIFAR-10 (without --cifar: digits). Runs that were made one by one are summed up together with --read. layer: least
squares on the seen inputs and outputs of one convolution, against the number of queries and the share that is seen.
granularity: how often one right block shows, and what the cheapest attack costs, by the size of blocks. shapes: what
coalitions see of the network, by the shape of the plan; nothing is trained.

Victims are trained once and kept in the user's cache.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from awfulowl.costs import TRAINING, Ledger
from awfulowl.lab.attacks.base import Attack, Outcome
from awfulowl.lab.attacks.class_means import ClassMeans
from awfulowl.lab.attacks.frank_wolfe import FrankWolfe
from awfulowl.lab.attacks.norms import Norms
from awfulowl.lab.attacks.surrogate import SurrogateWithNorms
from awfulowl.lab.attacks.whole_model import Hints, HintsAndBlocks
from awfulowl.lab.scenes.drawing import Cut, attackable, draw, largest_layer
from awfulowl.lab.scenes.loot import Scene, Service, Truth, seen_share
from awfulowl.lab.scenes.threat import ThreatModel
from awfulowl.lab.traffic.equations import cosines, solve, unexplained
from awfulowl.lab.traffic.hints import Hinting
from awfulowl.lab.victims.data import Split, cache_folder, read_split
from awfulowl.lab.victims.kinds import KINDS, Victim, train_victim
from awfulowl.lab.yardsticks.floors import Distilled, MissingLayers
from awfulowl.lab.yardsticks.granularity import Attempt, detectability, printed_threshold, sound_threshold
from awfulowl.lab.yardsticks.seen import compare_shapes
from awfulowl.models.data import Labelled
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from awfulowl.placement.survey import survey
from awfulowl.randomness import Entropy

SHARE = 0.3
DEVICES = 20
BLOCK = 16
QUERIES = 5000
PASSES = 40_000
RESAMPLES = 2000
LAYER = "features.12"


def prepared(options: argparse.Namespace) -> tuple[Split, Callable[[int], Victim]]:
    """Return the data, and what trains a network of a seed."""
    kind = KINDS["cifar" if options.cifar else "digits"]
    data = read_split(str(options.cifar) if options.cifar else "digits", cache_folder())

    def trained(seed: int) -> Victim:
        victim = train_victim(kind, seed, data, cache=cache_folder(), on_epoch=told(f"{kind.name} {seed}"))
        # Convolutions are a third faster with channels last.
        fast = replace(kind, build=lambda own: kind.build(own).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        return replace(victim, kind=fast)

    return data, trained


def told(name: str) -> Callable[[int, int], None]:
    return lambda done, total: print(f"  training {name}: epoch {done} of {total}", flush=True)


def planned(victim: Victim, data: Split, shape: str, seed: int) -> Plan:
    return plan_model(
        victim.model,
        data.public.inputs[:2],
        [Device(f"d{number}") for number in range(DEVICES)],
        Options(block=BLOCK, shape=shape, replicas=1),  # type: ignore[arg-type]
        Entropy(seed),
    )


def drawn(victim: Victim, data: Split, shape: str, seed: int, source: Victim | None = None) -> tuple[Scene, Truth]:
    """Return the loot of 6 of 20 devices; the first layer, whose inputs a client knows, is left alone."""
    threat = ThreatModel(share=SHARE, queries=min(QUERIES, 4 * len(data.public.labels)), knows_other_layers=False)
    layers = tuple(attackable(victim.model))[1:]
    cut = Cut(layers=layers, plan=planned(victim, data, shape, seed))
    return draw(victim, data, threat, cut, seed=seed, source=None if source is None else source.model)


def cut_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each seed and attack."""
    data, trained = prepared(options)
    victim = trained(options.victim)
    mirrored = bool(options.cifar)
    blind = Hinting(weight=0.0, forced=0.0)
    floor: list[tuple[str, str, Attack, bool]] = [
        ("scattered", "F2", Distilled(mirrored=mirrored), False),
        ("scattered", "F2-student", Hints(hinting=blind, mirrored=mirrored), False),
    ]
    attacks: list[tuple[str, str, Attack, bool]] = [
        *floor,
        ("scattered", "hints", Hints(mirrored=mirrored), False),
        ("scattered", "hints-and-blocks", HintsAndBlocks(mirrored=mirrored), False),
        ("columns", "hints", Hints(mirrored=mirrored), False),
        ("columns", "hints-and-blocks", HintsAndBlocks(mirrored=mirrored), False),
        ("scattered", "hints-foreign", Hints(mirrored=mirrored), True),
    ]
    for shape, name, attack, control in attacks:
        if options.attacks and name not in options.attacks:
            continue
        for seed in options.seeds:
            scene, truth = drawn(victim, data, shape, seed, trained(options.foreign) if control else None)
            budget = Ledger(flops=options.passes * TRAINING * victim.forward_flops, queries=scene.threat.queries)
            # Without the cache: it would keep the first weights as long as the context lasts.
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16, cache_enabled=False):
                outcome = attack(scene, truth, seed=1000 + seed, budget=budget)
            yield cut_row(shape, name, seed, scene, outcome, options.passes)


def cut_row(shape: str, name: str, seed: int, scene: Scene, outcome: Outcome, passes: int) -> dict[str, Any]:
    grade = outcome.grade
    return {
        "part": "cut",
        "shape": shape,
        "attack": name,
        "seed": seed,
        "passes": passes,
        "seen": seen_share(scene.service.seen),
        "accuracy": grade.accuracy,
        "agreement": grade.agreement,
        "cosine": grade.cosine,
        "positions_right": grade.positions_right,
        "flops": outcome.cost["flops"],
        "seconds": outcome.seconds,
        "right": grade.right,
    }


Answers = dict[int, Tensor]
"""Which test images (n,) are right, by seed."""

COMPARED = [
    (("scattered", "hints-and-blocks"), ("columns", "hints-and-blocks")),
    (("scattered", "hints-and-blocks"), ("scattered", "hints-foreign")),
]
"""What the advantage of scattered blocks falls by: with whole columns, and without this network's own activations."""


def advantages(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield for each attack its mean accuracy, and what that is above the better form of F2; then `COMPARED`."""
    named: dict[tuple[str, str], Answers] = {}
    for row in rows:
        named.setdefault((row["shape"], row["attack"]), {})[row["seed"]] = row["right"].double()
    floors = [found for (_, name), found in named.items() if name.startswith("F2")]
    best = max(floors, key=lambda found: float(torch.stack([*found.values()]).mean()), default=None)
    for (shape, name), found in named.items():
        accuracy = float(torch.stack([*found.values()]).mean())
        summary: dict[str, Any] = {"part": "cut", "shape": shape, "attack": name, "accuracy": accuracy, "n": len(found)}
        if best is not None and best.keys() >= found.keys():
            summary |= difference("advantage", found, best)
        yield summary
    for one, other in COMPARED:
        if one in named and other in named and named[one].keys() == named[other].keys():
            names = {"part": "cut", "shape": one[0], "attack": one[1], "over": " ".join(other), "n": len(named[one])}
            yield {**names, **difference("difference", named[one], named[other])}


def difference(what: str, found: Answers, other: Answers) -> dict[str, Any]:
    """Return the mean difference of accuracy at the seeds of the first, with its paired interval."""
    differences = torch.stack([found[seed] - other[seed] for seed in found])
    return {what: float(differences.mean()), "interval": paired(differences)}


def paired(differences: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of (seeds, images), both drawn anew (percentile bootstrap)."""
    generator = torch.Generator().manual_seed(seed)
    seeds, images = differences.shape
    means = []
    for _ in range(RESAMPLES):
        chosen = differences[torch.randint(seeds, (seeds,), generator=generator)].mean(dim=0)
        means.append(chosen[torch.randint(images, (images,), generator=generator)].mean())
    low, high = torch.quantile(torch.stack(means), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def show(row: dict[str, Any]) -> None:
    shown = {key: rounded(value) for key, value in row.items() if key != "right"}
    print("  ".join(f"{key}={value}" for key, value in shown.items()), flush=True)


def rounded(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(rounded, value))
    return round(value, 4) if isinstance(value, float) else value


def packed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as it stands in a file: which images are right in hexadecimal digits, a bit for each."""
    if "right" not in row:
        return row
    right: Tensor = row["right"]
    return {**row, "right": np.packbits(right.numpy()).tobytes().hex(), "images": len(right)}


def read_cuts(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of part cut of earlier runs."""
    for path in paths:
        for row in json.loads(path.read_text()):
            if "right" in row:
                bits = np.frombuffer(bytes.fromhex(row["right"]), dtype=np.uint8)
                yield {**row, "right": torch.from_numpy(np.unpackbits(bits, count=row["images"]).astype(bool))}


def layer_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of queries and seen share: the last convolution of the network, 1152 inputs."""
    queries, rows = ((400,), 1) if options.quick else ((300, 1000), 8)
    if options.cifar:
        data, trained = prepared(options)
        model, images, fresh = trained(options.victim).model, data.public.inputs, data.validation.inputs[:200]
    else:
        generator = torch.Generator().manual_seed(0)
        model = KINDS["cifar"].build(0).eval()
        images, fresh = (torch.randn(count, 3, 32, 32, generator=generator) for count in (1000, 200))
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, torch.nn.Conv2d)
    everything = {LAYER: torch.ones(layer.in_channels), "hidden": torch.ones(2048)}
    service = Service(model, model, {name: seen.bool() for name, seen in everything.items()})
    for count in queries:
        for share in (1.0, 0.94, 0.81, 0.36):
            for seed in options.seeds[: 1 if share == 1.0 else 3]:
                yield layer_row(service, layer, images[:count], fresh, (share, seed, rows))


def layer_row(
    service: Service, layer: torch.nn.Conv2d, images: Tensor, fresh: Tensor, case: tuple[float, int, int]
) -> dict[str, Any]:
    share, seed, count = case
    ledger, started = Ledger(), time.perf_counter()
    order = torch.tensor(Entropy(seed).permutation(layer.in_channels))
    seen = torch.zeros(layer.in_channels, dtype=torch.bool)
    seen[order[: round(share * layer.in_channels)]] = True
    known, other = (service.watch(some, ledger).inputs for some in (images, fresh))
    (x, y), (x2, y2) = ((one[LAYER], one["hidden"].reshape(-1, layer.out_channels, 16)) for one in (known, other))
    rows = torch.arange(0, layer.out_channels, layer.out_channels // count)
    found = solve(layer, x, y, seen, ledger, rectified=True, rows=rows)
    angles = cosines(found, layer.weight.detach()[rows], seen)
    left = unexplained(layer, found, x2, y2, seen, rectified=True, rows=rows)
    return {
        "part": "layer",
        "queries": len(images),
        "seen": share,
        "seed": seed,
        "cosine": float(angles.mean()),
        "least": float(angles.min()),
        "unexplained": float(left.mean()),
        "equations": float(found.equations.double().mean()),
        "rows": len(rows),
        "flops": ledger.flops,
        "seconds": time.perf_counter() - started,
    }


def granularity_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield for the largest layer how often one right block shows, and what attacks cost, by block size."""
    data, trained = prepared(options)
    victim = trained(options.victim)
    layer = victim.kind.layer or largest_layer(victim.model)
    threat = ThreatModel(share=SHARE, sees_inputs=False)
    some = Labelled(data.public.inputs[:1000], data.public.labels[:1000])
    printed = printed_threshold(generations=100, evaluated=10_000, trained=50_000, epochs=100)
    yield {"part": "granularity", "printed blocks": printed.blocks, "printed population": printed.population}
    tries: list[Attempt] = []
    floor = math.inf
    for block in (16, 8) if options.quick else (128, 64, 32, 16):
        scene, truth = draw(victim, data, threat, Cut(layers=(layer,), block=block), seed=options.seeds[0])
        grid, draws = scene.layers[layer].grid, 20 if options.quick else 100
        for right in (0.0, 0.5):
            held = truth.positions[layer]
            for one in detectability(victim.model, layer, grid, held, some, Entropy(1), draws=draws, right=right):
                yield {"part": "granularity", "block": block, "right before": right, **one._asdict()}
        floor = min(floor, MissingLayers()(scene, truth, seed=1).cost["flops"])
        for attack in (Norms(), ClassMeans(), FrankWolfe(), SurrogateWithNorms()):
            found = attack(scene, truth, seed=1)
            reached = found.grade.positions_right or 0.0
            tries.append(Attempt(attack.name, block, found.cost["flops"], succeeded=reached >= 0.9))
            yield {
                "part": "granularity",
                "block": block,
                "attack": attack.name,
                "positions_right": reached,
                "flops": found.cost["flops"],
            }
    sound = sound_threshold(tries, floor)
    cheapest = {block: best and (best.attack, best.flops) for block, best in sound.cheapest.items()}
    yield {"part": "granularity", "holds": sound.holds, "floor flops": floor, "cheapest": cheapest}


def shape_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield for each shape and number of replicas what coalitions see of the network; nothing is trained."""
    kind, shape = (KINDS["cifar"], (3, 32, 32)) if not options.quick else (KINDS["digits"], (1, 8, 8))
    layers = survey(kind.build(0).eval(), torch.zeros(1, *shape)).layers
    devices = [Device(f"d{number}") for number in range(DEVICES)]
    for row in compare_shapes(layers, devices, block=BLOCK, seed=options.seeds[0]):
        yield {"part": "shapes", **row._asdict()}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "shapes": shape_rows,
    "layer": layer_rows,
    "granularity": granularity_rows,
    "cut": cut_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="seconds, on digits and small puzzles; figures mean little"
    )
    parser.add_argument("--cifar", type=Path, help="CIFAR-10, as an archive or a folder")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[*PARTS])
    parser.add_argument("--read", nargs="+", type=Path, default=[], help="--json of earlier runs of part cut")
    parser.add_argument("--attacks", nargs="+", help="of part cut, by name; all without")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--victim", type=int, default=0, help="seed of the network that is robbed")
    parser.add_argument("--foreign", type=int, default=1, help="seed of the network of the control")
    parser.add_argument("--passes", type=int, default=PASSES, help="forward and backward passes of the pirate")
    parser.add_argument(
        "--bfloat16", action="store_true", help="products in bfloat16: twice as fast where processors can"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.passes = options.seeds[:1], 5000
    started, rows = time.perf_counter(), [*read_cuts(options.read)]
    for part in options.only:
        for row in PARTS[part](options):
            show(row)
            rows.append(row)
    for summary in advantages([row for row in rows if row["part"] == "cut"]):
        show(summary)
        rows.append(summary)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([*map(packed, rows)], indent=1))


if __name__ == "__main__":
    main()
