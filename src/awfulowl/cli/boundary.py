"""Where errors end: one line that says what, where and what to do, and an exit code."""

import logging
import traceback
from types import TracebackType
from typing import Final

import typer
from rich.logging import RichHandler
from rich.text import Text

from awfulowl.cli import settings
from awfulowl.cli.terminal import errors
from awfulowl.errors import AwfulOwlError
from awfulowl.wire.text import plain

FAILED: Final = 1
INTERRUPTED: Final = 130
_LINE_CHARS: Final = 1000


class Boundary:
    """Shows errors; with details, their traceback as well."""

    def __init__(self) -> None:
        self._details = False

    def show_details(self, details: bool) -> None:
        """Choose whether tracebacks are shown, and what goes on is logged."""
        self._details = details
        handler = RichHandler(console=errors(), show_time=details, show_path=details)
        logging.basicConfig(
            level=logging.INFO if details else logging.WARNING, format="%(message)s", handlers=[handler], force=True
        )

    def report(self, error: AwfulOwlError | typer.TyperException | typer.Abort) -> int:
        """Show an error that was foreseen, and return the exit code."""
        if isinstance(error, typer.Abort):
            self.say_interrupted()
            return INTERRUPTED
        self._show(_sentence(error) if isinstance(error, typer.TyperException) else str(error), error)
        return error.exit_code

    def unexpected(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Show an error that nobody foresaw: the `sys.excepthook` of the program, which ends with exit code 1."""
        frames = traceback.extract_tb(trace)
        place = f" (in {frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        hint = "" if self._details else "; owl --debug shows the way there"
        self._show(f"{kind.__name__}: {error}{place}{hint}", error)

    def say_interrupted(self) -> None:
        """Say that the user ended it."""
        errors().print(Text("interrupted"), soft_wrap=True)

    def _show(self, text: str, error: BaseException) -> None:
        if self._details:
            errors().print(Text("".join(traceback.format_exception(error))), soft_wrap=True)
        line = Text.assemble(("error: ", "bold red"), plain(" ".join(text.split()), _LINE_CHARS))
        errors().print(line, soft_wrap=True)


def _sentence(error: typer.TyperException) -> str:
    """Return what is wrong with a command line, where the value came from, and where to read on."""
    context = getattr(error, "ctx", None)
    hint = "" if context is None else f"; see {context.command_path} --help"
    return f"{error.format_message().removesuffix('.')}{settings.origin(error)}{hint}"
