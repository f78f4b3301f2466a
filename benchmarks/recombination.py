"""Put stolen blocks back in place: how many, at what cost, and how fast a search can look.

    python benchmarks/recombination.py --quick
    python benchmarks/recombination.py --cifar PATH --cache FOLDER --json FILE

Without data (--quick): the digits victim. With CIFAR-10: victim S (see `lab.networks.CifarNet`), and victim P with the
founding paper's dense layer (see `lab.copies`). Sections, chosen by --only:

placement   norms, class means, surrogate, and surrogate with norms, by size of block and share held, over shuffles; no
            side channel. The surrogate does not depend on the shuffle, so it is trained once; the printed operations
            are those of a whole attack.
search      the repaired genetic search, and the others, with exactly the operations that surrogate and norms cost.
foreign     the same assignment of blocks of another network of the same kind.
speed       candidates a second: swaps evaluated incrementally, passes of cached features, passes of whole images.
assignment  8192 blocks of 16 x 16: seconds, and the most memory of the process; alone with --only assignment.
copies      victim P: the same and jigsaw, as trained and with what is left of the initial weights scaled.

Seconds are those of the processor: there is one thread, and other work on the machine does not stretch them.
"""

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awfulowl.costs import Ledger
from awfulowl.lab.attacks.annealing import Annealing, HillClimbing
from awfulowl.lab.attacks.base import Attack
from awfulowl.lab.attacks.frank_wolfe import FrankWolfe
from awfulowl.lab.attacks.genetic import Genetic, GeneticSegments
from awfulowl.lab.attacks.guided_swaps import GuidedSwaps
from awfulowl.lab.attacks.jigsaw import joined
from awfulowl.lab.attacks.surrogate import NORMS_WEIGHT
from awfulowl.lab.positions.breeding import Breeding
from awfulowl.lab.positions.incremental import Incremental
from awfulowl.lab.positions.profiles import add_standardised, at_places, profile_tables
from awfulowl.lab.positions.swapping import random_filling, random_swaps, some_images
from awfulowl.lab.scenes.drawing import Cut, draw
from awfulowl.lab.scenes.loot import Scene, Truth, assemble
from awfulowl.lab.scenes.threat import ThreatModel
from awfulowl.lab.sites.placing import Places, assign_flops, place, product_flops, products, standardise
from awfulowl.lab.sites.site import Site, look, make_site
from awfulowl.lab.sites.surrogates import Retraining, retrain
from awfulowl.lab.victims.copies import train_copied
from awfulowl.lab.victims.data import Split, read_split
from awfulowl.lab.victims.kinds import KINDS, Victim, train_victim
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy
from awfulowl.results import Result

SECTIONS = ("speed", "assignment", "placement", "foreign", "search", "copies")
Row = dict[str, Any]


class Board:
    """One attacked layer of a victim: what does not depend on which blocks are held is computed once."""

    def __init__(self, victim: Victim, data: Split, layer: str, seed: int) -> None:
        self.victim, self.data, self.layer, self.seed = victim, data, layer, seed
        scene, _ = self.scene(1.0, 256, 0)
        self.public = Ledger()
        self.site = make_site(scene, layer, self.public)
        self.means_flops, self.surrogate_flops = 0, 0

    @cached_property
    def tests(self) -> Site:
        """The layer among test images, for the report."""
        scene, _ = self.scene(1.0, 256, 0)
        return look(self.victim.model, self.layer, scene.layers[self.layer], self.data.test, Ledger())

    @cached_property
    def means(self) -> Tensor:
        """Minus the gradient at a layer of zeros."""
        ledger = Ledger()
        found = self.site.descent(torch.zeros(self.site.grid.shape), torch.arange(len(self.site)), 1.0, ledger)
        self.means_flops = ledger.flops
        return found

    @cached_property
    def surrogate(self) -> Tensor:
        """The retrained layer."""
        ledger = Ledger()
        with seeded(self.seed):
            found = retrain(self.site, Retraining(), ledger, Entropy(self.seed))
        self.surrogate_flops = ledger.flops
        return found

    def scene(self, share: float, block: int, seed: int, source: Victim | None = None) -> tuple[Scene, Truth]:
        """Draw loot without a side channel."""
        threat = ThreatModel(share=share, sees_inputs=False)
        robbed = None if source is None else source.model
        return draw(self.victim, self.data, threat, Cut(layers=(self.layer,), block=block), seed=seed, source=robbed)

    def drawn(self, share: float, block: int, seed: int, source: Victim | None = None) -> tuple[Site, Tensor]:
        """Return the site with other loot, and where it is from."""
        scene, truth = self.scene(share, block, seed, source)
        spoils = scene.layers[self.layer]
        return replace(self.site, spoils=spoils, places=Places(spoils.grid)), truth.positions[self.layer]

    def accuracy(self, site: Site, placement: Tensor) -> float:
        """Return the accuracy on test images of blocks at some positions."""
        return self.tests.evaluate(assemble(site.spoils, placement), Ledger())[1]


