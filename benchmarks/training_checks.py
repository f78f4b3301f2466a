"""What the check of training lets pass, of honest devices and of liars: one block, without a fleet.

    python -m benchmarks.training_checks [--quick] [--json FILE] [--only honest lies adaptive] [--no-loops]

honest      10^5 consecutive verified steps of a dense block and of a convolution, at a constant rate and at one that
            falls to 1e-6, with secrets renewed every 1,000 steps: false alarms, and the largest residues in deviations
            (a check accepts 10).
lies        A device changes its weights by E at any moment of periods of 1,000 steps, at the same two rates, and y and
            dx of the next batch are checked; then it goes on honestly. Secrets are drawn anew when a fleet would draw
            them (`owner.snapshots.worn`). 10^4 trials for each kind at the size 1e-3, 10^3 at other sizes, half of them
            at each rate. The size is |E x| / |W x|, and of dx |E' dy| / |W' dy|. Caught: a sample is refused. Steps
            that were skipped, doubled, scaled, or taken along the gradient of the batch before (stale) have the size
            that they have: of 1e-3 and more are those that count.
adaptive    A liar that knows everything but the secrets moves its weights in one direction for 10^5 steps, always a
            share of what rounding is allowed, and is never caught: how far it gets, against the bound that is printed
            (times renewed x drift), and what that does to a classifier's accuracy; without momentum and with it.

It returns 1 after a false alarm, and where fewer than 99.9 % of the lies of 1e-3 and more are caught.

Checks run in compiled loops, as in a fleet with models of 2^22 weights or more; without: --no-loops.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

from awfulowl.arithmetic.descent import Descent, descend
from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Dense
from awfulowl.models.digits import read_digits
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled
from awfulowl.verification.training import TrainingCheck
from benchmarks.training_lies import RATES, RENEWED_EVERY, SHAPES, Device, Shape, lies, rule

ENOUGH: Final = 0.999


def honest(steps: int) -> Iterator[dict[str, Any]]:
    for shape in SHAPES:
        for name, schedule in RATES.items():
            yield {"block": shape.name, "rate": name, "steps": steps, **run_honest(shape, schedule, steps)}


def run_honest(shape: Shape, schedule: Callable[[float], float], steps: int) -> dict[str, Any]:
    device, entropy = Device(shape, 0), Entropy(1)
    check = device.check(entropy)
    alarms, states = 0, 0
    largest = [0.0, 0.0]
    for number in range(steps):
        x = device.draw()
        y = device.multiply(x)
        dy = device.gradient_of(x, y)
        dx = device.answer(1, (x, dy))
        ways = ((check.expect(x), y), (check.expect_transposed(dy, shape.inputs[2:]), dx))
        for way, (expected, answer) in enumerate(ways):
            alarms += int((~expected.accepts(answer)).sum())
            if number % 10 == 0:
                largest[way] = max(largest[way], float(expected.residue(answer).max()))
        move = rule(schedule(number / steps), 0.9, first=number == 0)
        check.move(move, [check.see(x, dy)])
        device.step(move, x, dy)
        if (number + 1) % RENEWED_EVERY == 0:
            states += int(not check.matches_whole(device.state))
            check = device.check(entropy)
    return {
        "samples": 2 * steps * shape.inputs[0],
        "alarms": alarms,
        "states_refused": states,
        "largest_y": largest[0],
        "largest_dx": largest[1],
    }


def adaptive(steps: int) -> Iterator[dict[str, Any]]:
    """Let a linear classifier of digits be trained by a liar, and by nobody but honest devices."""
    for momentum in (0.0, 0.9):
        for share in (0.0, 0.1, 0.15):
            yield {"momentum": momentum, "share": share, "steps": steps, **run_adaptive(share, momentum, steps)}


def run_adaptive(share: float, momentum: float, steps: int) -> dict[str, Any]:
    """Train; the liar moves against the gradient of the mean loss, as far as `share` of what is allowed it."""
    data = read_digits(0)
    inputs, labels = data.train.inputs.flatten(1), data.train.labels
    generator, entropy = torch.Generator().manual_seed(5), Entropy(6)
    weight, lost, moved = torch.zeros(10, 64), torch.zeros(10, 64), torch.zeros(10, 64)
    weight += 0.01 * torch.randn(10, 64, generator=generator)
    grid = make_grid((10, 64), Dense(), 1, block=32)
    check = TrainingCheck([weight, lost], grid, entropy)
    strayed, bound, alarms, told = torch.zeros(10, 64, dtype=torch.float64), 0.0, 0, torch.zeros(10, 64)
    for number in range(steps):
        chosen = torch.randint(len(inputs), (32,), generator=generator)
        x = inputs[chosen]
        y = x @ weight.T
        alarms += int((~check.expect(x).accepts(y)).sum())
        dy = (functional.softmax(y, 1) - functional.one_hot(labels[chosen], 10)) / 32
        alarms += int((~check.expect_transposed(dy, ()).accepts(dy @ weight)).sum())
        move = Descent.sgd(0.05, momentum=momentum, weight_decay=5e-4, first=number == 0)
        check.move(move, [check.see(x, dy)])
        descend(move, [weight, lost, moved][: move.parts], dy.T @ x)
        if share and number % 10 == 9:
            allowed = share * check.drift * float(weight.norm())
            direction = functional.softmax(inputs[:256] @ weight.T, 1) - functional.one_hot(labels[:256], 10)
            against = direction.T @ inputs[:256]
            wanted = against * (allowed / float(against.norm()))
            whole = weight.double() + lost.double() + (wanted - told).double()
            weight.copy_(whole)  # split as rounding would: any other split is refused at once
            lost.copy_(whole - weight.double())
            strayed += (wanted - told).double()
            told = wanted
        if (number + 1) % RENEWED_EVERY == 0:
            alarms += int(not check.matches_whole([weight, lost, moved]))
            bound += check.drift
            check, told = TrainingCheck([weight, lost], grid, entropy, momentum=[moved]), torch.zeros(10, 64)
    right = (data.test.inputs.flatten(1) @ weight.T).argmax(1) == data.test.labels
    far = float(strayed.norm()) / float(weight.norm())
    return {"alarms": alarms, "moved": far, "bound": bound, "accuracy": float(right.float().mean())}


PARTS: Final[dict[str, Callable[[int], Iterator[dict[str, Any]]]]] = {
    "honest": honest,
    "lies": lies,
    "adaptive": adaptive,
}


def is_right(row: dict[str, Any]) -> bool:
    """Say whether a row is as it must be: no honest device was suspected, and hardly a large lie passed."""
    ways = [row[name] for name in ("y", "dx") if name in row]
    caught = all(way["large_caught"] >= ENOUGH * way["large"] for way in ways)
    alarms = 0 if row.get("share") else row.get("alarms", 0) + row.get("states_refused", 0)
    return caught and not alarms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--loops", action=argparse.BooleanOptionalAction, default=True, help="check in compiled loops")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loops = options.loops and compiled.prepare()
    print(f"checks in {'compiled loops' if loops else 'PyTorch'}", flush=True)
    results: dict[str, Any] = {
        "benchmark": "training checks",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "loops": loops,
    }
    for name in options.only:
        start = time.perf_counter()
        count = {"honest": 100_000, "lies": 10_000, "adaptive": 100_000}[name] // (100 if options.quick else 1)
        rows = []
        for row in PARTS[name](count):
            rows.append(row)
            print(name, json.dumps(row), flush=True)
        results[name] = {"rows": rows, "seconds": time.perf_counter() - start}
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")
    return int(not all(is_right(row) for name in options.only for row in results[name]["rows"]))


if __name__ == "__main__":
    sys.exit(main())
