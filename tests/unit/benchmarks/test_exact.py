"""The benchmark of exact integers: right answers are of inputs of their own, and what must not be ends it with 1."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.randomness import Entropy, Seeded
from awfulowl.veil import base
from awfulowl.verification.exact import ExactCheck
from benchmarks import exact
from benchmarks.exact import Checked

SMALL = (exact.Scene((16, 16)), exact.Scene((8, 4, 3, 3), (5, 5)), exact.Scene((12, 20), share=0.5))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small scenes, and secrets that are the same every time."""
    monkeypatch.setattr(exact, "SCENES", SMALL)
    monkeypatch.setattr(exact, "SHARES", 1.0)  # 20,000 right answers of each
    monkeypatch.setattr(exact, "SYSTEM", Entropy(0))


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["exact.py", "--quick", "--no-loops", *arguments])
    return exact.main()


def test_every_right_answer_is_of_inputs_and_secrets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    refused, batches, checks = Checked.refused, set[bytes](), list[ExactCheck]()

    def noting(checked: Checked, x: Tensor, y: Tensor) -> int:
        batches.add(x.numpy().tobytes())
        checks.append(checked.check)
        return refused(checked, x, y)

    monkeypatch.setattr(Checked, "refused", noting)
    rows = exact.honest(quick=True)
    assert len(batches) == len({id(check) for check in checks}) == len(checks)
    assert sum(row["trials"] for row in rows) == 4096 * len(checks)
    assert [row["trials"] for row in rows] == [5 * 4096, 5 * 4096, 3 * 4096] * 2
    assert {row["alarms"] for row in rows} == {0}


@pytest.mark.parametrize("part", ["flips", "honest", "uniform"])
def test_without_a_fault_it_ends_with_0(
    part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "--only", part) == 0
    assert capsys.readouterr().err == ""


def one_of(checked: Checked, x: Tensor, y: Tensor) -> int:
    return 1


def none_of(checked: Checked, x: Tensor, y: Tensor) -> int:
    return 0


@pytest.mark.parametrize(
    ("part", "refused", "fault"),
    [
        ("honest", one_of, "FAULT: 5 alarms, int8, 16x16"),
        ("flips", none_of, "FAULT: 500 flips missed, int8, 16x16"),
    ],
)
def test_a_check_that_is_wrong_ends_it_with_1(
    part: str,
    refused: Callable[..., int],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Checked, "refused", refused)
    assert ended(monkeypatch, "--only", part, "--json", str(tmp_path / "found.json")) == 1
    faults = capsys.readouterr().err.splitlines()
    assert faults[0] == fault
    assert len(faults) == len(json.loads((tmp_path / "found.json").read_text())["rows"]) == 2 * len(SMALL)


class Narrow(Seeded):
    """Random shares that lack a bit."""

    def expand(self) -> Tensor:
        return super().expand() & ~1


def test_shares_that_are_not_uniform_end_it_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base, "Seeded", Narrow)
    assert ended(monkeypatch, "--only", "uniform") == 1
    faults = capsys.readouterr().err
    assert "FAULT: p of bytes 0.0e+00, inputs:2, lane 0, inputs" in faults
    assert "replicated, lane 2, weights" in faults


def test_a_broken_sharing_that_is_not_found_ends_it_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exact, "_chi_square", lambda counts: 0.5)
    assert ended(monkeypatch, "--only", "uniform") == 1
    assert capsys.readouterr().err == "FAULT: p of bytes does not find BROKEN on purpose\n"


def row_of(view: Tensor, again: Tensor, truth: Tensor, sharing: str = "inputs:2") -> dict[str, Any]:
    return {"part": "uniform", "sharing": sharing, "lane": 1, "of": "inputs", **exact._tested(view, again, truth)}


def faulty(row: dict[str, Any]) -> set[str]:
    return {name for name in exact._TESTS if any(fault.startswith(name) for fault in exact.faults([row]))}


def test_each_of_the_tests_finds_something() -> None:
    noise, other = (Seeded(bytes([number]) * 32, torch.int32, (256, 256)).expand() for number in (1, 2))
    x = torch.arange(256, dtype=torch.int8).repeat(256, 1)
    assert faulty(row_of(noise, other, x)) == set()
    assert faulty(row_of(noise & 0x7FFFFFFF, other, x)) == {"p of bytes"}
    assert faulty(row_of(noise, noise, x)) == {"p of agreement"}
    assert faulty(row_of(noise, other, noise >> 4)) == {"p of correlation"}
    assert faulty(row_of(x.int(), other, x)) == {"p of bytes", "p of correlation"}


def test_one_equal_number_is_chance_and_two_of_so_few_are_not() -> None:
    noise, other = (Seeded(bytes([number]) * 32, torch.int32, (256, 256)).expand() for number in (1, 2))
    for equal, wrong in ((1, set()), (2, {"p of agreement"})):
        other[0, :equal] = noise[0, :equal]
        assert faulty(row_of(noise, other, noise.roll(1))) == wrong


def test_a_number_that_is_none_is_a_fault() -> None:
    row = row_of(
        torch.zeros(256, 256, dtype=torch.int32), torch.ones(256, 256, dtype=torch.int32), torch.zeros(256, 256)
    )
    assert faulty(row) == {"p of bytes", "p of correlation"}
    assert exact.faults([row | {"sharing": exact.BROKEN, "p of bytes": float("nan"), "p of agreement": 0.0}])


def test_other_parts_have_no_faults() -> None:
    assert exact.faults([{"part": "kernels", "ratio": 99.0}, {"part": "shares", "gb_per_s": 0.0}]) == []
