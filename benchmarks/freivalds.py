"""What the check accepts and what it catches: honest residues, false alarms, lies found by size, and its cost.

    python -m benchmarks.freivalds [--quick] [--json FILE] [--seed N] [--no-loops]
    python -m benchmarks.freivalds --checks N [--backend NAME] [--no-loops]

Residues are in units of the standard deviation that `awfulowl.verification.freivalds` derives; z of them pass.
`sequential` adds one product after the other, which is the largest error an ordinary device makes: a GPU's inner loop
does so. The false-alarm rate is that of a normal distribution fitted to the largest half percent of the residues
(mean square of those above the threshold, upper end of its 95 % interval), for all vectors of a check together.

Lies are told on every backend and about weights of every length, 10^4 of each kind and size, to fresh secrets each;
both come from `inputs_and_lies`. Checks run in compiled loops, as in a fleet with models of 2^22 weights or more;
without: --no-loops. Convolutions over known positions are in `convolutions`.
"""

import argparse
import contextlib
import functools
import itertools
import math
import statistics
import sys
import timeit
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense, product
from awfulowl.device.dense import Multiply, onednn
from awfulowl.randomness import Entropy
from awfulowl.results import Interval, Result, Setting
from awfulowl.verification import compiled
from awfulowl.verification.freivalds import VECTORS, Check, Expectation, Z
from awfulowl.verification.rounding import UNIT_ROUNDOFF, miss_bound
from awfulowl.verification.vectors import Keeping, Vectors
from benchmarks.inputs_and_lies import INPUTS, Told, lies_about

LENGTHS: Final = (64, 256, 1024, 4096, 9216, 25088)
OUTPUTS: Final = 64
SIZES: Final = tuple(10 ** (-exponent / 2) for exponent in range(14, 1, -1))
TAIL: Final = 0.005
BATCH: Final = 64
SETTING: Final = {"length": "d", "kind": "s", "backend": "s"}
RESIDUES: Final = SETTING | dict.fromkeys(("rms", "median", "99.9 %", "max"), ".3f")
ALARMS: Final = {"false alarms <": ".0e", "design max": ".1f", "design rejected": ".2%"}
COST: Final = {"weights": "s", "inputs": "s", "threads": "d", "ms": ".3f", "ns per element": ".2f"}
SHARES: Final = {"share of the product": ".2%", "secrets per weights": ".2%"}
DESIGN_Z: Final = 32
"""Limit of the residue |r y − s x| / (u √(v x² + (r y)²)), with which the design started."""


def one_by_one(multiply: Multiply) -> Multiply:
    return lambda x, weights: torch.cat([multiply(x[index : index + 1], weights) for index in range(len(x))])


