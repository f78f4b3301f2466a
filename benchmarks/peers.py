"""One linear layer in plain PyTorch, on the fleet, under CKKS, and by multi-party computation: times side by side.

    python -m benchmarks.peers [--quick] [--json FILE] [--cases 256x1 4096x64] [--rounds 21]
                               [--spu-python SPU/bin/python] [--crypten-python CRYPTEN/bin/python]

CKKS needs `pip install 'awfulowl[bench]'`, SPU and CrypTen an environment each (`peers_spu.py` and `peers_crypten.py`
say how; AWFULOWL_SPU_PYTHON and AWFULOWL_CRYPTEN_PYTHON name them as well). What is missing is left out, with a line.
Everything shares this machine's cores and is measured in turn, round by round; medians are compared. In brackets: a
95 % interval of the median over rounds. `error` is the largest, in units of the answer's root mean square. A target
is `reached` or `missed` where the whole interval says so, else `open`.

What each hides, and whether a wrong answer is noticed:

    int8                      where a slice belongs, and nothing else                           noticed
    inputs:2                  inputs, from either of two domains                                noticed
    replicated                inputs and weights, from any one of three domains                 noticed
    CKKS                      inputs and answers, from the server, which has the weights        not noticed
    SPU SEMI2K, CrypTen       inputs and weights, from either of two parties                    not noticed
    SPU ABY3                  inputs and weights, from any one of three parties                 not noticed

So `replicated` and multi-party computation hide more than CKKS, but from parties that do not collude: CKKS needs no
such promise. A first party deals SEMI2K's and CrypTen's triples: it is trusted. Parties could go on to the next layer
by themselves, where ours sends every layer's answer to the owner.

CKKS is measured in four ways (`peers_ckks.py`), with rings of degree 8192 and 4096; 4096 x 4096 at batch 64 is
extrapolated from a part. Targets against it are held twice: against `vectors` with N = 8192, tenseal's own product with
the ring that it is usually used with, which they were set against; and against the fastest of all ways.
"""

import os

# Threads of OpenMP that spin when they are done would take the cores that devices and broker need. Before PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

import awfulowl as owl
from benchmarks.serving import Spread, spread

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Case(NamedTuple):
    """A square layer and a batch."""

    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.size}x{self.batch}"


class Once(NamedTuple):
    """One measurement."""

    seconds: float
    error: float


class Contender(NamedTuple):
    """A way to compute the product. Slow ones are measured in fewer rounds, quick ones once they are warm."""

    name: str
    once: Callable[[], Once]
    every: int = 1
    extrapolated: bool = False


class Peer(NamedTuple):
    """A script that measures, and who runs it; its version is put into the name where that asks for it."""

    name: str
    python: str
    script: tuple[str, ...]
    every: int = 1
    extrapolated: bool = False


class Row(msgspec.Struct, frozen=True):
    """What one way took for one case."""

    case: str
    name: str
    seconds: Spread
    error: float
    rounds: int
    extrapolated: bool


class Ours(NamedTuple):
    """One device in each domain, and how the layer is planned."""

    domains: int
    arithmetic: str
    sharing: str | None


class Target(NamedTuple):
    """`replicated` is to take less than a peer by this factor."""

    case: Case
    peer: str
    factor: float


SEED: Final = 0
SMALL: Final = Case(256, 1)
LARGE: Final = Case(4096, 64)
CASES: Final = {str(case): case for case in (SMALL, LARGE)}
OURS: Final = {
    "int8": Ours(2, "int8", None),
    "inputs:2": Ours(2, "int8", "inputs:2"),
    "replicated": Ours(3, "int8", "replicated"),
}
DEGREES: Final = (8192, 4096)
SPU: Final = tuple(
    (protocol, *ring) for protocol in ("ABY3", "SEMI2K") for ring in (("FM64", "float32"), ("FM32", "int8"))
)
"""In 32 bits fixed-point numbers are too coarse (errors of a tenth); integers of 8 bits are exact."""
SLOW: Final = 4
"""Of so many rounds, a way that takes seconds is measured in one."""
USUAL: Final = "CKKS vectors N=8192"
"""tenseal's own matrix product, with the ring that it is usually used with."""
TARGETS: Final = (Target(SMALL, "CKKS", 500), Target(LARGE, "CKKS", 10_000), Target(LARGE, "SPU", 10))


