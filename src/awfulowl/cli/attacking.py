"""The list of attacks, and attacks run once."""

import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from awfulowl.cli import tables
from awfulowl.cli.terminal import Stages
from awfulowl.lab.attacks.catalogue import ATTACKS
from awfulowl.lab.audit.cells import work
from awfulowl.lab.audit.record import Graded, Record
from awfulowl.lab.audit.schedule import attacks_of, floor_names, places, settings
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.report.words import operations, percent, seconds
from awfulowl.lab.request import AttackCell, Cell, FloorCell, LineCell, Request
from awfulowl.lab.victims.data import cache_folder
from awfulowl.lab.yardsticks import lines


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """An attack of the catalogue."""

    name: str
    rung: str
    scope: str
    needs: tuple[str, ...]
    what: str


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """An attack, a floor or a line, run once; `missing` says why there are no numbers."""

    name: str
    kind: str
    seed: int
    missing: str | None
    positions_right: float | None
    rows_right: float | None
    columns_right: float | None
    accuracy: float | None
    completed: float | None
    agreement: float | None
    cosine: float | None
    flops: float
    gpu_hours: float
    seconds: float


class Once(msgspec.Struct, frozen=True, kw_only=True):
    """What came of running attacks once."""

    model: str
    threat: dict[str, str | int | float | bool | None]
    rows: tuple[Ran, ...]


def listed() -> list[Listed]:
    """Return the attacks of the catalogue."""
    return [
        Listed(
            name=attack.name,
            rung=attack.rung,
            scope=attack.scope,
            needs=tuple(sorted(attack.needs)),
            what=(type(attack).__doc__ or "").strip().split("\n\n")[0].replace("\n", " "),
        )
        for attack in ATTACKS.values()
    ]


def show_list(console: Console) -> None:
    """Print the attacks."""
    table = tables.grid("attack", ())
    for heading in ("rung", "of", "what it does", "needs"):
        table.add_column(heading, overflow="fold")
    for one in listed():
        table.add_row(*map(Text, (one.name, one.rung, one.scope, " ".join(one.what.split()), ", ".join(one.needs))))
    tables.show(console, "Attacks", table)


def run(request: Request, stages: Stages) -> Once:
    """Run attacks once on one victim, after the floors and the standard lines.

    Raises:
        InputError: something of it is not usable.
        ModelError: the model cannot be cut, or its weights are not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(request, Path(folder), cache_folder())
        with stages.stage("reading the data"):
            shop.check()
        with stages.stage("training the victim, and one foreign to it"):
            shop.network(0)
            shop.network(1)
        found = []
        for kind, cell in _cells(shop):
            name = getattr(cell, "attack", None) or getattr(cell, "floor", None) or getattr(cell, "name", "")
            with stages.stage(f"{kind} {name}"):
                record = work(shop, cell)
            shop.store.keep(cell, record)
            found.append(_ran(str(name), kind, record))
    return Once(model=request.model, threat=request.threat.described(), rows=tuple(found))


def _cells(shop: Workshop) -> list[tuple[str, Cell]]:
    found: list[tuple[str, Cell]] = []
    for setting in settings(shop):
        if not attacks_of(shop, setting):
            continue
        found += [("floor", FloorCell(setting=setting, victim=0, floor=name)) for name in floor_names(setting)]
        for place in places(shop, setting):
            found += [("line", LineCell(place=place, name=name)) for name in lines.LINES]
            found += [("attack", AttackCell(place=place, attack=name)) for name in attacks_of(shop, setting)]
    return found


def _ran(name: str, kind: str, record: Record) -> Ran:
    graded: Graded | None = record.graded
    return Ran(
        name=name,
        kind=kind,
        seed=record.seed,
        missing=record.missing,
        positions_right=None if graded is None else graded.positions_right,
        rows_right=None if graded is None else graded.rows_right,
        columns_right=None if graded is None else graded.columns_right,
        accuracy=None if graded is None else graded.accuracy,
        completed=None if record.completed is None else record.completed.accuracy,
        agreement=None if graded is None else graded.agreement,
        cosine=None if graded is None else graded.cosine,
        flops=record.cost.get("flops", 0.0),
        gpu_hours=record.cost.get("gpu_hours", 0.0),
        seconds=record.seconds,
    )


def show(found: Once, console: Console) -> None:
    """Print what came of it."""
    table = tables.grid(
        "", ("in place", "rows", "columns", "accuracy", "completed", "agreement", "cosine", "operations", "seconds")
    )
    for row in found.rows:
        if row.missing is None:
            table.add_row(
                Text(row.name if row.kind == "attack" else f"{row.kind}: {row.name}"),
                percent(row.positions_right),
                percent(row.rows_right),
                percent(row.columns_right),
                percent(row.accuracy),
                percent(row.completed),
                percent(row.agreement),
                "-" if row.cosine is None else f"{row.cosine:.2f}",
                operations(row.flops),
                seconds(row.seconds),
            )
    tables.show(console, f"{found.model}, one victim, one draw: no intervals, and no verdict", table)
    console.print()
    tables.bullets(console, "Missing", [f"{row.name}: {row.missing}" for row in found.rows if row.missing is not None])
