"""`owl plan`: plans are made, kept encrypted, and shown without positions."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from awfulowl.models.catalogue import load_example
from awfulowl.placement import store
from awfulowl.placement.plan import Plan, model_digest
from tests.unit.cli.conftest import Outcome, Owl

MODEL = "mlp:32-16-8"


@pytest.fixture
def made(owl: Owl) -> Outcome:
    """A plan file, and its key in the usual place."""
    outcome = owl("plan", MODEL, "-o", "plan.owl", "--json", "made.json")
    assert outcome.code == 0
    return outcome


def stored(home: Path) -> Plan:
    return store.load(Path("plan.owl"), store.fleet_key(home / "data" / "awfulowl" / "fleet.key"))


def test_a_plan_is_written_for_its_owner_only(made: Outcome, home: Path) -> None:
    assert stat.S_IMODE(Path("plan.owl").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "data" / "awfulowl").stat().st_mode) == 0o700
    model = load_example(MODEL).model
    assert stored(home).model == model_digest(model.named_parameters())
    assert b"layers" not in Path("plan.owl").read_bytes()


def test_no_position_is_ever_shown(made: Outcome, home: Path, owl: Owl) -> None:
    shown = owl("plan", "--show", "plan.owl", "--json", "-")
    text = made.out + made.err + Path("made.json").read_text() + shown.out + shown.err
    for panel in stored(home).panels:
        assert str(list(panel.order)) not in text.replace("\n", "")
        for handle in (*panel.slice_handles, *panel.row_handles):
            assert handle.hex() not in text
            assert str(handle) not in text
    assert "order" not in text
    assert "holders" not in text
    assert "cells" not in text


def test_a_plan_that_is_read_is_the_one_that_was_made(made: Outcome, owl: Owl) -> None:
    again = owl("plan", MODEL, "--show", "plan.owl", "--json", "again.json")
    assert again.code == 0
    assert again.out == made.out
    assert Path("again.json").read_text() == Path("made.json").read_text()


def test_a_plan_can_be_read_without_its_model(made: Outcome, owl: Owl) -> None:
    code, out, err = owl("plan", "--show", "plan.owl")
    assert (code, err) == (0, "")
    assert "of unknown" in out
    assert "layers.2" in out


def test_a_key_of_one_s_own(owl: Owl, home: Path) -> None:
    key = home / "keys" / "mine.key"
    assert owl("plan", MODEL, "-o", "plan.owl", "--key", key).code == 0
    assert owl("plan", "--show", "plan.owl", "--key", key).code == 0
    assert not (home / "data").exists()


def refused(outcome: Outcome, complaint: str) -> None:
    assert outcome.code == 2
    assert outcome.out == ""
    assert complaint in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("at", [0, 14, 20, 40, -1])
def test_a_plan_that_was_tampered_with_is_refused(made: Outcome, owl: Owl, at: int) -> None:
    content = bytearray(Path("plan.owl").read_bytes())
    content[at] ^= 1
    Path("plan.owl").write_bytes(content)
    refused(owl("plan", "--show", "plan.owl"), "plan.owl")


def test_a_plan_that_was_cut_short_is_refused(made: Outcome, owl: Owl) -> None:
    Path("plan.owl").write_bytes(Path("plan.owl").read_bytes()[:50])
    refused(owl("plan", "--show", "plan.owl"), "tampered with, is truncated")


def test_a_plan_of_another_model_is_refused(made: Outcome, owl: Owl) -> None:
    refused(owl("plan", "mlp:32-16-9", "--show", "plan.owl"), "is of another model")


def test_a_plan_under_another_key_is_refused(made: Outcome, owl: Owl, home: Path) -> None:
    store.fleet_key(home / "others" / "other.key")
    refused(owl("plan", "--show", "plan.owl", "--key", home / "others" / "other.key"), "another key")


def test_reading_makes_no_key(made: Outcome, owl: Owl, home: Path) -> None:
    refused(owl("plan", "--show", "plan.owl", "--key", home / "none.key"), "there is no key file")
    assert not (home / "none.key").exists()


def test_a_key_that_is_open_to_others_is_refused(made: Outcome, owl: Owl, home: Path) -> None:
    (home / "data" / "awfulowl" / "fleet.key").chmod(0o644)
    refused(owl("plan", "--show", "plan.owl"), "chmod 0600")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "which model?"),
        (["--show", "nowhere.owl"], "there is no key file"),
        (["--show", "plan.owl", "-o", "other.owl"], "give one of the two"),
        ([MODEL, "--devices", "3", "--strict"], "rule 'device share'"),
        ([MODEL, "--devices", "2", "--replicas", "3"], "rule 'replicas'"),
        ([MODEL, "--replicas", "0"], "--replicas"),
        ([MODEL, "--share", "1.5"], "share 1.5 is not in (0, 1]"),
        ([MODEL, "--domain-share", "0"], "domain_share 0.0 is not in (0, 1]"),
        ([MODEL, "--shape", "round"], "--shape"),
        ([MODEL, "--share", "much"], "--share"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(owl: Owl, words: list[str], complaint: str) -> None:
    refused(owl("plan", *words), complaint)
    assert list(Path.cwd().iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_refused(owl: Owl) -> None:
    Path("file").write_text("")
    refused(owl("plan", MODEL, "-o", "file/plan.owl"), "cannot be written")


def test_a_seed_makes_a_plan_repeatable_and_unsafe(owl: Owl, home: Path) -> None:
    plans = []
    for _ in range(2):
        out = owl("plan", MODEL, "--seed", "7", "-o", "plan.owl").out
        assert "UNSAFE" in out
        plans.append(stored(home))
    assert plans[0] == plans[1]
    assert plans[0].unsafe


def test_without_a_seed_no_plan_is_like_another(owl: Owl, home: Path) -> None:
    handles = set()
    for _ in range(2):
        assert "UNSAFE" not in owl("plan", MODEL, "-o", "plan.owl").out
        handles.add(stored(home).panels[0].slice_handles)
    assert len(handles) == 2


@pytest.mark.parametrize("shape", ["columns", "rows", "rectangles", "scattered"])
def test_every_shape_can_be_asked_for(owl: Owl, shape: str) -> None:
    assert owl("plan", MODEL, "--shape", shape, "--replicas", "1", "--devices", "4").code == 0


def test_rules_that_can_be_kept_are_kept(owl: Owl) -> None:
    devices = ",".join(f"d{number}@{number}" for number in range(12))
    found = owl("plan", MODEL, "--devices", devices, "--strict", "--json", "-").json
    assert found["plan"]["rules"]["share"] == 0.25
    assert found["plan"]["notes"] == []


def test_a_model_s_own_code_may_be_planned(owl: Owl, model_file: Callable[[str], str]) -> None:
    assert owl("plan", model_file("return nn.Linear(16, 8), torch.ones(1, 16)"), "--devices", "2").code == 0
