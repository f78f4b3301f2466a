"""Experiments go through the whole protocol."""

from pathlib import Path

from awfulowl.jobs.cheats.base import Elsewhere
from awfulowl.jobs.cheats.catalogue import CHEATS
from awfulowl.jobs.job import Proving, Training
from awfulowl.jobs.loop import preflight
from awfulowl.jobs.reference import Digits, Signers, SmallDigits, digits_files, reference_work, reseeded
from awfulowl.jobs.trial import attempt

SIGNERS = Signers.generate()
TRAINING = Training(seed=1, batch=32, steps=60, lr=0.05, momentum=0.9)
PROVING = Proving(checkpoint_every=10)


def test_honest_and_not(tmp_path: Path) -> None:
    work = reference_work(SmallDigits(), digits_files(), TRAINING, SIGNERS, proving=PROVING)
    honest = attempt(work, tmp_path / "honest", SIGNERS.runner, printed=True)
    assert honest.sound.status == "accepted"
    assert honest.printed is not None
    assert all(one.printed for one in honest.printed.findings)
    cheat = CHEATS["half-batches"](work, 0.5, Elsewhere(work))
    found = attempt(work, tmp_path / "cheat", SIGNERS.runner, cheat)
    assert (found.sound.caught_by, found.printed, found.printed_refusals) == ("replay", None, ())


def test_reference_jobs_are_repeatable() -> None:
    for task in (Digits(), SmallDigits()):
        work = reference_work(task, digits_files(), TRAINING, SIGNERS)
        assert work.rows == 1438
        assert float(work.examples[0].max()) == 1.0
        preflight(work, 2)
    assert reseeded(work, 5).job.training.seed == 5
    assert reseeded(work, 5).job.digest != work.job.digest
