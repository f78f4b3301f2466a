"""Outputs that are sums of hundreds of products: scales, types, memory and threads make no difference."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Check, Z
from awfulowl.verification.training import TrainingCheck
from tests.unit.verification.shapes import Layer, convolution, dense

LONG = {
    "dense": dense(40, 512, 16, block=1024),
    "dense, few outputs": dense(3, 1000, 16, block=1024),
    "dense, wide": dense(900, 256, 16, block=1024),
    "convolution": convolution((20, 48, 3, 3), (6, 5), 16, block=1024),
    "convolution of a line": convolution((70, 130, 3), (9,), 16, block=1024),
    "strided": convolution((8, 60, 2, 2), (7, 6), 16, block=1024, stride=2),
    "grouped": convolution((8, 24, 3, 3), (6, 5), 16, block=1024, groups=2),
    "depthwise": convolution((6, 1, 15, 15), (16, 16), 16, block=1024, groups=6, padding=7),
}

every = pytest.mark.parametrize("layer", LONG.values(), ids=LONG)
KINDS = {
    "normal": lambda layer: layer,
    "constant": lambda layer: layer._replace(
        x=torch.ones_like(layer.x) / 3, weights=torch.full_like(layer.weights, 0.1)
    ),
    "positive": lambda layer: layer._replace(x=layer.x.abs(), weights=layer.weights.abs()),
    "spread": lambda layer: layer._replace(
        x=layer.x * torch.logspace(-8, 8, layer.x[0].numel()).view(layer.x[0].shape)
    ),
}


@every
@pytest.mark.parametrize("kind", KINDS)
def test_honest_answers_pass_and_lies_do_not(layer: Layer, kind: str) -> None:
    layer = KINDS[kind](layer)
    x, y = layer.x, layer.y
    for check in (
        Check([layer.weights], layer.grid, Entropy(1)),
        TrainingCheck([layer.weights], layer.grid, Entropy(1)),
    ):
        assert bool(check.accepts(x, y).all())
        assert float(check.expect(x).residue(y).max()) < (Z if kind == "constant" else Z / 2)
        lie = y + 1e-4 * y.abs().mean() * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        assert not bool(check.accepts(x, lie).any())


@every
def test_samples_beside_one_of_another_scale_are_measured(layer: Layer) -> None:
    """Beyond what float32 can square, float64 takes over for the energies of these samples alone."""
    for scale in (1e-18, 1e18):
        x = layer.x.clone()
        x[2] *= scale
        own = layer._replace(x=x)
        check = Check([layer.weights], layer.grid, Entropy(1))
        assert bool(check.accepts(x, own.y).all())
        lie = own.y.clone()
        lie[2] *= 1.001
        assert check.accepts(x, lie).tolist() == [sample != 2 for sample in range(len(x))]


def test_a_sample_of_zeros_is_measured() -> None:
    layer = LONG["dense"]
    x = layer.x.clone()
    x[1] = 0
    y = layer._replace(x=x).y
    check = Check([layer.weights], layer.grid, Entropy(1))
    assert bool(check.accepts(x, y).all())
    y[1, 0] = 1e-30
    assert check.accepts(x, y).tolist() == [sample != 1 for sample in range(len(x))]


@every
def test_no_samples_are_accepted(layer: Layer) -> None:
    check = Check([layer.weights], layer.grid, Entropy(1))
    assert check.accepts(layer.x[:0], layer.y[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_other_types_are_taken_at_their_values(dtype: torch.dtype) -> None:
    layer = LONG["dense"]
    x = layer.x.to(dtype)
    own = layer._replace(x=x.float())
    assert bool(Check([layer.weights], layer.grid, Entropy(1)).accepts(x, own.y).all())


@every
def test_neither_inputs_nor_answers_are_written_to(layer: Layer) -> None:
    x, y = layer.x.clone(), layer.y
    before = y.clone()
    for check in (
        Check([layer.weights], layer.grid, Entropy(1)),
        TrainingCheck([layer.weights], layer.grid, Entropy(1)),
    ):
        check.accepts(x, y)
    dy = torch.randn_like(y)
    gradients = dy.clone()
    TrainingCheck([layer.weights], layer.grid, Entropy(1)).see(x, dy)
    assert torch.equal(x, layer.x)
    assert torch.equal(y, before)
    assert torch.equal(dy, gradients)


def test_threads_have_memory_of_their_own() -> None:
    checks = [(Check([layer.weights], layer.grid, Entropy(1)), layer) for layer in LONG.values()] * 4

    def residue(pair: tuple[Check, Layer]) -> Tensor:
        check, layer = pair
        return check.expect(layer.x).residue(layer.y)

    with ThreadPoolExecutor(4) as pool:
        for beside, alone in zip(pool.map(residue, checks), map(residue, checks), strict=True):
            torch.testing.assert_close(beside, alone, rtol=0.1, atol=0.1)  # of deviations: sums may have another order
