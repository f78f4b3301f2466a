"""A flag, else the environment, else the user's file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from awfulowl.cli import settings
from awfulowl.errors import InputError
from tests.unit.cli.conftest import Owl

OPTIONS = {"demo": {"devices", "domain_share"}, "plan": {"keep"}}


def write(text: str | bytes) -> Path:
    path = settings.config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_file_is_in_the_user_s_folder_of_configurations(home: Path) -> None:
    assert settings.config_file() == home / "config" / "awfulowl" / "config.toml"
    assert settings.secrets_folder() == home / "data" / "awfulowl"


def test_a_key_file_that_is_named_is_taken(home: Path) -> None:
    assert settings.key_file(None) == home / "data" / "awfulowl" / "fleet.key"
    assert settings.key_file(Path("other")) == Path("other")


def test_no_file_no_settings() -> None:
    assert settings.read(settings.config_file(), OPTIONS) == {}


def test_values_are_read_by_command_and_option() -> None:
    path = write("[demo]\ndevices = 12\ndomain-share = 0.5\n[plan]\nkeep = ['a', 'b']\n")
    assert settings.read(path, OPTIONS) == {
        "demo": {"devices": 12, "domain_share": 0.5},
        "plan": {"keep": ["a", "b"]},
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = [", "is no TOML"),
        (b"\xff", "is no TOML"),
        ("devices = 3", "'devices' is no table of a command; there are demo, plan"),
        ("[frob]", "'frob' is no table of a command"),
        ("[demo]\ndevicess = 3", "'owl demo' has no option 'devicess'; there are devices, domain_share"),
    ],
)
def test_what_is_not_understood_is_refused(text: str | bytes, complaint: str) -> None:
    path = write(text)
    with pytest.raises(InputError, match=complaint) as caught:
        settings.read(path, OPTIONS)
    assert str(path) in str(caught.value)


def test_a_folder_in_place_of_the_file_is_refused() -> None:
    settings.config_file().mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be read"):
        settings.read(settings.config_file(), OPTIONS)


@pytest.mark.parametrize(
    ("names", "variable"), [(["debug"], "AWFULOWL_DEBUG"), (["plan", "domain-share"], "AWFULOWL_PLAN_DOMAIN_SHARE")]
)
def test_variables_are_named_after_their_option(names: list[str], variable: str) -> None:
    assert settings.variable(*names) == variable


def devices_of(owl: Owl, *words: str) -> int:
    return len(owl("inspect", "mlp:16-8", "--json", "-", *words).json["plan"]["devices"])


def test_a_flag_wins_over_the_environment_and_that_over_the_file(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of(owl) == 8
    write("[inspect]\ndevices = '3'\n")
    assert devices_of(owl) == 3
    monkeypatch.setenv("AWFULOWL_INSPECT_DEVICES", "4")
    assert devices_of(owl) == 4
    assert devices_of(owl, "--devices", "5") == 5


def test_an_option_that_repeats_can_stand_in_the_file(owl: Owl) -> None:
    write("[inspect]\nkeep = ['layers.0', 'layers.4']\n")
    kept = owl("inspect", "mlp:16-12-8-4", "--json", "-").json["plan"]["kept"]
    assert [name for name, _ in kept] == ["layers.0", "layers.4"]


@pytest.fixture
def place() -> Callable[[pytest.MonkeyPatch, str], str]:
    """Put a bad number of devices for the demonstration somewhere, and return how its place is called."""

    def put(monkeypatch: pytest.MonkeyPatch, where: str) -> str:
        if where == "environment":
            monkeypatch.setenv("AWFULOWL_DEMO_DEVICES", "1")
            return "AWFULOWL_DEMO_DEVICES"
        return str(write("[demo]\ndevices = 1\n"))

    return put


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_bad_value_is_refused_with_the_place_that_it_came_from(
    owl: Owl, monkeypatch: pytest.MonkeyPatch, place: Callable[[pytest.MonkeyPatch, str], str], where: str
) -> None:
    name = place(monkeypatch, where)
    code, out, err = owl("demo")
    assert code == 2
    assert out == ""
    assert name in err
    assert "--devices" in err


def test_a_broken_file_stops_every_command_but_not_the_help(owl: Owl) -> None:
    write("x = [")
    assert owl("identity", "d1").code == 2
    assert owl("--help").code == 0
    assert owl("--version").code == 0
