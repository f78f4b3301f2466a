"""Errors are one line that a person can read."""

import pytest
import typer

from awfulowl.cli.boundary import Boundary
from awfulowl.errors import AwfulOwlError, InputError, UnavailableError


def test_the_code_is_the_error_s(capsys: pytest.CaptureFixture[str]) -> None:
    boundary = Boundary()
    assert boundary.report(InputError("a")) == 2
    assert boundary.report(UnavailableError("b")) == 3
    assert boundary.report(AwfulOwlError("c")) == 1
    assert boundary.report(typer.BadParameter("d")) == 2
    assert boundary.report(typer.Abort()) == 130
    assert capsys.readouterr().err == "error: a\nerror: b\nerror: c\nerror: Invalid value: d\ninterrupted\n"


def test_what_could_act_on_a_terminal_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Boundary().report(InputError("one\n  two\x1b[31m [bold]three[/bold] \u202efour"))
    assert capsys.readouterr().err == "error: one two?[31m [bold]three[/bold] ?four\n"


def test_a_very_long_text_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    Boundary().report(InputError("x" * 100_000))
    assert len(capsys.readouterr().err) < 2000


def test_an_error_without_a_traceback_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    Boundary().unexpected(ValueError, ValueError("odd"), None)
    assert capsys.readouterr().err == "error: ValueError: odd; owl --debug shows the way there\n"