def sequential(x: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(len(x), len(weights))
    for x_column, weights_column in zip(x.T.contiguous()[:, :, None], weights.T.contiguous(), strict=True):
        total.addcmul_(x_column, weights_column)
    return total


def two_threads(x: Tensor, weights: Tensor) -> Tensor:
    torch.set_num_threads(2)
    y = functional.linear(x, weights)
    torch.set_num_threads(1)
    return y


def on_cuda(multiply: Multiply) -> Multiply:
    return lambda x, weights: multiply(x.cuda(), weights.cuda()).cpu()


def backends() -> dict[str, Multiply]:
    found: dict[str, Multiply] = {
        "cpu": functional.linear,
        "cpu, 2 threads": two_threads,
        "cpu, batch 1": one_by_one(functional.linear),
        "onednn": onednn,
        "onednn, batch 1": one_by_one(onednn),
        "sequential": sequential,
    }
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False
        found |= {"cuda": on_cuda(functional.linear), "cuda, batch 1": on_cuda(one_by_one(functional.linear))}
    return found


class Scene(NamedTuple):
    """Fresh weights, inputs and secrets, and their check."""

    weights: Tensor
    x: Tensor
    secrets: Vectors
    check: Check


def scene(length: int, kind: str, batch: int, seed: int) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(OUTPUTS, length, generator=generator)
    grid = make_grid((OUTPUTS, length), Dense(), 1, block=256)
    secrets = Keeping([weights], grid, Entropy(seed), VECTORS, ()).select(None, None)
    check = Check([weights], grid, Entropy(seed), apart=())
    return Scene(weights, INPUTS[kind]((batch, length), generator), secrets, check)


def as_designed(secrets: Vectors, x: Tensor, y: Tensor) -> Tensor:
    of_y = y.double() @ secrets.r.T
    energy = secrets.unit * (x.double().square() @ secrets.v.double().T) + of_y.square()
    return torch.nan_to_num((of_y - x.double() @ secrets.s.T).abs() / (UNIT_ROUNDOFF * energy.sqrt()))


def false_alarm_rate(residues: Tensor) -> tuple[float, float]:
    """Return the fitted rate of checks with a residue above z, and the upper end of its interval."""
    count = max(2, int(TAIL * residues.numel()))
    top = residues.flatten().topk(count).values
    threshold, squares = float(top[-1]), top.square()
    mean, error = float(squares.mean()), 1.96 * float(squares.std()) / math.sqrt(count)
    share = count / residues.numel()
    low, high = (VECTORS * share * survival(threshold, square) for square in (mean, mean + error))
    return low, high


def survival(threshold: float, mean_square: float) -> float:
    """Return P(|X| > z) / P(|X| > t) for the centred normal X whose square is `mean_square` on average beyond t."""
    low, high = threshold / 30, math.sqrt(mean_square)
    for _ in range(60):
        scale = (low + high) / 2
        h = threshold / scale
        density, beyond = math.exp(-h * h / 2) / math.sqrt(2 * math.pi), math.erfc(h / math.sqrt(2)) / 2
        if scale**2 * (1 + h * density / beyond) > mean_square:
            high = scale
        else:
            low = scale
    return math.erfc(Z / high / math.sqrt(2)) / math.erfc(threshold / high / math.sqrt(2))


def setting(length: int, kind: str, backend: str) -> dict[str, Setting]:
    return {"length": length, "kind": kind, "backend": backend, "z": Z}


def honest(seed: int, *, quick: bool) -> Iterator[Result]:
    rounds, batch = (4, BATCH) if quick else (32, 256)  # many sets of secrets: residues of one set are alike
    for length, kind in itertools.product(LENGTHS, INPUTS):
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for number in range(rounds):
            now = scene(length, kind, batch, seed + number)
            for name, multiply in backends().items():
                x = now.x[: batch // 8] if "batch 1" in name else now.x
                y = multiply(x, now.weights)
                found.setdefault(name, []).append((now.check.residue(x, y), as_designed(now.secrets, x, y)))
        for name, pairs in found.items():
            residues, designed = (torch.cat(values) for values in zip(*pairs, strict=True))
            rate, upper = false_alarm_rate(residues)
            ordered = residues.flatten().sort().values
            measured: dict[str, Setting] = {
                "rms": float(residues.square().mean().sqrt()),
                "median": float(ordered[len(ordered) // 2]),
                "99.9 %": float(ordered[len(ordered) * 999 // 1000]),
                "max": float(ordered[-1]),
                "false alarms <": max(1e-30, upper),
                "design max": float(designed.max()),
                "design rejected": float((designed > DESIGN_Z).any(dim=1).double().mean()),
            }
            yield Result(
                name="false alarms, fitted",
                value=rate,
                n=len(residues),
                interval=Interval(0.0, upper),
                seeds=(seed,),
                cost={"checks": len(residues)},
                configuration=setting(length, kind, name) | measured,
            )


def count_false_alarms(checks: int, backend: str, seed: int) -> Iterator[Result]:
    """Make this many checks of honest answers, as many of each length and kind, in batches with fresh secrets."""
    each = math.ceil(checks / len(LENGTHS) / len(INPUTS))
    multiply = backends()[backend]
    for length, kind in itertools.product(LENGTHS, INPUTS):
        rejected = 0
        for start in range(0, each, 2048):
            batch = min(2048, each - start)
            now = scene(length, kind, batch, seed + start)
            rejected += batch - int(now.check.accepts(now.x, multiply(now.x, now.weights)).sum())
        yield Result.rate(
            "false alarms",
            rejected,
            each,
            seeds=[seed],
            cost={"checks": each},
            configuration=setting(length, kind, backend),
        )


TRIALS_AT_ONCE: Final = 100


class Layer(NamedTuple):
    """Weights that are lied about: their shape, the kernel, and the space of an input."""

    shape: tuple[int, ...]
    kernel: Dense | Convolution = Dense()
    space: tuple[int, ...] = ()

    @property
    def backends(self) -> dict[str, Multiply]:
        """Return what multiplies with them."""
        if not self.space:
            return backends()
        convolve: Multiply = lambda x, weights: product(self.kernel, weights, x)  # noqa: E731
        return {"cpu": convolve, "cpu, batch 1": one_by_one(convolve)}


CONVOLUTION: Final = Layer((64, 32, 3, 3), Convolution((1, 1), (1, 1), (1, 1)), (8, 8))
LAYERS: Final = (Layer((256, 1024)), CONVOLUTION, *(Layer((OUTPUTS, length)) for length in LENGTHS))


def detection(layer: Layer, names: Sequence[str], sizes: Sequence[float], trials: int, seed: int) -> Iterator[Result]:
    """Tell lies of each kind and relative size on each backend, to fresh secrets each time.

    One hundred trials share inputs and weights, and all backends and lies share them and the secrets. The lie is about
    one sample of a batch of 64, which is multiplied as a whole where the backend does not take one at a time.
    """
    lies = lies_about(len(layer.space))
    missed = dict.fromkeys(itertools.product(names, lies, sizes), 0)
    bounds = dict.fromkeys(missed, 0.0)
    rounds = math.ceil(trials / TRIALS_AT_ONCE)
    grid = make_grid(layer.shape, layer.kernel, 1, block=256)
    for number in range(rounds):
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed + number))
        weights, x = draw(layer.shape), draw(BATCH, layer.shape[1], *layer.space)
        check = Check([weights], grid, Entropy(seed + number), vectors=TRIALS_AT_ONCE * VECTORS, apart=())
        expectation, multiply = check.expect(x[:1]), functools.partial(product, layer.kernel, x=x[:2])
        told = Told(multiply(weights), weights, multiply, draw)
        errors = {kind: lie(told)[:1] for kind, lie in lies.items()}
        answers = {name: layer.backends[name](x, weights)[:1] for name in names}
        for name, kind, size in missed:
            passed, bound = tell(expectation, answers[name], size, errors[kind])
            missed[name, kind, size] += passed
            bounds[name, kind, size] += bound / rounds
    for (name, kind, size), passed in missed.items():
        at: dict[str, Setting] = {"shape": "x".join(map(str, layer.shape)), "backend": name, "kind": kind, "size": size}
        yield Result.rate(
            "lies missed",
            passed,
            rounds * TRIALS_AT_ONCE,
            seeds=[seed],
            cost={"checks": rounds * TRIALS_AT_ONCE},
            configuration=at | {"bound": bounds[name, kind, size]},
        )


def tell(expectation: Expectation, y: Tensor, size: float, error: Tensor) -> tuple[int, float]:
    """Return how many sets of secrets a lie passes, and the claimed bound."""
    answer = y + size * float(y.norm() / error.norm()) * error
    passed = (expectation.residue(answer) <= Z).view(TRIALS_AT_ONCE, VECTORS).all(dim=1)
    ratio = float(expectation.tolerance(answer).square().mean().sqrt() / (answer.double() - y.double()).norm())
    return int(passed.sum()), miss_bound(ratio, VECTORS, positions=y[0, 0].numel())


COSTS: Final[dict[tuple[int, ...], tuple[int, ...]]] = {
    (4096, 4096): (64, 4096),
    (4096, 25088): (64, 25088),
    (1152, 384): (4096, 384),
    (64, 64, 3, 3): (64, 64, 32, 32),
    (512, 512, 3, 3): (64, 512, 4, 4),
}


def costs(threads: int, seed: int, *, quick: bool) -> Iterator[Result]:
    torch.set_num_threads(threads)
    for shape, x_shape in COSTS.items():
        generator = torch.Generator().manual_seed(seed)
        weights, x = torch.randn(shape, generator=generator), torch.randn(x_shape, generator=generator)
        kernel = Convolution((1, 1), (1, 1), (1, 1)) if len(shape) > 2 else Dense()
        check = Check([weights], make_grid(shape, kernel, 1, block=256), Entropy(seed), apart=())
        y = product(kernel, weights, x)
        repeats = 3 if quick else 25
        checking = timeit.repeat(lambda: check.accepts(x, y), repeat=repeats, number=1)  # noqa: B023  run at once
        multiplying = timeit.repeat(lambda: product(kernel, weights, x), repeat=repeats, number=1)  # noqa: B023
        elements = x.numel() + y.numel()
        yield Result.mean(
            "seconds of a check",
            checking,
            Entropy(seed),
            seeds=[seed],
            cost={"seconds": sum(checking)},
            configuration={
                "threads": threads,
                "weights": "x".join(map(str, shape)),
                "inputs": "x".join(map(str, x_shape)),
                "ns per element": 1e9 * statistics.median(checking) / elements,
                "share of the product": statistics.median(checking) / statistics.median(multiplying),
                "secrets per weights": check.memory_bytes / weights.nbytes,
            },
        )
    torch.set_num_threads(1)


def show(title: str, rows: Iterable[Mapping[str, Setting]], formats: Mapping[str, str]) -> None:
    """Print a table of the columns that have a format."""
    lines = [[format(row[key], form) for key, form in formats.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(formats, *lines, strict=True)]
    print(f"\n{title}")
    for line in (formats, *lines):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def show_curves(results: Sequence[Result]) -> None:
    """Print a table for each shape: the share of lies missed, by backend and size."""
    table: dict[Setting, dict[tuple[Setting, Setting], dict[str, Setting]]] = {}
    kinds: dict[Setting, dict[str, str]] = {}
    for result in results:
        at = result.configuration
        empty = {"backend": at["backend"], "size": at["size"], "at most": 0.0}
        row = table.setdefault(at["shape"], {}).setdefault((at["backend"], at["size"]), empty)
        row |= {str(at["kind"]): result.value, "claimed": at["bound"]}
        row["at most"] = max(float(row["at most"] or 0), result.interval.high)
        kinds.setdefault(at["shape"], {})[str(at["kind"])] = ".4f"
    for shape, rows in table.items():
        title = f"share of lies missed, weights {shape}; at most: worst upper end of 95 % intervals"
        show(title, rows.values(), {"backend": "s", "size": ".1e", **kinds[shape], "at most": ".1e", "claimed": ".1e"})


def alarms(checks: int, backend: str, seed: int) -> list[Result]:
    results = list(count_false_alarms(checks, backend, seed))
    rows = [{**result.configuration, "checks": result.n, "share rejected": result.value} for result in results]
    show("honest answers rejected", rows, SETTING | {"checks": "d", "share rejected": ".1e"})
    rejected, made = sum(round(result.value * result.n) for result in results), sum(result.n for result in results)
    total = Result.rate("false alarms", rejected, made, seeds=[seed], cost={"checks": made})
    print(f"\n{rejected} of {made}: a rate of at most {total.interval.high:.1e} (95 %)")
    return [*results, total]


def everything(seed: int, *, quick: bool) -> list[Result]:
    sizes, trials, layers = (SIZES[::3], 300, LAYERS[:-2]) if quick else (SIZES, 10_000, LAYERS)
    residues = list(honest(seed, quick=quick))
    title = f"honest residues in standard deviations, {Z:g} pass; and as the design defined them, {DESIGN_Z} pass"
    show(title, [result.configuration for result in residues], RESIDUES | ALARMS)
    told = [result for layer in layers for result in detection(layer, list(layer.backends), sizes, trials, seed)]
    show_curves(told)
    timed = [result for threads in (1, 2) for result in costs(threads, seed, quick=quick)]
    show("cost of a check", [{**result.configuration, "ms": 1e3 * result.value} for result in timed], COST | SHARES)
    return residues + told + timed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples and trials: under a minute")
    parser.add_argument("--checks", type=int, help="only make this many honest checks, and count false alarms")
    parser.add_argument("--backend", default="cpu", choices=backends(), help="for --checks (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--loops", action=argparse.BooleanOptionalAction, default=True, help="check in compiled loops")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loops = options.loops and compiled.prepare()
    with contextlib.redirect_stdout(sys.stderr if options.json == "-" else sys.stdout):
        print(f"checks in {'compiled loops' if loops else 'PyTorch'}", flush=True)
        if options.checks:
            results = alarms(options.checks, options.backend, options.seed)
        else:
            results = everything(options.seed, quick=options.quick)
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=1).decode()
    if options.json == "-":
        print(encoded)
    elif options.json:
        Path(options.json).write_text(encoded + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
