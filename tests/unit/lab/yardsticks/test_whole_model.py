"""The benchmark of whole models: advantages over F2 and what they fall by, paired, now and from a file later."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.whole_model import advantages, packed, read_cuts

IMAGES = 1003
SHARES = {
    ("scattered", "F2"): 0.6,
    ("scattered", "hints-and-blocks"): 0.8,
    ("columns", "hints-and-blocks"): 0.65,
    ("scattered", "hints-foreign"): 0.7,
}


def rows(*, without: str = "") -> list[dict[str, Any]]:
    """Runs whose first images are right, one fewer with every seed."""
    return [
        {
            "part": "cut",
            "shape": shape,
            "attack": attack,
            "seed": seed,
            "right": torch.arange(IMAGES) < round(share * IMAGES) - seed,
        }
        for (shape, attack), share in SHARES.items()
        for seed in (1, 2, 3)
        if attack != without
    ]


def test_the_fall_of_the_advantage_has_its_interval() -> None:
    found = [*advantages(rows())]
    over = {row["over"]: row for row in found if "over" in row}
    for name, fall in (("columns hints-and-blocks", 0.15), ("scattered hints-foreign", 0.1)):
        assert over[name]["difference"] == pytest.approx(fall, abs=0.001)
        low, high = over[name]["interval"]
        assert low < fall < high
        assert high - low < 0.06
    own = {(row["shape"], row["attack"]): row for row in found if "over" not in row}
    assert own["scattered", "hints-and-blocks"]["advantage"] == pytest.approx(0.2, abs=0.001)
    fall = own["scattered", "hints-and-blocks"]["advantage"] - own["columns", "hints-and-blocks"]["advantage"]
    assert over["columns hints-and-blocks"]["difference"] == pytest.approx(fall)


def test_what_was_not_run_is_not_compared() -> None:
    assert [row["over"] for row in advantages(rows(without="hints-foreign")) if "over" in row] == [
        "columns hints-and-blocks"
    ]
    assert not [row for row in advantages(rows()[:-1]) if row.get("over") == "scattered hints-foreign"]


def test_runs_are_summed_up_from_their_files_as_at_once(tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2, 3):
        paths.append(tmp_path / f"{seed}.json")
        ran = [row for row in rows() if row["seed"] == seed]
        paths[-1].write_text(json.dumps([packed(row) for row in [*ran, *advantages(ran)]]))
    assert sorted(map(str, advantages([*read_cuts(paths)]))) == sorted(map(str, advantages(rows())))
