"""Totals of which shares are shares."""

import pytest
import torch
from torch import Tensor, nn

from awfulowl.cli.model_costs import Costs, costs
from awfulowl.models.catalogue import load_example
from awfulowl.placement.survey import survey


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (nn.Linear(8, 4), torch.ones(1, 8), Costs(36, 2 * 8 * 4)),
        (nn.Linear(8, 4), torch.ones(5, 8), Costs(36, 2 * 8 * 4)),
        (nn.Linear(8, 4), torch.ones(1, 3, 8), Costs(36, 3 * 2 * 8 * 4)),
        (nn.Conv2d(2, 6, 3, padding=1, groups=2), torch.ones(1, 2, 5, 5), Costs(60, 2 * 25 * 54)),
        (nn.ReLU(), torch.ones(1, 8), Costs(0, 0)),
        (Attention(), torch.ones(1, 2, 5, 8), Costs(0, 2 * 2 * 2 * 5 * 5 * 8)),
        (nn.Linear(8, 4), None, Costs(36, None)),
    ],
)
def test_parameters_and_operations_of_a_sample(model: nn.Module, example: object, expected: Costs) -> None:
    assert costs(model.eval(), example) == expected


def test_a_weight_that_is_used_twice_is_one() -> None:
    layer = nn.Linear(4, 4)
    assert costs(nn.Sequential(layer, layer), torch.ones(1, 4)) == Costs(20, 2 * 2 * 16)


def test_a_weight_that_is_not_there_yet_is_none() -> None:
    assert costs(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), None) == Costs(10, None)


@pytest.mark.parametrize("fast", [True, False])
def test_fused_layers_are_counted_as_what_they_do(fast: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        found = costs(layer, torch.ones(1, 5, 32))
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert found.flops == 2 * 5 * 32 * (96 + 32 + 64 + 64) + 2 * 2 * 4 * 5 * 5 * 8


@pytest.mark.parametrize("name", ["digits", "mlp"])
def test_what_the_plan_counts_is_no_more_than_all(name: str) -> None:
    model, example = load_example(name)
    layers = survey(model, example).layers
    on_devices = sum(2 * torch.Size(layer.shape).numel() * layer.positions for layer in layers)
    assert costs(model, example).flops == on_devices
