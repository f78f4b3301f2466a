"""Random layers for the check, and the check written out without any of its shortcuts."""

import math
from typing import NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, product

some = settings(max_examples=80, deadline=None)
SEEDS = st.integers(0, 2**31)


class Layer(NamedTuple):
    """Weights, how they are cut, and a batch of inputs."""

    weights: Tensor
    grid: Grid
    x: Tensor

    @property
    def y(self) -> Tensor:
        """What an honest device answers, float32."""
        return product(self.grid.kernel, self.weights, self.x, self.grid.groups)


def dense(
    outputs: int,
    inputs: int,
    batch: int = 8,
    *,
    block: tuple[int, int] | int = 16,
    seed: int = 0,
    **cut: tuple[int, ...],
) -> Layer:
    """A dense layer with normal weights and inputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(outputs, inputs, generator=generator)
    grid = make_grid((outputs, inputs), Dense(), 1, block=block, row_cuts=cut.get("row_cuts", ()))
    return Layer(weights, grid, torch.randn(batch, inputs, generator=generator))


def convolution(
    shape: tuple[int, ...],
    space: tuple[int, ...],
    batch: int = 4,
    *,
    groups: int = 1,
    block: tuple[int, int] | int = 16,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    seed: int = 0,
) -> Layer:
    """A convolution with normal weights and inputs; shape is (outputs, inputs / groups, *size)."""
    generator = torch.Generator().manual_seed(seed)
    axes = len(space)
    kernel = Convolution((stride,) * axes, (padding,) * axes, (dilation,) * axes)
    grid = make_grid(shape, kernel, groups, block=block)
    x = torch.randn(batch, shape[1] * groups, *space, generator=generator)
    return Layer(torch.randn(shape, generator=generator), grid, x)


@st.composite
def layers(draw: st.DrawFn, least_batch: int = 0) -> Layer:
    """Dense layers and convolutions of all kinds, cut into blocks of any shape."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    axes = draw(st.integers(0, 2))
    groups = draw(st.integers(1, 3)) if axes else 1
    size = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    shape = (groups * draw(st.integers(1, 12)), draw(st.integers(1, 12)), *size)
    kernel: Kernel = Dense()
    space: tuple[int, ...] = ()
    if axes:
        steps = st.tuples(*[st.integers(1, 3)] * axes)
        kernel = Convolution(draw(steps), draw(st.tuples(*[st.integers(0, 3)] * axes)), draw(steps))
        smallest = [
            max(1, spread * (taps - 1) + 1 - 2 * pad)
            for spread, taps, pad in zip(kernel.dilation, size, kernel.padding, strict=True)
        ]
        space = tuple(draw(st.integers(least, least + 6)) for least in smallest)
    grid = make_grid(shape, kernel, groups, block=(draw(st.integers(1, 12)), draw(st.integers(1, 12))))
    x = torch.randn(draw(st.integers(least_batch, 5)), grid.inputs, *space, generator=generator)
    scale = 10.0 ** draw(st.integers(-6, 6))
    return Layer(torch.randn(shape, generator=generator) * scale, grid, x + draw(st.sampled_from((0.0, 10.0))))


def slow_measure(layer: Layer, y: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """|r (y − W x)| and v x² + r² y², (batch, k), from the weights themselves and in float64.

    r is over the outputs, or over the outputs at all positions.
    """
    kernel, groups = layer.grid.kernel, layer.grid.groups
    weights, x, y = layer.weights.double(), layer.x.double(), y.double()
    error = y - product(kernel, weights, x, groups)
    energy = product(kernel, weights.square(), x.square(), groups) + y.square()
    if r.shape[1] != y.shape[1]:
        return (error.flatten(1) @ r.T).abs(), energy.flatten(1) @ r.square().T
    projected = torch.einsum("ko,bo...->bk...", r, error)
    spread = torch.einsum("ko,bo...->bk...", r.square(), energy)
    if x.dim() == 2:
        return projected.abs(), spread
    return projected.flatten(2).norm(dim=2), spread.flatten(2).sum(dim=2)


def terms(layer: Layer) -> int:
    """Products in one output."""
    return math.prod(layer.weights.shape[1:])
