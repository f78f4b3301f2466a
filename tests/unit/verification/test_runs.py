"""Sums of which the owner adds up short runs in float32: what they lose, and what that adds to the tolerance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Check, Z
from awfulowl.verification.images import Side, Step
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF, own_terms, run_of, variance
from awfulowl.verification.sums import compare, expect, in_runs, precision, run_for
from awfulowl.verification.training import TrainingCheck
from awfulowl.verification.vectors import Keeping
from tests.unit.verification.descents import LAYERS, batch_of, true_gradient
from tests.unit.verification.shapes import Layer, convolution, dense, some
from tests.unit.verification.test_images import side_of, step_of

LONG = {
    "dense": dense(40, 512, 16, block=1024),
    "dense, few outputs": dense(3, 1000, 16, block=1024),
    "dense, wide": dense(900, 256, 16, block=1024),
    "convolution": convolution((20, 48, 3, 3), (6, 5), 16, block=1024),
    "convolution of a line": convolution((70, 130, 3), (9,), 16, block=1024),
    "strided": convolution((8, 60, 2, 2), (7, 6), 16, block=1024, stride=2),
}
"""Layers whose sums are long enough."""

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


def terms_of(layer: Layer) -> int:
    return layer.weights[0].numel()


# How long


def test_runs_are_short_beside_the_sums_of_a_device() -> None:
    for terms in range(1, 30_000, 7):
        run = run_of(terms)
        assert 6 * run <= terms
        assert run == 0 or run.bit_count() == 1
        assert variance(terms, run) <= 1.34 * variance(terms)
    assert [run_of(terms) for terms in (1, 191, 192, 384, 768, 4096, 10**6)] == [0, 0, 32, 64, 128, 128, 128]


def test_without_runs_nothing_is_added() -> None:
    assert own_terms(0) == 0
    assert variance(1000, 0) == variance(1000)


def test_float32_that_is_less_than_float32_is_not_used() -> None:
    assert run_for(4096) == 128
    torch.set_float32_matmul_precision("medium")
    try:
        assert run_for(4096) == 0
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("unit", [2.0**-100, 2.0**125, math.inf])
def test_weights_that_float32_has_no_room_for_are_left_to_float64(unit: float) -> None:
    assert run_for(4096, unit) == 0


# Products in runs


@some
@given(
    st.sampled_from([(), (1,), (3,)]),
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(1, 5),
    st.sampled_from([1, 8, 32]),
)
def test_products_are_those_of_float64(pairs: tuple[int, ...], rows: int, length: int, columns: int, run: int) -> None:
    left, right = torch.randn(*pairs, rows, length), torch.randn(*pairs, length, columns)
    exact = left.double() @ right.double()
    found = in_runs(left, right, run)
    assert found.dtype == torch.float64
    size = left.double().abs() @ right.double().abs()
    assert bool(((found - exact).abs() <= (run + 1) * UNIT_ROUNDOFF * size).all())
    assert torch.equal(in_runs(left.double(), right.double(), 0), exact)


def test_precision_is_that_of_the_products() -> None:
    assert (precision(0), precision(8)) == (torch.float64, torch.float32)


# The tolerance covers what the owner loses


@every
@pytest.mark.parametrize("kind", ["normal", "positive", "spread"])
def test_the_owner_loses_no_more_than_is_added(layer: Layer, kind: str) -> None:
    """Of an answer without any rounding, the whole residue is the owner's own."""
    layer = KINDS[kind](layer)
    secrets = Keeping([layer.weights], layer.grid, Entropy(5), 30, []).select(None, None)
    run = run_for(terms_of(layer), secrets.unit)
    assert run
    exact = layer._replace(weights=layer.weights.double(), x=layer.x.double()).y
    found = compare(expect(layer.grid.kernel, secrets, layer.x, exact.shape[2:], run), exact.float())
    # The float32 of an exact answer is off by half a unit, which a device's three terms are for.
    share = UNIT_ROUNDOFF**2 * MEAN_SQUARE * (own_terms(run) + 3) / 3
    residues = found.residue.square() / (share * found.energy)
    assert float(residues.mean()) <= 1


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
        assert float(check.expect(x).residue(y).max()) < Z / 2
        lie = y + 1e-4 * y.abs().mean() * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        assert not bool(check.accepts(x, lie).any())


@every
def test_samples_beside_one_of_another_scale_are_measured(layer: Layer) -> None:
    """Beyond what float32 can square, float64 takes over, for these samples alone."""
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


# Images of gradients


@pytest.mark.parametrize("transposed", [False, True], ids=["left", "right"])
@pytest.mark.parametrize("run", [1, 2, 8])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_images_of_gradients_lose_no_more_than_is_added(layer: Layer, transposed: bool, run: int) -> None:
    side = side_of(layer, transposed, parts=2)
    ratios = []
    for seed in range(5):
        x, dy = batch_of(layer, seed)
        exact, found = step_of(side, x, dy), step_of(side, x, dy, run)
        allowed = noise_of(side, found, 2 * own_terms(run))
        ratios.append(
            ((found.image - exact.image).square().view(*allowed.shape[:-2], -1, 3, allowed.shape[-1])).mean(-2)
            / allowed
        )
        torch.testing.assert_close(found.energy, exact.energy, rtol=1e-4, atol=0)
        assert found.terms == exact.terms + 2 * own_terms(run)
    assert float(torch.stack(ratios).nanmean()) <= 1


def noise_of(side: Side, step: Step, terms: int) -> Tensor:
    """The variance that so many more terms stand for: (*size, parts, b)."""
    squares = step.energy.double() + side._length_squared(step.image)
    return UNIT_ROUNDOFF**2 * MEAN_SQUARE * terms / 3 * squares


def test_steps_of_many_terms_are_seen_in_float32() -> None:
    layer = convolution((6, 4, 3, 3), (12, 12), 8)
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    x, dy = batch_of(layer)
    terms = len(dy) * math.prod(dy.shape[2:])
    assert {step.terms for step in check.see(x, dy)} == {terms + 2 * own_terms(run_of(terms))}
    few = check.see(x[:1], dy[:1])
    assert {step.terms for step in few} == {math.prod(dy.shape[2:])}


def test_a_training_in_float32_follows_the_weights() -> None:
    layer = convolution((16, 24, 3, 3), (8, 8), 16, block=64)
    generator = torch.Generator().manual_seed(1)
    weights = [layer.weights.double()]
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    for _ in range(20):
        x = torch.randn(layer.x.shape, generator=generator)
        now = weights[-1].float()
        y = layer._replace(weights=now, x=x).y
        assert bool(check.accepts(x, y).all())
        dy = torch.randn(y.shape, generator=generator)
        check.move(Descent.sgd(1e-3), [check.see(x, dy)])
        weights.append(weights[-1] - 1e-3 * true_gradient(layer.grid, x, dy))
    stale = layer._replace(weights=weights[-2].float(), x=x).y
    assert not bool(check.accepts(x, stale).any())
