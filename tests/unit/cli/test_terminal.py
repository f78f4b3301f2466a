"""Where words go, and when they have colours."""

import io
from pathlib import Path

import pytest
from rich.text import Text

from awfulowl.cli import terminal


def test_reports_go_to_standard_output_unless_json_does(capsys: pytest.CaptureFixture[str]) -> None:
    for json in (None, Path("a.json")):
        terminal.report(json).print("here")
        assert capsys.readouterr() == ("here\n", "")
    terminal.report(Path("-")).print("there")
    assert capsys.readouterr() == ("", "there\n")


def test_a_pipe_has_no_colours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    terminal.report(None).print(Text("red", style="bold red"))
    terminal.warn("[bold]careful[/bold]")
    assert capsys.readouterr() == ("red\n", "warning: [bold]careful[/bold]\n")


def test_a_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stderr", screen)
    terminal.warn("careful")
    with terminal.Stages() as stages, stages.stage("counting", 2) as advance:
        advance(1)
        stages.describe("counting: half of it")
        stages.say("above the bar")
    assert "\x1b[1;33mwarning: " in screen.getvalue()
    assert "counting" in screen.getvalue()
    assert "counting: half of it" in screen.getvalue()
    assert "above the bar" in screen.getvalue()


def clock(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    ticks = iter(times)
    monkeypatch.setattr(terminal, "_now", lambda: next(ticks))


def test_in_a_pipe_a_stage_that_took_long_gets_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 10.0, 13.25, 20.0, 21.9)
    with terminal.Stages() as stages:
        with stages.stage("training", 3) as advance:
            advance(1)
        with stages.stage("loading"):
            pass
    assert capsys.readouterr() == ("", "training: 3.2 s\n")


def test_in_a_pipe_words_are_lines_and_descriptions_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Stages() as stages:
        stages.describe("there is no stage yet")
        with stages.stage("training", 3):
            stages.describe("step 1")
            stages.say("[step 2]")
    assert capsys.readouterr() == ("", "[step 2]\n")


def test_a_stage_that_fails_is_not_said_to_be_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 0.0, 100.0)
    with pytest.raises(ZeroDivisionError), terminal.Stages() as stages, stages.stage("training"):
        raise ZeroDivisionError
    assert capsys.readouterr() == ("", "")
