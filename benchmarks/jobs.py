"""What proofs of training find, and what they cost.

    python -m benchmarks.jobs [--quick] [--json FILE] [--only refusals curve threads tolerance cost overhead kills]
        [--data CIFAR10] [--runs 300] [--challenged 1] [--at-once 1]

refusals    300 honest runners and 300 of each cheat that fakes a quarter of its steps, each with a job of its own seed,
            at the defaults: how many were accepted and refused, by which check; which of the founding paper's checks
            as printed refuse the first 10 of each.
curve       Each cheat against the share phi of steps that it fakes: refusals measured, and 1 - (1 - phi)^m, beside the
            verifier's work until then, in steps of the training.
threads     50 honest runners whose machines add in another order than the verifier's (1 to 4 threads, oneDNN's kernels
            on and off), verified in segments against the declared tolerance, with second looks where a kink strikes:
            the steps that were run say how often; and every cheat, verified so.
tolerance   Errors of honest segments, and of the cheats' steps, by length of the segment.
cost        Verification over training, in processor time, for jobs of several lengths, answered by the runner, or with
            the states rebuilt by the verifier; and bytes of a checkpoint.
overhead    Processor time of a monitored run that writes its proof over that of the same steps in a plain PyTorch loop,
            step by step in turns in one process; mean over stretches from checkpoint to checkpoint. `digests`: what
            those of all states take of it; the rest is monitor and checkpoints. And over the time of the plain loop in
            a process of its own, whose memory is not kept.
kills       A runner ended by SIGKILL at 30 random moments goes on, and proves what an undisturbed one proves.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import torch

from awfulowl.allocator import keep_memory
from awfulowl.jobs import challenge, proof, segments
from awfulowl.jobs.cheats.base import Elsewhere
from awfulowl.jobs.cheats.catalogue import CHEATS
from awfulowl.jobs.job import Proving, Training
from awfulowl.jobs.loop import HONEST, Conduct, Row, Trainer, Work, preflight, repeatable
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.reference import (
    Digits,
    Pictures,
    Signers,
    SmallDigits,
    cifar10_files,
    digits_files,
    reference_work,
    reseeded,
)
from awfulowl.jobs.segments import VARIATIONS, Variation, calibrate
from awfulowl.jobs.state import State
from awfulowl.jobs.trial import Trial, attempt
from awfulowl.jobs.verify import verify
from awfulowl.randomness import Entropy
from awfulowl.results import bootstrap, wilson

PHI: Final = 0.25
PHIS: Final = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
SIGNERS: Final = Signers.generate()
FORK: Final = multiprocessing.get_context("fork")
Found = TypeVar("Found")


class Size(NamedTuple):
    """How much is done."""

    quick: bool
    data: Path | None
    runs: int
    challenged: int
    at_once: int

    def of(self, whole: int, quick: int) -> int:
        """Return the number of a whole benchmark, or of a quick one."""
        return quick if self.quick else whole


class OtherMachine(Conduct):
    """An honest runner that adds in another order."""

    def __init__(self, variation: Variation) -> None:
        self._threads, self._fused = variation

    def step(self, trainer: Trainer) -> Row:
        """Take a step with its threads and kernels."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with segments.kernels(self._fused):
                return trainer.advance()
        finally:
            torch.set_num_threads(before)


def small_work(steps: int, *, every: int = 50, seed: int = 0) -> Work:
    """A perceptron that learns digits in batches of 16: a step takes a fraction of a millisecond."""
    training = Training(seed=seed, batch=16, steps=steps, lr=0.05, momentum=0.9)
    return reference_work(SmallDigits(), FILES(), training, SIGNERS, proving=Proving(checkpoint_every=every))


def digits_work(steps: int, *, batch: int = 64, every: int = 50, **proving: Any) -> Work:
    """A small convolutional network on digits."""
    training = Training(seed=1, batch=batch, steps=steps, lr=0.05, momentum=0.9)
    return reference_work(Digits(), FILES(), training, SIGNERS, proving=Proving(checkpoint_every=every, **proving))


