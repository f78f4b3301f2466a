"""Figures of a report, as PNG and SVG: every number with its interval."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from awfulowl.errors import InputError
from awfulowl.lab.files import write_whole
from awfulowl.lab.report.schema import Judgement, Line, Report, Row
from awfulowl.lab.report.words import block

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES: Final = ("svg", "png")
_STYLE: Final[Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "svg.hashsalt": "awfulowl",
    "svg.fonttype": "none",
    "figure.dpi": 120,
}
_PIRATE, _FLOOR, _VICTIM, _CONTROL, _FAINT = "#c2410c", "#1d4ed8", "#15803d", "#7c3aed", "#6b7280"
COLOURS: Final = ("#c2410c", "#1d4ed8", "#15803d", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#4d7c0f", "#374151")


class Figure(NamedTuple):
    """A picture with its name and what it shows, as the bytes of its files by suffix."""

    name: str
    caption: str
    files: Mapping[str, bytes]


def draw_figures(report: Report) -> list[Figure]:
    """Draw what there are numbers for.

    Raises:
        InputError: matplotlib is not installed.
    """
    drawn = [
        *(_attacks(report, judgement) for judgement in report.judgements),
        _floors(report),
        _drops(report),
        _scores(report),
        _warm(report),
    ]
    return [figure for figure in drawn if figure is not None]


def write_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Write figures as files.

    Raises:
        InputError: one cannot be written.
    """
    for figure in figures:
        for suffix, content in figure.files.items():
            write_whole(folder / f"{figure.name}.{suffix}", content)


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple["Axes", Callable[[], dict[str, bytes]]]]:
    """Yield axes to draw on, and a function that returns the picture's files by suffix.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to load
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure as Picture  # noqa: PLC0415
    except ImportError as error:
        raise InputError("figures need matplotlib, which is not installed: pip install 'awfulowl[lab]'") from error
    with mpl.rc_context(_STYLE):
        picture = Picture(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(picture)

        def files() -> dict[str, bytes]:
            found = {}
            for suffix in SUFFIXES:
                content = io.BytesIO()
                # Without a date, equal numbers give equal files.
                metadata = {"Date": None} if suffix == "svg" else {"Software": None}
                picture.savefig(content, format=suffix, metadata=metadata)
                found[suffix] = content.getvalue()
            return found

        yield picture.add_subplot(), files


def bars(axes: "Axes", x: float, y: float, interval: Sequence[float], colour: str) -> None:
    """Draw a point with its interval, lying."""
    low, high = interval
    axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([x], [y], "o", color=colour, markersize=4)


def _attacks(report: Report, judgement: Judgement) -> Figure | None:
    """Accuracy of everything in one part of the tables, best first, with lines, floors and controls."""

    def here(one: Line | Row) -> bool:
        return (one.setting, one.share, one.block) == (judgement.setting, judgement.share, judgement.block)

    entries = [(row.attack, row.completed.value, row.completed.interval, _PIRATE) for row in report.rows if here(row)]
    entries += [(line.name, line.accuracy, line.interval, _VICTIM) for line in report.lines if here(line)]
    entries += [
        (f"{line.name}{'' if line.counts else ' (not granted)'}", line.accuracy, line.interval, _FLOOR)
        for line in report.floors
        if line.setting == judgement.setting and _largest(report, line)
    ]
    entries += [
        (f"control: {one.name}", one.completed.value, one.completed.interval, _CONTROL) for one in judgement.controls
    ]
    entries.sort(key=lambda one: one[1])
    with canvas(7.5, 1.0 + 0.24 * len(entries)) as (axes, files):
        for height, (_, value, interval, colour) in enumerate(entries):
            bars(axes, value, height, interval, colour)
        axes.set_yticks(range(len(entries)), [name for name, *_ in entries])
        axes.set_xlabel("accuracy on test images, 95 % intervals")
        axes.set_title(f"{_where(judgement)}: {judgement.verdict}")
        name = f"accuracy-{judgement.setting}-{judgement.share:g}-{judgement.block}"
        caption = (
            "Networks that a pirate ends with (orange), floors (blue), standard lines (green) and controls (violet) in "
            f"the setting {_where(judgement)}."
        )
        return Figure(name, caption, files())


def _largest(report: Report, line: Line) -> bool:
    same = [other for other in report.floors if (other.name, other.setting) == (line.name, line.setting)]
    return line == max(same, key=lambda other: other.public or 0)


def _where(judgement: Judgement) -> str:
    cut = block(judgement.block, judgement.block_size)
    return f"{judgement.setting}, share {judgement.share:g}, block {cut}"


def _floors(report: Report) -> Figure | None:
    """Floor F1 against the number of public images."""
    curves: dict[str, list[Line]] = {}
    for line in report.floors:
        if line.name.startswith("F1"):
            curves.setdefault(f"{line.name} ({line.setting})", []).append(line)
    curves = {
        name: sorted(points, key=lambda one: one.public or 0) for name, points in curves.items() if len(points) > 1
    }
    if not curves:
        return None
    with canvas(6.0, 3.6) as (axes, files):
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            sizes = [one.public or 0 for one in points]
            band(axes, sizes, [(one.accuracy, one.interval) for one in points], colour, name)
        axes.set_xscale("log")
        axes.set_xlabel("public images")
        axes.set_ylabel("accuracy")
        axes.legend(frameon=False)
        return Figure("floors", "What the pirate reaches from public images alone.", files())


def band(
    axes: "Axes", x: Sequence[float], points: Sequence[tuple[float, Sequence[float]]], colour: str, label: str
) -> None:
    """Draw a curve with its intervals."""
    axes.plot(x, [value for value, _ in points], "o-", color=colour, markersize=3, label=label)
    lows, highs = ([interval[end] for _, interval in points] for end in (0, 1))
    axes.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _drops(report: Report) -> Figure | None:
    curves: dict[tuple[str, ...], list[tuple[float, float, Sequence[float]]]] = {}
    for one in report.possession.dropped:
        curves.setdefault(one.layers, []).append((one.dropped, one.accuracy, one.interval))
    if not curves:
        return None
    with canvas(6.5, 4.0) as (axes, files):
        for number, (layers, points) in enumerate(curves.items()):
            x = [share for share, _, _ in points]
            label = layers[0] if len(layers) == 1 else " + ".join(layers)
            band(axes, x, [(value, interval) for _, value, interval in points], COLOURS[number % len(COLOURS)], label)
        axes.set_xlabel("share of blocks missing, the others in place")
        axes.set_ylabel("accuracy")
        axes.legend(frameon=False, fontsize=7)
        return Figure("drop-curves", "Rung P1: what blocks in their right places are worth without training.", files())


def _scores(report: Report) -> Figure | None:
    scores = report.possession.scores[::-1]
    if not scores:
        return None
    with canvas(6.0, 1.0 + 0.3 * len(scores)) as (axes, files):
        for height, one in enumerate(scores):
            bars(axes, one.score, height, one.interval, _FLOOR)
        axes.axvline(0, color=_FAINT, linewidth=0.8)
        axes.set_yticks(range(len(scores)), [one.layer for one in scores])
        axes.set_xlabel("victim minus floor F1 for this layer alone")
        return Figure("layer-scores", "What hiding a layer alone is worth.", files())


def _warm(report: Report) -> Figure | None:
    curves: dict[str, list[tuple[float, float, Sequence[float]]]] = {}
    for one in report.possession.warm:
        curves.setdefault(one.order, []).append((one.share, one.accuracy, one.interval))
    if not curves:
        return None
    with canvas(6.0, 3.6) as (axes, files):
        for colour, (order, points) in zip(COLOURS, curves.items(), strict=False):
            values = [(value, interval) for _, value, interval in points]
            band(axes, [share for share, _, _ in points], values, colour, f"withheld: {order}")
        axes.set_xlabel("share of all blocks held; 0 is training from scratch")
        axes.set_ylabel("accuracy after training")
        axes.legend(frameon=False)
        return Figure("warm-start", "Training on public images from partial loot against from scratch.", files())