class PeerError(Exception):
    """A peer that cannot be measured here, and why."""


def distance(y: Numbers, expected: Numbers) -> float:
    return float(np.abs(y - expected).max() / np.sqrt(np.square(expected).mean()))


class Layer:
    """The layer, without a bias, and inputs of a standard normal distribution, another batch each time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        linear = nn.Linear(case.size, case.size, bias=False)
        self.module = nn.Sequential(linear).eval()
        self.weights: Numbers = linear.weight.detach().double().numpy()

    def inputs(self, batch: int | None = None) -> Tensor:
        """Return a batch of inputs."""
        return torch.randn(batch or self.case.batch, self.case.size)

    def once(self, module: nn.Module) -> Once:
        """Measure a module."""
        x = self.inputs()
        with torch.inference_mode():
            start = perf_counter()
            y = module(x)
            seconds = perf_counter() - start
        return Once(seconds, distance(y.double().numpy(), x.double().numpy() @ self.weights.T))


def ours(layer: Layer, stack: ExitStack) -> Iterator[Contender]:
    """Start a fleet for each way; all stay until the case has been measured."""
    for name, (domains, arithmetic, sharing) in OURS.items():
        devices = {f"d{number}": f"domain-{number}" for number in range(domains)}
        fleet = stack.enter_context(owl.local_fleet(devices=devices))
        plan = owl.plan(
            layer.module, layer.inputs(1), devices=fleet, replicas=1, arithmetic=arithmetic, sharing=sharing
        )
        scattered = fleet.scatter(layer.module, plan)
        yield Contender(name, partial(layer.once, scattered))


class Party:
    """A script in a process of its own: it measures once for every line that it is sent."""

    def __init__(self, python: str, script: str, *arguments: str) -> None:
        command = [python, str(Path(__file__).with_name(script)), *arguments]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise PeerError(f"{python}: {error.strerror}") from error

    def answer(self) -> dict[str, Any]:
        """Return the next line that is an object; runtimes print lines of their own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                facts: dict[str, Any] = json.loads(line)
                if "skipped" in facts:
                    raise PeerError(facts["skipped"])
                return facts
        raise PeerError(f"its process ended with code {self._process.wait()}")

    def once(self) -> Once:
        """Measure once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Once(**self.answer())

    def stop(self) -> None:
        """End the process: its input ends."""
        self._process.communicate()


def ckks(case: Case) -> Iterator[Peer]:
    if importlib.util.find_spec("tenseal") is None:
        print("CKKS: not measured: no package tenseal here, pip install 'awfulowl[bench]'")
        return
    large = case.batch > 1
    for degree in DEGREES:
        for way in ("vectors", "tensors", "slots", "kernel") if large else ("vectors", "kernel"):
            yield Peer(
                f"CKKS {way} N={degree}",
                sys.executable,
                ("peers_ckks.py", "--way", way, "--degree", str(degree)),
                every=1 if way == "kernel" and not large else SLOW,
                extrapolated=large,
            )


def multi_party(case: Case, options: argparse.Namespace) -> Iterator[Peer]:
    every = SLOW if case.batch > 1 else 1
    if options.spu_python:
        for protocol, field, values in SPU:
            script = ("peers_spu.py", "--protocol", protocol, "--field", field, "--values", values)
            yield Peer(f"SPU {protocol} {field} ({{version}})", options.spu_python, script, every)
    else:
        print("SPU: not measured: name the Python of its environment with --spu-python")
    if options.crypten_python:
        yield Peer("CrypTen ({version})", options.crypten_python, ("peers_crypten.py",), every)
    else:
        print("CrypTen: not measured: name the Python of its environment with --crypten-python")


def start(case: Case, peers: Iterable[Peer], stack: ExitStack) -> Iterator[Contender]:
    """Start peers; those that end before their first answer are left out."""
    for peer in peers:
        name = peer.name
        try:
            party = Party(peer.python, *peer.script, "--size", str(case.size), "--batch", str(case.batch))
            stack.callback(party.stop)
            name = name.format(version=party.answer()["version"])
            party.once()
        except PeerError as error:
            print(f"{name.removesuffix(' ({version})')}: not measured: {error}")
            continue
        yield Contender(name, party.once, peer.every, peer.extrapolated)


def measure(case: Case, rounds: int, options: argparse.Namespace) -> list[Row]:
    layer = Layer(case)
    with ExitStack() as stack:
        contenders = [Contender("plain float32", partial(layer.once, layer.module))]
        contenders += ours(layer, stack)
        contenders += start(case, [*ckks(case), *multi_party(case, options)], stack)
        taken: dict[str, list[Once]] = {contender.name: [] for contender in contenders}
        for number in range(rounds):
            for contender in contenders:
                if contender.every == 1:
                    contender.once()  # so that its threads are awake and its memory is in place
                if number % contender.every == 0:
                    taken[contender.name].append(contender.once())
    return [
        Row(
            case=str(case),
            name=contender.name,
            seconds=spread([once.seconds for once in taken[contender.name]]),
            error=max(once.error for once in taken[contender.name]),
            rounds=len(taken[contender.name]),
            extrapolated=contender.extrapolated,
        )
        for contender in contenders
    ]


def time(seconds: float) -> str:
    unit, factor = next(unit for unit in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if seconds * unit[1] >= 1)
    return f"{seconds * factor:,.{0 if seconds * factor >= 100 else 1}f} {unit}"


def show(row: Row) -> None:
    median, low, high = map(time, row.seconds)
    print(
        f"{row.case:8} {row.name:24}{median:>10} ({low} - {high})  error {row.error:.1e}  {row.rounds} rounds"
        f"{'  extrapolated' if row.extrapolated else ''}",
        flush=True,
    )


def opponents(rows: list[Row], target: Target) -> Iterator[tuple[Row, str]]:
    """Yield the rows that a target is held against, each with what it is there for."""
    peers = [row for row in rows if row.case == str(target.case) and row.name.startswith(target.peer)]
    if target.peer != "CKKS":
        yield from ((row, "") for row in peers)
    elif peers:
        yield from ((row, ", tenseal's own: what it was set against") for row in peers if row.name == USUAL)
        yield min(peers, key=lambda row: row.seconds.median), ", the fastest way found"


def hold(rows: list[Row]) -> None:
    """Hold `replicated` against the peers; the interval is that of both medians, at its widest."""
    for target in TARGETS:
        case, _, factor = target
        mine = next((row.seconds for row in rows if row.name == "replicated" and row.case == str(case)), None)
        if mine is None:
            continue
        for row, why in opponents(rows, target):
            ratio = row.seconds.median / mine.median
            low, high = row.seconds.low / mine.high, row.seconds.high / mine.low
            verdict = "reached" if low >= factor else "missed" if high < factor else "open"
            print(
                f"{row.case:8} {row.name:24}takes {ratio:10,.1f} times replicated's time ({low:,.1f} - {high:,.1f}); "
                f"target {factor:,.0f}{why}: {verdict}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, the small layer only")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--spu-python", metavar="PYTHON", default=os.environ.get("AWFULOWL_SPU_PYTHON"))
    parser.add_argument("--crypten-python", metavar="PYTHON", default=os.environ.get("AWFULOWL_CRYPTEN_PYTHON"))
    options = parser.parse_args()
    torch.manual_seed(SEED)
    rows: list[Row] = []
    for name in options.cases or (["256x1"] if options.quick else list(CASES)):
        measured = measure(CASES[name], options.rounds or (5 if options.quick else 21), options)
        for row in measured:
            show(row)
        rows += measured
    hold(rows)
    if options.json:
        write(options.json, rows)


def write(file: str, rows: list[Row]) -> None:
    results: dict[str, Any] = {
        "benchmark": "peers",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "seed": SEED,
        "rows": msgspec.to_builtins(rows),
    }
    text = json.dumps(results, indent=2) + "\n"
    if file == "-":
        print(text, end="")
    else:
        Path(file).write_text(text)


if __name__ == "__main__":
    main()
