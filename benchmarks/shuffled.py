"""Networks that were shuffled, put in order: 97 pieces of a residual network, and secretly permuted hidden units.

    python -m benchmarks.shuffled [--quick] [--only PART ...] [--seeds 1 2 3] [--json FILE]

puzzle: a residual network of 48 blocks from its 97 pieces ("I Dropped a Neural Net"); it is trained first. permuted:
hidden units of an MLP and of a ResNet with batch norms, by weight matching ("Git Re-Basin"). No data are needed.
"""

import argparse
import json
import operator
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awfulowl.lab.shuffled.puzzle import BLOCKS, STEPS, WIDTH, drop, train_residual
from awfulowl.lab.shuffled.reassembly import reassemble
from awfulowl.lab.shuffled.symmetry import find_symmetry
from awfulowl.lab.shuffled.weight_matching import draw_permutations, match, permute
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy


def puzzle_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each network that is taken apart and put together."""
    blocks, width, steps = (8, 32, 600) if options.quick else (BLOCKS, WIDTH, STEPS)
    for seed in options.seeds:
        network = train_residual(seed, blocks=blocks, width=width, steps=steps)
        dropped = drop(network, Entropy(100 + seed))
        x = torch.randn(1000, width, generator=torch.Generator().manual_seed(7 + seed))
        with torch.no_grad():
            y = network(x)
        started = time.perf_counter()
        found = reassemble(dropped.pieces, x, y)
        in_place = 2 * sum(map(operator.eq, found.blocks, dropped.blocks)) + (found.last == dropped.last)
        yield {
            "part": "puzzle",
            "seed": seed,
            "pieces": len(dropped.pieces),
            "in_place": in_place,
            "paired": sum(block in dropped.blocks for block in found.blocks),
            "errors": found.errors,
            "passes": found.passes,
            "seconds": time.perf_counter() - started,
        }


def permuted_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each network whose hidden units are permuted in secret."""
    width = 8 if options.quick else 16
    for name, build in (("MLP 784-512-512-512-10", mlp), (f"ResNet of width {width}", lambda: ResNet(width))):
        for seed in options.seeds:
            with seeded(seed):
                model = build()
                settle(model)
            symmetry = find_symmetry(model)
            state = model.state_dict()
            secret = draw_permutations(symmetry, Entropy(seed))
            stolen = permute(state, symmetry, secret)
            started = time.perf_counter()
            found = match(state, stolen, symmetry, Entropy(1000 + seed))
            back = permute(stolen, symmetry, found.permutations)
            yield {
                "part": "permuted",
                "network": name,
                "seed": seed,
                "groups": len(symmetry.sizes),
                "units": sum(symmetry.sizes),
                "exact": all(torch.equal(back[key], tensor) for key, tensor in state.items()),
                "seconds": time.perf_counter() - started,
            }


def mlp() -> torch.nn.Module:
    widths = (784, 512, 512, 512, 10)
    layers = [layer for pair in pairwise(widths) for layer in (torch.nn.Linear(*pair), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1])


def settle(model: torch.nn.Module) -> None:
    """Give batch norms scales and statistics of their own."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]


class Stage(torch.nn.Module):
    """Two convolutions with batch norms, and a shortcut that is projected where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(outputs)
        projected = torch.nn.Sequential(
            torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
        )
        self.shortcut = torch.nn.Identity() if inputs == outputs else projected

    def forward(self, x: Tensor) -> Tensor:
        """Return maps as large as the stride leaves them."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet(torch.nn.Module):
    """ResNet-20: three groups of three stages, and a dense layer over the means of the maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(width)
        sizes = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
        self.stages = torch.nn.Sequential(
            *(Stage(one, other, 1 if one == other else 2) for one, other in pairwise(sizes))
        )
        self.head = torch.nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) logits for (batch, 3, height, width)."""
        maps = self.stages(torch.relu(self.norm(self.conv(x))))
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "permuted": permuted_rows,
    "puzzle": puzzle_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, with small networks")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.seeds = options.seeds[:1] if options.quick else options.seeds
    rows = []
    for part in options.only:
        for row in PARTS[part](options):
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
