"""The two products of the way back, against PyTorch's own differentiation."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.blocks.kernels import Convolution, Dense, Kernel, backward, gradient, output_shape, product
from tests.unit.blocks.test_kernels import convolutions

DENSE = Dense()
FLAT = Convolution(stride=(1, 1), padding=(1, 1), dilation=(1, 1))


class Way(NamedTuple):
    """A product, and what PyTorch says of its way back."""

    weight: Tensor
    x: Tensor
    dy: Tensor
    dx: Tensor
    dw: Tensor


def way(
    kernel: Kernel,
    channels: tuple[int, int],
    size: tuple[int, ...] = (),
    space: tuple[int, ...] = (),
    groups: int = 1,
    batch: int = 3,
) -> Way:
    """Differentiate a product of (inputs, outputs) for each group."""
    inputs, outputs = channels
    weight = torch.randn(outputs * groups, inputs, *size, dtype=torch.float64, requires_grad=True)
    x = torch.randn(batch, inputs * groups, *space, dtype=torch.float64, requires_grad=True)
    y = product(kernel, weight, x, groups)
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    return Way(weight.detach(), x.detach(), dy, dx, dw)


def check(kernel: Kernel, made: Way, groups: int = 1) -> None:
    size, space = tuple(made.weight.shape[2:]), tuple(made.x.shape[2:])
    torch.testing.assert_close(backward(kernel, made.weight, made.dy, space, groups), made.dx, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(kernel, size, made.x, made.dy, groups), made.dw, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_dense(batch: int) -> None:
    check(DENSE, way(DENSE, (4, 3), batch=batch))


@pytest.mark.parametrize(
    ("kernel", "size", "space"),
    [
        (Convolution((1,), (0,), (1,)), (3,), (7,)),
        (Convolution((2,), (1,), (1,)), (3,), (7,)),
        (Convolution((1,), (2,), (2,)), (2,), (6,)),
        (Convolution((3,), (0,), (1,)), (2,), (9,)),
        (Convolution((1, 1), (0, 0), (1, 1)), (3, 3), (5, 6)),
        (Convolution((2, 1), (1, 0), (1, 1)), (3, 2), (5, 6)),
        (Convolution((1, 1), (2, 1), (2, 1)), (2, 3), (6, 5)),
        (Convolution((2, 3), (1, 2), (2, 1)), (2, 3), (7, 8)),
        (Convolution((1, 1), (3, 3), (1, 1)), (2, 2), (2, 2)),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_convolutions(kernel: Convolution, size: tuple[int, ...], space: tuple[int, ...], groups: int) -> None:
    check(kernel, way(kernel, (2, 3), size, space, groups), groups)


@pytest.mark.parametrize("channels", [(2, 3), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("kernel", "size", "space"),
    [
        (Convolution((1,), (0,), (1,)), (1,), (7,)),
        (Convolution((2,), (0,), (1,)), (1,), (7,)),
        (Convolution((1,), (1,), (1,)), (3,), (1,)),
        (Convolution((1,), (0,), (1,)), (1,), (1,)),
        (Convolution((1, 1), (0, 0), (1, 1)), (1, 1), (5, 6)),
        (Convolution((2, 2), (0, 0), (1, 1)), (1, 1), (5, 6)),
        (Convolution((1, 1), (1, 0), (1, 1)), (3, 1), (5, 6)),
        (Convolution((1, 1), (0, 1), (1, 1)), (1, 3), (5, 6)),
        (FLAT, (3, 3), (1, 1)),
        (FLAT, (3, 3), (5, 1)),
        (Convolution((1, 1), (0, 0), (1, 1)), (1, 1), (1, 1)),
    ],
)
def test_kernels_and_spaces_of_a_single_number(
    kernel: Convolution, size: tuple[int, ...], space: tuple[int, ...], batch: int, channels: tuple[int, int]
) -> None:
    check(kernel, way(kernel, channels, size, space, batch=batch))


@given(made=convolutions(), batch=st.integers(1, 3), inputs=st.integers(1, 3), groups=st.integers(1, 3))
@settings(deadline=None)
def test_any_convolution(
    made: tuple[Convolution, tuple[int, ...], tuple[int, ...]], batch: int, inputs: int, groups: int
) -> None:
    kernel, size, space = made
    check(kernel, way(kernel, (inputs, 2), size, space, groups, batch), groups)


@pytest.mark.parametrize(
    ("kernel", "size", "spaces"),
    [
        (Convolution((2,), (0,), (1,)), (3,), [(7,), (8,)]),
        (Convolution((3,), (1,), (2,)), (2,), [(7,), (8,), (9,)]),
        (Convolution((2, 2), (1, 1), (1, 1)), (3, 3), [(5, 5), (5, 6), (6, 5), (6, 6)]),
    ],
)
def test_inputs_whose_size_the_outputs_do_not_tell(
    kernel: Convolution, size: tuple[int, ...], spaces: list[tuple[int, ...]]
) -> None:
    shapes = {output_shape(kernel, 3, size, torch.Size((1, 2, *space))) for space in spaces}
    assert len(shapes) == 1
    for space in spaces:
        check(kernel, way(kernel, (2, 3), size, space))


def test_a_convolution_of_no_samples() -> None:
    check(FLAT, way(FLAT, (2, 3), (3, 3), (5, 5), batch=0))


def test_parts_of_larger_tensors() -> None:
    """Weights, inputs and gradients are views at a device: some rows, some slices."""
    for kernel, size, space in ((DENSE, (), ()), (FLAT, (3, 3), (5, 5))):
        made = way(kernel, (6, 8), size, space)
        dx = backward(kernel, made.weight[2:5, 1:4], made.dy[:, 2:5], space)
        wanted = backward(kernel, made.weight[2:5, 1:4].contiguous(), made.dy[:, 2:5].contiguous(), space)
        torch.testing.assert_close(dx, wanted, rtol=1e-12, atol=1e-12)
        dw = gradient(kernel, size, made.x[:, 1:4], made.dy[:, 2:5])
        torch.testing.assert_close(dw, made.dw[2:5, 1:4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_that_of_the_gradients(dtype: torch.dtype) -> None:
    for kernel, size, space in ((DENSE, (), ()), (FLAT, (3, 3), (5, 5))):
        made = way(kernel, (4, 3), size, space)
        weight, x, dy = (one.to(dtype) for one in (made.weight, made.x, made.dy))
        assert backward(kernel, weight, dy, space).dtype is dtype
        assert gradient(kernel, size, x, dy).dtype is dtype


@pytest.mark.parametrize("space", [(), (5,), (4, 5), (5, 7), (7, 7), (5, 5, 5)])
def test_gradients_of_another_space_do_not_fit(space: tuple[int, ...]) -> None:
    made = way(FLAT, (2, 3), (3, 3), (5, 5))
    with pytest.raises(RuntimeError):
        backward(FLAT, made.weight, made.dy, space)
    with pytest.raises(RuntimeError):
        gradient(FLAT, (3, 3), torch.zeros(3, 2, *space, dtype=torch.float64), made.dy)
