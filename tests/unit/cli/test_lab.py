"""`owl audit` and `owl attack`: what they take, refuse, print and write."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from awfulowl import files
from awfulowl.cli.attack import EXAMPLES, attack
from awfulowl.cli.lab_options import VICTIMS, parse_blocks
from awfulowl.errors import InputError
from awfulowl.lab.attacks.catalogue import ATTACKS
from awfulowl.lab.report.schema import JSON, VERSION, read_report
from awfulowl.lab.victims.kinds import KINDS
from awfulowl.lab.yardsticks import exchange
from tests.unit.cli.conftest import Owl

PUBLISHED = Path(__file__).parents[3] / "benchmarks" / "published"
EXAMPLE = Path(__file__).parents[3] / "examples" / "own_attack.py"
SMALL = ["--victims", "1", "--shuffles", "1", "--no-possession", "--workers", "1"]


@pytest.fixture
def threat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The smallest threat model, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "t.toml"
    path.write_text("share = 0.3\ncompute = 0.2\nqueries = 500\n")
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A small network of a user's own."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def mine():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))\n"
    )
    return f"{path}:mine"


def test_an_audit_writes_its_report_and_goes_on_where_it_ended(
    owl: Owl, model: str, threat: str, tmp_path: Path
) -> None:
    words = ["audit", model, "--data", "digits", "--threat", threat, "-o", str(tmp_path / "out"), *SMALL]
    words += ["--attack", "norms", "--attack", f"{EXAMPLE}:Greedy"]
    code, out, _ = owl(*words, "--json", str(tmp_path / "numbers.json"))
    assert code == 0
    assert "norms" in out
    assert "greedy" in out
    report = read_report(tmp_path / "out")
    rows, columns = report.rows[0].block_size
    assert f"block auto ({rows} x {columns}): " in out
    assert {row.attack for row in report.rows} == {"norms", "greedy"}
    assert report.missing == ()
    assert json.loads((tmp_path / "numbers.json").read_text())["version"] == VERSION
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("attack*")}
    assert owl(*words).code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("attack*")} == times


def full_disk(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """Let the disk be full when a file of such a name is flushed."""
    names = [""]

    def mkstemp(*, dir: Path, prefix: str) -> tuple[int, str]:  # noqa: A002  as in tempfile
        names.append(prefix)
        return tempfile.mkstemp(dir=dir, prefix=prefix)

    def fsync(descriptor: int) -> None:
        if fnmatch(names[-1], f".{pattern}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)

    monkeypatch.setattr(files, "tempfile", SimpleNamespace(mkstemp=mkstemp))
    monkeypatch.setattr(files, "os", SimpleNamespace(fdopen=os.fdopen, fchmod=os.fchmod, fsync=fsync))


def test_a_full_disk_is_said_in_a_line_and_nothing_is_left_by_half(
    owl: Owl, model: str, threat: str, tmp_path: Path
) -> None:
    def names() -> set[str]:
        return {path.name for path in tmp_path.rglob("*")}

    words = ["audit", model, "--data", "digits", "--threat", threat, "-o", str(tmp_path / "out"), *SMALL]
    words += ["--attack", "norms", "--json", str(tmp_path / "numbers.json")]
    for pattern in ("mine-1-*", "floor-*.safetensors", "attack-*", "report.json", "numbers.json"):
        before = names()
        with pytest.MonkeyPatch.context() as patch:
            full_disk(patch, pattern)
            code, out, err = owl(*words)
        assert (code, out) == (2, ""), pattern
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert fnmatch(line, f"*{pattern} cannot be written: No space left on device")
        assert [one for one in names() - before if one.startswith(".") or fnmatch(one, pattern)] == []
    assert owl(*words).code == 0
    assert read_report(tmp_path / "out").missing == ()


def test_attacks_are_listed_with_what_they_need(owl: Owl, tmp_path: Path) -> None:
    code, out, _ = owl("attack", "list", "--json", str(tmp_path / "attacks.json"))
    assert code == 0
    found = json.loads((tmp_path / "attacks.json").read_text())
    assert [one["name"] for one in found] == list(ATTACKS)
    assert all(one["what"] and "knows_architecture" in one["needs"] for one in found)
    assert "norms" in out


def test_an_attack_is_run_once_beside_floors_and_lines(owl: Owl, model: str, threat: str, tmp_path: Path) -> None:
    words = ["attack", "run", "norms", "--model", model, "--threat", threat, "--json", str(tmp_path / "once.json")]
    code, out, _ = owl(*words)
    assert code == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "once.json").read_text())["rows"]}
    assert rows["norms"]["kind"] == "attack"
    assert rows["victim"]["accuracy"] < 0.4  # it is fresh, and the report says what is
    assert rows["F1 missing layers"]["kind"] == "floor"
    assert "no intervals, and no verdict" in out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (["--attack", "nonsense"], "no attack 'nonsense'"),
        (["--attack", "least squares"], "did you mean 'least-squares'?"),
        (["--attack", "nowhere.py:Greedy"], "no such Python file"),
        (["--attack", f"{EXAMPLE}:Nobody"], "no attack 'Nobody'"),
        (["--block", "4x4"], "--block '4x4'"),
        (["--taking", "thirds"], "taking"),
        (["--share", "0"], "shares"),
        (["--share", "2"], "audit: shares = [2.0]: shares are between 0 and 1"),
        (["--layer", "hidde"], "no layer 'hidde' that can be attacked; did you mean 'hidden'?"),
        (["--data", "none.tar"], "no data 'none.tar'"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    owl: Owl, threat: str, tmp_path: Path, change: list[str], complaint: str
) -> None:
    words = ["audit", "digits", "--data", "digits", "--threat", threat, "-o", str(tmp_path / "out"), *SMALL, *change]
    code, out, err = owl(*words)
    assert (code, out) == (2, "")
    assert complaint in err
    assert not (tmp_path / "out" / JSON).exists()


def test_unknown_threat_fields_and_missing_files_are_refused(owl: Owl, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    words = ["audit", "digits", "--data", "digits", "--threat", str(path), "-o", str(tmp_path / "out"), *SMALL]
    code, _, err = owl(*words)
    assert code == 2
    assert "no readable threat model" in err
    path.write_text("share = 0.3\nluck = 1\n")
    code, _, err = owl(*words)
    assert code == 2
    assert "unknown field `luck`; there are share" in err


@pytest.mark.parametrize("command", [["audit", "digits", "-o", "out"], ["attack", "run", "norms"]])
@pytest.mark.parametrize("content", [None, "share = 2"])
def test_what_is_wrong_with_the_request_is_said_before_pytorch_is_loaded(
    tmp_path: Path, command: list[str], content: str | None
) -> None:
    path = tmp_path / "t.toml"
    if content is not None:
        path.write_text(content)
    code = "import sys; from awfulowl.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    words = [*command, "--data", "digits", "--threat", str(path)]
    found = subprocess.run(
        [sys.executable, "-c", code, *words], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert found.stdout.split() == ["2", "False"]
    assert str(path) in found.stderr


@pytest.mark.parametrize("command", [["audit", "cifar", "-o", "out"], ["attack", "run", "norms", "--model", "cifar"]])
def test_data_that_do_not_fit_are_refused_before_anything_is_trained(
    owl: Owl, threat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it is trained")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("awfulowl.lab.victims.kinds.fit", fail)
    monkeypatch.setattr("awfulowl.lab.audit.running.Hands", fail)
    code, _, err = owl(*command, "--data", "digits", "--threat", threat)
    assert code == 2
    assert err.startswith("error: the data have images of shape (1, 8, 8); cifar takes (3, 32, 32)")
    assert not (tmp_path / "out").exists()


def test_the_paper_s_figures_are_redrawn_over_the_published_numbers(
    owl: Owl, threat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del threat  # for its cache
    monkeypatch.setattr(exchange, "DROPPED", (0.0, 0.9, 1.0))
    monkeypatch.setattr(exchange, "MISSING", (0.9,))
    monkeypatch.setattr(exchange, "PAIRS", (0, 25))
    words = ["attack", "exchange", "--model", "digits", "--data", "digits", "--draws", "1", "-o", str(tmp_path / "out")]
    words += ["--published", str(PUBLISHED / "figure-6.json"), "--published", str(PUBLISHED / "figure-7.json")]
    code, out, _ = owl(*words, "--json", str(tmp_path / "numbers.json"))
    assert code == 0
    assert "digits, hidden, " in out
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found == json.loads((tmp_path / "out" / "exchange.json").read_text())
    whole, few, none = (point["accuracy"] for point in found["dropped"])
    assert whole == found["whole"] > 0.9
    assert whole > few > none == found["zeroed"]
    assert [(point["dropped"], point["pairs"]) for point in found["exchanged"]] == [(0.9, 0), (0.9, 25)]
    names = {f"{name}.{suffix}" for name in ("figure-6", "figure-7", "figure-7-displaced") for suffix in ("svg", "png")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"exchange.json", *names}
    assert "published" in (tmp_path / "out" / "figure-6.svg").read_text()
    assert "published" in (tmp_path / "out" / "figure-7.svg").read_text()


def test_figures_that_cannot_be_drawn_are_refused_before_anything_is_trained(
    owl: Owl, threat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awfulowl.cli.exchanging.train_victim", None)
    words = ["attack", "exchange", "--model", "digits", "--data", "digits", "-o", str(tmp_path / "out")]
    code, out, err = owl(*words, "--published", threat)
    assert (code, out) == (2, "")
    assert "neither results of figure 6 nor of figure 7" in err
    (tmp_path / "out").write_text("of somebody")
    code, out, err = owl(*words)
    assert (code, out) == (2, "")
    assert "cannot be made" in err
    assert owl(*words[:-1], str(tmp_path / "other"), "--draws", "0").code == 2


def test_every_command_of_attack_has_help_with_an_example(owl: Owl) -> None:
    names = [command.name for command in typer.main.get_group(attack).commands.values()]
    assert names == list(EXAMPLES)
    for name, (_, example) in EXAMPLES.items():
        code, out, _ = owl("attack", name, "--help")
        assert code == 0
        assert f"Example: owl attack {name} " in out
        assert [word for word in example.split() if word.startswith("-") and word not in out] == []
    assert owl("attack").code == 2


def test_names_that_are_completed_are_those_there_are() -> None:
    assert set(VICTIMS) == set(KINDS)


def test_blocks_are_auto_or_numbers() -> None:
    assert parse_blocks(None) == ["auto"]
    assert parse_blocks(["64", "auto"]) == [64, "auto"]
    for text in ("0x4", "-1", "big", "", "123456"):
        with pytest.raises(InputError, match="neither auto nor a number"):
            parse_blocks([text])
