"""The digest of tensors: that of their bytes, in order, whoever computes it."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.wire.digest import digest


def by_hand(data: bytes) -> list[int]:
    return list(hashlib.blake2b(data, digest_size=32).digest())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3,), (2, 5), (2, 3, 4, 5)])
def test_it_is_blake2b_of_the_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(-100, 100, shape).to(dtype)
    found = digest([tensor])
    assert (found.dtype, found.shape) == (torch.uint8, torch.Size([32]))
    assert found.tolist() == by_hand(tensor.numpy().tobytes())


def test_numbers_are_little_endian_row_by_row() -> None:
    assert digest([torch.tensor([[1, 2], [3, -1]], dtype=torch.int16)]).tolist() == by_hand(b"\1\0\2\0\3\0\xff\xff")


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=5), max_size=4))
def test_several_are_one_after_the_other(rows: list[list[float]]) -> None:
    tensors = [torch.tensor(row, dtype=torch.float32) for row in rows]
    assert digest(tensors).tolist() == by_hand(b"".join(tensor.numpy().tobytes() for tensor in tensors))


def test_views_are_read_as_what_they_show() -> None:
    whole = torch.randn(6, 8)
    views: list[Tensor] = [whole[1:4, 2:5], whole.T, whole[::2], whole[:, 3], torch.ones(1).expand(4, 5)]
    for view in views:
        assert torch.equal(digest([view]), digest([view.contiguous().clone()]))


def test_every_bit_counts_and_so_does_the_order() -> None:
    one, other = torch.zeros(3), torch.tensor([0.0, -0.0, 0.0])
    assert not torch.equal(digest([one]), digest([other]))
    assert not torch.equal(digest([one, other]), digest([other, one]))
    assert torch.equal(digest([one, other]), digest([one.clone(), other.clone()]))


def test_a_digest_is_its_owner_s() -> None:
    tensor = torch.ones(3)
    first = digest([tensor])
    first.zero_()
    assert torch.equal(digest([tensor]), digest([tensor]))
    assert bool(digest([tensor]).any())
