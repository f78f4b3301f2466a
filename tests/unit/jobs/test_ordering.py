"""An order as it lies with the client."""

from pathlib import Path

import pytest

from awfulowl.errors import InputError
from awfulowl.jobs.ordering import read_order
from tests.orders import LEARNER, POINTS, People

PEOPLE = People()
KEYS = "".join(
    f'[keys.{name}]\nsigning = "{party.signing}"\nsealing = "{party.sealing}"\n'
    for name, party in (
        ("client", PEOPLE.client.public),
        ("runner", PEOPLE.runner.public),
        ("verifier", PEOPLE.verifier.public),
    )
)
ORDER = (
    'version = 1\nname = "small"\ntask = "learner:Learner"\ncode = "code"\ndata = ["points.bin"]\n'
    "[training]\nseed = 5\nbatch = 16\nsteps = 40\nlr = 0.5\n" + KEYS
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound order."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "learner.py").write_bytes(LEARNER)
    (tmp_path / "points.bin").write_bytes(POINTS)
    (tmp_path / "JOB.toml").write_text(ORDER)
    return tmp_path


def test_an_order_is_bound_to_what_it_names(folder: Path) -> None:
    own = read_order(folder / "JOB.toml")
    assert own.code == {"learner.py": LEARNER}
    assert own.data == {"points.bin": POINTS}
    assert own.sizes == {"points.bin": 512}
    assert b"".join(own.read("points.bin")) == POINTS
    assert own.job.keys == PEOPLE.parties
    (folder / "points.bin").write_bytes(POINTS[::-1])
    assert read_order(folder / "JOB.toml").job.digest != own.job.digest


def test_data_elsewhere_is_known_by_its_name(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    away = tmp_path_factory.mktemp("away") / "points.bin"
    (folder / "points.bin").rename(away)
    (folder / "JOB.toml").write_text(ORDER.replace('"points.bin"', f'"{away}"'))
    assert read_order(folder / "JOB.toml").data == {"points.bin": POINTS}


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"points.bin"', '"none.bin"', "no such file of data"),
        ('"points.bin"', '"code"', "no such file of data"),
        ('"points.bin"', '"points.bin", "./points.bin"', "two files of data are called"),
        ('"points.bin"', '".."', "is no name"),
        ('code = "code"', 'code = "points.bin"', "is no folder"),
        ('code = "code"', 'code = "none"', "is no folder"),
        ("lr = 0.5", "lr = 0.5\nbeta = 1", "beta"),
        ("lr = 0.5", "lr = nan", "lr"),
        ("lr = 0.5", "lr = '0.5'", "lr"),
        ("[training]", "[training", "JOB.toml"),
        ("learner:Learner", "learner", "module:Class"),
        ("learner:Learner", "../learner:Learner", "module:Class"),
        (KEYS, "", "keys"),
        pytest.param(PEOPLE.runner.public.sealing, PEOPLE.runner.public.sealing[1:], "sealing", id="a short key"),
        ("version = 1", "version = 2", "version"),
    ],
)
def test_a_bad_order_is_refused_and_the_reason_named(folder: Path, old: str, new: str, match: str) -> None:
    assert old in ORDER
    (folder / "JOB.toml").write_text(ORDER.replace(old, new))
    with pytest.raises(InputError, match=match):
        read_order(folder / "JOB.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 3000, b"#" * 70_000, b""])
def test_what_is_no_toml_is_refused(folder: Path, content: bytes) -> None:
    (folder / "JOB.toml").write_bytes(content)
    with pytest.raises(InputError):
        read_order(folder / "JOB.toml")


def test_no_order_no_code(folder: Path) -> None:
    with pytest.raises(InputError):
        read_order(folder / "none.toml")
    (folder / "code" / "learner.py").unlink()
    with pytest.raises(InputError, match="no code"):
        read_order(folder / "JOB.toml")
