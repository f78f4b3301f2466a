"""The demonstration of jobs: one honest runner and eight that cheat, on real images, and which check catches whom."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.text import Text

from awfulowl.cli import tables
from awfulowl.cli.figures import count, counted, percent, size
from awfulowl.cli.terminal import Stages
from awfulowl.jobs.cheats.base import Elsewhere
from awfulowl.jobs.cheats.catalogue import CHEATS
from awfulowl.jobs.job import Logging, Proving, Training
from awfulowl.jobs.loop import HONEST, Work, preflight
from awfulowl.jobs.reference import Digits, Pictures, Signers, cifar10_files, digits_files, reference_work
from awfulowl.jobs.trial import Trial, attempt

PHI: Final = 0.25
SHOWN: Final = (
    "fabricated-logs",
    "fewer-epochs",
    "smaller-model",
    "half-batches",
    "low-precision",
    "bought-model",
    "blindfold-top-q",
    "altered-labels",
)
"""The cheats that are shown; all of them are measured in `benchmarks/jobs.py`."""

_PROVING: Final = Proving(checkpoint_every=10)
_LOGGING: Final = Logging(sample_every_s=0.05)
_PICTURES: Final = 2000


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one runner.

    `cheat` is null for the honest one; `verification_cost` is the verifier's processor time as a share of that of the
    whole training; `printed` are the founding paper's checks that refuse it.
    """

    runner: str
    job: str
    cheat: str | None
    phi: float
    accepted: bool
    caught_by: str | None
    reason: str | None
    verification_cost: float | None
    replayed_steps: int
    steps: int
    state_bytes: int
    printed: tuple[str, ...]


def demonstrate(seed: int, data: Path | None, stages: Stages) -> tuple[JobRow, ...]:
    """Let every runner run, and verify them all.

    Args:
        seed: of the jobs; challenges come from the operating system.
        data: CIFAR-10; None: the digits alone.
        stages: where progress is shown.

    Raises:
        InputError: scikit-learn is not installed, or the data cannot be read.
    """
    signers = Signers.generate()
    with stages.stage("reading the images"):
        works = {"digits": _digits(seed, signers)}
        if data is not None:
            works["cifar10"] = _cifar10(seed, signers, data)
    rows: list[JobRow] = []
    for name, work in works.items():
        with stages.stage(f"{name}: running everything twice", None):
            preflight(work)
        with stages.stage(f"{name}: 1 honest runner, {len(SHOWN)} that cheat", len(SHOWN) + 1) as advance:
            rows += _runners(name, work, signers, advance)
    return tuple(rows)


def failures(rows: Sequence[JobRow]) -> tuple[str, ...]:
    """Return what did not come out as it should, in words."""
    return tuple(
        f"{row.runner} on {row.job} was {'accepted' if row.accepted else f'refused ({row.reason})'}"
        for row in rows
        if row.accepted is not (row.cheat is None)
    )


def show(rows: Sequence[JobRow], console: Console) -> None:
    """Print what was found."""
    for job in dict.fromkeys(row.job for row in rows):
        own = [row for row in rows if row.job == job]
        table = tables.grid(
            "runner", ("what it does", "verdict", "caught by", "cost", "the paper's checks that refuse")
        )
        for row in own:
            table.add_row(
                row.runner,
                "every step" if row.cheat is None else CHEATS[row.cheat].does,
                "accepted" if row.accepted else "refused",
                row.caught_by or "",
                percent(row.verification_cost),
                ", ".join(name.removeprefix("printed: ") for name in row.printed) or "none",
            )
        first = own[0]
        title = f"{job}: {count(first.steps)} steps, states of {size(first.state_bytes)}, {percent(PHI)} faked"
        tables.show(console, title, table)
        console.print()
    _explain(rows, console)


def _explain(rows: Sequence[JobRow], console: Console) -> None:
    cheats = [row for row in rows if row.cheat is not None]
    missed = sorted({row.runner for row in cheats if not row.printed})
    wrong = [row for row in rows if row.cheat is None and row.printed]
    m = _PROVING.challenges
    drawn = (
        f"{counted(m, 'step')} drawn after the commitment: a share phi of fakes passes with probability (1 - phi)^{m} "
        f"or less, for {percent(PHI)} {(1 - PHI) ** m:.0e}."
    )
    cost = (
        "The cost is the verifier's processor time over that of the whole training, which is short here; it falls as "
        "trainings get longer, and where a runner is refused, because verifying stops there."
    )
    printed = f"The founding paper's checks as printed, alone, miss {', '.join(missed) or 'none of these'}."
    if wrong:
        printed += f" They refuse the honest runner on {', '.join(row.job for row in wrong)}."
    tables.bullets(console, "What it means", (drawn, cost, printed))
    bad = failures(rows)
    if bad:
        console.print(Text.assemble(("FAILED: ", "bold red"), "; ".join(bad)), soft_wrap=True)
    else:
        console.print(Text("Every cheat was refused, and the honest runner accepted.", style="bold"), soft_wrap=True)


def _runners(name: str, work: Work, signers: Signers, advance: Callable[[float], None]) -> list[JobRow]:
    elsewhere = Elsewhere(work)
    rows = []
    with tempfile.TemporaryDirectory(prefix="awfulowl-jobs-") as folder:
        for place, cheat in enumerate((None, *SHOWN)):
            conduct = HONEST if cheat is None else CHEATS[cheat](work, PHI, elsewhere)
            directory = Path(folder) / (cheat or "honest")
            trial = attempt(work, directory, signers.runner, conduct, printed=True)
            rows.append(_row(name, cheat, trial, directory))
            shutil.rmtree(directory)
            advance(place + 1)
    return rows


def _row(job: str, cheat: str | None, trial: Trial, directory: Path) -> JobRow:
    verdict = trial.sound
    states = sorted((directory / "states").glob("*.safetensors"))
    return JobRow(
        runner=cheat or "honest",
        job=job,
        cheat=cheat,
        phi=0.0 if cheat is None else PHI,
        accepted=verdict.status == "accepted",
        caught_by=verdict.caught_by,
        reason=verdict.reason,
        verification_cost=verdict.verification_cost,
        replayed_steps=verdict.replayed_steps,
        steps=verdict.steps,
        state_bytes=states[-1].stat().st_size,
        printed=trial.printed_refusals,
    )


def _digits(seed: int, signers: Signers) -> Work:
    training = Training(seed=seed, batch=64, epochs=16, lr=0.05, momentum=0.9)
    return _work(Digits(), digits_files(), training, signers)


def _cifar10(seed: int, signers: Signers, data: Path) -> Work:
    training = Training(seed=seed, batch=32, epochs=5, optimizer="adam", lr=1e-3)
    return _work(Pictures(), cifar10_files(data, _PICTURES), training, signers)


def _work(task: Digits | Pictures, files: Mapping[str, bytes], training: Training, signers: Signers) -> Work:
    return reference_work(task, files, training, signers, proving=_PROVING, logging=_LOGGING)
