"""What training with Adam costs on a fleet, and what the owner's rebuilding of blocks tells apart: honest or not.

    python -m benchmarks.adam [--quick] [--json FILE] [--only honest lies cost] [--rounds 10]

honest      Steps of a dense block and of a convolution in float32, as a device takes them, rebuilt in float64 every
            250 steps as at a snapshot: blocks refused, and the largest residue (1 is what may be off). The rate is
            constant, or falls to 1e-6.
lies        One wrong step of one block among 100 right ones, at a random place, in 1,000 trials of each kind and size:
            shares of blocks refused. The size is that of what is wrong, relative to the gradient's length; a skipped
            or doubled step has the size 1. Blocks that the owner does not rebuild are not refused: with a share phi
            wrong and m rebuilt a snapshot passes with (1 - phi)^m.
cost        A step of a perceptron (4096, 4096, 4096, 10) at batch 128 and of a convolutional network at batch 64, each
            on 2 devices of this machine: plain torch.optim.Adam, SGD on the fleet, Adam on the fleet, and Adam that
            nobody verifies, interleaved. Ratios to plain, medians with 95 % intervals over rounds.

It returns 1 if an honest block or answer was refused, or under 99.9 % of some kind of lie of 1e-3 or more were found.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in benchmarks/training.py

import argparse
import copy
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

import awfulowl as owl
from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import descend
from awfulowl.blocks.kernels import gradient
from awfulowl.models.convnet import IMAGE, ConvNet
from awfulowl.models.mlp import Mlp
from awfulowl.owner.policy import Policy
from awfulowl.results import wilson
from awfulowl.verification.reworking import Reworked, gradient_of
from benchmarks.claims import Claim, verdict
from benchmarks.serving import spread
from benchmarks.training_lies import CONVOLUTION, DENSE, REQUIRED, Device, Shape, constant, falling

REBUILT_EVERY: Final = 250
RATE: Final = 1e-3
STEPS_OF_A_LIE: Final = 100
SIZES: Final = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FOUND: Final = 0.999


class Adaptive(Device):
    """One block as an honest device trains it with Adam, and beside it the owner's."""

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__(shape, seed)
        self.square = torch.zeros(shape.weight)
        self.taken = 0
        self.rebuild()

    @property
    def state(self) -> list[Tensor]:
        """Weights, what was lost in rounding, momentum, mean square."""
        return [self.weight, self.lost, self.momentum, self.square]

    def rebuild(self) -> None:
        """Let the owner begin anew from the state of now, as at a snapshot."""
        self.reworked = Reworked([part.clone() for part in self.state])

    def adapt(self, rate: float, tamper: Callable[[Tensor], Tensor | None] = lambda moved: moved) -> None:
        """Take a step along the gradient as it is tampered with, at the device; None skips it."""
        x = self.draw()
        dy = self.gradient_of(x, self.multiply(x))
        self.taken += 1
        rule = Adaptation.adam(rate, self.taken, weight_decay=1e-2, decoupled=True)
        moved = tamper(gradient(self.shape.kernel, self.shape.weight[2:], x, dy))
        if moved is not None:
            descend(rule, self.state, moved.contiguous())
        self.reworked.step(rule, gradient_of(self.shape.kernel, self.shape.weight, [(x, dy)], 1))


def honest(quick: bool) -> Iterator[dict[str, Any]]:
    steps = 1_000 if quick else 20_000
    for shape in (DENSE, CONVOLUTION):
        for name, schedule in (("constant", constant), ("falling to 1e-6", falling)):
            device, residues = Adaptive(shape, 0), []
            for number in range(1, steps + 1):
                device.adapt(RATE * schedule(number / steps))
                if number % REBUILT_EVERY == 0:
                    residues.append(device.reworked.residue(device.state))
                    device.rebuild()
            refused = sum(residue > 1 for residue in residues)
            yield {
                "part": "honest",
                "block": shape.name,
                "rate": name,
                "steps": steps,
                "rebuilt": len(residues),
                "refused": refused,
                "interval": wilson(refused, len(residues)),
                "largest_residue": max(residues),
            }


def lies(quick: bool) -> Iterator[dict[str, Any]]:
    trials = 20 if quick else 1_000
    small = Shape("dense 32 x 32", DENSE.kernel, (32, 32), (16, 32))
    for kind in ("skipped", "doubled", "another gradient"):
        for size in SIZES if kind == "another gradient" else (1.0,):
            caught = sum(_is_caught(small, kind, size, seed) for seed in range(trials))
            yield {
                "part": "lies",
                "block": small.name,
                "kind": kind,
                "size": size,
                "trials": trials,
                "caught": caught,
                "interval": wilson(caught, trials),
            }


