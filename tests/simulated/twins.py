"""Models on a fleet held to their local twins, bit for bit, and what the fleet's devices got meanwhile."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.blocks.kernels import Dense
from awfulowl.device.worker import Worker
from awfulowl.placement.plan import Plan
from awfulowl.placement.survey import call_with
from awfulowl.randomness import expanded
from awfulowl.wire.session import Requested
from tests.answers import require_equal
from tests.contract.adapters.cases import Case, Example
from tests.simulated.memory_fleet import MemoryFleet

MODES = [
    (arithmetic, sharing)
    for arithmetic in ("int8", "int16")
    for sharing in (None, "inputs:2", "inputs:3", "replicated")
]
"""Arithmetic and sharing."""


def equals_twin(fleet: MemoryFleet, model: nn.Module, example: object, **options: Any) -> Plan:
    """Scatter a model onto a fleet and hold an answer to the twin's; return the plan."""
    model.eval()
    plan = owl.plan(model, example, devices=fleet, **options)
    scattered = fleet.scatter(model, plan)
    before = fleet.statistics
    try:
        with torch.no_grad():
            require_equal(call_with(scattered, example), call_with(plan.twin(model), example))
        after = fleet.statistics
        assert after["requests"] > before["requests"], "nothing was asked of the fleet"
        assert after["checks"] > before["checks"]
        assert after["checks_failed"] == before["checks_failed"]
        assert after["kept"] == before["kept"]
    finally:
        fleet.release(scattered)
    return plan


def has_numbers(example: Example) -> bool:
    return all(x.numel() for x in example.args)


def called_with(example: Example) -> object:
    """What plans, fleets and twins take: all arguments by name as soon as one has to be."""
    if not example.kwargs:
        return example.args
    return inspect.signature(example.module.forward).bind(*example.args, **example.kwargs).arguments


def unfolding(case: Case) -> AbstractContextManager[Any]:
    """Have plans unfold convolutions as the case says, instead of those of few channels."""
    return patch("awfulowl.placement.survey.UNFOLD_BELOW", 1000 if case.unfold else 0)


def require_case(case: Case, example: Example, plan: Plan) -> None:
    """Require that the fleet multiplied as the case says."""
    assert sum(len(panel.members) for panel in plan.panels) == case.products
    native = isinstance(example.module, nn.Conv1d | nn.Conv2d) and (example.module.groups > 1 or not case.unfold)
    assert {isinstance(panel.grid.kernel, Dense) for panel in plan.panels} == {not native}


def lanes_of(plan: Plan) -> dict[tuple[str, str, int], set[int]]:
    """The lanes that each domain ever had, by panel, domain and column, as the ledger says."""
    lanes: dict[tuple[str, str, int], set[int]] = {}
    for panel, domains in zip(plan.panels, plan.ledger.domains, strict=True):
        columns = len(panel.grid.columns)
        for domain, units in domains.items():
            for unit in units:
                lanes.setdefault((panel.name, domain, unit % columns), set()).add(unit // columns)
    return lanes


def require_one_lane(plan: Plan) -> None:
    """Require that no domain ever had two lanes of a column."""
    assert [place for place, lanes in lanes_of(plan).items() if len(lanes) > 1] == []


class Got(NamedTuple):
    """A request as a device got it, with its numbers: seeds are expanded."""

    device: str
    body: Any
    tensors: list[Tensor]


@contextmanager
def listening() -> Iterator[list[Got]]:
    """Note every request that any device begins to work on, in the order in which they do."""
    heard: list[Got] = []
    do = Worker._do

    def noting(worker: Worker, request: Requested) -> Any:
        heard.append(Got(worker.name, request.body, [expanded(tensor).clone() for tensor in request.tensors]))
        return do(worker, request)

    with patch.object(Worker, "_do", noting):
        yield heard
