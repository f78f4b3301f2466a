"""What a person sees: reports on standard output, progress and errors on standard error; no colours in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic as _now
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from awfulowl.cli.json_output import is_standard_output

Advance = Callable[[float], None]
"""Called with how much is done, in units of the stage's total."""

_PIPE_COLUMNS: Final = 120
"""Where a reader's width is not known."""

_WORTH_SAYING_S: Final = 2.0


def errors() -> Console:
    """Return what writes to standard error."""
    return _console(stderr=True)


def report(json: Path | None) -> Console:
    """Return what a report is written to: standard output, unless JSON goes there; then standard error."""
    return _console(stderr=json is not None and is_standard_output(json))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_PIPE_COLUMNS)
    return console


def warn(text: str) -> None:
    """Say on standard error what a user should know before going on."""
    errors().print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)


class Stages:
    """Shows one stage of a long job after the other: bars on a terminal, elsewhere a line for each that took long."""

    def __init__(self) -> None:
        self._console = errors()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

        self._task: TaskID | None = None

    def describe(self, text: str) -> None:
        """Show other words for the stage that goes on; only a terminal shows them."""
        if self._task is not None:
            self._progress.update(self._task, description=text)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(text), soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, text: str, total: float | None = None) -> Iterator[Advance]:
        """Show a stage while the block runs; without a total it only says that something goes on."""
        task = self._task = self._progress.add_task(text, total=total)
        started = _now()
        yield lambda done: self._progress.update(task, completed=done)
        self._progress.update(task, total=1 if total is None else total, completed=total or 1)
        seconds = _now() - started
        if seconds >= _WORTH_SAYING_S and not self._console.is_terminal:
            self._console.print(Text(f"{text}: {seconds:.1f} s"), soft_wrap=True)
