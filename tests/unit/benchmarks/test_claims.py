"""Benchmarks of training end with 1 where they miss what they have to show, and say what; with 0 otherwise."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from safetensors.torch import save_file

import awfulowl as owl
from awfulowl.errors import CheckpointError
from awfulowl.recipes.saving import Home
from benchmarks import adam, kills, training, training_curves, training_stretches
from benchmarks.claims import Claim, verdict
from benchmarks.kills import Death, Training, judge, suffer
from benchmarks.serving import Network, Spread

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def missed(claims: Any) -> list[str]:
    return [claim.text for claim in claims if not claim.holds]


def test_what_was_missed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict([]) == verdict([Claim("one", holds=True)]) == 0
    assert capsys.readouterr().err == ""
    assert verdict([Claim("one", holds=True), Claim("two", holds=False), Claim("three", holds=False)]) == 1
    assert capsys.readouterr().err == "missed: two\nmissed: three\n"


class TestKills:
    """Of the owner."""

    @pytest.mark.parametrize(
        ("found", "known", "right"),
        [
            (None, 0, None),
            (None, 2, False),  # it was lost
            ([1.0, 2.0], 0, True),
            ([1.0, 2.0], 2, True),
            ([1.0], 2, False),  # an older one than before
            ([1.0, 2.5], 0, False),
            ([1.0, 2.0, 3.0, 4.0], 2, False),
            ([], 0, True),
        ],
    )
    def test_a_checkpoint_is_right(self, found: list[float] | None, known: int, right: bool | None) -> None:
        assert judge(found, known, [1.0, 2.0, 3.0]) is right

    def deaths(self, found: Sequence[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Death]:
        """Kill as often as there is something to find."""

        def losses(_: Home) -> list[float] | None:
            one: list[float] | Exception | None = left.pop(0)
            if isinstance(one, Exception):
                raise one
            return one

        left = list(found)
        monkeypatch.setattr(kills, "losses", losses)
        monkeypatch.setattr(Training, "start", lambda _: subprocess.Popen(SLEEP, stderr=subprocess.PIPE))
        undisturbed = Training(tmp_path / "recipe", Home(tmp_path), 2, {})
        return list(suffer(undisturbed, [0.01] * len(left), [1.0, 2.0, 3.0]))

    def test_kills_before_the_first_checkpoint_are_neither_right_nor_wrong(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        found = self.deaths([None, None, [1.0], [1.0, 2.0], None], monkeypatch, tmp_path)
        assert [death.right for death in found] == [None, None, True, True, False]
        assert [death.steps for death in found] == [None, None, 1, 2, None]
        assert str(found[0]) == "after 0.0 s: no checkpoint yet"
        assert str(found[3]) == "after 0.0 s: 2 steps, right"
        assert "WRONG" in str(found[4])

    def test_a_checkpoint_that_cannot_be_read_is_wrong(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        found = self.deaths([CheckpointError("cut short"), [1.0]], monkeypatch, tmp_path)
        assert [death.right for death in found] == [False, True]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({}, []),
            ({"before_the_first_checkpoint": 4, "right": 0}, []),
            ({"wrong": 1, "right": 2}, ["every resume right: 1 of 3 checkpoints are wrong"]),
            ({"same_bits": 1}, ["the same bits at the end: 1 of 2 trainings have others"]),
        ],
    )
    def test_it_fails_where_a_resume_is_wrong_or_bits_differ(
        self,
        change: dict[str, int],
        said: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        found = {"kills": 4, "right": 3, "wrong": 0, "before_the_first_checkpoint": 1, "trainings": 2, "same_bits": 2}
        monkeypatch.setattr(kills, "kills", lambda *_, **__: found | change)
        monkeypatch.setattr("sys.argv", ["kills.py", "--quick", "--json", str(tmp_path / "kills.json")])
        assert kills.main() == bool(said)
        assert capsys.readouterr().err.splitlines() == [f"missed: {text}" for text in said]
        assert json.loads((tmp_path / "kills.json").read_text())["kills"] == 4

    def test_one_bit_is_another(self, tmp_path: Path) -> None:
        homes = [Home(tmp_path / name) for name in ("one", "other", "third")]
        for home, value in zip(homes, (0.0, 0.0, -0.0), strict=True):
            home.path.mkdir()
            save_file({"weight": torch.tensor([1.0, value])}, home.model)
        assert kills.same_bits(homes[0], homes[1])
        assert not kills.same_bits(homes[0], homes[2])


def curve(seed: int, plain: float, scattered: float, **others: Any) -> dict[str, Any]:
    counted = {"lies_caught": others.pop("caught")} if "caught" in others else {}
    known = {"recipe": "digits", "metric": "accuracy", "faults": False, "statistics": counted}
    return known | {"seed": seed, "plain": plain, "scattered": scattered} | others


class TestCurves:
    """Final figures over seeds."""

    @pytest.mark.parametrize(
        ("metric", "scattered", "misses"),
        [
            ("accuracy", [0.970, 0.970, 0.970], 0),
            ("accuracy", [0.960, 0.970, 0.980], 0),  # each 1 point off, their mean is not
            ("accuracy", [0.966, 0.966, 0.966], 0),
            ("accuracy", [0.964, 0.964, 0.964], 1),
            ("accuracy", [0.976, 0.976, 0.976], 1),
            ("nats", [0.970, 0.970, 0.985], 0),
            ("nats", [0.991, 0.991, 0.991], 1),
            ("nats", [float("nan"), 0.970, 0.970], 1),
        ],
    )
    def test_means(self, metric: str, scattered: list[float], misses: int) -> None:
        rows = [curve(seed, 0.970, figure, metric=metric) for seed, figure in enumerate(scattered)]
        assert len(missed(training_curves.claims(rows, whole=True))) == misses
        assert missed(training_curves.claims(rows, whole=False)) == []
        assert missed(training_curves.claims(rows[:2], whole=True)) == []

    def test_recipes_are_judged_apart(self) -> None:
        rows = [curve(seed, 0.970, 0.970) for seed in range(3)]
        rows += [curve(seed, 1.0, 1.03, recipe="text", metric="nats") for seed in range(3)]
        (text,) = missed(training_curves.claims(rows, whole=True))
        assert text == "text: means within 0.02 (nats): plain 1, fleet 1.03"

    def test_who_is_refused(self) -> None:
        rows = [curve(0, 0.9, 0.9), curve(1, 0.9, 0.9, caught=2)]
        assert missed(training_curves.claims(rows, whole=True)) == [
            "digits, seed 1: no honest answer is refused: 2 were"
        ]
        rows = [curve(0, 0.9, 0.9, faults=True, caught=3), curve(1, 0.9, 0.9, faults=True)]
        assert missed(training_curves.claims(rows, whole=True)) == ["digits, seed 1: the liar is found"]


class TestStretches:
    """How often bounds are kept."""

    def rows(self, *within: list[int], refused: int = 0, faults: bool = False) -> list[dict[str, Any]]:
        known = {"recipe": "digits", "seed": 0, "faults": faults, "refused": refused, "stretches": 13}
        return [known | {"within_nearest": own} for own in within]

    @pytest.mark.parametrize(
        ("within", "misses"),
        [
            ([[13, 13, 13, 13]], 0),
            ([[12, 13, 13, 13]], 0),  # chance
            ([[12, 13, 12, 12], [13, 13, 13, 12]], 0),
            ([[5, 13, 13, 13]], 1),
            ([[8, 13, 13, 13]] * 3, 1),
            ([[4, 3, 2, 0]], 0),
            ([[0]], 0),  # there is nothing to hold it to
        ],
    )
    def test_as_often_as_other_orders(self, within: list[list[int]], misses: int) -> None:
        assert len(missed(training_stretches.claims(self.rows(*within)))) == misses

    @pytest.mark.parametrize(("faults", "refused", "misses"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 4, 0)])
    def test_who_is_refused(self, faults: int, refused: int, misses: int) -> None:
        rows = self.rows([13, 13], refused=refused, faults=bool(faults))
        assert len(missed(training_stretches.claims(rows))) == misses


class TestAdam:
    """Blocks that the owner rebuilds."""

    def rows(self, **change: Any) -> list[dict[str, Any]]:
        honest = {"part": "honest", "block": "dense", "rate": "constant", "rebuilt": 8, "refused": 0}
        lie = {"part": "lies", "kind": "another gradient", "size": 1e-3, "trials": 1000, "caught": 1000}
        cost = {"part": "cost", "model": "perceptron", "refused": 0}
        return [row | {key: value for key, value in change.items() if key in row} for row in (honest, lie, cost)]

    @pytest.mark.parametrize(
        ("change", "misses"),
        [
            ({}, 0),
            ({"refused": 1}, 2),
            ({"caught": 999}, 0),
            ({"caught": 998}, 1),
            ({"trials": 20, "caught": 19}, 1),
            ({"size": 1e-4, "caught": 0}, 0),
            ({"size": 1.0, "kind": "skipped", "caught": 0}, 1),
        ],
    )
    def test_honest_blocks_pass_and_lies_do_not(self, change: dict[str, Any], misses: int) -> None:
        assert len(missed(adam.claims(self.rows(**change)))) == misses


def spread(median: float) -> Spread:
    return Spread(median, median, median)


ROW = training.Row(
    batch=128,
    devices=2,
    momentum=0.9,
    plain_s=1.0,
    scattered_s=9.0,
    unverified_s=1.0,
    bytes=1,
    trips=1,
    best_s=1.0,
    ratio=spread(9.0),
    verification=spread(8.0),
    max_abs_diff=1e-7,
    drift=1e-5,
    refused=0,
    rounds=5,
)


@pytest.mark.parametrize(
    ("change", "misses"),
    [({}, 0), ({"refused": 1}, 1), ({"max_abs_diff": 1e-3}, 1), ({"max_abs_diff": float("nan")}, 1)],
)
def test_a_step_is_judged_by_what_it_computes_and_not_by_its_time(
    change: dict[str, Any], misses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = msgspec.structs.replace(ROW, **change)
    assert len(missed(training.claims(row))) == misses
    monkeypatch.setattr(training, "fabric", lambda **_: Network(1.0, 1.0))
    monkeypatch.setattr(training, "measure", lambda _: lambda _: row)
    monkeypatch.setattr("sys.argv", ["training.py", "--quick"])
    assert training.main() == misses


@pytest.mark.parametrize("refused", [0, 1])
def test_what_is_returned(refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "cost", lambda _: iter([{"part": "cost", "model": "m", "refused": refused}]))
    monkeypatch.setattr("sys.argv", ["adam.py", "--only", "cost"])
    assert adam.main() == refused


@pytest.mark.parametrize("refused", [0, 1])
def test_what_is_returned_of_stretches(refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"recipe": "digits", "seed": 0, "faults": False, "stretches": 2, "within_nearest": [2, 2]}
    monkeypatch.setattr(training_stretches, "row", lambda *_: found)
    monkeypatch.setattr(training_stretches, "follow", lambda *_: [])
    monkeypatch.setattr(owl, "local_fleet", lambda **_: nullcontext(Fleet({"lies_caught": refused})))
    monkeypatch.setattr("sys.argv", ["training_stretches.py", "--quick"])
    assert training_stretches.main() == refused


class Fleet(NamedTuple):
    """As far as a benchmark looks."""

    statistics: dict[str, int]
