"""The demonstration of jobs: who is accepted, what is shown, what counts as a failure."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from awfulowl.cli import job_demo, json_output
from awfulowl.cli.job_demo import SHOWN, JobRow, demonstrate, failures, show
from awfulowl.cli.terminal import Stages
from awfulowl.jobs.cheats.catalogue import CHEATS
from awfulowl.jobs.job import Training
from awfulowl.jobs.loop import Work
from awfulowl.jobs.reference import Digits, Pictures, Signers, SmallDigits, digits_files, reference_work
from tests.unit.cli.conftest import Owl


def row(**changed: object) -> JobRow:
    fields: dict[str, object] = {
        "runner": "honest",
        "job": "digits",
        "cheat": None,
        "phi": 0.0,
        "accepted": True,
        "caught_by": None,
        "reason": None,
        "verification_cost": 0.1,
        "replayed_steps": 38,
        "steps": 300,
        "state_bytes": 1000,
        "printed": (),
    }
    return msgspec.convert({**fields, **changed}, JobRow)


CHEATING = row(
    runner="half-batches",
    cheat="half-batches",
    phi=0.25,
    accepted=False,
    caught_by="replay",
    reason="step 3",
    printed=("printed: epochs",),
)


def text(*rows: JobRow) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(rows, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_what_went_as_it_should() -> None:
    assert failures((row(), CHEATING)) == ()
    shown = text(row(), CHEATING)
    assert "Every cheat was refused, and the honest runner accepted." in shown
    assert "leaves out half of each batch" in shown
    assert "miss none of these" in shown


def test_what_did_not() -> None:
    passed = msgspec.structs.replace(CHEATING, accepted=True, printed=())
    refused = row(accepted=False, reason="step 3")
    assert failures((refused, passed)) == (
        "honest on digits was refused (step 3)",
        "half-batches on digits was accepted",
    )
    shown = text(refused, passed)
    assert "FAILED" in shown
    assert "miss half-batches" in shown


def test_printed_checks_that_refuse_the_honest_are_named() -> None:
    assert "They refuse the honest runner on digits" in text(row(printed=("printed: utilisation",)), CHEATING)


def test_eight_cheats_are_shown() -> None:
    assert len(SHOWN) == len(set(SHOWN)) == 8
    assert set(SHOWN) <= set(CHEATS)


def test_the_list_is_written(tmp_path: Path) -> None:
    json_output.write((row(), CHEATING), tmp_path / "demo.json")
    found = json.loads((tmp_path / "demo.json").read_text())
    assert [one["cheat"] for one in found] == [None, "half-batches"]
    assert {"runner", "cheat", "accepted", "caught_by", "verification_cost"} <= set(found[0])


def test_runners_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it, on fewer steps of a smaller network."""

    def smaller(_: Digits | Pictures, files: Mapping[str, bytes], training: Training, signers: Signers) -> Work:
        short = msgspec.structs.replace(training, epochs=None, steps=40)
        return reference_work(
            SmallDigits(), files, short, signers, proving=job_demo._PROVING, logging=job_demo._LOGGING
        )

    monkeypatch.setattr(job_demo, "_work", smaller)
    monkeypatch.setattr(job_demo, "SHOWN", ("fewer-epochs", "low-precision"))
    assert digits_files()
    with Stages() as stages:
        rows = demonstrate(0, None, stages)
    assert [one.cheat for one in rows] == [None, "fewer-epochs", "low-precision"]
    assert failures(rows) == ()
    assert {one.caught_by for one in rows} == {None, "replay"}


@pytest.mark.parametrize(
    ("words", "said"), [(["jobs", "--curve", "x.png"], "--curve"), (["--data", "x"], "--data is for owl demo jobs")]
)
def test_options_of_other_demonstrations(owl: Owl, words: list[str], said: str) -> None:
    code, _, err = owl("demo", *words)
    assert code == 2
    assert said in err


def test_the_command_ends_with_the_verdict(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([(row(), CHEATING), (row(accepted=False), CHEATING)])
    monkeypatch.setattr(job_demo, "demonstrate", lambda *_: next(outcomes))
    code, out, err = owl("demo", "jobs", "--json", "-")
    assert code == 0
    assert [one["accepted"] for one in json.loads(out)] == [True, False]
    assert "reads code, data and model there" in err
    assert owl("demo", "jobs", "--json", "-").code == 1
