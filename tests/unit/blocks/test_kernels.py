"""Products, the shapes they have, and the convolutions that do not exist."""

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.blocks.kernels import Convolution, Dense, Kernel, output_shape, product
from awfulowl.errors import ModelError


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Convolution, tuple[int, ...], tuple[int, ...]]:
    """A convolution, its kernel size, and a space that is large enough."""
    each = st.lists(st.integers(1, 3), min_size=2, max_size=2).map(tuple)
    dimensions = draw(st.integers(1, 2))
    stride, padding, dilation, size, more = (draw(each)[:dimensions] for _ in range(5))
    kernel = Convolution(stride, tuple(pad - 1 for pad in padding), dilation)
    space = tuple(spread * (taps - 1) + extra for spread, taps, extra in zip(dilation, size, more, strict=True))
    return kernel, size, space


@given(convolutions(), st.integers(0, 2), st.integers(1, 3), st.integers(1, 2))
@settings(deadline=None)
def test_output_shape_is_the_shape_of_the_product(
    made: tuple[Convolution, tuple[int, ...], tuple[int, ...]], batch: int, channels: int, groups: int
) -> None:
    kernel, size, space = made
    x = torch.randn(batch, channels * groups, *space)
    weight = torch.randn(2 * groups, channels, *size)
    y = product(kernel, weight, x, groups)
    assert tuple(y.shape) == output_shape(kernel, 2 * groups, size, x.shape)


@pytest.mark.parametrize("leading", [(), (0,), (5,), (2, 3)])
def test_dense(leading: tuple[int, ...]) -> None:
    x, weight = torch.randn(*leading, 4).double(), torch.randn(3, 4).double()
    y = product(Dense(), weight, x)
    assert torch.allclose(y, x @ weight.T, rtol=0.0, atol=1e-13)
    assert tuple(y.shape) == output_shape(Dense(), 3, (), x.shape)


@pytest.mark.parametrize(
    "fields",
    [
        ((), (), ()),
        ((1, 1, 1), (0, 0, 0), (1, 1, 1)),
        ((1, 1), (0,), (1, 1)),
        ((1,), (0,), (1, 1)),
        ((0,), (0,), (1,)),
        ((1,), (-1,), (1,)),
        ((1, 1), (0, 0), (1, 0)),
    ],
)
def test_convolutions_that_do_not_exist_are_refused(fields: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ModelError, match="no convolution"):
        Convolution(*fields)
    names = ("stride", "padding", "dilation")
    message = msgspec.msgpack.encode({"type": "convolution", **dict(zip(names, fields, strict=True))})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(message, type=Kernel)


@pytest.mark.parametrize("kernel", [Dense(), Convolution((1, 2), (0, 3), (1, 1))])
def test_kernels_travel(kernel: Kernel) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(kernel), type=Kernel) == kernel
