"""An owner that is killed again and again: every resume has to lead to the same bits.

    python benchmarks/kills.py [--quick] [--json FILE] [--kills 30] [--seed 0] [--devices 4] [--steps 120] [--every 5]

`owl train` learns scikit-learn's digits on a local fleet, once undisturbed, and then under the same plan with the owner
killed (SIGKILL) at random moments, from its first breath on, and started again with --resume. A training that finishes
before all kills are done is followed by another one. Held to the undisturbed one are the losses in the newest
checkpoint after every kill, and at the end every bit of the trained weights. Kills before there is any checkpoint are
counted apart, they show nothing of a resume. It returns 1 if a checkpoint is wrong, or lost, or a bit differs.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file

from awfulowl.errors import CheckpointError
from awfulowl.owner.checkpoint import newest_checkpoint, read_checkpoint
from awfulowl.recipes.saving import Extra, Home

OWL = (sys.executable, "-c", "import sys; from awfulowl.cli import main; sys.exit(main())")
LIMIT_S = 600.0

RECIPE = """\
model = "digits"
data = "digits"
steps = {steps}
batch = {batch}
lr = 0.05
momentum = 0.9
weight_decay = 5e-4
schedule = "cosine"
warmup = 10
clip = 2.0
checkpoint_every = {every}
"""


@dataclass(frozen=True)
class Death:
    """One kill: after how many seconds, and what was found: steps in the newest checkpoint (None: there is none).

    `right` says that the checkpoint can be read, its losses are those of the undisturbed training, and it is no older
    than what was there at the kill before; None says that there was no checkpoint yet that could be wrong.
    """

    after_s: float
    steps: int | None
    right: bool | None

    def __str__(self) -> str:
        """Return what was found, in words."""
        if self.right is None:
            return f"after {self.after_s:.1f} s: no checkpoint yet"
        return f"after {self.after_s:.1f} s: {self.steps} steps, {'right' if self.right else 'WRONG'}"


@dataclass(frozen=True)
class Training:
    """A training that can be started, killed, and started again.

    The environment has to name folders of its own (XDG_DATA_HOME, TMPDIR): killed processes leave files behind.
    """

    recipe: Path
    home: Home
    devices: int
    environment: Mapping[str, str]

    def start(self) -> "subprocess.Popen[bytes]":
        """Start from the newest checkpoint, or from the beginning."""
        words = ["train", str(self.recipe), "--devices", str(self.devices), "-o", str(self.home.path)]
        if newest_checkpoint(self.home.checkpoints) is not None:
            words.append("--resume")
        return subprocess.Popen(
            [*OWL, *words],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def finish(self) -> None:
        """Run to the end.

        Raises:
            RuntimeError: it did not end well.
        """
        process = self.start()
        _, errors = process.communicate(timeout=LIMIT_S)
        if process.returncode:
            raise RuntimeError(f"owl train ended with {process.returncode}: {errors.decode(errors='replace')}")

    @property
    def finished(self) -> bool:
        """Whether the trained weights are there."""
        return self.home.model.exists()


def beside(training: Training, name: str) -> Training:
    """Return the same training in another directory, under the same plan and from the start."""
    home = Home(training.home.path.with_name(name))
    home.path.mkdir(mode=0o700)
    shutil.copy(training.home.plan, home.plan)
    return Training(training.recipe, home, training.devices, training.environment)


def losses(home: Home) -> list[float] | None:
    """Return the losses in the newest checkpoint, None if there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    if newest_checkpoint(home.checkpoints) is None:
        return None
    return msgspec.convert(read_checkpoint(home.checkpoints).extra, Extra).progress.losses


def suffer(training: Training, delays: Iterable[float], expected: Sequence[float]) -> Iterator[Death]:
    """Kill a training after each of these times, and look at what is left, until it is finished or there are no more.

    Raises:
        RuntimeError: it ended by itself, and not well.
    """
    known = 0
    for delay in delays:
        process = training.start()
        try:
            _, errors = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            if process.returncode:
                raise RuntimeError(f"owl train ended with {process.returncode}: {errors.decode(errors='replace')}")
            return
        try:
            found = losses(training.home)
        except CheckpointError as error:
            print(error, file=sys.stderr)
            yield Death(delay, None, right=False)
        else:
            steps = None if found is None else len(found)
            yield Death(delay, steps, judge(found, known, expected))
            known = max(known, steps or 0)
        if training.finished:  # it was killed on its way out
            return


