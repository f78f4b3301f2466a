"""`owl identity`: keys stay in their file, the enrolment is for all."""

import stat
from pathlib import Path

import msgspec
import pytest

from awfulowl.fabric.identity import Enrolment, Identity
from awfulowl.fleet.connect import read_enrolment
from tests.unit.cli.conftest import Owl


def test_the_line_enrols_the_keys_in_the_file(owl: Owl) -> None:
    code, out, err = owl("identity", "d1", "-o", "d1.key")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    keys = Identity.load(Path("d1.key"))
    assert msgspec.json.decode(out, type=Enrolment) == keys.enrolment
    assert stat.S_IMODE(Path("d1.key").stat().st_mode) == 0o600


def test_no_key_is_shown(owl: Owl) -> None:
    out = owl("identity", "d1", "-o", "d1.key").out
    keys = Identity.load(Path("d1.key"))
    assert keys.nkey_seed not in out
    assert msgspec.json.encode(keys.seal_private).decode().strip('"') not in out


def test_the_usual_place_is_the_user_s_folder_of_data(owl: Owl, home: Path) -> None:
    assert owl("identity", "d1").code == 0
    folder = home / "data" / "awfulowl"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Identity.load(folder / "d1.key").name == "d1"
    assert list(Path.cwd().iterdir()) == []


def test_keys_are_never_overwritten(owl: Owl) -> None:
    owl("identity", "d1", "-o", "d1.key")
    before = Path("d1.key").read_bytes()
    code, out, err = owl("identity", "d1", "-o", "d1.key")
    assert (code, out) == (2, "")
    assert "d1.key exists" in err
    assert Path("d1.key").read_bytes() == before


def test_an_enrolment_can_be_printed_again(owl: Owl) -> None:
    first = owl("identity", "d1", "-o", "d1.key")
    assert owl("identity", "--show", "d1.key") == first


def test_the_enrolment_can_go_to_a_file(owl: Owl) -> None:
    out = owl("identity", "d1", "-o", "d1.key", "--json", "d1.json").out
    assert read_enrolment(Path("d1.json")) == msgspec.json.decode(out, type=Enrolment)


def test_on_standard_output_the_enrolment_stands_once(owl: Owl) -> None:
    out = owl("identity", "d1", "-o", "d1.key", "--json", "-").out
    assert msgspec.json.decode(out, type=Enrolment) == Identity.load(Path("d1.key")).enrolment


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "whose keys?"),
        (["a b"], "is no name of a device"),
        (["x" * 65], "is no name of a device"),
        (["d1", "-o", "nowhere/d1.key"], "cannot be written"),
        (["--show", "nowhere.key"], "cannot be read"),
        (["d1", "--show", "d1.key"], "give no NAME"),
        (["--show", "d1.key", "-o", "d2.key"], "give no NAME"),
    ],
)
def test_bad_input_is_refused(owl: Owl, words: list[str], complaint: str) -> None:
    code, out, err = owl("identity", *words)
    assert (code, out) == (2, "")
    assert complaint in err
    assert list(Path.cwd().iterdir()) == []


def test_a_file_that_is_no_identity_is_refused_without_quoting_it(owl: Owl) -> None:
    Path("d1.key").write_text("secret words")
    Path("d1.key").chmod(0o600)
    code, _, err = owl("identity", "--show", "d1.key")
    assert code == 2
    assert "secret" not in err
