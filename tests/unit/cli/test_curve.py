"""Loss curves: what is drawn is what was lost."""

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from awfulowl.cli import curve
from awfulowl.cli.curve import Curve, Mark, draw, smoothed, sparkline, ticks
from awfulowl.errors import InputError

FALLING = [2.3 * math.exp(-step / 40) for step in range(200)]


@pytest.mark.parametrize(
    ("losses", "width", "line"),
    [
        ([], 8, ""),
        ([1.0], 8, "▁"),
        ([1.0, 1.0, 1.0], 8, "▁▁▁"),
        ([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 8, "█▇▆▅▄▃▂▁"),
        ([0.0, 2.0, 7.0, 7.0], 2, "▁█"),
        ([3.0, 3.0, 3.0, 10.0, 10.0], 2, "▁█"),
    ],
)
def test_a_line_of_blocks(losses: list[float], width: int, line: str) -> None:
    assert sparkline(losses, width) == line


def test_a_line_is_no_longer_than_it_may_be() -> None:
    assert len(sparkline(FALLING, 48)) == 48
    assert len(sparkline(FALLING[:5], 48)) == 5


@pytest.mark.parametrize("count", [0, 1, 49, 50, 149, 300])
def test_the_running_mean_is_over_a_fiftieth(count: int) -> None:
    losses = [float((7 * step) % 11) for step in range(count)]
    width = max(1, count // 50)
    slow = [sum(losses[max(0, end - width) : end]) / min(end, width) for end in range(1, count + 1)]
    assert smoothed(losses) == pytest.approx(slow)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2.5, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0, 264, [0, 50, 100, 150, 200, 250]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.3, 0.8, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        (1, 1, [1]),
    ],
)
def test_scales_have_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("high", [1e-6, 0.37, 3, 17, 12345])
def test_scales_have_some_numbers_and_even_steps(high: float) -> None:
    found = ticks(0, high)
    assert 3 <= len(found) <= 8
    assert len({round((after - before) / high, 9) for before, after in pairwise(found)}) == 1


def dark(path: Path, left: int, right: int) -> list[int]:
    """Return how high the lowest strongly coloured point of the first curve's colour is, in each of some columns."""
    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
        found = []
        for x in range(left, right):
            rows = [y for y in range(40, 490) if _is_orange(pixels.getpixel((x, y)))]
            found.append(max(rows, default=0))
        return found


def _is_orange(pixel: object) -> bool:
    return isinstance(pixel, tuple) and pixel[0] > 150 and pixel[1] < 110 and pixel[2] < 90


def test_a_picture_shows_a_loss_that_falls(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    draw(path, "falling", [Curve("here", FALLING)])
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (960, 540))
    heights = [height for height in dark(path, 100, 700) if height]
    assert len(heights) > 550
    assert all(after >= before - 1 for before, after in pairwise(heights))
    assert heights[-1] - heights[0] > 200


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [Curve("empty", [])],
        [Curve("one", [1.0])],
        [Curve("flat", [0.0, 0.0, 0.0])],
        [Curve("one", FALLING), Curve("other", FALLING[:50])],
    ],
)
def test_curves_of_any_length_are_drawn(tmp_path: Path, curves: list[Curve]) -> None:
    draw(tmp_path / "loss.png", "title", curves, [Mark(3, "d1 lied"), Mark(40, "d2 died")])
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_marks_are_seen(tmp_path: Path) -> None:
    draw(tmp_path / "without.png", "title", [Curve("a", FALLING)])
    draw(tmp_path / "with.png", "title", [Curve("a", FALLING)], [Mark(100, "d1 lied")])
    with Image.open(tmp_path / "without.png") as left, Image.open(tmp_path / "with.png") as right:
        assert left.tobytes() != right.tobytes()


def test_without_pillow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert curve.can_draw()
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert not curve.can_draw()
    with pytest.raises(InputError, match=r"pip install 'awfulowl\[data\]'"):
        draw(tmp_path / "loss.png", "title", [])


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        draw(tmp_path / "nowhere" / "loss.png", "title", [])
