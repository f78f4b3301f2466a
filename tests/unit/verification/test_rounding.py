"""The model of honest errors against sums made one product after the other, and the bound against drawn lies."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.results import wilson
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF, miss_bound, variance
from tests.unit.verification.shapes import some


def one_after_the_other(x: Tensor, weights: Tensor) -> Tensor:
    """The order of summation with the largest errors that ordinary devices have."""
    total = torch.zeros(len(x), len(weights))
    for index in range(x.shape[1]):
        total.addcmul_(x[:, index : index + 1], weights[:, index])
    return total


def growth(x: Tensor, weights: Tensor) -> float:
    """Mean square of the errors in units of the model's variance."""
    exact = x.double() @ weights.double().T
    energy = x.double().square() @ weights.double().square().T + exact.square()
    error = one_after_the_other(x, weights).double() - exact
    return float((error.square().sum() / (variance(x.shape[1]) * energy.sum())).sqrt())


def test_unit_roundoff_is_that_of_float32() -> None:
    assert torch.finfo(torch.float32).eps / 2 == UNIT_ROUNDOFF


def test_mean_square_of_a_rounding_error() -> None:
    """κ: errors of sums whose mantissas follow Benford's law."""
    exact = torch.exp(torch.rand(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40)
    relative = (exact.float().double() - exact) / exact / UNIT_ROUNDOFF
    squares = relative.square()
    error = 4 * float(squares.std()) / math.sqrt(len(squares))
    assert float(squares.mean()) == pytest.approx(MEAN_SQUARE, abs=error)


@pytest.mark.parametrize("length", [1, 2, 8, 64, 512])
@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_honest_errors_stay_below_the_model(length: int, mean: float) -> None:
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(256, length, generator=generator) + mean
    assert growth(x, torch.randn(256, length, generator=generator)) < 1


def test_model_is_tight() -> None:
    """Products of any sign: y² is as large as Q, so the model is high by √(4/3), and for few terms by more."""
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(256, 1024, generator=generator), torch.randn(256, 1024, generator=generator)
    assert growth(x, weights) == pytest.approx(math.sqrt(3 / 4), rel=0.05)


def test_products_of_one_sign_reach_the_model() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weights = torch.rand(256, 1024, generator=generator), torch.rand(256, 1024, generator=generator)
    assert 0.9 < growth(x, weights) < 1.1


def test_a_dominant_first_product_is_within_the_allowance() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weights = torch.randn(256, 1024, generator=generator), torch.randn(256, 1024, generator=generator)
    x[:, 0] = 1000
    assert growth(x, weights) < math.sqrt(3 / 2) * math.sqrt(1 / 3 / MEAN_SQUARE)


def test_variance_grows_with_the_terms() -> None:
    assert variance(2_000_000) / variance(1_000_000) == pytest.approx(2, rel=1e-5)


@some
@given(st.floats(0, 10), st.integers(1, 6), st.sampled_from([1, 2, 100]))
def test_a_bound_is_a_probability(ratio: float, vectors: int, positions: int) -> None:
    assert 0 <= miss_bound(ratio, vectors, positions=positions) <= 1
    assert miss_bound(ratio, vectors, positions=positions) <= miss_bound(ratio, 1, positions=positions)


@some
@given(st.floats(0, 10), st.floats(0, 10), st.sampled_from([1, 9]))
def test_larger_lies_are_missed_less(one: float, other: float, positions: int) -> None:
    low, high = sorted((one, other))
    assert miss_bound(low, 3, positions=positions) <= miss_bound(high, 3, positions=positions)


def test_small_ratios_miss_as_claimed() -> None:
    assert miss_bound(0.01, 1) <= 0.8 * 0.01
    assert miss_bound(0.01, 3) <= (0.8 * 0.01) ** 3
    assert miss_bound(0.01, 3, positions=16) <= (2 * 0.01) ** 3
    assert miss_bound(1.0, 3) == 1


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("shape", ["one output", "even", "aside"])
def test_dense_bound_holds_for_drawn_secrets(ratio: float, shape: str) -> None:
    """The share of secrets that a lie passes, for tolerances that lie along it, everywhere, and beside it."""
    outputs, draws = 12, 200_000
    r = torch.randn(draws, outputs, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    lie = torch.zeros(outputs, dtype=torch.float64)
    lie[0] = 1
    weight = {"one output": lie, "even": torch.ones(outputs), "aside": 1 - lie}[shape].double()
    tolerance = ratio * (r.square() @ (weight / weight.sum())).sqrt()
    passed = int(((r @ lie).abs() <= tolerance).sum())
    assert wilson(passed, draws, 0.9999).low <= miss_bound(ratio, 1)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_bound_with_positions_holds_for_drawn_secrets(ratio: float, rank: int) -> None:
    draws, outputs, positions = 100_000, 12, 8
    generator = torch.Generator().manual_seed(rank)
    r = torch.randn(draws, outputs, generator=generator, dtype=torch.float64)
    lie = torch.randn(outputs, rank, generator=generator) @ torch.randn(rank, positions, generator=generator)
    lie = lie.double() / lie.double().norm()
    passed = int(((r @ lie).norm(dim=1) <= ratio * (r.square().mean(dim=1)).sqrt()).sum())
    assert wilson(passed, draws, 0.9999).low <= miss_bound(ratio, 1, positions=positions)
    if rank == 1:
        assert wilson(passed, draws, 0.9999).low <= miss_bound(ratio, 1)
