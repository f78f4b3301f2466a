"""What the check of convolutions over known positions accepts and catches: honest residues, false alarms, lies by size.

    python -m benchmarks.convolutions [--quick] [--json FILE] [--no-loops]

Residues are in standard deviations, of which 10 pass. Lies have so many times the length of the right answer. Inputs
and lies are those of `freivalds`, and lies at positions besides.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from functools import partial
from itertools import product as every
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, product
from awfulowl.randomness import Entropy
from awfulowl.results import wilson
from awfulowl.verification import compiled
from awfulowl.verification.freivalds import Check
from benchmarks.inputs_and_lies import INPUTS, Told, lies_about

KERNEL: Final = Convolution(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
LAYERS: Final = ((16, 8, 256), (64, 8, 256), (256, 4, 256), (64, 16, 64))
"""Channels, side of the image, samples of a batch."""

SIZES: Final = (1e-3, 1e-4, 1e-5, 3e-6, 1e-6)
BATCH: Final = 64


def check_of(channels: int, generator: torch.Generator, seed: int) -> tuple[Tensor, Check]:
    weights = torch.randn(channels, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    grid = make_grid(tuple(weights.shape), KERNEL, 1, block=1 << 20)
    return weights, Check([weights], grid, Entropy(seed), apart=[{0}])


def honest(checks: int) -> Iterator[dict[str, Any]]:
    for (channels, side, batch), (name, draw) in every(LAYERS, INPUTS.items()):
        generator = torch.Generator().manual_seed(0)
        largest, alarms = 0.0, 0
        for seed in range(checks):
            weights, check = check_of(channels, generator, seed)
            x = draw((batch, channels, side, side), generator)
            y = product(KERNEL, weights, x)
            expectation = check.expect(x)
            largest = max(largest, float(expectation.residue(y).max()))
            alarms += int((~expectation.accepts(y)).sum())
        shape = {"channels": channels, "side": side}
        yield {**shape, "inputs": name, "samples": batch * checks, "alarms": alarms, "largest": largest}


def lies(checks: int) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    caught = dict.fromkeys(every(SIZES, lies_about(2)), 0)
    for seed in range(checks):
        weights, check = check_of(64, generator, seed)
        x = torch.randn(BATCH, 64, 8, 8, generator=generator)
        multiply = partial(product, KERNEL, x=x)
        told = Told(multiply(weights), weights, multiply, partial(torch.randn, generator=generator))
        expectation, length = check.expect(x), lengths(told.y)
        for name, lie in lies_about(2).items():
            error = lie(told)
            error *= length / lengths(error)
            for size in SIZES:
                caught[size, name] += int((~expectation.accepts(told.y + size * error)).sum())
    trials = BATCH * checks
    for (size, name), found in caught.items():
        yield {"size": size, "lie": name, "caught": found, "of": trials, "interval": wilson(found, trials)}


def lengths(y: Tensor) -> Tensor:
    """Return the length of each sample, as a column of y's axes."""
    found: Tensor = y.flatten(1).norm(dim=1)
    return found.view(-1, 1, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few checks of everything")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--loops", action=argparse.BooleanOptionalAction, default=True, help="check in compiled loops")
    options = parser.parse_args()
    loops = options.loops and compiled.prepare()
    print(f"checks in {'compiled loops' if loops else 'PyTorch'}", flush=True)
    results: dict[str, Any] = {"benchmark": "convolutions", "python": platform.python_version(), "loops": loops}
    for part, rows in (("honest", honest(2 if options.quick else 60)), ("lies", lies(2 if options.quick else 160))):
        results[part] = []
        for row in rows:
            results[part].append(row)
            print(part, json.dumps(row), flush=True)
    print("honest samples", sum(row["samples"] for row in results["honest"]), "seed 0, torch", torch.__version__)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
