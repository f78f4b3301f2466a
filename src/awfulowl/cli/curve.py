"""Loss curves: a picture for a file, and a line of blocks for a terminal."""

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from awfulowl.errors import InputError
from awfulowl.files import write_whole

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_SIZE: Final = (960, 540)
_FINER: Final = 2
"""Everything is drawn so many times larger and then made smaller, which smooths its edges."""
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 50, 940, 490
_COLOURS: Final = ("#c2410c", "#1d4ed8")
_FAINT: Final = ("#fed7aa", "#bfdbfe")
_INK, _GRID = "#1f2937", "#e5e7eb"
_TICKS: Final = 6
_SMOOTH: Final = 50
"""A running mean is over one of so many parts of the curve."""


class Curve(NamedTuple):
    """A loss for every step, and what it is called."""

    name: str
    losses: Sequence[float]


class Mark(NamedTuple):
    """Something that happened after a step."""

    step: int
    text: str


def can_draw() -> bool:
    """Say whether pictures can be drawn here: pillow is an extra."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        return False
    return True


def sparkline(losses: Sequence[float], width: int = 48) -> str:
    """Return a curve as a line of blocks, each the mean of a part; an empty one of none."""
    parts = min(width, len(losses))
    edges = [len(losses) * number // parts for number in range(parts + 1)] if parts else [0]
    means = [math.fsum(losses[low:high]) / (high - low) for low, high in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    step = (high - low) / (len(_BLOCKS) - 1) or 1.0
    return "".join(_BLOCKS[round((mean - low) / step)] for mean in means)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the running mean of a curve: of a step and those before it in a fiftieth of the curve."""
    width = max(1, len(losses) // _SMOOTH)
    found, total = [], 0.0
    for index, value in enumerate(losses):
        total += value - (losses[index - width] if index >= width else 0.0)
        found.append(total / min(index + 1, width))
    return found


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from low to high, some six of them."""
    if high <= low:
        return [low]
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(path: Path, title: str, curves: Sequence[Curve], marks: Sequence[Mark] = ()) -> None:
    """Draw losses by step as a PNG: faint as they are, and strong their running mean.

    Args:
        path: of the file.
        title: over the picture.
        curves: at most two, the first below the second.
        marks: what happened on the way.

    Raises:
        InputError: pillow is not installed, or the file cannot be written.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise InputError("a loss curve needs pillow, which is not installed: pip install 'awfulowl[data]'") from error
    picture = Image.new("RGB", (_SIZE[0] * _FINER, _SIZE[1] * _FINER), "white")
    canvas = _Canvas(ImageDraw.Draw(picture), curves)
    canvas.frame(title)
    canvas.marks(marks)
    for number, curve in enumerate(curves):
        canvas.line(curve.losses, _FAINT[number % len(_FAINT)], 1)
    for number, curve in enumerate(curves):
        canvas.line(smoothed(curve.losses), _COLOURS[number % len(_COLOURS)], 2 * (len(curves) - number))
        canvas.legend(number, curve.name)
    content = io.BytesIO()
    picture.resize(_SIZE, Image.Resampling.LANCZOS).save(content, format="PNG", optimize=True)
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


class _Canvas:
    """A picture with a scale: steps to the right, losses upwards."""

    def __init__(self, pen: "ImageDraw", curves: Sequence[Curve]) -> None:
        self._pen = pen
        self._steps = max([len(curve.losses) for curve in curves] + [1])
        strong = [value for curve in curves for value in smoothed(curve.losses)]
        self._high = 1.1 * max(strong, default=1.0) or 1.0

    def _x(self, step: float) -> float:
        return _FINER * (_LEFT + (_RIGHT - _LEFT) * step / self._steps)

    def _y(self, loss: float) -> float:
        return _FINER * (_BOTTOM - (_BOTTOM - _TOP) * min(max(loss, 0.0), self._high) / self._high)

    def _text(self, place: tuple[float, float], text: str, anchor: str, size: int = 14, colour: str = _INK) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(size * _FINER)
        self._pen.text(place, text, fill=colour, font=font, anchor=anchor)

    def frame(self, title: str) -> None:
        """Draw axes, scales and the title."""
        for loss in ticks(0.0, self._high):
            self._pen.line([(self._x(0), self._y(loss)), (self._x(self._steps), self._y(loss))], _GRID, _FINER)
            self._text((self._x(0) - 8 * _FINER, self._y(loss)), f"{loss:g}", "rm")
        for step in ticks(0, self._steps):
            self._text((self._x(step), self._y(0) + 8 * _FINER), f"{step:g}", "mt")
        self._pen.line([(self._x(0), self._y(0)), (self._x(self._steps), self._y(0))], _INK, _FINER)
        self._text((self._x(self._steps / 2), _FINER * 18), title, "mm", size=18)
        self._text((self._x(self._steps / 2), _FINER * (_SIZE[1] - 14)), "step", "mm")
        self._text((self._x(0) - 8 * _FINER, _FINER * (_TOP - 18)), "loss", "rm")

    def marks(self, marks: Sequence[Mark]) -> None:
        """Draw what happened as vertical lines with words at their upper ends, so that they do not overlap."""
        for number, mark in enumerate(marks):
            x = self._x(mark.step)
            self._pen.line([(x, self._y(0)), (x, self._y(self._high))], "#9ca3af", _FINER)
            place = (x + 4 * _FINER, _FINER * (_TOP + 8 + 16 * (number % 8)))
            self._text(place, mark.text, "lm", size=12, colour="#6b7280")

    def line(self, losses: Sequence[float], colour: str, width: int) -> None:
        """Draw one curve."""
        points = [(self._x(step), self._y(loss)) for step, loss in enumerate(losses, 1)]
        if len(points) > 1:
            self._pen.line(points, colour, width * _FINER, joint="curve")

    def legend(self, number: int, name: str) -> None:
        """Name a curve in its colour."""
        place = (self._x(self._steps) - 8 * _FINER, _FINER * (_TOP + 150 + 22 * number))
        self._text(place, name, "rm", size=16, colour=_COLOURS[number % len(_COLOURS)])
