"""The benchmark of serving: an answer unlike its twin's ends it with 1, and what is not known is not printed."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import awfulowl as owl
from benchmarks import serving
from benchmarks.serving import MODES, Case, Measured, Network, spared_s

DENSE = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
CONVOLUTION = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10))


def measured(equal: bool | None, spared: float | None = 0.01) -> Measured:
    times = ([0.02] * 3, [0.03] * 3, [0.025] * 3)
    return Measured("mlp", "int8" if equal is not None else "float32", 2, times, 1000, 3, 0.5, spared, equal)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_time_is_spared_where_all_products_are_dense(mode: serving.Mode) -> None:
    (devices,) = mode.numbers([2])
    for model, x, known in (
        (DENSE, torch.randn(4, 40), True),
        (CONVOLUTION, torch.randn(2, 3, 8, 8), False),
    ):
        plan = owl.plan(
            model, x[:1], devices=mode.domains(devices), arithmetic=mode.arithmetic, sharing=mode.sharing, replicas=1
        )
        found = spared_s(plan, x, mode, devices)
        assert (found is not None) == known
        assert found is None or found > 0


def test_machines_of_their_own_are_shown_where_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    network = Network(1e9, 1e-3)
    known, unknown = (measured(equal=True, spared=spared).against(network) for spared in (0.01, None))
    assert known.own_machines == pytest.approx(0.02 / (0.03 - 0.01))
    assert unknown.own_machines is None
    for row, shown in ((known, True), (unknown, False)):
        serving.show(row)
        line = capsys.readouterr().out
        assert ("own machines" in line) == shown
        assert line.endswith("  3 rounds\n")


@pytest.mark.parametrize(("equal", "code"), [(None, 0), (True, 0), (False, 1)])
def test_an_answer_unlike_its_twin_ends_it_with_1(
    equal: bool | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(serving, "fabric", lambda quick: Network(1e9, 1e-3))
    monkeypatch.setattr(serving, "cases", lambda: {"mlp": lambda: Case(DENSE, torch.randn(4, 40))})
    monkeypatch.setattr(
        serving, "measure", lambda name, case, mode, *rest: measured(equal if mode.name == "int8" else None)
    )
    monkeypatch.setattr("sys.argv", ["serving.py", "--quick", "--json", str(tmp_path / "found.json")])
    assert serving.main() == code
    printed = capsys.readouterr()
    assert printed.err == ("FAULT: UNLIKE TWIN: mlp in int8 on 2\n" if code else "")
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["equal_to_twin"] for row in rows] == [None, equal]
