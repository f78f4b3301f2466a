"""Compiled loops compute what PyTorch does; without numba, or for other numbers, they step aside."""

import sys
from collections.abc import Iterator
from typing import Any

import numba
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.owner.policy import Policy
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled
from awfulowl.verification.freivalds import Check
from awfulowl.verification.training import TrainingCheck
from tests.simulated.memory_fleet import still_fleet
from tests.simulated.training import perceptron, twins
from tests.unit.verification.shapes import Layer, dense, layers, some


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    """Leave other tests what they had."""
    before = list(compiled._loops)
    assert compiled.prepare()
    yield
    compiled._loops[:] = before


shapes = st.tuples(st.integers(1, 7), st.integers(0, 6), st.integers(0, 70))
"""Rows, samples, channels."""


def numbers(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(-(2**24), 2**24, shape, generator=generator, dtype=dtype)


@given(shapes, st.sampled_from([torch.float32, torch.int32, torch.int64]), st.integers(0, 2**32))
def test_products_are_pytorchs(shape: tuple[int, int, int], dtype: torch.dtype, seed: int) -> None:
    rows, batch, channels = shape
    x, weights = numbers((batch, channels), dtype, seed), numbers((rows, channels), torch.float64, seed + 1)
    found = compiled.weigh(weights, x)
    assert found is not None
    torch.testing.assert_close(found, weights @ x.double().T, rtol=1e-12, atol=1e-9 if dtype is torch.float32 else 1e-3)


@given(shapes, st.sampled_from([torch.int32, torch.int64]), st.integers(0, 2**32))
def test_integers_are_exact(shape: tuple[int, int, int], dtype: torch.dtype, seed: int) -> None:
    rows, batch, channels = shape
    x = numbers((batch, channels), dtype, seed)
    weights = torch.randint(-(2**20), 2**20, (rows, channels), generator=torch.Generator().manual_seed(seed))
    found = compiled.weigh(weights.double(), x)
    assert found is not None
    assert torch.equal(found.long(), weights @ x.long().T)


@given(shapes, st.integers(0, 2**32))
def test_energies_are_pytorchs(shape: tuple[int, int, int], seed: int) -> None:
    rows, batch, channels = shape
    x, weights = (
        numbers((batch, channels), torch.float32, seed),
        numbers((rows, channels), torch.float32, seed).square(),
    )
    found = compiled.energy(weights, x)
    assert found is not None
    torch.testing.assert_close(found, weights @ x.square().T, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_comes_out_as_it_should(value: float) -> None:
    x = torch.ones(3, 40)
    x[1, 17] = value
    for found in (compiled.weigh(torch.ones(3, 40, dtype=torch.float64), x), compiled.energy(torch.ones(3, 40), x)):
        assert found is not None
        assert found.isfinite().all(dim=0).tolist() == [True, False, True]


def test_opposite_infinities_are_no_number() -> None:
    x = torch.tensor([[float("inf"), float("-inf")]])
    found = compiled.weigh(torch.ones(1, 2, dtype=torch.float64), x)
    assert found is not None
    assert bool(found.isnan().all())


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(6, 4).T,
        torch.ones(4, 12)[:, ::2],
        torch.ones(4, 6, dtype=torch.bfloat16),
        torch.ones(4, 6, dtype=torch.float64),
        torch.ones(4, 6, device="meta"),
    ],
    ids=["transposed", "strided", "bfloat16", "float64", "another device"],
)
def test_other_numbers_are_left_to_pytorch(x: Tensor) -> None:
    assert compiled.weigh(torch.ones(3, 6, dtype=torch.float64), x) is None
    assert compiled.energy(torch.ones(3, 6), x) is None


def test_gradients_are_no_hindrance() -> None:
    x = torch.ones(4, 6, requires_grad=True)
    assert compiled.weigh(torch.ones(3, 6, dtype=torch.float64), x) is not None
    assert compiled.energy(torch.ones(3, 6), x) is not None


def test_nothing_is_compiled_before_it_is_asked_for() -> None:
    compiled._loops.clear()
    assert compiled.weigh(torch.ones(3, 6, dtype=torch.float64), torch.ones(4, 6)) is None
    assert compiled.energy(torch.ones(3, 6), torch.ones(4, 6)) is None


def test_without_numba_all_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled._loops.clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not compiled.prepare()


def test_where_nothing_can_be_kept_it_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled._loops.clear()
    njit, kept = numba.njit, []

    def nowhere(*arguments: Any, **options: Any) -> Any:
        kept.append(options["cache"])
        if options["cache"]:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", nowhere)
    assert compiled.prepare()
    assert kept == [True, False]


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_loops", [])


@some
@given(layers(least_batch=1), st.sampled_from([Check, TrainingCheck]))
def test_checks_find_the_same(layer: Layer, kind: type[Check] | type[TrainingCheck]) -> None:
    check = kind([layer.weights], layer.grid, Entropy(1))
    ours = check.expect(layer.x).tolerance(layer.y), check.expect(layer.x).residue(layer.y)
    with pytest.MonkeyPatch.context() as monkeypatch:
        without(monkeypatch)
        theirs = check.expect(layer.x).tolerance(layer.y), check.expect(layer.x).residue(layer.y)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert bool(check.accepts(layer.x, layer.y).all())


def test_samples_that_float32_cannot_square_are_done_again() -> None:
    """In float64, by PyTorch."""
    layer = dense(8, 6)
    check = Check([layer.weights], layer.grid, Entropy(1))
    for scale in (1e-25, 1e25):
        own = layer._replace(x=layer.x * scale)
        assert bool(check.accepts(own.x, own.y).all())
        assert not bool(check.accepts(own.x, own.y * 1.001).any())


@pytest.mark.parametrize("worth", [1, 1 << 20])
def test_a_fleet_compiles_for_large_layers_alone(monkeypatch: pytest.MonkeyPatch, worth: int) -> None:
    compiled._loops.clear()
    monkeypatch.setattr(compiled, "WORTH_COMPILING", worth)
    with still_fleet(2, Policy()) as fleet:
        pair = twins(fleet, perceptron())
        assert bool(compiled._loops) is (worth == 1)
        pair.step(2)
        pair.agree()
