"""The command line as a whole: help, completion, exit codes, and how it ends."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from awfulowl import __version__
from awfulowl.cli.app import EXAMPLES
from awfulowl.cli.options import MODELS
from awfulowl.models.catalogue import CATALOGUE
from tests.unit.cli.conftest import Owl

COMMANDS = [command.__name__ for command in EXAMPLES]


def test_the_version_is_the_package_s(owl: Owl) -> None:
    assert owl("--version") == (0, f"owl {__version__}\n", "")


def test_the_help_names_every_command(owl: Owl) -> None:
    code, out, _ = owl("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_help_has_an_example_of_its_command(owl: Owl, name: str, option: str) -> None:
    code, out, err = owl(name, option)
    assert code == 0
    assert err == ""
    assert f"Example: owl {name} " in out
    assert "--json" in out


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_examples_name_options_that_there_are(owl: Owl, command: Callable[..., None]) -> None:
    out = owl(command.__name__, "--help").out
    words = [word for word in EXAMPLES[command].replace(";", " ").split() if word.startswith("-")]
    assert [word for word in words if word not in out] == []


def test_without_a_command_the_help_is_shown_and_that_is_bad_input(owl: Owl) -> None:
    code, out, _ = owl()
    assert code == 2
    assert "Usage: owl" in out


@pytest.mark.parametrize("words", [["frob"], ["inspect"], ["inspect", "mlp", "--frob"], ["inspect", "mlp", "more"]])
def test_a_command_line_that_is_none_is_refused_in_one_line(owl: Owl, words: list[str]) -> None:
    code, out, err = owl(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.rstrip().endswith("--help")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("errors.InputError", 2),
        ("errors.ModelError", 2),
        ("errors.PlanError", 2),
        ("errors.RuleError", 2),
        ("errors.BrokerError", 1),
        ("errors.ClosedError", 1),
        ("errors.ScatteredError", 1),
        ("errors.LieError", 1),
        ("errors.UnavailableError", 3),
    ],
)
def test_every_error_of_ours_has_its_exit_code(
    owl: Owl, model_file: Callable[[str], str], error: str, code: int
) -> None:
    outcome = owl("inspect", model_file(f"raise {error}('what, where, what to do')"))
    assert outcome == (code, "", "error: what, where, what to do\n")


@pytest.mark.parametrize("words", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    owl: Owl, model_file: Callable[[str], str], words: list[str]
) -> None:
    code, _, err = owl(*words, model_file("raise errors.InputError('no')"))
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("error: no\n")


def test_the_environment_can_ask_for_the_traceback(
    owl: Owl, model_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_file("raise errors.InputError('no')")
    monkeypatch.setenv("AWFULOWL_DEBUG", "1")
    assert "Traceback" in owl("inspect", model).err
    monkeypatch.setenv("AWFULOWL_DEBUG", "0")
    assert "Traceback" not in owl("inspect", model).err


def test_an_interrupt_ends_with_130(owl: Owl, model_file: Callable[[str], str]) -> None:
    assert owl("inspect", model_file("raise KeyboardInterrupt")) == (130, "", "interrupted\n")


def test_a_request_to_end_is_an_interrupt(owl: Owl, model_file: Callable[[str], str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    model = model_file("signal.raise_signal(signal.SIGTERM)\ntime.sleep(20)")
    assert owl("inspect", model) == (130, "", "interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_request_to_end_is_heard_where_interrupts_are_ignored(owl: Owl, model_file: Callable[[str], str]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model = model_file("signal.raise_signal(signal.SIGTERM)\ntime.sleep(20)")
        assert owl("inspect", model).code == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_that_nobody_foresaw_goes_to_the_hook(owl: Owl, model_file: Callable[[str], str]) -> None:
    model = model_file("raise ZeroDivisionError('one\\ntwo')")
    with pytest.raises(ZeroDivisionError) as caught:
        owl("inspect", model)
    sys.excepthook(caught.type, caught.value, caught.tb)
    shown = owl("--version").err
    assert shown.startswith("error: ZeroDivisionError: one two (in ")
    assert "line 6" in shown
    assert shown.count("\n") == 1


def test_the_names_that_are_completed_are_those_of_the_catalogue() -> None:
    assert set(MODELS) == set(CATALOGUE)


def test_help_and_completion_do_not_wait_for_pytorch() -> None:
    code = "import sys, awfulowl.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_shell_can_ask_what_comes_next(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_OWL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "owl inspect v")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit) as ended:
        owl()
    assert ended.value.code == 0
    monkeypatch.delenv("_OWL_COMPLETE")
    assert owl("--version").out.split("\n")[0] == "vgg16"
