"""Exact integers and shares: what is caught, what is never accused, what devices can tell, and how fast it is.

    python benchmarks/exact.py [--quick] [--json FILE] [--only kernels shares flips honest uniform] [--no-loops]

- **kernels**: times of exact products, of the fastest backend and of the float64 one that works everywhere, over that
  of the float32 product on the same cores (median of rounds, interleaved).
- **shares**: how fast random shares are made: the keystream alone, and a batch split into shares.
- **flips**: one bit of an answer is flipped, as it travels, in any of its bytes; how many are caught.
- **honest**: right answers, of many shapes, each to inputs of its own, for which the check may never raise an alarm.
- **uniform**: tests of what a device receives and holds under each sharing. Chi-square over the bytes at each place of
  a number, correlation with the truth, agreement of shares of equal inputs that were sent twice; and the same tests on
  a sharing that is broken on purpose, which they have to find.

The exit code is 1 if a flip was missed, a right answer raised an alarm, or a p-value is below 1e-6 of what should be
uniform, or is not of what is broken.

Checks run in compiled loops, as in a fleet with models of 2^22 weights or more; without: --no-loops.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import erfc, exp, lgamma, log, sqrt
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS, Integers, fewest_bytes
from awfulowl.arithmetic.packing import pack, unpack
from awfulowl.arithmetic.products import Digits, Pieces, fastest, is_right
from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.device import dense
from awfulowl.randomness import SYSTEM, Entropy, Seeded, expanded
from awfulowl.results import wilson
from awfulowl.veil.base import SharedInputs, SharedWeights, Sharing
from awfulowl.veil.shares import SHARINGS, sharing_of
from awfulowl.verification import compiled
from awfulowl.verification.exact import ExactCheck

SEED = 0
ALARM = 1e-6
"""A p-value below this is a leak. There are 33 of them: fresh keys fail without a defect once in 30,000 runs."""

BROKEN = "BROKEN on purpose"
_TESTS = ("p of bytes", "p of correlation", "p of agreement")
_FINDING = ("p of bytes", "p of agreement")
"""What has to find the broken sharing, whose shares lack one bit and are sent twice."""

Row = dict[str, Any]


class Scene(NamedTuple):
    """Weights that are checked: their shape, the kind of product, and the space of an input.

    `share` is that of the honest products that other scenes get: wide ones cost more. Where `rows` are named a
    convolution is checked by channels, else as the dense product that it is over all positions.
    """

    shape: tuple[int, ...]
    space: tuple[int, ...] = ()
    share: float = 1.0
    rows: Sequence[int] | None = None

    @property
    def grid(self) -> Grid:
        """One block."""
        axes = len(self.space)
        kernel = Convolution((1,) * axes, (1,) * axes, (1,) * axes) if axes else Dense()
        return make_grid(self.shape, kernel, 1, block=max(self.shape[:2]))


SCENES = (
    Scene((16, 16)),
    Scene((32, 64)),
    Scene((10, 512)),
    Scene((128, 384)),
    Scene((8, 4, 3, 3), (5, 5)),
    Scene((12, 6, 3), (16,)),
    Scene((8, 4, 3, 3), (5, 5), rows=(0,)),
    Scene((12, 6, 3), (16,), rows=(0,)),
    Scene((4096, 4096), share=0.1),
)
SHARES = len(INTEGERS) * sum(scene.share for scene in SCENES)


class Checked:
    """A check and right answers: integers of a scene, in an arithmetic."""

    def __init__(self, scene: Scene, numbers: Integers, generator: torch.Generator) -> None:
        self.scene, self.numbers, self._generator = scene, numbers, generator
        self.weight = self._draw(scene.shape)
        self._backend, self._grid = fastest(), scene.grid
        self._weights = self._backend.prepare(self.weight)
        bound = int(self.weight.flatten(1).abs().sum(1, dtype=torch.int64).max()) * numbers.largest
        self.width = fewest_bytes(bound)
        self.renew = partial(ExactCheck, [self.weight], self._grid, SYSTEM, numbers=numbers, bound=bound)
        self.check = self.renew()

    def _draw(self, shape: Sequence[int]) -> Tensor:
        largest = self.numbers.largest
        return torch.randint(-largest, largest + 1, tuple(shape), generator=self._generator, dtype=self.numbers.dtype)

    def inputs(self, batch: int) -> Tensor:
        """Draw samples."""
        return self._draw((batch, self.scene.shape[1], *self.scene.space))

    def product(self, x: Tensor) -> Tensor:
        """Return right answers."""
        return self._backend.multiply(self._grid.kernel, self._weights, x, 1, self.width)

    def refused(self, x: Tensor, y: Tensor) -> int:
        """Count the answers that the check does not accept."""
        return int((~self.check.accepts(x, y, rows=self.scene.rows)).sum())


def every(generator: torch.Generator) -> Iterator[Checked]:
    return (Checked(scene, numbers, generator) for numbers in INTEGERS.values() for scene in SCENES)


def flips(quick: bool) -> list[Row]:
    """Flip one bit of each sample's answer, wherever it is as it travels."""
    trials, batch = (2_000 if quick else 100_000), 500
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for checked in every(generator):
        caught = made = 0
        while made < trials // (len(INTEGERS) * len(SCENES)) + 1:
            x = checked.inputs(batch)
            parts = pack(checked.product(x), checked.width)
            raws = [part.contiguous().view(torch.uint8).view(batch, -1) for part in parts]
            raw = torch.cat(raws, dim=1)
            at = torch.randint(raw.shape[1], (batch,), generator=generator)
            bit = torch.randint(8, (batch,), generator=generator)
            raw[torch.arange(batch), at] ^= (1 << bit).to(torch.uint8)
            split = torch.split(raw, [one.shape[1] for one in raws], dim=1)
            false = [one.contiguous().view(part.dtype).view(part.shape) for one, part in zip(split, parts, strict=True)]
            caught += checked.refused(x, unpack(false, checked.width))
            made += batch
        rows.append(_counted(checked, "flips", made, caught, "caught"))
    return rows


