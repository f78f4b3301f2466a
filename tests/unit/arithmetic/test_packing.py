"""Integers in as few bytes as hold them: every number of that many comes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.arithmetic.packing import pack, packed_type, unpack

WIDTHS = st.integers(1, 8)
SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(lambda shape: shape[-1] > 0)
widths = pytest.mark.parametrize("width", range(1, 9))


def room(width: int) -> list[torch.dtype]:
    """Types of numbers that have as many bytes."""
    return [dtype for dtype in (torch.int32, torch.int64) if dtype.itemsize >= width]


@st.composite
def numbers(draw: st.DrawFn, width: int) -> torch.Tensor:
    """Integers of that many bytes, of any shape."""
    dtype = draw(st.sampled_from(room(width)))
    shape = draw(SHAPES)
    half = 2 ** (8 * width - 1)
    count = torch.Size(shape).numel()
    values = draw(st.lists(st.integers(-half, half - 1), min_size=count, max_size=count))
    return torch.tensor(values, dtype=dtype).reshape(shape)


@given(WIDTHS, st.data())
def test_what_is_packed_comes_back(width: int, data: st.DataObject) -> None:
    y = data.draw(numbers(width))
    packed = pack(y, width)
    assert (packed.dtype, tuple(packed.shape)) == packed_type(width, tuple(y.shape))
    assert packed.nbytes == width * y.numel()
    back = unpack(packed, width)
    assert back.dtype == (torch.int32 if width <= 4 else torch.int64)
    assert back.shape == y.shape
    assert torch.equal(back.long(), y.long())


@widths
def test_ends_come_back(width: int) -> None:
    half = 2 ** (8 * width - 1)
    ends = [-half, 1 - half, -257, -256, -1, 0, 1, 127, 255, half - 1]
    ends = [end for end in ends if -half <= end < half]
    for dtype in room(width):
        assert unpack(pack(torch.tensor([ends], dtype=dtype), width), width).tolist() == [ends]


@widths
def test_larger_numbers_are_kept_modulo_their_bytes(width: int) -> None:
    y = torch.tensor([2**63 - 1, -(2**63), 2**40 + 5, -(2**40) - 5])
    back = unpack(pack(y, width), width)
    half = 2 ** (8 * width - 1)
    assert back.tolist() == [(number + half) % (2 * half) - half for number in y.tolist()]


@widths
def test_other_layouts_are_packed_as_they_are(width: int) -> None:
    y = torch.arange(-60, 60).reshape(2, 3, 20)
    packed = pack(y.movedim(2, 1)[:, ::2], width)
    assert torch.equal(unpack(packed, width).long(), y.movedim(2, 1)[:, ::2])
    part = pack(y, width)[:, 1:, ::3]
    assert torch.equal(unpack(part, width).long(), y[:, 1:, ::3])
