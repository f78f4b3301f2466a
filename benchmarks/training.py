"""What a training step costs on the fleet, against plain PyTorch on the same cores and against the best possible.

    python -m benchmarks.training [--quick] [--json FILE] [--batch 128] [--devices 2] [--rounds 20] [--momentum 0]

The model is the perceptron of `serving.py`, and so is the cost model: plain time + bytes / bandwidth of the fabric +
trips x its round trip, all measured in this run, on the same cores, the fabric before and after. A step is forward,
loss, backward and update. Trips are those that nothing can overlap: one for each layer's product, one for each layer's
gradients, and one for all layers' updates together. The rounds are interleaved (plain, then the two fleets by turns);
in brackets a 95 % interval of the median over rounds. Verified and unverified are two fleets, of which one idles.

It returns 1 if these devices, which are honest, were refused, or gathered weights are not those of plain training.
"""

import os

# Threads of OpenMP that spin when they are done would take the cores that devices and broker need. Before PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import copy
import json
import platform
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

import awfulowl as owl
from awfulowl.fleet.local import LocalFleet
from awfulowl.models.mlp import Mlp
from awfulowl.owner.policy import Policy
from benchmarks.claims import Claim, verdict
from benchmarks.serving import Network, Spread, fabric, spread

SIZES = [4096, 4096, 4096, 10]
APART = 1e-4
"""Weights are up to 1/64 at first; rounding parts those of these few steps by 1e-7 or so."""


class Row(msgspec.Struct, frozen=True):
    """One batch size on one number of devices. Times in seconds, medians."""

    batch: int
    devices: int
    momentum: float
    plain_s: float
    scattered_s: float
    unverified_s: float
    bytes: int
    trips: int
    best_s: float
    ratio: Spread
    verification: Spread
    max_abs_diff: float
    drift: float
    refused: int
    rounds: int


class Trainer(NamedTuple):
    """A model and what moves it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, x: Tensor, labels: Tensor) -> float:
        """Take a step and return its time."""
        start = perf_counter()
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return perf_counter() - start


def measure(options: argparse.Namespace) -> Callable[[Network], Row]:
    """Return what holds the times of all rounds against a fabric."""
    torch.manual_seed(0)
    settings = {"lr": 0.01, "momentum": options.momentum, "weight_decay": 5e-4}
    model = Mlp(SIZES)
    with ExitStack() as stack:
        plain = copy.deepcopy(model)
        trainers = [Trainer(plain, torch.optim.SGD(plain.parameters(), **settings))]
        fleets: list[LocalFleet] = []
        for verify in (True, False):
            policy = replace(Policy(), verify=verify)
            fleet = stack.enter_context(owl.local_fleet(devices=options.devices, policy=policy))
            plan = owl.plan(model, torch.randn(1, SIZES[0]), devices=fleet, replicas=1)
            scattered = fleet.scatter(model, plan, train=True)
            trainers.append(Trainer(scattered, fleet.optimizer(scattered, **settings)))
            fleets.append(fleet)
        times: list[list[float]] = [[], [], []]
        moved = trips = 0
        for number in range(options.rounds + 2):
            x, labels = torch.randn(options.batch, SIZES[0]), torch.randint(SIZES[-1], (options.batch,))
            before = fleets[0].statistics
            # What comes right after plain PyTorch finds other caches.
            for one in (0, 1, 2) if number % 2 else (0, 2, 1):
                times[one].append(trainers[one].step(x, labels))
            after = fleets[0].statistics
            if number == 1:
                moved = sum(after[name] - before[name] for name in ("bytes_sent", "bytes_received"))
                trips = after["requests"] - before["requests"] + 1
        found = fleets[0].gather(trainers[1].model)
        difference = max(float((found[name] - value).abs().max()) for name, value in plain.state_dict().items())
        drift = max(fleets[0].drift(trainers[1].model).values())
        refused = fleets[0].statistics["lies_caught"]
    times = [taken[2:] for taken in times]

    def against(network: Network) -> Row:
        plain_s, scattered_s, unverified_s = map(statistics.median, times)
        best_s = plain_s + moved / network.bytes_per_s + trips * network.trip_s
        pairs = zip(times[1], times[2], strict=True)
        return Row(
            batch=options.batch,
            devices=options.devices,
            momentum=options.momentum,
            plain_s=plain_s,
            scattered_s=scattered_s,
            unverified_s=unverified_s,
            bytes=moved,
            trips=trips,
            best_s=best_s,
            ratio=spread([time / best_s for time in times[1]]),
            verification=spread([with_it / without - 1 for with_it, without in pairs]),
            max_abs_diff=difference,
            drift=drift,
            refused=refused,
            rounds=len(times[0]),
        )

    return against


def show(row: Row) -> None:
    print(
        f"batch {row.batch}, {row.devices} devices, momentum {row.momentum:g}: plain {1e3 * row.plain_s:.0f} ms  "
        f"scattered {1e3 * row.scattered_s:.0f} ms  best {1e3 * row.best_s:.0f} ms  "
        f"ratio {row.ratio.median:.2f} ({row.ratio.low:.2f} - {row.ratio.high:.2f})  "
        f"verification {row.verification.median:+.1%} ({row.verification.low:+.1%} - {row.verification.high:+.1%})  "
        f"{row.bytes / 1e6:.0f} MB  {row.trips} trips  max diff {row.max_abs_diff:.1e}  drift {row.drift:.1e}  "
        f"{row.rounds} rounds",
        flush=True,
    )


def claims(row: Row) -> list[Claim]:
    """Return what has to be so on any machine."""
    return [
        Claim(f"no honest answer is refused: {row.refused} were", row.refused == 0),
        Claim(f"weights are those of plain training, or near: {row.max_abs_diff} apart", row.max_abs_diff < APART),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--momentum", type=float, default=0.9)
    options = parser.parse_args()
    options.rounds = options.rounds or (5 if options.quick else 20)
    before = fabric(quick=options.quick)
    against = measure(options)
    after = fabric(quick=options.quick)
    network = Network(*(statistics.mean(pair) for pair in zip(before, after, strict=True)))
    print(f"fabric: {network.bytes_per_s / 1e6:.0f} MB/s, round trip {1e3 * network.trip_s:.2f} ms", flush=True)
    row = against(network)
    show(row)
    if options.json:
        Path(options.json).write_text(json.dumps(described(row, network), indent=2) + "\n")
    return verdict(claims(row))


def described(row: Row, network: Network) -> dict[str, Any]:
    return {
        "benchmark": "training",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "seed": 0,
        "fabric": network._asdict(),
        "row": msgspec.to_builtins(row),
    }


if __name__ == "__main__":
    sys.exit(main())
