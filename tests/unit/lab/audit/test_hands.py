"""Several processes give the numbers that one gives, and end when they are told to."""

from pathlib import Path

import pytest

from awfulowl.lab.audit.hands import Done, Hands
from awfulowl.lab.audit.running import Conditions, run
from awfulowl.lab.audit.tables import Tables
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.request import Cell, NetworkCell, Request, make_request
from awfulowl.lab.scenes.threat import make_threat


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def mine():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    fields = {
        "model": f"{path}:mine",
        "data": "digits",
        "blocks": [8],
        "attacks": ["norms"],
        "victims": 1,
        "shuffles": 1,
        "public": [],
        "possession": False,
    }
    return make_request(fields, make_threat({"share": 0.5, "compute": 0.2, "queries": 200}))


@pytest.mark.timeout(400)  # three processes that load PyTorch
def test_two_processes_give_the_numbers_of_one(request_: Request, tmp_path: Path) -> None:
    alone, beside = (
        run(request_, tmp_path / str(workers), Conditions(workers=workers, cache=tmp_path / "cache"))
        for workers in (1, 2)
    )
    assert alone.missing == beside.missing == ()
    assert [row.accuracy for row in alone.rows] == [row.accuracy for row in beside.rows]
    assert [line.interval for line in alone.floors] == [line.interval for line in beside.floors]
    assert alone.judgements == beside.judgements


def test_who_wants_to_end_gets_no_more_cells(request_: Request, tmp_path: Path) -> None:
    shop = Workshop(request_, tmp_path / "cells")
    cells: list[Cell] = [NetworkCell(number=number) for number in range(3)]
    with Hands(shop, 1, (request_, tmp_path / "cells", None)) as hands:
        assert list(hands.work(cells, lambda: True)) == []
        done: list[Done] = []
        for one in hands.work(cells, lambda: bool(done)):
            done.append(one)  # noqa: PERF402  `work` looks at it
    assert [one.cell for one in done] == cells[:1]
    assert shop.store.find(cells[0]) == done[0].record
    tables = Tables(request_, {one.cell: one.record for one in done})
    assert tables.group("networks", [cells]) is None
    assert "not done yet" in tables.missing["networks"]