def honest(quick: bool) -> list[Row]:
    """Check right answers to ever new inputs under ever new secrets."""
    trials, batch = (20_000 if quick else 10_000_000), 4096
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for checked in every(generator):
        alarms = made = 0
        while made < trials * checked.scene.share / SHARES + 1:
            x = checked.inputs(batch)
            checked.check = checked.renew()
            alarms += checked.refused(x, checked.product(x))
            made += batch
        rows.append(_counted(checked, "honest", made, alarms, "alarms"))
    return rows


def _counted(checked: Checked, part: str, made: int, found: int, what: str) -> Row:
    scene = "x".join(map(str, checked.scene.shape)) + (" by channels" if checked.scene.rows else "")
    return {"part": part, "arithmetic": checked.numbers.name, "weights": scene, "trials": made, what: found}


def kernels(quick: bool) -> list[Row]:
    """Hold exact products against the float32 product on the same cores."""
    rows = []
    for shape in ((64, 4096, 4096), (1024, 384, 1536)):
        batch, inputs, outputs = shape
        x, weight = torch.randn(batch, inputs), torch.randn(outputs, inputs)
        works: dict[str, Callable[[], object]] = {
            "float32": partial(torch.nn.functional.linear, x, weight),
            "float32, as devices do": partial(dense.fastest().multiply, x, weight),
        }
        for name, of_inputs, of_weights, width in (
            ("int8", torch.int8, torch.int8, 4),
            ("int16", torch.int16, torch.int16, 8),
            ("shared inputs", torch.int32, torch.int8, 4),
            ("shared inputs and weights", torch.int32, torch.int32, 4),
        ):
            operands = _integers(of_inputs, batch, inputs), _integers(of_weights, outputs, inputs)
            for backend in (Digits(), Pieces()):
                if is_right(backend):
                    planes = backend.prepare(operands[1]).planes
                    works[f"{name}, {backend.name}"] = partial(backend.dense, planes, operands[0], width)
        times = _interleaved(works, 3 if quick else 9)
        plain = times["float32"]
        rows += [
            {"part": "kernels", "shape": shape, "product": name, "seconds": time, "ratio": time / plain}
            for name, time in times.items()
        ]
    return rows