def by_norms(_: Board, site: Site) -> Tensor:
    return at_places(profile_tables(site), site)


def by_class_means(board: Board, site: Site) -> Tensor:
    return products(site.spoils.blocks, board.means, site.places)


def by_surrogate(board: Board, site: Site) -> Tensor:
    return products(site.spoils.blocks, board.surrogate, site.places)


def by_surrogate_and_norms(board: Board, site: Site) -> Tensor:
    return add_standardised(standardise(by_surrogate(board, site)), profile_tables(site), NORMS_WEIGHT)


def by_jigsaw(board: Board, site: Site) -> Tensor:
    return joined(site, standardise(by_class_means(board, site)))


SCORES: dict[str, Callable[[Board, Site], Tensor]] = {
    "norms": by_norms,
    "class-means": by_class_means,
    "surrogate": by_surrogate,
    "surrogate-norms": by_surrogate_and_norms,
    "jigsaw": by_jigsaw,
}


def flops(board: Board, site: Site, attack: str) -> int:
    """Return what the whole attack costs."""
    solved = assign_flops(len(site.spoils), len(site.places)) + board.public.flops
    if attack == "norms":
        return int(solved)
    learned = board.surrogate_flops if attack.startswith("surrogate") else board.means_flops
    return int(solved + learned + product_flops(site.spoils.blocks, site.places))


def placed(board: Board, attack: str, share: float, block: int, shuffles: Sequence[int], **more: Any) -> Row:
    """Return one row: mean over shuffles, with bootstrap intervals for the positions."""
    rows, started = [], time.process_time()
    source = more.pop("source", None)
    for seed in shuffles:
        site, truth = board.drawn(share, block, seed, source)
        found = place(site.spoils, SCORES[attack](board, site), site.places)
        right = found == truth
        rows.append(
            {
                "rows_right": float(right[:, 0].double().mean()),
                "columns_right": float(right[:, 1].double().mean()),
                "positions_right": float(right.all(dim=1).double().mean()),
                "accuracy": board.accuracy(site, found),
                "accuracy_true_positions": board.accuracy(site, truth),
            }
        )
    both = Result.mean("positions_right", [row["positions_right"] for row in rows], Entropy(0), seeds=shuffles)
    spent = flops(board, site, attack)
    return {
        "attack": attack,
        "block": block,
        "share": share,
        "shuffles": [*shuffles],
        **{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]},
        "interval": both.interval,
        "least": min(row["positions_right"] for row in rows),
        "flops": spent,
        "of_training": spent / board.victim.training_flops,
        "seconds_each_after_the_surrogate": (time.process_time() - started) / len(rows),
        **more,
    }


def placement(board: Board, options: argparse.Namespace) -> Iterator[Row]:
    for block in options.blocks:
        for share in options.shares:
            for attack in ("norms", "class-means", "surrogate", "surrogate-norms"):
                yield placed(board, attack, share, block, options.shuffles)


def foreign(board: Board, options: argparse.Namespace, cache: Path | None) -> Iterator[Row]:
    other = train_victim(board.victim.kind, board.victim.seed + 1, board.data, cache=cache)
    for block in options.blocks:
        yield placed(board, "surrogate-norms", 1.0, block, options.shuffles, source=other, blocks_of="another network")


def search(board: Board, options: argparse.Namespace) -> Iterator[Row]:
    """Give searches what surrogate and norms cost, and no more."""
    unlimited = 10**9
    searches: list[Attack] = [
        Genetic(Breeding(evaluations=unlimited, population=50)),
        GeneticSegments(Breeding(evaluations=unlimited, population=50)),
        HillClimbing(20 * options.evaluations),
        Annealing(20 * options.evaluations),
        GuidedSwaps(),
        FrankWolfe(),
    ]
    for block in options.blocks[:1]:
        scene, truth = board.scene(1.0, block, options.shuffles[0])
        site, _ = board.drawn(1.0, block, options.shuffles[0])
        budget = Retraining().flops(site) + flops(board, site, "norms") + product_flops(site.spoils.blocks, site.places)
        for attack in searches:
            found = attack(scene, truth, seed=options.shuffles[0], budget=Ledger(flops=budget))
            yield {
                "attack": attack.name,
                "block": block,
                "share": 1.0,
                "rows_right": found.grade.rows_right,
                "columns_right": found.grade.columns_right,
                "positions_right": found.grade.positions_right,
                "accuracy": found.grade.accuracy,
                "budget": budget,
                "flops": found.cost["flops"],
                "evaluations": found.cost["evaluations"],
                "seeds": [options.shuffles[0]],
            }


