"""What rounding leaves behind of gradients whose sums are larger on their way than at their end."""

import math

import pytest
import torch
from torch import Tensor

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, gradient
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Z
from awfulowl.verification.images import LARGEST_SQUARE
from awfulowl.verification.reworking import gradient_of
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF
from awfulowl.verification.steps import Runs, Step, gained, gained_by_runs
from awfulowl.verification.training import TrainingCheck
from tests.unit.verification.descents import batch_of
from tests.unit.verification.shapes import Layer
from tests.unit.verification.test_images import shapes, side_of, sides, step_of

SAMPLES, CHANNELS, LENGTH = 16, 16, 16
KERNEL = Convolution(stride=(1, 1), padding=(1, 1), dilation=(1, 1))


def spread_out(values: Tensor) -> Tensor:
    """The same at every position of a sample."""
    return values[:, :, None, None].expand(-1, -1, LENGTH, LENGTH).contiguous()


def inputs(kind: str) -> Tensor:
    """Inputs whose products of one sample are alike, more or less."""
    constant = spread_out(torch.rand(1, CHANNELS).expand(SAMPLES, -1))
    match kind:
        case "constant":
            return constant
        case "half a picture":
            constant[..., LENGTH // 2 :] = 0
            return constant
        case "a ramp":
            return constant * torch.linspace(0.5, 1, LENGTH)
        case _:
            return torch.randn(constant.shape).relu()


def cancelling() -> Tensor:
    """Gradients that add up to 0 over the batch, as before a batch normalisation."""
    values = torch.randn(SAMPLES, CHANNELS)
    return spread_out(values - values.mean(dim=0))


def as_rows(x: Tensor) -> Tensor:
    """Positions as tokens of a sequence."""
    return x.movedim(1, -1).flatten(0, -2).contiguous()


def farthest(kernel: Kernel, x: Tensor, dy: Tensor, groups: int = 1) -> tuple[float, float]:
    """How far float32 gradients are off, as a share of what is allowed, with runs and without."""
    taps = (3, 3) if isinstance(kernel, Convolution) else ()
    grid = make_grid((CHANNELS, CHANNELS // groups, *taps), kernel, groups, block=CHANNELS)
    check = TrainingCheck([torch.randn(grid.shape)], grid, Entropy(1))
    off = gradient(kernel, taps, x, dy, groups).double() - gradient(kernel, taps, x.double(), dy.double(), groups)
    shares: list[list[float]] = [[], []]
    for side, step in zip((check._left, check._right), check.see(x, dy), strict=True):
        found = side.project([off]).abs()
        noise = gained(step, side._length_squared(step.image))
        assert step.runs is not None
        for share, allowed in zip(shares, (noise + gained_by_runs(step, step.runs), noise), strict=True):
            limit = Z * UNIT_ROUNDOFF * (LARGEST_SQUARE * MEAN_SQUARE * allowed).sqrt()
            share.append(float((found / limit).max()))
    return max(shares[0]), max(shares[1])


@pytest.mark.parametrize("kind", ["constant", "half a picture", "a ramp", "rectified"])
@pytest.mark.parametrize("groups", [1, 4])
def test_samples_of_convolutions_that_cancel(kind: str, groups: int) -> None:
    torch.manual_seed(0)
    with_runs, without = farthest(KERNEL, inputs(kind), cancelling(), groups)
    assert with_runs <= 1
    # Without, honest devices were called liars.
    assert without > (1 if groups == 1 and kind != "rectified" else with_runs)


@pytest.mark.parametrize("kind", ["constant", "half a picture", "a ramp", "rectified"])
def test_tokens_of_samples_that_cancel(kind: str) -> None:
    torch.manual_seed(0)
    with_runs, without = farthest(Dense(), as_rows(inputs(kind)), as_rows(cancelling()))
    assert with_runs <= 1
    assert without > with_runs


@pytest.mark.parametrize("kind", ["constant", "half a picture", "a ramp", "rectified"])
def test_blocks_that_the_owner_rebuilds(kind: str) -> None:
    torch.manual_seed(0)
    x, dy = inputs(kind), cancelling()
    for kernel, taps, pair in ((KERNEL, (3, 3), (x, dy)), (Dense(), (), (as_rows(x), as_rows(dy)))):
        expected = gradient_of(kernel, (CHANNELS, CHANNELS, *taps), [pair], 1)
        found = gradient(kernel, taps, *pair, 1).double()
        assert bool(((found - expected.value).abs() <= expected.off).all())


@sides
@shapes
def test_runs_of_convolutions_are_samples(transposed: bool, layer: Layer) -> None:
    x, dy = batch_of(layer)
    side = side_of(layer, transposed, parts=2)
    step = step_of(side, x, dy)
    if x.dim() == 2:
        assert step.runs is None
        return
    alone = [
        side._length_squared(step_of(side, *one).image)
        for one in zip(torch.split(x, 1), torch.split(dy, 1), strict=True)
    ]
    assert step.runs is not None
    torch.testing.assert_close(step.runs.energy, sum(alone), rtol=1e-9, atol=1e-12)
    assert step.runs.terms == math.prod(dy.shape[2:])


def test_sums_of_steps_have_the_runs_of_all() -> None:
    one = torch.ones(1, 1)
    short, long = Step(one, one, 2), Step(one, one, 6, Runs(3 * one.double(), 2.0))
    assert Step.total([short, short]).runs is None
    runs = Step.total([short, long]).runs
    assert runs is not None
    assert (float(runs.energy), runs.terms) == (4.0, 14 / 8)


def test_terms_of_random_signs_gain_next_to_nothing() -> None:
    torch.manual_seed(0)
    grid = make_grid((CHANNELS, CHANNELS, 3, 3), KERNEL, 1, block=CHANNELS)
    check = TrainingCheck([torch.randn(grid.shape)], grid, Entropy(1))
    shape = (SAMPLES, CHANNELS, LENGTH, LENGTH)
    for side, step in zip((check._left, check._right), check.see(torch.randn(shape), torch.randn(shape)), strict=True):
        assert step.runs is not None
        more = gained_by_runs(step, step.runs).sum()
        assert more < 0.2 * gained(step, side._length_squared(step.image)).sum()