def _integers(dtype: torch.dtype, *shape: int) -> Tensor:
    bounds = torch.iinfo(dtype)
    drawn = torch.randint(bounds.min, bounds.max, shape, dtype=dtype)
    largest = INTEGERS["int16"].largest
    return drawn.clamp_(-largest, largest) if dtype is torch.int16 else drawn


def _interleaved(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = perf_counter()
            work()
            times[name].append(perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def shares(quick: bool) -> list[Row]:
    """Make random shares, on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    x = _integers(torch.int8, 64, 4096)
    grid = make_grid((4096, 4096), Dense(), 1, block=256)
    works: dict[str, Callable[[], object]] = {
        "keystream, 16 MiB": Seeded(SYSTEM.seed(), torch.int32, (1024, 4096)).expand,
        "operating system, 1 MiB": partial(os.urandom, 1 << 20),
    }
    sizes = {"keystream, 16 MiB": 1 << 24, "operating system, 1 MiB": 1 << 20}
    for name in ("inputs:2", "replicated"):
        sharing = sharing_of(name)
        label = f"{name}, batch of 64 x 4096"
        works[label] = partial(_share, sharing, x, grid)
        sizes[label] = 4 * x.numel() * (sharing.shares - 1)
    times = _interleaved(works, 5 if quick else 50)
    torch.set_num_threads(before)
    return [
        {"part": "shares", "what": name, "seconds": time, "gb_per_s": sizes[name] / time / 1e9}
        for name, time in times.items()
    ]


def _share(sharing: Sharing, x: Tensor, grid: Grid) -> None:
    """Make all that is sent to all lanes."""
    shared = SharedInputs(sharing, x, grid, torch.int32, SYSTEM)
    for lane in range(sharing.lanes):
        shared.inputs(lane, range(len(grid.columns)), f"lane {lane}")


def uniform(quick: bool) -> list[Row]:
    """Test what one domain gets, for inputs and weights that are as far from random as they can be."""
    width = 256 if quick else 1024
    grid = make_grid((width, width), Dense(), 1, block=64)
    x = torch.full((width, width), 100, dtype=torch.int8)
    x[: width // 2] = torch.arange(width, dtype=torch.int32).remainder(7).to(torch.int8)
    rows = []
    for name in SHARINGS:
        sharing = sharing_of(name)
        first, again = (SharedInputs(sharing, x, grid, torch.int32, SYSTEM) for _ in range(2))
        for lane in range(sharing.lanes):
            views = {"inputs": (_received(first, lane, grid), _received(again, lane, grid))}
            if sharing.hides_weights:
                keys = (SharedWeights(sharing, torch.int32, SYSTEM) for _ in range(2))
                one, other = (
                    torch.cat([expanded(own) for own in key.matrices(lane, x, (0, 0))], dim=1) for key in keys
                )
                views["weights"] = one, other
            rows += [
                {"part": "uniform", "sharing": name, "lane": lane, "of": kind, **_tested(view, other, x)}
                for kind, (view, other) in views.items()
            ]
    reused = _received(SharedInputs(sharing_of("inputs:2"), x, grid, torch.int32, Entropy(SEED)), 1, grid)
    broken = reused & 0x7FFFFFFF, reused & 0x7FFFFFFF
    tested = _tested(*broken, x)
    return [*rows, {"part": "uniform", "sharing": BROKEN, "lane": 1, "of": "inputs", **tested}]


def _received(shared: SharedInputs, lane: int, grid: Grid) -> Tensor:
    pieces = shared.inputs(lane, range(len(grid.columns)), f"lane {lane}")
    return torch.cat([expanded(piece) for piece in pieces], dim=1)


def _tested(view: Tensor, again: Tensor, truth: Tensor) -> Row:
    """Return p-values: of the worst byte's chi-square (times 4 tests), the correlation with the truth, and agreement.

    So many equal numbers or more, of n with a chance of 2^-32 each, are no likelier than the number of their choices
    times their chance, at most m^equal / equal! with m = n / 2^32.
    """
    raw = view.contiguous().view(torch.uint8).view(-1, 4)
    p = min(_chi_square(torch.bincount(raw[:, place].long(), minlength=256)) for place in range(4))
    repeated = truth.repeat(1, view.shape[1] // truth.shape[1]).double().flatten()
    both = torch.corrcoef(torch.stack([view.double().flatten(), repeated]))[0, 1]
    n = view.numel()
    equal = int((view == again).sum())
    return {
        "numbers": n,
        "p of bytes": min(1.0, 4 * p),
        "p of correlation": erfc(abs(float(both)) * sqrt(n / 2)),
        "equal when sent twice": equal,
        "expected": n / 2**32,
        "p of agreement": min(1.0, exp(equal * log(n / 2**32) - lgamma(equal + 1))),
    }


def _chi_square(counts: Tensor) -> float:
    """Return the p-value of equal counts, by Wilson and Hilferty's approximation (1931)."""
    expected = float(counts.sum()) / len(counts)
    freedom = len(counts) - 1
    statistic = float(((counts - expected) ** 2).sum()) / expected
    spread = 2 / (9 * freedom)
    return 0.5 * erfc(((statistic / freedom) ** (1 / 3) - (1 - spread)) / sqrt(2 * spread))


PARTS = {"kernels": kernels, "shares": shares, "flips": flips, "honest": honest, "uniform": uniform}


def faults(rows: list[Row]) -> list[str]:
    """Say what must not be: flips that were missed, alarms about right answers, shares that say something."""
    return [fault for row in rows for fault in _faults_of(row)]


def _faults_of(row: Row) -> list[str]:
    match row["part"]:
        case "flips" if row["caught"] != row["trials"]:
            return [f"{row['trials'] - row['caught']} flips missed, {row['arithmetic']}, {row['weights']}"]
        case "honest" if row["alarms"]:
            return [f"{row['alarms']} alarms, {row['arithmetic']}, {row['weights']}"]
        case "uniform" if row["sharing"] == BROKEN:
            return [f"{test} does not find {BROKEN}" for test in _FINDING if not row[test] < ALARM]
        case "uniform":
            where = f"{row['sharing']}, lane {row['lane']}, {row['of']}"
            return [f"{test} {row[test]:.1e}, {where}" for test in _TESTS if not row[test] >= ALARM]
    return []


def show(name: str, rows: list[Row], seconds: float) -> None:
    print(f"{name} ({seconds:.0f} s)")
    for row in rows:
        print("  " + "  ".join(f"{key} {_short(value)}" for key, value in row.items() if key != "part"))
    for what, should in (("caught", True), ("alarms", False)):
        if rows and what in rows[0]:
            made, found = sum(row["trials"] for row in rows), sum(row[what] for row in rows)
            other = made - found if should else found
            bound = wilson(other, made).high
            print(f"  {what}: {found} of {made}; {'missed' if should else 'a rate'} under {bound:.1e} (95 %)")
    print(flush=True)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--loops", action=argparse.BooleanOptionalAction, default=True, help="check in compiled loops")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    loops = options.loops and compiled.prepare()
    print(f"checks in {'compiled loops' if loops else 'PyTorch'}", flush=True)
    found: list[Row] = []
    for name in options.only:
        start = perf_counter()
        print(f"{name} ...", flush=True)
        rows = PARTS[name](options.quick)
        show(name, rows, perf_counter() - start)
        found += rows
    if options.json:
        results = {
            "benchmark": "exact",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "seed": SEED,
            "backend": fastest().name,
            "loops": loops,
            "rows": found,
        }
        text = json.dumps(results, indent=2) + "\n"
        print(text, end="") if options.json == "-" else Path(options.json).write_text(text)
    wrong = faults(found)
    for fault in wrong:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
