"""What a batch costs on the fleet, against plain PyTorch on the same cores and against the best that is possible.

    python benchmarks/serving.py [--quick] [--json FILE] [--models mlp vgg16 transformer] [--devices 2 4]
                                 [--modes float32 int8 int16 inputs:2 inputs:3 replicated] [--accelerator cpu]

The best possible is a cost model: plain time + bytes / bandwidth of the fabric + trips x its round trip, all measured
in this run, on the same cores, the fabric before and after each model. `ratio` is the measured time over it, with
verification on. The rounds are interleaved (plain, verified, unverified, plain, ...), and the medians are compared, so
that a machine whose speed drifts does not favour one of them. In brackets: a 95 % interval of the median over rounds,
of the measured time alone where it is held against the best.

Modes: float32, int8 and int16 on `--devices`; inputs:k in int8 on 2 k devices of k domains, replicated on 3 of 3.
All of them share this machine's cores. `own machines` is what they would give on machines like this one each: the
measured time less the time in which the cores did the products of all devices but one, n - 1 of n, as measured alone.
It is not known of models with convolutions, and not printed there.

The exit code is 1 if an answer in integers was not its twin's.
"""

import os

# Threads of OpenMP that spin when they are done would take the cores that devices and broker need. Before PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import math
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
from awfulowl.arithmetic import products
from awfulowl.arithmetic.numbers import integers
from awfulowl.blocks.kernels import Dense
from awfulowl.device import dense
from awfulowl.fleet.fleet import Fleet
from awfulowl.models.mlp import Mlp
from awfulowl.models.transformer import Transformer, TransformerConfig
from awfulowl.models.vgg import Vgg16
from awfulowl.placement.plan import Plan
from awfulowl.veil.base import Sharing
from awfulowl.veil.shares import sharing_of

Times = tuple[list[float], list[float], list[float]]
"""Plain, verified and unverified, in seconds, round by round."""


class Spread(NamedTuple):
    """A median, and the order statistics that hold it with 95 %; the extremes, with less, of fewer than 6 rounds."""

    median: float
    low: float
    high: float


class Network(NamedTuple):
    """What the fabric gives."""

    bytes_per_s: float
    trip_s: float


def spread(values: list[float]) -> Spread:
    """Turn the sign test round: as many values lie beyond each end as a fair coin leaves with 2.5 %."""
    ordered, beyond, tail = sorted(values), -1, 0.0
    while (tail := tail + math.comb(len(ordered), beyond + 1) / 2 ** len(ordered)) <= 0.025:
        beyond += 1
    beyond = max(beyond, 0)
    return Spread(statistics.median(ordered), ordered[beyond], ordered[-1 - beyond])


class Mode(NamedTuple):
    """How a model is served."""

    name: str
    arithmetic: str
    sharing: str | None

    def numbers(self, asked: list[int]) -> list[int]:
        """Return the numbers of devices that it is measured on."""
        lanes = sharing_of(self.sharing).lanes
        return asked if lanes == 1 else [3] if self.sharing == "replicated" else [2 * lanes]

    def domains(self, devices: int) -> dict[str, str]:
        """Return so many devices with their domains, as many domains as there are lanes."""
        lanes = sharing_of(self.sharing).lanes
        return {f"d{number}": f"party {number % lanes}" for number in range(devices)}


MODES = {
    mode.name: mode
    for mode in (
        Mode("float32", "float32", None),
        Mode("int8", "int8", None),
        Mode("int16", "int16", None),
        Mode("inputs:2", "int8", "inputs:2"),
        Mode("inputs:3", "int8", "inputs:3"),
        Mode("replicated", "int8", "replicated"),
    )
}


class Row(msgspec.Struct, frozen=True):
    """One model on one number of devices. Times in seconds, medians."""

    model: str
    mode: str
    devices: int
    plain_s: float
    scattered_s: float
    unverified_s: float
    bytes: int
    trips: int
    best_s: float
    ratio: Spread
    throughput: Spread
    verification: Spread
    max_abs_diff: float
    rounds: int
    own_machines: float | None
    """Throughput; None where products of convolutions are not timed alone."""
    equal_to_twin: bool | None


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


