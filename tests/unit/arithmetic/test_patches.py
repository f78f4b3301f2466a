"""Patches: what a convolution sees, in rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from awfulowl.arithmetic import patches
from awfulowl.blocks.kernels import Convolution, output_shape
from tests.contract.arithmetic.cases import DTYPES, integers


def laid_out(kernel: Convolution, size: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """All patches: (batch, positions, taps * channels)."""
    axes = output_shape(kernel, 1, size, x.shape)[2:]
    whole = torch.full((len(x), *axes, torch.Size(size).numel() * x.shape[1]), 99, dtype=x.dtype)
    for rows, where in patches.patches(kernel, size, x):
        target = whole[where]
        target.copy_(rows.view(target.shape))
    return whole.flatten(1, -2)


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
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(patches, "CHUNK_BYTES", data.draw(st.sampled_from([1, 100, 1000, 10**6])))
        rows = laid_out(kernel, size, x)
    unfolded = functional.unfold(x.double(), size, dilation, padding, stride)  # (batch, channels * taps, positions)
    expected = unfolded.view(len(x), x.shape[1], -1, unfolded.shape[2]).permute(0, 3, 2, 1).flatten(2)
    assert rows.dtype == x.dtype
    assert torch.equal(rows.double(), expected)
    assert rows.shape[1] == torch.Size(output_shape(kernel, 1, size, x.shape)[2:]).numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dimension(dtype: torch.dtype) -> None:
    x = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]], dtype=dtype)
    rows = laid_out(Convolution((2,), (1,), (1,)), (3,), x)
    assert rows.tolist() == [[[0, 0, 1, 5, 2, 6], [2, 6, 3, 7, 4, 8]]]


def test_inputs_are_left_alone() -> None:
    x = integers(torch.int8, (2, 3, 5), 1)
    before = x.clone()
    laid_out(Convolution((1,), (2,), (1,)), (3,), x)
    assert torch.equal(x, before)


def test_no_more_is_laid_out_at_a_time_than_stays_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large kernels on large inputs have patches of gigabytes: one position of the first axis is the least."""
    monkeypatch.setattr(patches, "CHUNK_BYTES", 10_000)
    x = torch.ones(2, 1, 60, 60, dtype=torch.int8)
    for rows, _ in patches.patches(Convolution((1, 1), (0, 0), (1, 1)), (30, 30), x):
        assert rows.nbytes <= max(10_000, 31 * 900)


def test_padding_is_counted() -> None:
    kernel = Convolution((1, 1), (3, 5), (1, 1))
    assert patches.padded_size(kernel, (2, 4, 10, 20)) == 2 * 4 * 16 * 30
