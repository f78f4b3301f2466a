"""A layer whose traffic is seen is known, exactly where there are enough equations, and less where less is seen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from awfulowl.costs import Ledger, SpentError
from awfulowl.errors import InputError
from awfulowl.lab.traffic.equations import cosines, solve, unexplained
from tests.unit.lab.shuffled.networks import made


def everything(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return torch.ones(layer.weight.shape[1], dtype=torch.bool)


def images(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """What ReLUs leave: half of the numbers are zero."""
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed)).relu()


@torch.no_grad()
def block(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """A batch norm, made for other images of this kind, and a ReLU behind a convolution; the norm's scale beside it."""
    norm = nn.BatchNorm2d(layer.out_channels, momentum=1.0)
    norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(3))
    norm.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(4))
    norm(layer(images(100, x.shape[1], x.shape[2], seed=7)))
    norm.eval()
    variance = norm.running_var if norm.running_var is not None else torch.empty(0)
    return norm.weight / (variance + norm.eps).sqrt(), norm(layer(x)).relu()


def test_a_rectified_convolution_with_a_batch_norm_is_found_exactly() -> None:
    layer = made(nn.Conv2d, 8, 6, 3, 1, 1)
    x = images(60, 8, 4)
    scale, y = block(layer, x)
    found = solve(layer, x, y, everything(layer), Ledger(), rectified=True)
    assert cosines(found, layer.weight.detach(), everything(layer)).min() > 0.9999
    assert torch.allclose(found.weight, (scale[:, None, None, None] * layer.weight).detach(), atol=2e-3)
    other = images(30, 8, 4, seed=9)
    left = unexplained(layer, found, other, block(layer, other)[1], everything(layer), rectified=True)
    assert left.max() < 1e-5


def test_a_plain_layer_is_found_from_as_many_vectors_as_inputs() -> None:
    layer = made(nn.Linear, 20, 7)
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    y = layer(x).detach()
    found = solve(layer, x, y, everything(layer), Ledger(), rectified=False)
    assert torch.allclose(found.weight, layer.weight.detach(), atol=1e-3)
    assert torch.allclose(found.bias, layer.bias.detach(), atol=1e-3)
    assert found.equations.tolist() == [30] * 7


def test_too_few_equations_are_not_enough() -> None:
    layer = made(nn.Linear, 200, 5)
    x = torch.randn(100, 200, generator=torch.Generator().manual_seed(0)).relu()
    y = layer(x).detach().relu()
    found = solve(layer, x, y, everything(layer), Ledger(), rectified=True)
    assert found.equations.max() < 200
    assert cosines(found, layer.weight.detach(), everything(layer)).max() < 0.9


def test_it_falls_with_the_share_that_is_seen() -> None:
    layer = made(nn.Conv2d, 16, 8, 3, 1, 1)
    x, other = images(200, 16, 4), images(100, 16, 4, seed=5)
    y, answers = block(layer, x)[1], block(layer, other)[1]
    reached, left = [], []
    for channels in (16, 12, 8, 4):
        seen = torch.arange(16) < channels
        found = solve(layer, x, y, seen, Ledger(), rectified=True)
        reached.append(float(cosines(found, layer.weight.detach(), seen).mean()))
        left.append(float(unexplained(layer, found, other, answers, seen, rectified=True).mean()))
        assert not found.weight[:, ~seen].any()
    assert reached == sorted(reached, reverse=True)
    assert left == sorted(left)
    assert reached[0] > 0.9999
    assert left[-1] > 0.1


def test_some_rows_are_those_of_all() -> None:
    layer = made(nn.Conv2d, 4, 6, 3, 1, 1)
    x = images(40, 4, 4)
    y = block(layer, x)[1]
    rows = torch.tensor([4, 1])
    every = solve(layer, x, y, everything(layer), Ledger(), rectified=True)
    some = solve(layer, x, y, everything(layer), Ledger(), rectified=True, rows=rows)
    assert torch.allclose(some.weight, every.weight[rows])
    assert torch.equal(some.equations, every.equations[rows])
    left = unexplained(layer, some, x, y, everything(layer), rectified=True, rows=rows)
    assert left.shape == (2,)


@settings(max_examples=15)
@given(st.integers(1, 2), st.integers(0, 2), st.integers(1, 2), st.integers(2, 3))
def test_any_stride_padding_and_dilation(stride: int, padding: int, dilation: int, size: int) -> None:
    layer = made(nn.Conv2d, 3, 2, size, stride, padding, dilation)
    x = torch.randn(60, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    found = solve(layer, x, layer(x).detach(), everything(layer), Ledger(), rectified=False)
    assert torch.allclose(found.weight, layer.weight.detach(), atol=2e-3)


def test_flattened_outputs_are_told_by_their_pixels() -> None:
    layer = made(nn.Conv2d, 4, 6, 3, 1, 1)
    x = images(40, 4, 4)
    y = block(layer, x)[1]
    one = solve(layer, x, y, everything(layer), Ledger(), rectified=True)
    other = solve(layer, x, y.flatten(2), everything(layer), Ledger(), rectified=True)
    assert torch.equal(one.weight, other.weight)


def test_the_ledger_pays_first() -> None:
    layer = made(nn.Linear, 20, 7)
    x = torch.randn(30, 20)
    ledger = Ledger(flops=1000)
    with pytest.raises(SpentError):
        solve(layer, x, layer(x).detach(), everything(layer), ledger, rectified=False)
    assert ledger.flops == 0
    paid = Ledger()
    solve(layer, x, layer(x).detach(), everything(layer), paid, rectified=False)
    assert paid.by_kind["least squares"] >= 2 * 30 * 21**2


def test_what_does_not_fit_is_refused() -> None:
    layer = made(nn.Linear, 20, 7)
    x, all_seen = torch.randn(30, 20), everything(layer)
    with pytest.raises(InputError, match="do not fit"):
        solve(layer, x[:, :19], torch.randn(30, 7), all_seen, Ledger(), rectified=False)
    with pytest.raises(InputError, match="do not belong"):
        solve(layer, x, torch.randn(29, 7), all_seen, Ledger(), rectified=False)
    with pytest.raises(InputError, match="nothing to solve"):
        solve(layer, x, torch.randn(30, 7), ~all_seen, Ledger(), rectified=False)
    grouped = made(lambda: nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(InputError, match="grouped"):
        solve(
            grouped, torch.randn(2, 4, 5, 5), torch.randn(2, 4, 3, 3), torch.ones(4).bool(), Ledger(), rectified=False
        )
