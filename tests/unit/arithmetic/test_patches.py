"""Patches: what a convolution sees, in rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from awfulowl.arithmetic.patches import patches
from awfulowl.blocks.kernels import Convolution, output_shape
from tests.contract.arithmetic.cases import DTYPES, integers

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.tuples(st.integers(0, 3), st.integers(0, 3)), PAIRS, PAIRS, st.data())
def test_patches_are_those_of_pytorch(
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    data: st.DataObject,
) -> None:
    kernel = Convolution(stride, padding, dilation)
    space = [
        data.draw(st.integers(max(1, spread * (taps - 1) + 1 - 2 * pad), 9))
        for taps, spread, pad in zip(size, dilation, padding, strict=True)
    ]
    x = integers(torch.int16, (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)), *space), 1)
    rows = patches(kernel, size, x)
    unfolded = functional.unfold(x.double(), size, dilation, padding, stride)  # (batch, channels * taps, positions)
    expected = unfolded.view(len(x), x.shape[1], -1, unfolded.shape[2]).permute(0, 3, 2, 1).flatten(2)
    assert rows.dtype == x.dtype
    assert torch.equal(rows.double(), expected)
    assert rows.shape[1] == torch.Size(output_shape(kernel, 1, size, x.shape)[2:]).numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dimension(dtype: torch.dtype) -> None:
    x = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]], dtype=dtype)
    rows = patches(Convolution((2,), (1,), (1,)), (3,), x)
    assert rows.tolist() == [[[0, 0, 1, 5, 2, 6], [2, 6, 3, 7, 4, 8]]]


def test_inputs_are_left_alone() -> None:
    x = integers(torch.int8, (2, 3, 5), 1)
    before = x.clone()
    patches(Convolution((1,), (2,), (1,)), (3,), x)
    assert torch.equal(x, before)
