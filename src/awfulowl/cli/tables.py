"""Tables and lists that several reports share."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from awfulowl.cli.figures import count, short
from awfulowl.placement.exposure import Coalition, Exposure
from awfulowl.placement.summary import DeviceSummary


def show(console: Console, title: str, table: Table) -> None:
    """Print a table under its title."""
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)


def grid(first: str, others: Iterable[str]) -> Table:
    """Return an empty table: a column of names, and columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Return a table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def bullets(console: Console, title: str, lines: Sequence[str], *, style: str = "bold") -> None:
    """Print a list, or nothing when it is empty."""
    if not lines:
        return
    console.print(Text(title, style=style), soft_wrap=True)
    for line in lines:
        console.print(Text(f"  - {line}"), soft_wrap=True)
    console.print()


def devices(console: Console, summaries: Sequence[DeviceSummary]) -> None:
    """Print what was placed with each device."""
    table = grid("device", ("domain", "blocks", "parameters", "operations a sample"))
    for device in summaries:
        table.add_row(
            Text(device.name), Text(device.domain), count(device.blocks), short(device.parameters), short(device.flops)
        )
    show(console, "Devices, replicas included", table)
    console.print()


def member_lines(name: str) -> Text:
    """Return a panel's name with each of its members on a line of its own."""
    return Text(name.replace("+", "\n"))


def exposure(console: Console, found: Exposure, *, shared: bool = False) -> None:
    """Print what coalitions have of each layer, now and later: slices seen, and of shared layers weights held."""
    heads = [f"{100 * one.share:.0f} %: {one.members} of {one.of}" for one in found.model]
    table = grid("layer", heads if shared else (*heads, "least", "most"))
    for panel in found.panels:
        extremes = () if shared else (f"{100 * panel.least:.1f}", f"{100 * panel.most:.1f}")
        table.add_row(member_lines(panel.name), *(_had(one, shared) for one in panel.coalitions), *extremes)
    table.add_row("all layers", *(_had(one, shared) for one in found.model), style="bold")
    what = "inputs seen, and below weights held," if shared else "input slices seen"
    title = f"Expected % of {what} by coalitions of {found.units}, now -> after each was replaced"
    times = "once" if found.churn == 1 else f"{found.churn} times"
    show(console, f"{title} {times}{'' if shared else '; by single devices'}", table)
    if not shared:
        console.print(Text(_HELD), soft_wrap=True)
    console.print()


_HELD: Final = "Of the weights they hold the same shares, where devices hold whole columns, and less in other shapes."
"""Who sees a slice without a sharing has its column, or some of its blocks."""


def _had(coalition: Coalition, shared: bool) -> str:
    seen = f"{100 * coalition.seen:.1f} -> {100 * coalition.projected:.1f}"
    held = f"{100 * coalition.held:.1f} -> {100 * coalition.held_projected:.1f}"
    return f"{seen}\n{held}" if shared else seen
