"""An audit from the command line: progress, interruption, and what is shown of the report."""

import os
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.text import Text

from awfulowl.cli import tables
from awfulowl.cli.interruption import in_order
from awfulowl.cli.terminal import Advance, Stages
from awfulowl.lab.audit.running import Conditions
from awfulowl.lab.audit.running import run as run_audit
from awfulowl.lab.report.headlines import headlines
from awfulowl.lab.report.page import HTML
from awfulowl.lab.report.schema import Report, Row
from awfulowl.lab.report.words import interval, operations, percent, points
from awfulowl.lab.request import Request
from awfulowl.lab.victims.data import cache_folder

_STYLES = {"hurts": "bold red", "holds": "green", "unknown": "yellow"}


class _Progress:
    """One bar for each stage of the audit."""

    def __init__(self, stages: Stages, stack: ExitStack) -> None:
        self._stages = stages
        self._outer = stack
        self._inner = ExitStack()
        self._text: str | None = None
        self._advance: Advance = lambda _: None

    def __call__(self, text: str, done: int, total: int) -> None:
        if text != self._text:
            self._inner.close()
            self._advance = self._inner.enter_context(self._stages.stage(text, total))
            self._outer.callback(self._inner.close)
            self._text = text
        self._advance(done)
        self._stages.describe(f"{text}: {done} of {total}")


def run(request: Request, output: Path, workers: int | None, stages: Stages) -> Report:
    """Run an audit with bars that move; the first Ctrl-C ends it in order.

    Raises:
        InputError: something of it is not usable.
        ModelError: the model cannot be cut, or its weights are not finite.
    """

    def notice() -> None:
        stages.say("finishing what is under way, and the report; Ctrl-C again ends at once")

    with in_order(notice) as asked, ExitStack() as stack:
        conditions = Conditions(
            workers=workers or os.cpu_count() or 1,
            cache=cache_folder(),
            stop=asked,
            on_cell=_Progress(stages, stack),
        )
        return run_audit(request, output, conditions)


def show(report: Report, output: Path, console: Console) -> None:
    """Print what hurts, then the attacks."""
    for one in headlines(report):
        console.print(Text(f"- {one.text}", style=_STYLES[one.level]), soft_wrap=True)
    console.print()
    table = tables.grid(
        "attack", ("setting", "share", "block", "in place", "as placed", "completed %", "over the floor", "operations")
    )
    for row in sorted(report.rows, key=lambda row: (row.setting, row.share, str(row.block), -row.completed.value)):
        table.add_row(Text(row.attack), *_cells(row))
    tables.show(console, "Attacks, with 95 % intervals", table)
    console.print()
    tables.bullets(console, "Missing", [f"{one.what}: {one.why}" for one in report.missing[:_MOST_MISSING]])
    if len(report.missing) > _MOST_MISSING:
        console.print(Text(f"  and {len(report.missing) - _MOST_MISSING} more, in the report"), soft_wrap=True)
    console.print(Text(f"The report: {output / HTML}"), soft_wrap=True)


_MOST_MISSING = 8


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.setting,
        f"{100 * row.share:g} %",
        " x ".join(map(str, row.block_size)),
        f"{percent(row.positions_right)} {interval(row.positions_interval)}",
        f"{percent(row.accuracy)} {interval(row.interval)}",
        f"{100 * row.completed.value:.1f} {interval(row.completed.interval, lambda end: f'{100 * end:.1f}')}",
        f"{points(row.advantage)} {interval(row.advantage_interval, points)}",
        operations(row.flops),
    )
