"""The ways in which a training step is parallel, measured against each other.

    python -m benchmarks.training_parallel [--json FILE] [--batch 128] [--rounds 10]

The perceptron of `serving.py`, on 2 devices without replicas and on 4 with two replicas of every block; rounds are
interleaved, in brackets a 95 % interval of the median.

whole       the batch in one piece: the blocks of a layer multiply at once (tensor parallelism)
micro       four micro-batches, one after the other
pipeline    the same, several under way at once in different layers
replicas    two replicas in lockstep, which share the parts of the batch; `exchange` is what they would move instead if
            each learnt of its own samples only and they exchanged gradients through the owner: less x and dy, and twice
            every gradient for each replica.
"""

import os

# Threads of OpenMP that spin when they are done would take the cores that devices and broker need. Before PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import platform
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import awfulowl as owl
from awfulowl.fleet.local import LocalFleet
from awfulowl.models.mlp import Mlp
from awfulowl.owner.optimizer import FleetOptimizer
from benchmarks.serving import spread

SIZES = [4096, 4096, 4096, 10]
MICRO = 4


class Learner(NamedTuple):
    """A model on a fleet, and what moves it."""

    fleet: LocalFleet
    model: nn.Module
    optimizer: FleetOptimizer

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean loss of a batch."""
        return functional.cross_entropy(self.model(batch[0]), batch[1])

    def whole(self, x: Tensor, labels: Tensor) -> None:
        """Go forward and backward in one piece."""
        torch.autograd.backward(self.loss((x, labels)))

    def micro(self, x: Tensor, labels: Tensor) -> None:
        """Go forward and backward in micro-batches, one after the other."""
        for batch in zip(x.chunk(MICRO), labels.chunk(MICRO), strict=True):
            torch.autograd.backward(self.loss(batch) / MICRO)

    def pipeline(self, x: Tensor, labels: Tensor) -> None:
        """Go forward and backward in micro-batches, several at once."""
        batches = list(zip(x.chunk(MICRO), labels.chunk(MICRO), strict=True))
        self.fleet.pipeline(self.model, lambda batch: self.loss(batch) / MICRO, batches)


def learner(stack: ExitStack, domains: dict[str, str], replicas: int) -> Learner:
    torch.manual_seed(0)
    model = Mlp(SIZES)
    fleet = stack.enter_context(owl.local_fleet(devices=domains))
    plan = owl.plan(model, torch.randn(1, SIZES[0]), devices=fleet, replicas=replicas)
    scattered = fleet.scatter(model, plan, train=True)
    return Learner(fleet, scattered, fleet.optimizer(scattered, lr=0.01, momentum=0.9))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        alone = learner(stack, {"d0": "a", "d1": "b"}, 1)
        double = learner(stack, {"d0": "a", "d1": "a", "d2": "b", "d3": "b"}, 2)
        ways: dict[str, tuple[Learner, Callable[[Tensor, Tensor], None]]] = {
            "whole": (alone, alone.whole),
            "micro": (alone, alone.micro),
            "pipeline": (alone, alone.pipeline),
            "replicas": (double, double.whole),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        moved: dict[str, int] = {}
        for number in range(options.rounds + 2):
            x, labels = torch.randn(options.batch, SIZES[0]), torch.randint(SIZES[-1], (options.batch,))
            for name, (own, work) in ways.items():
                before = own.fleet.statistics
                start = perf_counter()
                own.optimizer.zero_grad()
                work(x, labels)
                own.optimizer.step()
                if number > 1:
                    times[name].append(perf_counter() - start)
                after = own.fleet.statistics
                moved[name] = sum(after[kind] - before[kind] for kind in ("bytes_sent", "bytes_received"))
    rows = [{"way": name, "seconds": spread(taken), "bytes": moved[name]} for name, taken in times.items()]
    return [*rows, {"way": "exchange", "seconds": None, "bytes": exchanged(moved["whole"])}]


def exchanged(alone: int) -> int:
    """Return the bytes of a step on two replicas that exchange gradients: each sends its own, and gets the sum."""
    weights = sum(left * right for left, right in pairwise(SIZES))
    return alone + 2 * 2 * 4 * weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    options.rounds = 3 if options.quick else options.rounds
    rows = measure(options)
    for row in rows:
        found = row["seconds"]
        shown = "" if found is None else f"{found.median:.3f} s ({found.low:.3f} - {found.high:.3f})"
        print(f"{row['way']:10}{row['bytes'] / 1e6:8.1f} MB  {shown}", flush=True)
    if options.json:
        found = {"batch": options.batch, "cores": os.cpu_count(), "python": platform.python_version(), "rows": rows}
        Path(options.json).write_text(json.dumps({"torch": torch.__version__, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
