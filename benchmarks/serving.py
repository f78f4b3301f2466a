"""What a batch costs on the fleet, against plain PyTorch on the same cores and against the best that is possible.

    python benchmarks/serving.py [--quick] [--json FILE] [--models mlp vgg16 transformer] [--devices 2 4]

The best possible is a cost model: plain time + bytes / bandwidth of the fabric + trips x its round trip, all measured
in this run, on the same cores. `ratio` is the measured time over it, with verification on. The rounds are interleaved
(plain, verified, unverified, plain, ...), and the medians are compared, so that a machine whose speed drifts does
not favour one of them.
"""

import os

# Threads of OpenMP that spin when they are done would take the cores that devices and broker need. Before PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.fleet.fleet import Fleet
from awfulowl.models.mlp import Mlp
from awfulowl.models.transformer import Transformer, TransformerConfig
from awfulowl.models.vgg import Vgg16

CORES = torch.get_num_threads()


class Row(msgspec.Struct, frozen=True):
    """One model on one number of devices. Times in seconds, medians."""

    model: str
    devices: int
    plain_s: float
    scattered_s: float
    unverified_s: float
    bytes: int
    trips: int
    best_s: float
    ratio: float
    throughput: float
    verification: float
    max_abs_diff: float


class Case(NamedTuple):
    """A model and a batch."""

    model: nn.Module
    x: Tensor


def cases() -> dict[str, Callable[[], Case]]:
    def transformer() -> Case:
        config = TransformerConfig(context=128)
        return Case(Transformer(config), torch.randint(config.vocabulary, (32, 128)))

    return {
        "mlp": lambda: Case(Mlp([4096, 4096, 4096, 10]), torch.randn(64, 4096)),
        "vgg16": lambda: Case(Vgg16(100), torch.randn(64, 3, 32, 32)),
        "transformer": transformer,
    }


def fabric(*, quick: bool) -> tuple[float, float]:
    """Return (bytes a second, seconds a round trip) of the fabric, measured by `fabric.py`."""
    command = [sys.executable, str(Path(__file__).with_name("fabric.py")), "--json", "-"]
    command += ["--repeats", "3" if quick else "7"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    results = json.loads(output)
    rows = {row["payload_bytes"]: row for row in results["rows"] if row["fabric"] == "nats"}
    bandwidth = rows[results["chunk_bytes"]]["bandwidth_mb_s"]["median"] * 1e6
    return bandwidth, rows[min(rows)]["round_trip_ms"]["median"] / 1e3


def measure(name: str, case: Case, devices: int, rounds: int, network: tuple[float, float]) -> Row:
    model, x = case.model.eval(), case.x
    with owl.local_fleet(devices=devices) as fleet, torch.inference_mode():
        plan = owl.plan(model, x[:1], devices=fleet, replicas=1)
        scattered = fleet.scatter(model, plan)
        difference = float((scattered(x) - model(x)).abs().max())
        before = fleet.statistics
        scattered(x)
        after = fleet.statistics
        moved = sum(after[name] - before[name] for name in ("bytes_sent", "bytes_received"))
        trips = after["requests"] - before["requests"]
        plain_s, scattered_s, unverified_s = interleave(model, scattered, x, fleet, rounds)
    bandwidth, round_trip_s = network
    best_s = plain_s + moved / bandwidth + trips * round_trip_s
    return Row(
        model=name,
        devices=devices,
        plain_s=plain_s,
        scattered_s=scattered_s,
        unverified_s=unverified_s,
        bytes=moved,
        trips=trips,
        best_s=best_s,
        ratio=scattered_s / best_s,
        throughput=plain_s / scattered_s,
        verification=scattered_s / unverified_s - 1,
        max_abs_diff=difference,
    )


def interleave(
    model: nn.Module, scattered: nn.Module, x: Tensor, fleet: Fleet, rounds: int
) -> tuple[float, float, float]:
    """Return the medians of plain, verified and unverified time."""
    verified, unverified = fleet.policy, replace(fleet.policy, verify=False)
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for number in range(rounds + 1):
        for policy, run, taken in zip(
            (verified, verified, unverified), (model, scattered, scattered), times, strict=True
        ):
            fleet.policy = policy
            # Plain PyTorch has all cores; on the fleet each device has a thread, and the owner one.
            torch.set_num_threads(CORES if run is model else 1)
            if run is model:
                run(x)  # so that it is timed at its best, with its threads awake and its weights in the cache
            start = perf_counter()
            run(x)
            if number > 0:
                taken.append(perf_counter() - start)
    fleet.policy = verified
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(times[2])


def show(row: Row) -> None:
    print(
        f"{row.model:12}{row.devices:3d} devices  plain {1e3 * row.plain_s:7.1f} ms  "
        f"scattered {1e3 * row.scattered_s:7.1f} ms  best {1e3 * row.best_s:7.1f} ms  ratio {row.ratio:.2f}  "
        f"throughput {row.throughput:.2f}  verification {row.verification:+.1%}  {row.bytes / 1e6:.0f} MB  "
        f"{row.trips} trips  max diff {row.max_abs_diff:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, 2 devices, the MLP only")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--models", nargs="+", choices=sorted(cases()), default=None)
    parser.add_argument("--devices", nargs="+", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args()
    torch.manual_seed(0)
    models = options.models or (["mlp"] if options.quick else list(cases()))
    numbers = options.devices or ([2] if options.quick else [2, 4])
    network = fabric(quick=options.quick)
    print(f"fabric: {network[0] / 1e6:.0f} MB/s, round trip {1e3 * network[1]:.2f} ms", flush=True)
    rows = []
    for name in models:
        case = cases()[name]()
        for devices in numbers:
            rounds = options.rounds or (5 if options.quick else 15 if name == "mlp" else 7)
            rows.append(measure(name, case, devices, rounds, network))
            show(rows[-1])
    if options.json:
        write(options.json, rows, network)


def write(file: str, rows: list[Row], network: tuple[float, float]) -> None:
    results: dict[str, Any] = {
        "benchmark": "serving",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "seed": 0,
        "bandwidth_bytes_s": network[0],
        "round_trip_s": network[1],
        "rows": msgspec.to_builtins(rows),
    }
    text = json.dumps(results, indent=2) + "\n"
    if file == "-":
        print(text, end="")
    else:
        Path(file).write_text(text)


if __name__ == "__main__":
    main()
