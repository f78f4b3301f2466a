"""Figures 6 and 7: blocks missing, and blocks exchanged."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.lab.report.curves import draw_curves
from awfulowl.lab.scenes.grading import share_right
from awfulowl.lab.yardsticks import exchange
from awfulowl.lab.yardsticks.exchange import Published, curves, exchanged, read_published, set_up
from awfulowl.models.data import Labelled
from awfulowl.randomness import Entropy
from tests.scenes import digits, tiny_victim

PUBLISHED = Path(__file__).parents[4] / "benchmarks" / "published"
TEST = Labelled(*(part[:200] for part in digits().test))


@given(shapes=st.lists(st.sampled_from(["square", "ragged"]), max_size=30), pairs=st.integers(0, 50))
def test_exchanges_are_permutations_that_keep_shapes(shapes: list[str], pairs: int) -> None:
    at = exchanged(shapes, pairs, Entropy(1))
    assert sorted(at) == list(range(len(shapes)))
    assert [shapes[index] for index in at] == shapes
    if pairs == 0:
        assert at == list(range(len(shapes)))


def test_the_curves_begin_whole_and_end_without_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "DROPPED", (0.0, 0.5, 1.0))
    monkeypatch.setattr(exchange, "MISSING", (0.0, 0.5))
    monkeypatch.setattr(exchange, "PAIRS", (0, 20))
    told: list[int] = []
    setup = set_up(tiny_victim().model, "hidden", TEST, 16)
    found = curves("tiny", setup, layer="hidden", draws=2, seed=3, on_point=lambda done, _: told.append(done))
    assert told == list(range(1, len(found.dropped) + len(found.exchanged) + 1))
    whole, half, none = found.dropped
    assert whole.accuracy == found.whole == pytest.approx(share_right(tiny_victim().model, TEST))
    assert none.accuracy == found.zeroed
    assert none.accuracy < half.accuracy <= whole.accuracy + 0.05
    assert half.interval.low <= half.accuracy <= half.interval.high
    still = [point for point in found.exchanged if point.pairs == 0]
    assert all(point.displaced == 0 for point in still)
    moved = [point for point in found.exchanged if point.pairs > 10]
    assert all(point.displaced > 0.2 for point in moved)
    assert min(point.accuracy for point in moved) < min(point.accuracy for point in still)
    again = curves("tiny", setup, layer="hidden", draws=2, seed=3)
    assert again == found


def test_the_published_numbers_are_drawn_under_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    published = read_published([PUBLISHED / "figure-7.json", PUBLISHED / "figure-6.json"])
    assert published.dropped[0.9] == pytest.approx(0.598, abs=0.002)
    assert published.exchanged[0.9, 0] == pytest.approx(0.597, abs=0.002)
    assert published.exchanged[0.9, 200] == pytest.approx(0.099, abs=0.002)
    assert (len(published.dropped), len(published.exchanged)) == (121, 241)
    monkeypatch.setattr(exchange, "DROPPED", (0.5, 1.0))
    monkeypatch.setattr(exchange, "MISSING", (0.9,))
    monkeypatch.setattr(exchange, "PAIRS", (0, 5))
    setup = set_up(tiny_victim().model, "hidden", TEST, 16)
    found = curves("tiny", setup, layer="hidden", draws=1, seed=3)
    with_theirs, alone = draw_curves(found, published), draw_curves(found, Published({}, {}))
    assert [figure.name for figure in with_theirs] == ["figure-6", "figure-7", "figure-7-displaced"]
    assert b"published" in with_theirs[0].files["svg"]
    assert b"published" not in alone[0].files["svg"]
    assert with_theirs[1].files["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("content", ["[]", '{"a": [1]}', '{"0.5": {"prune_rate": 1}}', "{", '{"0.5": []}'])
def test_results_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match="neither results of figure 6 nor of figure 7"):
        read_published([path])


def test_a_missing_file_and_a_missing_layer_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable results"):
        read_published([tmp_path / "none.json"])
    with pytest.raises(InputError, match="no layer 'nose'"):
        set_up(tiny_victim().model, "nose", TEST)
