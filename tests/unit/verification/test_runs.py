"""Sums of which the owner adds up short runs in float32: what they lose, and what that adds to the tolerance."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Check, Z
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF, own_terms, run_of, variance
from awfulowl.verification.sums import compare, expect, in_runs, run_for
from awfulowl.verification.training import TrainingCheck
from awfulowl.verification.vectors import Keeping
from tests.unit.verification.shapes import Layer, convolution, dense, some

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


SETTINGS = {
    "torch.set_float32_matmul_precision('medium')": 0,
    "torch.set_float32_matmul_precision('high')": 0,
    "torch.backends.fp32_precision = 'bf16'": 0,
    "torch.backends.mkldnn.fp32_precision = 'bf16'": 0,
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'": 0,
    "torch.backends.mkldnn.matmul.fp32_precision = 'ieee'": 128,
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": 128,
    "torch.backends.cuda.matmul.allow_tf32 = True": 128,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_float32_that_is_less_than_float32_is_not_used(setting: str) -> None:
    """Settings of a process: each has one of its own."""
    code = f"import torch; {setting}; from awfulowl.verification.sums import run_for; print(run_for(4096))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == SETTINGS[setting]


@pytest.mark.parametrize("unit", [2.0**-100, 2.0**125, math.inf])
def test_weights_that_float32_has_no_room_for_are_left_to_float64(unit: float) -> None:
    assert run_for(4096, unit) == 0


# Products in runs


@some
@given(st.integers(1, 4), st.integers(0, 70), st.integers(0, 5), st.sampled_from([1, 8, 32]))
def test_products_are_those_of_float64(rows: int, length: int, columns: int, run: int) -> None:
    left, right = torch.randn(rows, length), torch.randn(length, columns)
    exact = left.double() @ right.double()
    found = in_runs(left, right, run)
    assert found.dtype == torch.float64
    size = left.double().abs() @ right.double().abs()
    assert bool(((found - exact).abs() <= (run + 1) * UNIT_ROUNDOFF * size).all())
    assert torch.equal(in_runs(left.double(), right.double(), 0), exact)


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


@every
def test_no_samples_are_accepted(layer: Layer) -> None:
    check = Check([layer.weights], layer.grid, Entropy(1))
    assert check.accepts(layer.x[:0], layer.y[:0]).shape == (0,)


@every
def test_automatic_mixed_precision_makes_no_difference(layer: Layer) -> None:
    """But to the size of the tolerance, by a thousandth."""
    check = Check([layer.weights], layer.grid, Entropy(1))
    y = layer.y
    plain = check.expect(layer.x).residue(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(check.expect(layer.x).residue(y), plain, rtol=1e-2, atol=1e-4)


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