def pictures_work(data: Path | None, steps: int, *, batch: int = 128, every: int = 50) -> Work:
    """`ConvNet` on CIFAR-10, or on noise of its shape where there is none: the cost of a step is the same."""
    if data is None:
        generator = torch.Generator().manual_seed(0)
        files = {
            "images": torch.randint(0, 256, (50_000 * 3072,), generator=generator, dtype=torch.uint8).numpy().tobytes(),
            "labels": torch.randint(0, 10, (50_000,), generator=generator, dtype=torch.uint8).numpy().tobytes(),
        }
    else:
        files = cifar10_files(data, 50_000)
    training = Training(seed=1, batch=batch, steps=steps, lr=0.02, momentum=0.9)
    return reference_work(Pictures(), files, training, SIGNERS, proving=Proving(checkpoint_every=every))


_files: list[dict[str, bytes]] = []


def FILES() -> dict[str, bytes]:  # noqa: N802 - read once
    if not _files:
        _files.append(digits_files())
    return _files[0]


def conduct_of(name: str | None, work: Work, phi: float, seed: int, elsewhere: Elsewhere | None = None) -> Conduct:
    return HONEST if name is None else CHEATS[name](work, phi, elsewhere or Elsewhere(work), seed)


def tried(work: Work, conduct: Conduct, **options: Any) -> Trial:
    with tempfile.TemporaryDirectory() as folder:
        return attempt(work, Path(folder) / "proof", SIGNERS.runner, conduct, **options)


def refusals(size: Size) -> Iterator[dict[str, Any]]:
    yield from side_by_side(size, refusals_of, (None, *CHEATS))


def refusals_of(size: Size, name: str | None) -> list[dict[str, Any]]:
    whole, runs, challenged = small_work(120, every=5), size.of(size.runs, 3), size.of(size.challenged, 1)
    printed_runs = min(runs, size.of(10, 1))
    found: Counter[str] = Counter()
    printed: Counter[str] = Counter()
    costs, elsewhere = [], Elsewhere(whole)
    for run in range(runs):
        work = reseeded(whole, run + 1)
        conduct = conduct_of(name, work, PHI, run, elsewhere)
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "proof"
            for again in range(challenged):
                trial = attempt(work, directory, SIGNERS.runner, conduct, printed=run < printed_runs and not again)
                found[trial.sound.caught_by or "accepted"] += 1
                printed.update(one.removeprefix("printed: ") for one in trial.printed_refusals)
                costs.append(trial.sound.verification_cost or 0.0)
    row = {
        "runner": name or "honest",
        "phi": PHI if name else 0,
        "runs": runs,
        "challenged": challenged,
        "found": dict(found),
        "interval": wilson(sum(found.values()) - found["accepted"], sum(found.values())),
        "cost": statistics.mean(costs),
        "printed_runs": printed_runs,
        "printed": dict(printed),
    }
    return [row]


def curve(size: Size) -> Iterator[dict[str, Any]]:
    """All states are stored, so that one proof can be challenged many times."""
    yield from side_by_side(size, curve_of, CHEATS)


def curve_of(size: Size, name: str) -> list[dict[str, Any]]:
    base, draws, proofs = small_work(size.of(200, 60), every=1), size.of(100, 3), size.of(2, 1)
    m = base.job.proving.challenges
    elsewhere, rows = Elsewhere(base), []
    for phi in PHIS[2::3] if size.quick else PHIS:
        refused, replayed = 0, 0
        for seed in range(proofs):
            work = reseeded(base, seed + 1)
            with tempfile.TemporaryDirectory() as folder:
                directory = Path(folder) / "proof"
                proof.make(work, directory, SIGNERS.runner, conduct=conduct_of(name, work, phi, seed, elsewhere))
                found = proof.read(directory, work.job)
                for _ in range(draws):
                    asked = challenge.draw(found, this_machine(1))
                    verdict = verify(work, directory, asked, answered=False)
                    refused += verdict.status == "refused"
                    replayed += verdict.replayed_steps
        n = draws * proofs
        row = {
            "cheat": name,
            "phi": phi,
            "refused": refused / n,
            "interval": wilson(refused, n),
            "formula": 1 - (1 - phi) ** m,
            "n": n,
            "replayed": replayed / n / base.steps,
        }
        rows.append(row)
    return rows


