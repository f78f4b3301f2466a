"""report.json, and report.html: one page with everything in it."""

import base64
import os
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from awfulowl.errors import InputError
from awfulowl.lab.files import write_whole
from awfulowl.lab.report import words
from awfulowl.lab.report.figures import Figure, draw_figures, write_figures
from awfulowl.lab.report.headlines import headlines
from awfulowl.lab.report.legend import LEGEND
from awfulowl.lab.report.schema import JSON, Control, Judgement, Line, Report, Row
from awfulowl.lab.report.words import hours, interval, operations, percent, points

HTML: Final = "report.html"
_TEMPLATE: Final = "page.html.j2"


class Cells(NamedTuple):
    """A row of a table of the page."""

    kind: str
    name: str
    both: str = "-"
    rows: str = "-"
    columns: str = "-"
    placed: str = "-"
    completed: str = "-"
    advantage: str = "-"
    agreement: str = "-"
    cosine: str = "-"
    flops: str = "-"
    training: str = "-"
    hours: str = "-"
    seconds: str = "-"


class Part(NamedTuple):
    """A table of the page, with its verdict."""

    title: str
    layers: tuple[str, ...]
    judgement: Judgement | None
    rows: Sequence[Cells]


def prepare(folder: Path) -> None:
    """Make the folder of a report, before minutes or hours of work go into one that could not be written.

    Raises:
        InputError: it cannot be written to, or jinja2 or matplotlib is not installed.
    """
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise InputError(f"the report needs {name}, which is not installed: pip install 'awfulowl[lab]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: no folder for the report: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: no folder for the report: it may not be written to")


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.html and the figures.

    Raises:
        InputError: a file cannot be written, or jinja2 or matplotlib is not installed.
    """
    write_whole(folder / JSON, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    figures = draw_figures(report)
    write_figures(figures, folder)
    write_whole(folder / HTML, page(report, figures).encode())


def page(report: Report, figures: Sequence[Figure]) -> str:
    """Return the page.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError("the report needs jinja2, which is not installed: pip install 'awfulowl[lab]'") from error
    source = files("awfulowl.lab.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    training = report.networks[0].training_flops if report.networks else 0.0
    return template.render(
        report=report,
        headlines=headlines(report),
        parts=[*_parts(report, training)],
        figures=[{"name": one.name, "caption": one.caption, "uri": _uri(one.files["svg"])} for one in figures],
        threat=report.request.threat.described(),
        legend=LEGEND,
        taking=_taking(report),
        training=training,
        victims=sum(one.name.startswith("victim") for one in report.networks),
        test_images=report.test_images,
        percent=percent,
        points=points,
        interval=interval,
        operations=operations,
    )


def _uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _taking(report: Report) -> str:
    request = report.request
    if request.taking == "blocks":
        return "a share of all blocks, wherever they lie"
    return f"the blocks of a share of {request.devices} devices under a plan that deals {request.taking}"


def _parts(report: Report, training: float) -> list[Part]:
    spots = {(line.setting, line.share, line.block): None for line in report.lines}
    spots |= {(row.setting, row.share, row.block): None for row in report.rows}
    return [_part(report, spot, training) for spot in spots]


def _part(report: Report, spot: tuple[str, float | None, Any], training: float) -> Part:
    setting, share, block = spot
    judgement = next((one for one in report.judgements if (one.setting, one.share, one.block) == spot), None)
    held = [row for row in report.rows if (row.setting, row.share, row.block) == spot]
    what = "One layer between known ones" if setting == "layer" else "The whole model, nothing in clear"
    holding = (
        f"; {percent(held[0].held)} of the weights held, {percent(held[0].seen)} of their inputs seen" if held else ""
    )
    rows = [_line("line", one, training) for one in report.lines if (one.setting, one.share, one.block) == spot]
    rows += [_line("floor", one, training) for one in report.floors if one.setting == setting]
    rows += [_attack(row) for row in sorted(held, key=lambda row: -row.completed.value)]
    rows += [_control(one) for one in (judgement.controls if judgement else ())]
    cut = words.block(block, held[0].block_size) if held else block
    title = f"{what}: share {100 * (share or 0):g} %, block {cut}{holding}"
    return Part(title, report.layers.get(setting, ()), judgement, rows)


def _with(value: str, within: str) -> str:
    return f"{value} {within}".rstrip()


def _line(kind: str, line: Line, training: float) -> Cells:
    name = line.name
    if kind == "floor":
        used = [f"{line.public} images"] + ([f"{line.queries} queries"] if line.queries else [])
        name = f"{name}: {', '.join(used)}{'' if line.counts else ' (not granted, for comparison)'}"
    return Cells(
        kind=kind,
        name=name,
        both=_with(percent(line.positions_right), interval(line.positions_interval)),
        placed=_with(percent(line.accuracy), interval(line.interval)),
        agreement=percent(line.agreement),
        cosine=f"{line.cosine:.2f}",
        flops=operations(line.flops),
        training=percent(line.flops / training) if training else "-",
        hours=hours(line.gpu_hours),
        seconds=words.seconds(line.seconds),
    )


def _attack(row: Row) -> Cells:
    return Cells(
        kind="attack",
        name=f"{row.attack} ({row.rung})",
        both=_with(percent(row.positions_right), interval(row.positions_interval)),
        rows=_with(percent(row.rows_right), interval(row.rows_interval)),
        columns=_with(percent(row.columns_right), interval(row.columns_interval)),
        placed=_with(percent(row.accuracy), interval(row.interval)),
        completed=_with(percent(row.completed.value), interval(row.completed.interval)),
        advantage=_with(points(row.advantage), interval(row.advantage_interval, points)),
        agreement=percent(row.agreement),
        cosine=f"{row.cosine:.2f}",
        flops=operations(row.flops),
        training=percent(row.share_of_training),
        hours=hours(row.gpu_hours),
        seconds=words.seconds(row.seconds),
    )


def _control(control: Control) -> Cells:
    verdict = f", judged: {control.verdict}" if control.verdict else ""
    return Cells(
        kind="control",
        name=f"control: {control.name}{verdict}",
        both=percent(control.positions_right),
        placed=_with(percent(control.accuracy), interval(control.interval)),
        completed=_with(percent(control.completed.value), interval(control.completed.interval)),
        agreement=percent(control.agreement),
        cosine=f"{control.cosine:.2f}",
    )