def fabric(*, quick: bool) -> Network:
    """Measure the fabric with `fabric.py`."""
    command = [sys.executable, str(Path(__file__).with_name("fabric.py")), "--json", "-"]
    command += ["--repeats", "3" if quick else "5"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    results = json.loads(output)
    rows = {row["payload_bytes"]: row for row in results["rows"] if row["fabric"] == "nats"}
    bandwidth = rows[results["chunk_bytes"]]["bandwidth_mb_s"]["median"] * 1e6
    return Network(bandwidth, rows[min(rows)]["round_trip_ms"]["median"] / 1e3)


class Measured(NamedTuple):
    """Times of one model on one number of devices, before they are held against the fabric's."""

    model: str
    mode: str
    devices: int
    times: Times
    bytes: int
    trips: int
    max_abs_diff: float
    spared_s: float | None
    equal_to_twin: bool | None

    def against(self, network: Network) -> Row:
        """Hold the times against the best possible."""
        plain_s, scattered_s, unverified_s = map(statistics.median, self.times)
        best_s = plain_s + self.bytes / network.bytes_per_s + self.trips * network.trip_s
        _, scattered, unverified = self.times
        return Row(
            model=self.model,
            mode=self.mode,
            devices=self.devices,
            plain_s=plain_s,
            scattered_s=scattered_s,
            unverified_s=unverified_s,
            bytes=self.bytes,
            trips=self.trips,
            best_s=best_s,
            ratio=spread([time / best_s for time in scattered]),
            throughput=spread([plain_s / time for time in scattered]),
            verification=spread(
                [with_it / without - 1 for with_it, without in zip(scattered, unverified, strict=True)]
            ),
            max_abs_diff=self.max_abs_diff,
            rounds=len(scattered),
            own_machines=None if self.spared_s is None else plain_s / max(scattered_s - self.spared_s, 1e-9),
            equal_to_twin=self.equal_to_twin,
        )


def measure(name: str, case: Case, mode: Mode, devices: int, rounds: int, accelerator: str) -> Measured:
    model, x = case.model.eval(), case.x
    domains = mode.domains(devices)
    with owl.local_fleet(devices=domains, accelerator=accelerator) as fleet, torch.inference_mode():
        plan = owl.plan(model, x[:1], devices=fleet, replicas=1, arithmetic=mode.arithmetic, sharing=mode.sharing)
        scattered = fleet.scatter(model, plan)
        answer = scattered(x)
        difference = float((answer - model(x)).abs().max())
        equal = None if mode.arithmetic == "float32" else torch.equal(answer, plan.twin(model)(x))
        before = fleet.statistics
        scattered(x)
        after = fleet.statistics
        moved = sum(after[name] - before[name] for name in ("bytes_sent", "bytes_received"))
        trips = after["requests"] - before["requests"]
        times = interleave(model, scattered, x, fleet, rounds)
    return Measured(name, mode.name, devices, times, moved, trips, difference, spared_s(plan, x, mode, devices), equal)


def spared_s(plan: Plan, x: Tensor, mode: Mode, devices: int) -> float | None:
    """Return how long all cores take for a batch's products of all devices but the busiest; None with convolutions."""
    if not all(isinstance(panel.grid.kernel, Dense) for panel in plan.panels):
        return None
    total = 0.0
    sharing = sharing_of(mode.sharing)
    by_lane = [len(sharing.matrices(lane)) for lane in range(sharing.lanes)]
    others = sum(by_lane) - max(by_lane) * sharing.lanes / devices
    for panel in plan.panels:
        outputs, inputs = panel.grid.outputs, panel.grid.inputs
        vectors = len(x) * panel.input_positions
        total += others * product_s(mode, sharing, (vectors, inputs, outputs))
    return total


def product_s(mode: Mode, sharing: Sharing, shape: tuple[int, int, int]) -> float:
    """Return the shortest of some times of one product of (vectors, inputs, outputs) as devices make it."""
    vectors, inputs, outputs = shape
    numbers = integers(mode.arithmetic)
    if numbers is None:
        x, weight = torch.randn(vectors, inputs), torch.randn(outputs, inputs)
        return shortest_s(lambda: dense.fastest().multiply(x, weight))
    of_inputs = numbers.ring if sharing.shares > 1 else numbers.dtype
    of_weights = numbers.ring if sharing.hides_weights else numbers.dtype
    x, weight = some_integers(of_inputs, vectors, inputs), some_integers(of_weights, outputs, inputs)
    backend = products.fastest()
    prepared, width = backend.prepare(weight), 4 if numbers.ring_bytes == 4 else 8
    return shortest_s(lambda: backend.dense(prepared.planes, x, width))


def some_integers(dtype: torch.dtype, *shape: int) -> Tensor:
    bounds = torch.iinfo(dtype)
    return torch.randint(bounds.min, bounds.max, shape, dtype=dtype)


def shortest_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)