Name = TypeVar("Name")


def side_by_side(
    size: Size, work: Callable[[Size, Name], list[dict[str, Any]]], names: Iterable[Name]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all runners, some of which are at work at once, each in a process with a thread."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(size.at_once, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for rows in pool.map(partial(work, size), names):
            yield from rows


def threads(size: Size) -> Iterator[dict[str, Any]]:
    runs = size.of(50, 2)
    plain = digits_work(size.of(120, 40), batch=32, every=20)
    tolerance = calibrate(plain, (1, 10, plain.steps // 2, plain.steps - 4))
    work = with_proving(plain, tolerance=tolerance)
    other = msgspec.structs.replace(this_machine(1), instructions="another")
    elsewhere = Elsewhere(work)
    found: Counter[str] = Counter()
    replayed: list[int] = []
    for run in range(runs):
        own = reseeded(work, run + 1)
        trial = tried(own, OtherMachine(VARIATIONS[1:][run % (len(VARIATIONS) - 1)]), verifier=other)
        found[trial.sound.caught_by or "accepted"] += 1
        replayed.append(trial.sound.replayed_steps)
    yield {
        "runner": "honest",
        "tolerance": tolerance,
        "runs": runs,
        "found": dict(found),
        "replayed": {"least": min(replayed), "median": statistics.median(replayed), "most": max(replayed)},
    }
    for name in CHEATS:
        found = Counter()
        for run in range(size.of(5, 1)):
            own = reseeded(work, run + 1)
            trial = tried(own, conduct_of(name, own, PHI, run, elsewhere), verifier=other)
            found[trial.sound.caught_by or "accepted"] += 1
        yield {"runner": name, "phi": PHI, "runs": size.of(5, 1), "found": dict(found)}


def with_proving(work: Work, **changed: Any) -> Work:
    proving = msgspec.structs.replace(work.job.proving, **changed)
    return work._replace(job=msgspec.structs.replace(work.job, proving=proving))


def tolerance(size: Size) -> Iterator[dict[str, Any]]:
    for length in (2,) if size.quick else (1, 2, 5, 10):
        work = digits_work(size.of(400, 40), batch=32, every=20, segment=length)
        starts = [1, *range(10, work.steps - length, work.steps // size.of(8, 2))]
        honest = segments.errors(work, starts)
        faked = {name: faked_errors(work, name, starts) for name in CHEATS}
        yield {
            "segment": length,
            "honest": segments.describe(honest),
            "least": min((min(values), name) for name, values in faked.items()),
            "cheats": {name: min(values) for name, values in faked.items()},
        }


def faked_errors(work: Work, name: str, starts: list[int]) -> list[float]:
    """Errors of segments of which the first step is faked, from states of an honest run."""
    found = []
    with repeatable(1):
        cheat = CHEATS[name](work, 1.0, Elsewhere(work, min(100, work.steps)), 0)
        ours, theirs = Trainer(work), Trainer(work)
        for start in starts:
            while ours.step < start:
                cheat_remember(cheat, ours)
            begun = ours.state().copy()
            end = min(work.steps, start + work.job.proving.segment)
            theirs.load(begun)
            cheat.step(theirs)
            while theirs.step < end:
                theirs.advance()
            while ours.step < end:
                cheat_remember(cheat, ours)
            found.append(segments.error(begun, ours.state(), theirs.state()))
    return found


def cheat_remember(cheat: Any, trainer: Trainer) -> None:
    """Take an honest step; the cheat that uses gradients again sees it."""
    trainer.advance()
    if hasattr(cheat, "remember"):
        cheat.remember(trainer)


def cost(size: Size) -> Iterator[dict[str, Any]]:
    works = {
        "digits, 300 steps": digits_work(300),
        "digits, 1,000 steps": digits_work(size.of(1000, 320)),
        "digits, 5,000 steps": digits_work(size.of(5000, 340)),
    }
    if not size.quick:
        works["pictures, 5,000 steps of 16"] = pictures_work(size.data, 5000, batch=16)
    for name, work in works.items():
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "proof"
            made = proof.make(work, directory, SIGNERS.runner)
            found = proof.read(directory, work.job)
            stored = list((directory / "states").iterdir())
            answered, rebuilt = [], []
            for _ in range(size.of(5, 1)):
                asked = challenge.draw(found, this_machine(1))
                challenge.answer(work, directory, asked)
                answered.append(verify(work, directory, asked, answered=True))
                rebuilt.append(verify(work, directory, asked, answered=False))
            yield {
                "job": name,
                "steps": work.steps,
                "accepted": all(one.status == "accepted" for one in (*answered, *rebuilt)),
                "cost": statistics.median(one.verification_cost or 0.0 for one in answered),
                "replayed_steps": answered[0].replayed_steps,
                "cost_rebuilt": statistics.median(one.verification_cost or 0.0 for one in rebuilt),
                "replayed_rebuilt": statistics.median(one.replayed_steps for one in rebuilt),
                "state_bytes": made.state_bytes,
                "file_bytes": stored[0].stat().st_size,
                "stored": len(stored),
                "log_bytes": (directory / "records.bin").stat().st_size,
            }


class Beside(Conduct):
    """An honest runner that takes every step as a plain PyTorch loop as well, and notes the processor time of both."""

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.proven: list[float] = []
        self.evaluating = 0.0
        self.fetching = 0.0
        self._left = 0.0

    def start(self, trainer: Trainer) -> None:
        """Make the twin that is trained beside."""
        self._twin = Trainer(trainer.work)

    def step(self, trainer: Trainer) -> Row:
        """Take the step twice: no record, no digest, nothing stored; and as a job does."""
        if self.plain:
            self.proven.append(time.process_time() - self._left)
        before = time.process_time()
        trainer.work.batch(trainer.step)  # or the first of the two would fetch it for both
        begun = time.process_time()
        self.fetching += begun - before
        plain_step(self._twin, trainer.step)
        self._left = time.process_time()
        self.plain.append(self._left - begun)
        return trainer.advance()

    def evaluate(self, trainer: Trainer, epoch: int) -> float:
        """Note the time of the loss at the end of an epoch, which is no part of the overhead."""
        begun = time.process_time()
        found = super().evaluate(trainer, epoch)
        took = time.process_time() - begun
        self.evaluating += took
        self._left += took
        return found

    def ratios(self, length: int) -> list[float]:
        """Return the overhead of stretches of so many steps."""
        starts = range(0, len(self.proven) - length + 1, length)
        return [sum(self.proven[at : at + length]) / sum(self.plain[at : at + length]) - 1 for at in starts]


class Measured(NamedTuple):
    """One round: processor seconds of a plain loop in a process of its own, and of a runner beside another one."""

    alone: float
    plain: float
    proven: float
    evaluating: float
    digesting: float
    ratios: list[float]


def overhead(size: Size) -> Iterator[dict[str, Any]]:
    works = {
        "pictures, batch 512": pictures_work(size.data, size.of(101, 60), batch=512, every=20),
        "pictures, batch 128": pictures_work(size.data, 390),
        "digits, batch 64": digits_work(220),
        "small digits, batch 16": small_work(500),
    }
    for name, work in works.items():
        steps = size.of(work.steps, 60)
        training = msgspec.structs.replace(work.job.training, steps=steps, epochs=None)
        own = work._replace(job=msgspec.structs.replace(work.job, training=training))
        preflight(own)
        rounds = [measured(own) for _ in range(size.of(5, 1))]
        ratios = [ratio for one in rounds for ratio in one.ratios]
        alone, plain, proven, evaluating, digesting = (sum(column) for column in list(zip(*rounds, strict=True))[:5])
        yield {
            "job": name,
            "steps": steps,
            "rounds": len(rounds),
            "step_ms": 1000 * plain / steps / len(rounds),
            "overhead": statistics.mean(ratios),
            "interval": bootstrap(ratios, Entropy(0)),
            "stretches": len(ratios),
            "digests": digesting / plain,
            "with_start_and_end": (proven - evaluating) / plain - 1,
            "evaluation": evaluating / plain,
            "plain_process_step_ms": 1000 * alone / steps / len(rounds),
            "against_plain_process": (proven - evaluating) / alone - 1,
        }


def measured(work: Work) -> Measured:
    alone = apart(partial(plain_s, work))
    return apart(partial(beside, work))._replace(alone=alone)


def beside(work: Work) -> Measured:
    keep_memory()  # as a runner's process does
    conduct, digesting = Beside(), list[float]()

    def digest(state: State) -> bytes:
        before = time.process_time()
        found = honest(state)
        digesting.append(time.process_time() - before)
        return found

    honest, proof.digest = proof.digest, digest  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        proof.make(work, Path(folder) / "proof", SIGNERS.runner, conduct=conduct)
        whole = time.process_time() - before
    plain, ratios = sum(conduct.plain), conduct.ratios(work.job.proving.checkpoint_every)
    proven = whole - plain - conduct.fetching
    return Measured(math.nan, plain, proven, conduct.evaluating, sum(digesting), ratios)


def plain_s(work: Work) -> float:
    with repeatable(work.job.training.threads):
        trainer = Trainer(work)
        before = time.process_time()
        for step in range(work.steps):
            plain_step(trainer, step)
        return time.process_time() - before


def plain_step(trainer: Trainer, step: int) -> None:
    trainer.optimizer.zero_grad()
    loss = trainer.work.task.loss(trainer.model, trainer.work.batch(step))
    torch.autograd.backward(loss)
    trainer.optimizer.step()
    loss.item()


def apart(measure: Callable[[], Found]) -> Found:
    """Return what a process of its own finds, so that what it does to its allocator ends with it."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(measure()))
    process.start()
    sender.close()
    try:
        found: Found = receiver.recv()
    finally:
        process.join()
    return found


def kills(size: Size) -> Iterator[dict[str, Any]]:
    work = small_work(size.of(1500, 300), every=20)
    preflight(work)
    with tempfile.TemporaryDirectory() as folder:
        before = time.perf_counter()
        whole = proof.make(work, Path(folder) / "whole", SIGNERS.runner)
        took = time.perf_counter() - before
        moments = random.Random(0)  # noqa: S311 - when to kill is no secret
        same, accepted, ended, resumed = 0, 0, 0, 0
        count = size.of(30, 2)
        for moment in range(count):
            directory = Path(folder) / f"killed-{moment}"
            ended += killed(work, directory, moments.uniform(0.0, took))
            made = proof.make(work, directory, SIGNERS.runner)
            same += made.root == whole.root
            found = proof.read(directory, work.job)
            resumed += bool(found.log.resumed)
            asked = challenge.draw(found, this_machine(1), Entropy())
            accepted += verify(work, directory, asked, answered=False).status == "accepted"
    yield {"moments": count, "ended": ended, "resumed": resumed, "same_root": same, "accepted": accepted}


def killed(work: Work, directory: Path, after_s: float) -> bool:
    """Run a job in a process of its own, and end that when a time is over; say whether it was still at work."""
    process = FORK.Process(target=proof.make, args=(work, directory, SIGNERS.runner))
    process.start()
    process.join(after_s)
    alive = process.is_alive()
    if alive and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


PARTS: Final[dict[str, Callable[[Size], Iterator[dict[str, Any]]]]] = {
    "kills": kills,
    "overhead": overhead,
    "cost": cost,
    "tolerance": tolerance,
    "threads": threads,
    "curve": curve,
    "refusals": refusals,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few runs of everything")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--data", metavar="CIFAR10", type=Path, help="pictures; by default noise of their shape")
    parser.add_argument("--runs", type=int, default=300, help="runs of each runner for the refusals")
    parser.add_argument("--challenged", type=int, default=1, help="challenges of each of these runs")
    parser.add_argument("--at-once", type=int, default=1, help="runners of refusals and curve that are at work at once")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(options.quick, options.data, options.runs, options.challenged, options.at_once)
    results: dict[str, Any] = {"benchmark": "jobs", "python": platform.python_version(), "torch": torch.__version__}
    for name in options.only:
        start = time.perf_counter()
        rows = []
        for row in PARTS[name](size):
            rows.append(row)
            print(name, json.dumps(row), flush=True)
        results[name] = {"rows": rows, "seconds": time.perf_counter() - start}
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