def speed(board: Board, options: argparse.Namespace) -> Iterator[Row]:
    """Interleave the three ways of judging a candidate on the same images, and compare medians."""
    site, _ = board.drawn(1.0, options.blocks[0], 0)
    entropy, ledger = Entropy(0), Ledger()
    images = some_images(site, 500, entropy)
    state = Incremental(site, random_filling(site, entropy), images, ledger)
    swaps, weight = random_swaps(site, state.filled, entropy), assemble(site.spoils, site.places.positions)
    pictures = board.data.public.inputs[images]

    def incremental() -> None:
        for _ in range(options.evaluations):
            state.try_swap(*next(swaps))

    def whole() -> None:
        with torch.no_grad():
            board.victim.model(pictures)

    times: dict[str, list[float]] = {"incremental": [], "cached": [], "whole": []}
    for _ in range(5):
        times["incremental"].append(timed(incremental) / options.evaluations)
        times["cached"].append(timed(lambda: site.evaluate(weight, ledger, images)))
        times["whole"].append(timed(whole))
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    yield {
        "blocks": len(site.places),
        "images": len(images),
        **{f"{name}_per_second": 1 / value for name, value in middle.items()},
        "incremental_over_cached": middle["cached"] / middle["incremental"],
        "incremental_over_whole": middle["whole"] / middle["incremental"],
        "operations_cached_over_swap": state.whole_flops / state.swap_flops,
        "operations_whole_over_swap": board.victim.forward_flops * len(images) / state.swap_flops,
    }


def timed(work: Callable[[], object]) -> float:
    """Return seconds of the processor, which other work on the machine does not stretch; there is one thread."""
    started = time.process_time()
    work()
    return time.process_time() - started


def assignment(board: Board, options: argparse.Namespace) -> Iterator[Row]:
    site, truth = board.drawn(1.0, 16, options.shuffles[0])
    before = peak()
    started = time.process_time()
    scores = by_surrogate_and_norms(board, site)
    scored = time.process_time() - started
    found = place(site.spoils, scores, site.places)
    yield {
        "blocks": len(site.spoils),
        "positions_right": float((found == truth).all(dim=1).double().mean()),
        "rows_right": float((found[:, 0] == truth[:, 0]).double().mean()),
        "seconds_scores": scored,
        "seconds_assignment": time.process_time() - started - scored,
        "bytes_of_scores": scores.numel() * scores.element_size(),
        "peak_bytes_before": before,
        "peak_bytes": peak(),
    }


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def copies(trunk: Victim, data: Split, options: argparse.Namespace) -> Iterator[Row]:
    for remainder in (None, 0.14):
        found = train_copied(trunk, 5, data, remainder=remainder, cache=options.cache)
        victim = Victim(
            kind=trunk.kind,
            seed=found.seed,
            model=found.model,
            training_flops=found.training_flops,
            forward_flops=found.forward_flops,
        )
        board = Board(victim, data, "fc1", 1)
        for share, shuffles in ((0.1, options.copied_shuffles), (1.0, options.copied_shuffles[:1])):
            for attack in ("norms", "class-means", "surrogate", "surrogate-norms", "jigsaw"):
                yield placed(board, attack, share, 256, shuffles, remainder=found.remainder)


def run(options: argparse.Namespace) -> Iterator[Row]:
    data = read_split("digits" if options.quick else str(options.cifar), options.cache)
    kind = KINDS["digits" if options.quick else "cifar"]
    victim = train_victim(kind, options.victim, data, cache=options.cache)
    board = Board(victim, data, "hidden", 1)
    yield {"section": "victim", "training_flops": victim.training_flops, "accuracy": whole_accuracy(board)}
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "speed": lambda: speed(board, options),
        "assignment": lambda: assignment(board, options),
        "placement": lambda: placement(board, options),
        "foreign": lambda: foreign(board, options, options.cache),
        "search": lambda: search(board, options),
        "copies": lambda: copies(victim, data, options),
    }
    for name in options.only:
        for row in sections[name]():
            yield {"section": name, "victim": options.victim, **row}


def whole_accuracy(board: Board) -> float:
    """Return the victim's accuracy on test images."""
    return board.tests.evaluate(board.victim.model.get_submodule(board.layer).get_parameter("weight"), Ledger())[1]


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--cifar", metavar="PATH", help="CIFAR-10, an archive or its folder")
    parser.add_argument("--cache", metavar="FOLDER", type=Path, help="keep trained victims there")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--victim", type=int, default=0, help="seed of the victim")
    parser.add_argument("--shuffles", nargs="+", type=int, default=[101, 102, 103])
    parser.add_argument("--quick", action="store_true", help="the digits victim: no data needed")
    options = parser.parse_args()
    if not options.quick and options.cifar is None:
        parser.error("give --cifar PATH, or --quick")
    options.blocks, options.shares, options.evaluations = [64, 32], [1.0, 0.3, 0.1], 1000
    options.copied_shuffles = [101, 102, 103, 104, 105]
    if options.quick:
        options.shuffles, options.shares, options.evaluations = options.shuffles[:1], [1.0, 0.3], 200
        options.only = [name for name in options.only if name != "copies"]
    rows = []
    for row in run(options):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        found = {"python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
