import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from awfulowl.costs import PAPER_GPU, VGG16_FORWARD_FLOPS, Ledger, SpentError, forward_flops, gpu_hours
from awfulowl.models.vgg import Vgg16


def test_the_paper_s_training_takes_two_hours() -> None:
    assert gpu_hours(3 * VGG16_FORWARD_FLOPS * 50_000 * 100) == pytest.approx(2.0)
    assert 0.05 < PAPER_GPU.flops_per_s / 15.1e12 < 0.25


def test_operations_of_vgg16_are_those_of_the_model() -> None:
    with torch.device("meta"):
        model = Vgg16(100)
        image = torch.empty(1, 3, 32, 32)
    assert forward_flops(model, image) == VGG16_FORWARD_FLOPS


def test_operations_are_counted_for_one_input_and_the_mode_is_put_back() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=True), nn.ReLU(), nn.Linear(4, 2)).train()
    assert forward_flops(model, torch.zeros(5, 8)) == 2 * (8 * 4 + 4 * 2)
    assert model.training


def test_a_ledger_counts_by_kind_and_by_unit() -> None:
    ledger = Ledger()
    ledger.spend("forward", 10.2, evaluations=2, queries=3, moved=7)
    ledger.spend("forward", 5)
    ledger.spend("assignment", 1)
    assert ledger.by_kind == {"forward": 16, "assignment": 1}
    assert (ledger.flops, ledger.evaluations, ledger.queries, ledger.bytes) == (17, 2, 3, 7)
    cost = ledger.cost()
    assert cost.pop("gpu_hours") == gpu_hours(17)
    assert cost == {"flops": 17.0, "evaluations": 2.0, "queries": 3.0, "bytes": 7.0}


def test_what_would_go_over_a_budget_is_refused_and_not_counted() -> None:
    ledger = Ledger(flops=100, evaluations=2, queries=5)
    ledger.spend("forward", 60, evaluations=2)
    for amounts in ({"flops": 41}, {"flops": 0, "evaluations": 1}, {"flops": 0, "queries": 6}):
        assert not ledger.affords(**amounts)
        flops = amounts.pop("flops")
        with pytest.raises(SpentError, match="are left"):
            ledger.spend("more", flops, **amounts)
    assert (ledger.flops, ledger.evaluations, ledger.queries) == (60, 2, 0)
    assert ledger.affords(flops=40, queries=5)
    ledger.spend("rest", 40, queries=5)
    assert ledger.left() == ledger.left("queries") == ledger.left("evaluations") == 0


@pytest.mark.parametrize("flops", [-1.0, math.nan, math.inf])
def test_what_is_no_cost_is_refused(flops: float) -> None:
    with pytest.raises(ValueError, match="no cost"):
        Ledger().spend("odd", flops)
    with pytest.raises(ValueError, match="no cost"):
        Ledger().spend("odd", 1, evaluations=-1)


@given(st.lists(st.floats(0, 1e6), max_size=20), st.floats(0, 1e6))
def test_a_budget_is_never_passed(wishes: list[float], budget: float) -> None:
    ledger = Ledger(flops=budget)
    for wish in wishes:
        affordable = ledger.affords(flops=math.ceil(wish))
        try:
            ledger.spend("wish", wish)
        except SpentError:
            assert not affordable
    assert ledger.flops <= budget
