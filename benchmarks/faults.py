"""What deaths, lies and slowness cost: requests lost, answers wrong, and the median time of a request.

    python benchmarks/faults.py [--quick] [--json FILE] [--kills 200] [--only kills liars straggler]

Real processes over the embedded broker. Every answer is compared with the local model's.

kills       2 replicas on 12 devices; a random one is killed again and again while 2 threads ask without a pause, and
            started again as itself.
liars       2 replicas on 6 devices, in fixed pairs: both of a pair hold the same blocks, and one of each pair lies (1 %
            off). The planner itself lets partners vary from block to block.
straggler   2 replicas on 4 devices; one answers 0.1 s before its time is up.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.errors import AwfulOwlError
from awfulowl.fleet.local import LocalFleet
from awfulowl.models.mlp import Mlp
from awfulowl.owner.peer import Standing
from awfulowl.placement.plan import Plan

SEED = 0
TOLERANCE = 1e-5
"""Largest difference that float32 sums of 512 products of this size leave, times 10 (measured in the quiet)."""


@dataclass
class Tally:
    """Requests of whole batches, and what became of them."""

    requests: int = 0
    lost: int = 0
    wrong: int = 0
    times_s: list[float] = field(default_factory=list)

    def ask(self, scattered: nn.Module, x: Tensor, expected: Tensor) -> None:
        """Ask once, and judge the answer."""
        self.requests += 1
        start = perf_counter()
        try:
            with torch.inference_mode():
                y = scattered(x)
        except AwfulOwlError as error:
            self.lost += 1
            print(f"lost: {error}", file=sys.stderr)
            return
        self.times_s.append(perf_counter() - start)
        if not torch.allclose(y, expected, rtol=0, atol=TOLERANCE):
            self.wrong += 1


def as_planned(plan: Plan) -> Plan:
    return plan


def in_pairs(plan: Plan) -> Plan:
    """Return the plan with the second replica of every block at its first holder's partner."""
    names = [device.name for device in plan.devices]
    partner = dict(zip(names, (names[index ^ 1] for index in range(len(names))), strict=True))
    set_to = msgspec.structs.replace
    panels = [
        set_to(
            panel,
            cells=tuple(set_to(cell, holders=(cell.holders[0], partner[cell.holders[0]])) for cell in panel.cells),
        )
        for panel in plan.panels
    ]
    return set_to(plan, panels=tuple(panels))


@contextmanager
def served(
    devices: int, width: int = 512, place: Callable[[Plan], Plan] = as_planned
) -> Iterator[tuple[LocalFleet, nn.Module, Tensor, Tensor, Plan]]:
    """Serve an MLP with 2 replicas."""
    torch.manual_seed(SEED)
    model, x = Mlp([width, width, 10]).eval(), torch.randn(16, width)
    with owl.local_fleet(devices=devices) as fleet, torch.inference_mode():
        plan = place(owl.plan(model, x[:1], devices=fleet, replicas=2))
        yield fleet, fleet.scatter(model, plan), x, model(x), plan


def kills(count: int) -> dict[str, Any]:
    choose = random.Random(SEED)  # noqa: S311  which device dies next is no secret
    tallies = [Tally(), Tally()]
    done = threading.Event()
    with served(12) as (fleet, scattered, x, expected, _):

        def ask(tally: Tally) -> None:
            while not done.is_set():
                tally.ask(scattered, x, expected)

        threads = [threading.Thread(target=ask, args=(tally,)) for tally in tallies]
        for thread in threads:
            thread.start()
        start = monotonic()
        for number in range(count):
            name = choose.choice([n for n, standing in fleet.standing.items() if standing is Standing.PRESENT])
            fleet.kill(name)
            sleep(choose.uniform(0, 0.3))
            fleet.restart(name)
            if number % 20 == 19:
                print(f"{number + 1} kills, {sum(t.requests for t in tallies)} requests", file=sys.stderr)
        done.set()
        for thread in threads:
            thread.join()
        counts = fleet.statistics
    return {
        "kills": count,
        "requests": sum(tally.requests for tally in tallies),
        "lost": sum(tally.lost for tally in tallies),
        "wrong": sum(tally.wrong for tally in tallies),
        "failovers": counts["failovers"],
        "hedged": counts["hedged"],
        "restored": counts["restored"],
        "replaced": counts["replaced"],
        "median_s": statistics.median(t for tally in tallies for t in tally.times_s),
        "worst_s": max(t for tally in tallies for t in tally.times_s),
        "seconds": monotonic() - start,
    }


def liars(count: int) -> dict[str, Any]:
    tally = Tally()
    with served(6, place=in_pairs) as (fleet, scattered, x, expected, plan):
        for _ in range(5):
            tally.ask(scattered, x, expected)
        dishonest = [device.name for device in plan.devices][::2]
        for name in dishonest:
            fleet.corrupt(name, "random", 0.01)
        for _ in range(count):
            tally.ask(scattered, x, expected)
        quarantined = sorted(n for n, standing in fleet.standing.items() if standing is Standing.QUARANTINED)
        caught = fleet.statistics["lies_caught"]
    return {
        "liars": dishonest,
        "quarantined": quarantined,
        "requests": tally.requests,
        "lost": tally.lost,
        "wrong": tally.wrong,
        "lies_caught": caught,
    }


def straggler(count: int) -> dict[str, Any]:
    quiet, slow = Tally(), Tally()
    with served(4) as (fleet, scattered, x, expected, _):
        for _ in range(count):
            quiet.ask(scattered, x, expected)
        delay_s = fleet.policy.answer_timeout_s - 0.1
        fleet.delay("d1", delay_s)
        for _ in range(count):
            slow.ask(scattered, x, expected)
        hedged = fleet.statistics["hedged"]
    before, after = statistics.median(quiet.times_s), statistics.median(slow.times_s)
    return {
        "delay_s": delay_s,
        "requests": quiet.requests + slow.requests,
        "lost": quiet.lost + slow.lost,
        "wrong": quiet.wrong + slow.wrong,
        "hedged": hedged,
        "median_before_s": before,
        "median_after_s": after,
        "ratio": after / before,
        "worst_after_s": max(slow.times_s),
    }


CASES: dict[str, tuple[Callable[[int], dict[str, Any]], int, int]] = {
    "kills": (kills, 200, 8),
    "liars": (liars, 200, 30),
    "straggler": (straggler, 200, 50),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer kills and requests")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--kills", type=int, default=None)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    results: dict[str, Any] = {
        "benchmark": "faults",
        "seed": SEED,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    for name in options.only:
        run, full, quick = CASES[name]
        count = options.kills if name == "kills" and options.kills else quick if options.quick else full
        results[name] = run(count)
        print(
            name,
            *(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in results[name].items()
            ),
            sep="  ",
        )
    if options.json == "-":
        print(json.dumps(results, indent=2))
    elif options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