def _is_caught(shape: Shape, kind: str, size: float, seed: int) -> bool:
    device = Adaptive(shape, seed)
    wrong = int(torch.randint(STEPS_OF_A_LIE, (), generator=device.generator))

    def tamper(moved: Tensor) -> Tensor | None:
        if kind == "skipped":
            return None
        if kind == "doubled":
            descend(Adaptation.adam(RATE, device.taken), device.state, moved.clone())
            return moved
        other = torch.randn(moved.shape, generator=device.generator)
        wrong_by: Tensor = other * (size * moved.norm() / other.norm())
        return moved + wrong_by

    for number in range(STEPS_OF_A_LIE):
        if number == wrong:
            device.adapt(RATE, tamper)
        else:
            device.adapt(RATE)
    return not device.reworked.agrees(device.state)


def cost(rounds: int) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    yield _cost("perceptron 4096-4096-4096-10", Mlp([4096, 4096, 4096, 10]), (128, 4096), rounds)
    yield _cost("convnet", ConvNet(10), (64, *IMAGE), rounds)


def _cost(name: str, model: nn.Module, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        plain = copy.deepcopy(model).train()
        trainers: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {
            "plain": (plain, torch.optim.Adam(plain.parameters(), lr=1e-3))
        }
        fleets = {}
        for kind, algorithm, verify in (("sgd", "sgd", True), ("adam", "adam", True), ("unverified", "adam", False)):
            fleet = stack.enter_context(owl.local_fleet(devices=2, policy=replace(Policy(), verify=verify)))
            plan = owl.plan(model, torch.randn(1, *shape[1:]), devices=fleet, replicas=1)
            scattered = fleet.scatter(model, plan, train=True).train()
            trainers[kind] = scattered, fleet.optimizer(scattered, lr=1e-3, algorithm=algorithm)
            fleets[kind] = fleet
        times: dict[str, list[float]] = {kind: [] for kind in trainers}
        moved = 0
        for number in range(rounds + 2):
            x, labels = torch.randn(shape), torch.randint(10, shape[:1])
            before = fleets["adam"].statistics
            for kind, (one, optimizer) in trainers.items():
                taken = _step(one, optimizer, x, labels)
                if number > 1:
                    times[kind].append(taken)
            after = fleets["adam"].statistics
            moved = sum(after[key] - before[key] for key in ("bytes_sent", "bytes_received"))
        return {
            "part": "cost",
            "model": name,
            "batch": shape[0],
            "rounds": rounds,
            "plain_s": spread(times["plain"])._asdict(),
            "megabytes_of_adam": moved / 1e6,
            "reworked": fleets["adam"].statistics["reworked"],
            "refused": sum(fleet.statistics["lies_caught"] for fleet in fleets.values()),
            **{
                f"{kind}_ratio": spread(_ratios(times[kind], times["plain"]))._asdict()
                for kind in ("sgd", "adam", "unverified")
            },
        }


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> float:
    start = perf_counter()
    optimizer.zero_grad()
    functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return perf_counter() - start


def _ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(times, others, strict=True)]


def claims(rows: Iterable[Mapping[str, Any]]) -> Iterator[Claim]:
    """Yield what has to be so on any machine."""
    for row in rows:
        if row["part"] == "honest":
            text = f"honest blocks pass: {row['refused']} of {row['rebuilt']} refused, {row['block']}, {row['rate']}"
            yield Claim(text, row["refused"] == 0)
        elif row["part"] == "cost":
            yield Claim(f"honest answers pass: {row['refused']} refused, {row['model']}", row["refused"] == 0)
        elif row["size"] >= REQUIRED:
            text = f"{FOUND:.1%} of lies are found: {row['caught']} of {row['trials']}, {row['kind']}, {row['size']:g}"
            yield Claim(text, row["caught"] >= FOUND * row["trials"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fraction of everything")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--only", nargs="+", choices=["honest", "lies", "cost"], default=["honest", "lies", "cost"])
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 10)
    found: list[dict[str, Any]] = []
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "honest": lambda: honest(options.quick),
        "lies": lambda: lies(options.quick),
        "cost": lambda: cost(rounds),
    }
    for name in options.only:
        for row in parts[name]():
            found.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        record = {"benchmark": "adam", "python": platform.python_version(), "torch": torch.__version__, "rows": found}
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n")
    return verdict(claims(found))


if __name__ == "__main__":
    sys.exit(main())