def interleave(model: nn.Module, scattered: nn.Module, x: Tensor, fleet: Fleet, rounds: int) -> Times:
    """Return plain, verified and unverified times."""
    verified, unverified = fleet.policy, replace(fleet.policy, verify=False)
    times: Times = ([], [], [])
    for number in range(rounds + 1):
        for policy, run, taken in zip(
            (verified, verified, unverified), (model, scattered, scattered), times, strict=True
        ):
            fleet.policy = policy
            run(x)  # so that each is timed at its best, with its threads awake and its memory in place
            start = perf_counter()
            run(x)
            if number > 0:
                taken.append(perf_counter() - start)
    fleet.policy = verified
    return times


def show(row: Row) -> None:
    print(
        f"{row.model:12}{row.mode:11}{row.devices:3d} devices  plain {1e3 * row.plain_s:7.1f} ms  "
        f"scattered {1e3 * row.scattered_s:7.1f} ms  best {1e3 * row.best_s:7.1f} ms  "
        f"ratio {row.ratio.median:.2f} ({row.ratio.low:.2f} - {row.ratio.high:.2f})  "
        f"throughput {row.throughput.median:.2f}  verification {row.verification.median:+.1%} "
        f"({row.verification.low:+.1%} - {row.verification.high:+.1%})  {row.bytes / 1e6:.0f} MB  {row.trips} trips  "
        f"max diff {row.max_abs_diff:.1e}  "
        f"{'' if row.equal_to_twin is None else 'equal to twin' if row.equal_to_twin else 'UNLIKE TWIN'}  "
        f"{'' if row.own_machines is None else f'own machines {row.own_machines:.2f}  '}{row.rounds} rounds",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, 2 devices, the MLP only")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--models", nargs="+", choices=sorted(cases()), default=None)
    parser.add_argument("--devices", nargs="+", type=int, default=None)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--accelerator", default="cpu", help="where devices multiply: cpu, cuda; plain stays here")
    options = parser.parse_args()
    torch.manual_seed(0)
    models = options.models or (["mlp"] if options.quick else list(cases()))
    numbers = options.devices or ([2] if options.quick else [2, 4])
    rows, networks = [], [fabric(quick=options.quick)]
    for name in models:
        case = cases()[name]()
        rounds = options.rounds or (5 if options.quick else 60 if name == "mlp" else 12)
        modes = [MODES[mode] for mode in options.modes or (["float32", "int8"] if options.quick else MODES)]
        measured = [
            measure(name, case, mode, n, rounds, options.accelerator) for mode in modes for n in mode.numbers(numbers)
        ]
        networks.append(fabric(quick=options.quick))
        network = Network(*(statistics.mean(pair) for pair in zip(*networks[-2:], strict=True)))
        print(f"fabric: {network.bytes_per_s / 1e6:.0f} MB/s, round trip {1e3 * network.trip_s:.2f} ms", flush=True)
        for one in measured:
            rows.append(one.against(network))
            show(rows[-1])
    if options.json:
        write(options.json, rows, networks)
    unlike = [f"{row.model} in {row.mode} on {row.devices}" for row in rows if row.equal_to_twin is False]
    if unlike:
        print(f"FAULT: UNLIKE TWIN: {', '.join(unlike)}", file=sys.stderr)
    return 1 if unlike else 0


def write(file: str, rows: list[Row], networks: list[Network]) -> None:
    results: dict[str, Any] = {
        "benchmark": "serving",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "seed": 0,
        "fabric": [network._asdict() for network in networks],
        "rows": msgspec.to_builtins(rows),
    }
    text = json.dumps(results, indent=2) + "\n"
    if file == "-":
        print(text, end="")
    else:
        Path(file).write_text(text)


if __name__ == "__main__":
    raise SystemExit(main())
