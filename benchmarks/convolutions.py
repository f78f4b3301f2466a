"""What the check of convolutions over known positions accepts and catches: honest residues, false alarms, lies by size.

    python -m benchmarks.convolutions [--quick] [--json FILE]

Residues are in standard deviations, of which 10 pass. Lies have so many times the length of the right answer.
"""

import argparse
import json
import platform
from collections.abc import Callable
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

KERNEL: Final = Convolution(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
LAYERS: Final = ((16, 8, 256), (64, 8, 256), (256, 4, 256), (64, 16, 64))
"""Channels, side of the image, samples of a batch."""

SIZES: Final = (1e-3, 1e-4, 1e-5, 3e-6, 1e-6)

INPUTS: Final[dict[str, Callable[[tuple[int, ...]], Tensor]]] = {
    "normal": torch.randn,
    "relu": lambda shape: torch.randn(shape).relu(),
    "uniform": torch.rand,
    "constant": lambda shape: torch.ones(shape) * torch.rand(shape[0], 1, 1, 1),
    "sparse": lambda shape: torch.randn(shape) * (torch.rand(shape) < 0.02),
}


def of_one(index: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    def lie(y: Tensor) -> Tensor:
        error = torch.zeros_like(y)
        error[index] = torch.randn_like(y[index])
        return error

    return lie


def opposite(y: Tensor) -> Tensor:
    error = of_one((slice(None), slice(None), 2, 5))(y)
    error[:, :, 6, 6] = -error[:, :, 2, 5]
    return error


LIES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "random": torch.randn_like,
    "one number": of_one((slice(None), 3, 2, 5)),
    "one channel": of_one((slice(None), 3)),
    "one position": of_one((slice(None), slice(None), 2, 5)),
    "opposite at two positions": opposite,
}


def check_of(channels: int, seed: int) -> tuple[Tensor, Check]:
    weights = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
    grid = make_grid(tuple(weights.shape), KERNEL, 1, block=1 << 20)
    return weights, Check([weights], grid, Entropy(seed), apart=[{0}])


def honest(checks: int) -> list[dict[str, Any]]:
    rows = []
    for (channels, side, batch), (name, draw) in every(LAYERS, INPUTS.items()):
        largest, alarms = 0.0, 0
        for seed in range(checks):
            weights, check = check_of(channels, seed)
            x = draw((batch, channels, side, side))
            y = product(KERNEL, weights, x, 1)
            expectation = check.expect(x)
            largest = max(largest, float(expectation.residue(y).max()))
            alarms += int((~expectation.accepts(y)).sum())
        shape = {"channels": channels, "side": side}
        rows.append({**shape, "inputs": name, "samples": batch * checks, "alarms": alarms, "largest": largest})
    return rows


def lies(checks: int) -> list[dict[str, Any]]:
    rows = []
    for size, (name, error_of) in every(SIZES, LIES.items()):
        caught = 0
        for seed in range(checks):
            weights, check = check_of(64, seed)
            x = torch.randn(64, 64, 8, 8)
            y = product(KERNEL, weights, x, 1)
            error = error_of(y)
            scale = size * y.flatten(1).norm(dim=1) / error.flatten(1).norm(dim=1)
            caught += int((~check.accepts(x, y + error * scale.view(-1, 1, 1, 1))).sum())
        trials = 64 * checks
        rows.append({"size": size, "lie": name, "caught": caught, "of": trials, "interval": wilson(caught, trials)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few checks of everything")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args()
    torch.manual_seed(0)
    compiled.prepare()
    results: dict[str, Any] = {"benchmark": "convolutions", "python": platform.python_version()}
    for part, rows in (("honest", honest(2 if options.quick else 60)), ("lies", lies(2 if options.quick else 160))):
        results[part] = rows
        for row in rows:
            print(part, json.dumps(row), flush=True)
    print("honest samples", sum(row["samples"] for row in results["honest"]), "seed 0, torch", torch.__version__)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
