"""The products a device may choose from: right, or not chosen."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.device import dense
from awfulowl.device.dense import (
    PLAIN,
    Multiply,
    Products,
    fastest,
    is_right,
    onednn,
    onednn_transposed,
    plain,
    plain_transposed,
)
from awfulowl.verification.rounding import variance

CANDIDATES = [plain, onednn]
ONEDNN = Products(onednn, onednn_transposed)

needs_onednn = pytest.mark.skipif(not dense.is_right(onednn), reason="this PyTorch has no oneDNN")


def energy(x: Tensor, weight: Tensor) -> Tensor:
    exact = x.double() @ weight.double().T
    return x.double().square() @ weight.double().square().T + exact.square()


@needs_onednn
@pytest.mark.parametrize("multiply", CANDIDATES)
@settings(max_examples=60, deadline=None)
@given(batch=st.integers(0, 9), inputs=st.integers(1, 40), outputs=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_product_is_that_of_float32(multiply: Multiply, batch: int, inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    y = multiply(x, weight)
    assert (y.shape, y.dtype) == ((batch, outputs), torch.float32)
    error = (y - x.double() @ weight.double().T).square()
    assert bool((error <= 100 * variance(inputs) * energy(x, weight)).all())  # ten deviations, as the owner's check


@needs_onednn
@pytest.mark.parametrize("transposed", [plain_transposed, onednn_transposed])
@settings(max_examples=60, deadline=None)
@given(batch=st.integers(0, 9), inputs=st.integers(1, 40), outputs=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_transposed_product_is_that_of_float32(
    transposed: Multiply, batch: int, inputs: int, outputs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(batch, outputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    dx = transposed(dy, weight)
    assert (dx.shape, dx.dtype) == ((batch, inputs), torch.float32)
    error = (dx - dy.double() @ weight.double()).square()
    assert bool((error <= 100 * variance(outputs) * energy(dy, weight.T)).all())


@needs_onednn
def test_weights_and_inputs_that_are_parts_of_others() -> None:
    whole, wide = torch.randn(30, 50), torch.randn(7, 50)
    for weight, x in [(whole[3:9, 10:40], wide[:, 5:35]), (whole[4:8], wide), (whole[:, :20], wide[:, 30:])]:
        torch.testing.assert_close(onednn(x, weight), x @ weight.T)
        dy = wide[:, 2 : 2 + len(weight)]
        torch.testing.assert_close(onednn_transposed(dy, weight), dy @ weight)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, weight: (x.bfloat16() @ weight.bfloat16().T).float(),
        lambda x, weight: (x.half() @ weight.half().T).float(),
        lambda x, weight: coarse(x, 11) @ coarse(weight, 11).T,  # TF32
        lambda x, weight: x @ weight.T + 1e-3,
        lambda x, weight: (x @ weight.T).double(),
        lambda x, weight: (x @ weight.T)[:, 1:],
        lambda x, weight: torch.full((len(x), len(weight)), torch.nan),
    ],
)
def test_what_is_not_float32_is_never_chosen(wrong: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert not is_right(wrong)


def coarse(x: Tensor, bits: int) -> Tensor:
    """Round to so many bits of mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def test_pytorch_s_own_product_is_right() -> None:
    assert is_right(plain)


def test_without_onednn_pytorch_s_own_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(x: Tensor, weight: Tensor) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(dense, "onednn", missing)
    assert fastest.__wrapped__() == PLAIN == Products(plain, plain_transposed)


@pytest.mark.parametrize("wrong", [onednn, onednn_transposed])
def test_both_ways_are_chosen_or_none(monkeypatch: pytest.MonkeyPatch, wrong: Multiply) -> None:
    def missing(x: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(dense, wrong.__name__, missing)
    monkeypatch.setattr(dense, "_seconds", lambda multiply: 1.0 if multiply is plain else 0.1)
    assert fastest.__wrapped__() == PLAIN


@pytest.mark.parametrize(("slower", "faster", "chosen"), [(1.0, 0.5, ONEDNN), (1.0, 0.9, PLAIN), (1.0, 2.0, PLAIN)])
def test_only_what_is_clearly_faster_is_chosen(
    monkeypatch: pytest.MonkeyPatch, slower: float, faster: float, chosen: Products
) -> None:
    monkeypatch.setattr(dense, "is_right", lambda _: True)
    monkeypatch.setattr(dense, "_seconds", lambda multiply: {plain: slower, onednn: faster}[multiply])
    assert fastest.__wrapped__() == chosen


def test_the_choice_is_made_once() -> None:
    assert fastest() is fastest()
