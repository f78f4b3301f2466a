"""Lies: each kind is caught at the claimed rate, wherever it hides, with secrets drawn anew for each."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from awfulowl.blocks.grid import rectangle, take
from awfulowl.blocks.kernels import product
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import VECTORS, Check, Z
from awfulowl.verification.rounding import miss_bound
from tests.unit.verification.shapes import Layer, convolution, dense

DRAWS = 2000
"""Sets of secrets that each lie is told to."""

SURE = 1e-6
"""How improbable a count must be, if a claim is true, to contradict it; there are about fifty counts."""

Lie = Callable[[Layer, torch.Generator], Tensor]


def one_row(layer: Layer, generator: torch.Generator) -> Tensor:
    direction = torch.zeros_like(layer.y)
    direction[:, 0] = 1
    return direction


def two_rows(layer: Layer, generator: torch.Generator) -> Tensor:
    direction = one_row(layer, generator)
    direction[:, -1] = -1
    return direction


def random(layer: Layer, generator: torch.Generator) -> Tensor:
    return torch.randn(layer.y.shape, generator=generator)


def low_rank(layer: Layer, generator: torch.Generator) -> Tensor:
    outputs, rest = layer.weights.shape[0], layer.weights[0].numel()
    weights = torch.randn(outputs, 2, generator=generator) @ torch.randn(2, rest, generator=generator)
    return product(layer.grid.kernel, weights.view_as(layer.weights), layer.x, layer.grid.groups)


def stale(layer: Layer, generator: torch.Generator) -> Tensor:
    return layer.y.roll(1, dims=0) - layer.y


def other_block(layer: Layer, generator: torch.Generator) -> Tensor:
    weights = torch.randn(layer.weights.shape, generator=generator)
    return product(layer.grid.kernel, weights, layer.x, layer.grid.groups) - layer.y


def zeros(layer: Layer, generator: torch.Generator) -> Tensor:
    return -layer.y


def sign(layer: Layer, generator: torch.Generator) -> Tensor:
    return -2 * layer.y


LIES: list[Lie] = [one_row, two_rows, random, low_rank, stale, other_block, zeros, sign]


class Count(NamedTuple):
    """How often a lie passed, and how often it may."""

    passed: int
    bound: float

    def contradicts(self, rate: float) -> bool:
        """Chernoff: passed of n independent trials at this rate have at most the probability exp(-n KL)."""
        share = self.passed / DRAWS
        if share <= rate:
            return False
        divergence = share * math.log(share / rate)
        if share < 1:
            divergence += (1 - share) * math.log((1 - share) / (1 - rate))
        return math.exp(-DRAWS * divergence) < SURE


def length(y: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(y.flatten(1), dim=1)
    return norms.view(-1, *[1] * (y.dim() - 1))


def tell(layer: Layer, lie: Lie, size: float) -> Count:
    """Tell a lie of this relative size, in one sample, to secrets drawn anew each time."""
    check = Check([layer.weights], layer.grid, Entropy(1), vectors=VECTORS * DRAWS, apart=())
    direction = lie(layer, torch.Generator().manual_seed(2))
    error = (size * length(layer.y) * direction / length(direction))[:1]
    x, y = layer.x[:1], layer.y[:1] + error
    passed = (check.residue(x, y) <= Z).view(DRAWS, VECTORS).all(dim=1)
    tolerance = float(check.tolerance(x, y).square().mean().sqrt())
    return Count(int(passed.sum()), miss_bound(tolerance / float(length(error)), VECTORS, positions=y[0, 0].numel()))


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@pytest.mark.parametrize(
    "layer",
    [dense(64, 256, 2), dense(10, 512, 2), convolution((16, 8, 3, 3), (6, 6), 2)],
    ids=["dense", "few outputs", "convolution"],
)
def test_lies_of_a_thousandth_are_caught(layer: Layer, lie: Lie) -> None:
    count = tell(layer, lie, 1e-3)
    assert count.bound < 1e-3
    assert not count.contradicts(count.bound)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@pytest.mark.parametrize("size", [5e-6, 1e-5, 1e-4])
def test_small_lies_are_missed_no_more_than_claimed(lie: Lie, size: float) -> None:
    count = tell(dense(64, 256, 2), lie, size)
    assert not count.contradicts(count.bound)


@pytest.mark.parametrize("size", [3e-6, 1e-5])
def test_small_lies_in_one_channel_of_a_convolution(size: float) -> None:
    """A lie of rank one: all positions of one channel stand or fall together."""
    count = tell(convolution((16, 8, 3, 3), (6, 6), 2), one_row, size)
    assert count.passed > 0
    assert not count.contradicts(count.bound)


def test_the_claim_is_close() -> None:
    """A lie of half the size would contradict it: the bound gives little away."""
    count = tell(dense(64, 256, 2), random, 1e-5)
    assert count.contradicts(count.bound / 8)


def test_lies_below_rounding_pass() -> None:
    assert tell(dense(64, 256, 2), random, 1e-8).passed == DRAWS


def test_a_lie_at_one_position_is_caught() -> None:
    layer = convolution((16, 8, 3), (40,), 50)
    y = layer.y.clone()
    y[:, 3, 17] += 1e-3 * length(y)[:, 0, 0]
    assert not bool(Check([layer.weights], layer.grid, Entropy(1)).accepts(layer.x, y).any())


def test_a_claim_of_huge_outputs_buys_no_tolerance() -> None:
    """The tolerance is made from y as claimed: a liar who inflates it has to lie by more than it gains."""
    layer = dense(64, 256, 200)
    check = Check([layer.weights], layer.grid, Entropy(1))
    for size in (1.0, 1e10, 1e18, 1e30):
        assert not bool(check.accepts(layer.x, layer.y + size * torch.ones_like(layer.y)).any())


def test_swapped_samples_are_caught() -> None:
    layer = dense(64, 256, 10)
    assert not bool(Check([layer.weights], layer.grid, Entropy(1)).accepts(layer.x, layer.y.roll(1, dims=0)).any())


def test_only_the_samples_with_lies_fail() -> None:
    layer = dense(64, 256, 10)
    y = layer.y.clone()
    y[4] *= 1.01
    y[7, 63] += 1
    accepted = Check([layer.weights], layer.grid, Entropy(1)).accepts(layer.x, y)
    assert [index for index in range(10) if not accepted[index]] == [4, 7]


def test_the_liar_among_devices_is_found() -> None:
    """The total fails, and of the devices' partial sums only the liar's."""
    layer = dense(48, 64, 20, block=16)
    check = Check([layer.weights], layer.grid, Entropy(1), apart=())
    shares = [[2, 0], [1], [3]]
    inputs = [take(layer.x, layer.grid, columns) for columns in shares]
    parts = [
        product(layer.grid.kernel, rectangle([layer.weights], layer.grid, range(3), columns), x)
        for columns, x in zip(shares, inputs, strict=True)
    ]
    assert bool(check.accepts(layer.x, sum(parts, start=torch.zeros(20, 48))).all())
    parts[1] = parts[1] * 1.001
    assert not bool(check.accepts(layer.x, sum(parts, start=torch.zeros(20, 48))).any())
    right = [
        bool(check.accepts(x, part, columns=columns).all())
        for columns, x, part in zip(shares, inputs, parts, strict=True)
    ]
    assert right == [True, False, True]


def test_the_liar_among_groups_is_found() -> None:
    layer = convolution((16, 2, 3, 3), (5, 5), 20, groups=8, block=4)
    check = Check([layer.weights], layer.grid, Entropy(1), apart=())
    verdicts = []
    for index, column in enumerate(layer.grid.columns):
        span = layer.grid.rows[column.rows[0]]
        part = layer.y[:, span.start : span.stop] * (1.001 if index == 2 else 1)
        verdicts.append(bool(check.accepts(take(layer.x, layer.grid, [index]), part, columns=[index]).all()))
    assert verdicts == [True, True, False, True]