def judge(found: Sequence[float] | None, known: int, expected: Sequence[float]) -> bool | None:
    """Say whether losses in a checkpoint are right, where one of `known` steps was there before, 0: none."""
    if found is None:
        return False if known else None
    return len(found) >= known and list(found) == list(expected[: len(found)])


def same_bits(one: Home, other: Home) -> bool:
    """Say whether two trainings gave the same weights, bit for bit."""
    left, right = load_file(one.model), load_file(other.model)
    return left.keys() == right.keys() and all(
        torch.equal(tensor.view(torch.int32), right[name].view(torch.int32)) for name, tensor in left.items()
    )


def environment_in(folder: Path) -> dict[str, str]:
    """Return an environment whose keys and temporary files are in a folder."""
    own = {name: folder / name.lower() for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR")}
    for path in own.values():
        path.mkdir(mode=0o700, exist_ok=True)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AWFULOWL_")}
    return mine | {name: str(path) for name, path in own.items()}


def prepare(folder: Path, *, steps: int, every: int, devices: int, batch: int = 64) -> tuple[Training, list[float]]:
    """Run a training undisturbed; return it, and its losses."""
    recipe = folder / "kills.toml"
    recipe.write_text(RECIPE.format(steps=steps, every=every, batch=batch))
    training = Training(recipe, Home(folder / "undisturbed"), devices, environment_in(folder))
    training.finish()
    return training, losses(training.home) or []


def kills(count: int, seed: int, *, steps: int, every: int, devices: int) -> dict[str, Any]:
    choose = random.Random(seed)  # noqa: S311  when an owner dies is no secret
    deaths: list[Death] = []
    bits: list[bool] = []
    with tempfile.TemporaryDirectory(prefix="owl-kills-") as name:
        start = monotonic()
        undisturbed, expected = prepare(Path(name), steps=steps, every=every, devices=devices)
        whole_s = monotonic() - start
        while len(deaths) < count:
            training = beside(undisturbed, f"killed-{len(bits)}")
            delays = (choose.uniform(0, whole_s) for _ in range(count - len(deaths)))
            for death in suffer(training, delays, expected):
                deaths.append(death)
                print(f"kill {len(deaths)} {death}", flush=True)
            if not training.finished:
                training.finish()
            bits.append(same_bits(undisturbed.home, training.home))
    return {
        "kills": len(deaths),
        "right": sum(death.right is True for death in deaths),
        "wrong": sum(death.right is False for death in deaths),
        "trainings": len(bits),
        "same_bits": sum(bits),
        "before_the_first_checkpoint": sum(death.right is None for death in deaths),
        "undisturbed_s": whole_s,
        "seconds": monotonic() - start,
        "deaths": [asdict(death) for death in deaths],
    }


def missed(found: Mapping[str, Any]) -> list[str]:
    """Return what was to be shown and was not, in words."""
    misses = []
    if found["wrong"]:
        misses.append(
            f"every resume right: {found['wrong']} of {found['right'] + found['wrong']} checkpoints are wrong"
        )
    if found["same_bits"] < found["trainings"]:
        other = found["trainings"] - found["same_bits"]
        misses.append(f"the same bits at the end: {other} of {found['trainings']} trainings have others")
    return misses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 kills of a short training")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    parser.add_argument("--kills", type=int, default=None, help="30, or 4 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--steps", type=int, default=None, help="of the training: 120, or 40 with --quick")
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    options = parser.parse_args()
    steps = options.steps or (40 if options.quick else 120)
    found = kills(
        options.kills or (4 if options.quick else 30),
        options.seed,
        steps=steps,
        every=options.every,
        devices=options.devices,
    )
    results: dict[str, Any] = {
        "benchmark": "kills",
        "seed": options.seed,
        "steps": steps,
        "every": options.every,
        "devices": options.devices,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        **found,
    }
    print(
        f"{found['kills']} kills, {found['before_the_first_checkpoint']} of them before there was a checkpoint; of the "
        f"others {found['right']} of {found['right'] + found['wrong']} checkpoints right; {found['same_bits']} of "
        f"{found['trainings']} trainings with the same bits"
    )
    misses = missed(found)
    for miss in misses:
        print(f"missed: {miss}", file=sys.stderr)
    if options.json == "-":
        print(json.dumps(results, indent=2))
    elif options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
