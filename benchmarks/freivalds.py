"""What the check accepts and what it catches: honest residues, false alarms, lies found by size, and its cost.

    python benchmarks/freivalds.py [--quick] [--json FILE] [--seed N]
    python benchmarks/freivalds.py --checks N [--backend NAME]

Residues are in units of the standard deviation that `awfulowl.verification.freivalds` derives; z of them pass.
`sequential` adds one product after the other, which is the largest error an ordinary device makes: a GPU's inner loop
does so. The false-alarm rate is that of a normal distribution fitted to the largest half percent of the residues
(mean square of those above the threshold, upper end of its 95 % interval), for all vectors of a check together.
"""

import argparse
import contextlib
import functools
import itertools
import math
import statistics
import sys
import timeit
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Convolution, Dense, product
from awfulowl.device.dense import Multiply, onednn
from awfulowl.randomness import Entropy
from awfulowl.results import Interval, Result, Setting
from awfulowl.verification import compiled
from awfulowl.verification.freivalds import VECTORS, Check, Z
from awfulowl.verification.rounding import UNIT_ROUNDOFF, miss_bound
from awfulowl.verification.vectors import Keeping

LENGTHS: Final = (64, 256, 1024, 4096, 9216, 25088)
OUTPUTS: Final = 64
SIZES: Final = tuple(10 ** (-exponent / 2) for exponent in range(14, 1, -1))
TAIL: Final = 0.005
SETTING: Final = {"length": "d", "kind": "s", "backend": "s"}
RESIDUES: Final = SETTING | dict.fromkeys(("rms", "median", "99.9 %", "max"), ".3f")
ALARMS: Final = {"false alarms <": ".0e", "design max": ".1f", "design rejected": ".2%"}
COST: Final = {"weights": "s", "inputs": "s", "threads": "d", "ms": ".3f", "ns per element": ".2f"}
SHARES: Final = {"share of the product": ".2%", "secrets per weights": ".2%"}
DESIGN_Z: Final = 32
"""Limit of the residue |r y − s x| / (u √(v x² + (r y)²)), with which the design started."""

Make = Callable[[int, int, torch.Generator], Tensor]


def normal(batch: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, length, generator=generator)


def relu(batch: int, length: int, generator: torch.Generator) -> Tensor:
    return normal(batch, length, generator).relu_()


def large_mean(batch: int, length: int, generator: torch.Generator) -> Tensor:
    return normal(batch, length, generator).add_(10)


def sparse(batch: int, length: int, generator: torch.Generator) -> Tensor:
    return normal(batch, length, generator) * (torch.rand(batch, length, generator=generator) < 0.01)


def heavy_tailed(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Student's t with two degrees of freedom."""
    scale = torch.empty(batch, length).exponential_(generator=generator)
    return normal(batch, length, generator).div_(scale.sqrt_())


KINDS: Final[tuple[Make, ...]] = (normal, relu, large_mean, sparse, heavy_tailed)


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
    """Fresh weights, inputs and secrets."""

    weights: Tensor
    grid: Grid
    x: Tensor
    check: Check
    seed: int


def scene(length: int, kind: Make, batch: int, seed: int) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(OUTPUTS, length, generator=generator)
    grid = make_grid((OUTPUTS, length), Dense(), 1, block=256)
    check = Check([weights], grid, Entropy(seed), apart=())
    return Scene(weights, grid, kind(batch, length, generator), check, seed)


def as_designed(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    secrets = Keeping([scene.weights], scene.grid, Entropy(scene.seed), VECTORS, ()).select(None, None)
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


def setting(length: int, kind: Make, backend: str) -> dict[str, Setting]:
    return {"length": length, "kind": kind.__name__, "backend": backend, "z": Z}


def honest(seed: int, *, quick: bool) -> Iterator[Result]:
    rounds, batch = (4, 64) if quick else (48, 256)  # many sets of secrets: residues of one set are alike
    for length, kind in itertools.product(LENGTHS, KINDS):
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for number in range(rounds):
            now = scene(length, kind, batch, seed + number)
            for name, multiply in backends().items():
                x = now.x[: batch // 8] if "batch 1" in name else now.x
                y = multiply(x, now.weights)
                found.setdefault(name, []).append((now.check.residue(x, y), as_designed(now, x, y)))
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
    each = math.ceil(checks / len(LENGTHS) / len(KINDS))
    multiply = backends()[backend]
    for length, kind in itertools.product(LENGTHS, KINDS):
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


class Told(NamedTuple):
    """The answer that a liar bends, and what it has at hand: other weights on these inputs, and chance."""

    y: Tensor
    weights: Tensor
    multiply: Callable[[Tensor], Tensor]
    draw: Callable[..., Tensor]


def move_rows(told: Told, *steps: float) -> Tensor:
    rows = told.draw(told.y.shape[1]).argsort()[: len(steps)]
    direction = torch.zeros_like(told.y)
    direction[:, rows] = torch.tensor(steps, dtype=torch.float32).view(-1, *[1] * (told.y.dim() - 2))
    return direction


def low_rank(told: Told) -> Tensor:
    product_of_two = told.draw(len(told.weights), 2) @ told.draw(2, told.weights[0].numel())
    return told.multiply(product_of_two.view_as(told.weights))


LIES: Final[dict[str, Callable[[Told], Tensor]]] = {
    "one row": lambda told: move_rows(told, 1),
    "two rows": lambda told: move_rows(told, 1, -1),
    "random": lambda told: told.draw(*told.y.shape),
    "low rank": low_rank,
    "stale answer": lambda told: told.y.flip(0) - told.y,
    "another block's": lambda told: told.multiply(told.draw(*told.weights.shape)) - told.y,
    "zeros": lambda told: -told.y,
    "sign": lambda told: -2 * told.y,
}
TRIALS_AT_ONCE: Final = 100


def detection(shape: tuple[int, ...], sizes: Sequence[float], trials: int, seed: int) -> Iterator[Result]:
    """Tell lies of each kind and relative size, to fresh secrets each time; one hundred share inputs and weights."""
    missed = dict.fromkeys(itertools.product(LIES, sizes), 0)
    bounds = dict.fromkeys(missed, 0.0)
    rounds = math.ceil(trials / TRIALS_AT_ONCE)
    kernel, space = (Convolution((1, 1), (1, 1), (1, 1)), (8, 8)) if len(shape) == 4 else (Dense(), ())
    grid = make_grid(shape, kernel, 1, block=256)
    for number in range(rounds):
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed + number))
        weights, x = draw(shape), draw(2, shape[1], *space)
        check = Check([weights], grid, Entropy(seed + number), vectors=TRIALS_AT_ONCE * VECTORS, apart=())
        multiply = functools.partial(product, kernel, x=x)
        told = Told(multiply(weights), weights, multiply, draw)
        for (kind, lie), size in itertools.product(LIES.items(), sizes):
            passed, bound = tell(check, x[:1], told.y[:1], size, lie(told)[:1])
            missed[kind, size] += passed
            bounds[kind, size] += bound / rounds
    for (kind, size), passed in missed.items():
        yield Result.rate(
            "lies missed",
            passed,
            rounds * TRIALS_AT_ONCE,
            seeds=[seed],
            cost={"checks": rounds * TRIALS_AT_ONCE},
            configuration={"shape": "x".join(map(str, shape)), "kind": kind, "size": size, "bound": bounds[kind, size]},
        )


def tell(check: Check, x: Tensor, y: Tensor, size: float, direction: Tensor) -> tuple[int, float]:
    """Return how many sets of secrets a lie passes, and the claimed bound."""
    answer = y + size * float(y.norm() / direction.norm()) * direction
    passed = (check.residue(x, answer) <= Z).view(TRIALS_AT_ONCE, VECTORS).all(dim=1)
    ratio = float(check.tolerance(x, answer).square().mean().sqrt() / (answer.double() - y.double()).norm())
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
    table: dict[Setting, dict[Setting, dict[str, Setting]]] = {}
    for result in results:
        at = result.configuration
        row = table.setdefault(at["shape"], {}).setdefault(at["size"], {"size": at["size"], "at most": 0.0})
        row |= {str(at["kind"]): result.value, "claimed": at["bound"]}
        row["at most"] = max(float(row["at most"] or 0), result.interval.high)
    for shape, rows in table.items():
        title = f"share of lies missed by relative size, weights {shape}; at most: worst upper end of 95 % intervals"
        show(title, rows.values(), {"size": ".1e", **dict.fromkeys(LIES, ".4f"), "at most": ".1e", "claimed": ".1e"})


def alarms(checks: int, backend: str, seed: int) -> list[Result]:
    results = list(count_false_alarms(checks, backend, seed))
    rows = [{**result.configuration, "checks": result.n, "share rejected": result.value} for result in results]
    show("honest answers rejected", rows, SETTING | {"checks": "d", "share rejected": ".1e"})
    rejected, made = sum(round(result.value * result.n) for result in results), sum(result.n for result in results)
    total = Result.rate("false alarms", rejected, made, seeds=[seed], cost={"checks": made})
    print(f"\n{rejected} of {made}: a rate of at most {total.interval.high:.1e} (95 %)")
    return [*results, total]


def everything(seed: int, *, quick: bool) -> list[Result]:
    sizes, trials, lengths = (SIZES[::3], 300, LENGTHS[:4]) if quick else (SIZES, 10_000, LENGTHS)
    residues = list(honest(seed, quick=quick))
    title = f"honest residues in standard deviations, {Z:g} pass; and as the design defined them, {DESIGN_Z} pass"
    show(title, [result.configuration for result in residues], RESIDUES | ALARMS)
    told = [*detection((256, 1024), sizes, trials, seed), *detection((64, 32, 3, 3), sizes, trials, seed)]
    told += [result for length in lengths for result in detection((OUTPUTS, length), (1e-3,), trials, seed)]
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    compiled.prepare()
    with contextlib.redirect_stdout(sys.stderr if options.json == "-" else sys.stdout):
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
