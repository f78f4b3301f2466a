"""Digits of 8 bits with their sign: of every number, and every number of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic import digits
from awfulowl.arithmetic.digits import EXACT_TERMS, carries, join, multiply, split
from tests.contract.arithmetic.cases import DTYPES, SEEDS, exact, integers, modulo

some = settings(max_examples=100, deadline=None)
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
WIDE = DTYPES[1:]


def largest(dtype: torch.dtype) -> int:
    """The largest number that as many digits as it has bytes can hold."""
    return sum(127 << (8 * place) for place in range(dtype.itemsize))


def multiply8(x: Tensor, weight: Tensor) -> Tensor:
    return (x.long() @ weight.long().T).int()


@some
@given(st.sampled_from(DTYPES), SHAPES, SEEDS)
def test_what_is_split_is_joined(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    x = integers(dtype, shape, seed)
    planes = split(x)
    assert planes.dtype == torch.int8
    assert planes.shape == (dtype.itemsize, *shape)
    joined = join(planes)
    assert joined.dtype == dtype
    assert torch.equal(joined, x)


@some
@given(st.sampled_from([1, 2, 4, 8]), SHAPES, SEEDS)
def test_what_is_joined_is_split(count: int, shape: list[int], seed: int) -> None:
    planes = integers(torch.int8, (count, *shape), seed)
    assert torch.equal(split(join(planes)), planes)


@some
@given(st.sampled_from(DTYPES), SEEDS)
def test_digits_stand_for_their_number(dtype: torch.dtype, seed: int) -> None:
    """Exactly so unless a carry was lost, and modulo as many bytes always."""
    x = integers(dtype, (50,), seed)
    total = sum(exact(plane) * 256**place for place, plane in enumerate(split(x)))
    assert modulo(total, dtype.itemsize) == modulo(x, dtype.itemsize)
    lost = [number != stood for number, stood in zip(exact(x), total, strict=True)]
    assert lost == [number > largest(dtype) for number in exact(x)]
    assert carries(x) == any(lost)


def test_every_number_of_16_bits() -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16)
    low, high = split(x).int()
    assert torch.equal(((high << 8) + low).to(torch.int16), x)
    whole = x <= largest(torch.int16)
    assert torch.equal(((high << 8) + low)[whole], x.int()[whole])


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, [0, 0]),
        (-1, [-1, 0]),
        (127, [127, 0]),
        (128, [-128, 1]),
        (-128, [-128, 0]),
        (-129, [127, -1]),
        (127 * 257, [127, 127]),
        (127 * 257 + 1, [-128, -128]),
        (-(2**15), [0, -128]),
    ],
)
def test_digits_by_hand(number: int, expected: list[int]) -> None:
    assert split(torch.tensor([number], dtype=torch.int16))[:, 0].tolist() == expected


@pytest.mark.parametrize("dtype", WIDE)
def test_only_numbers_above_the_largest_digits_carry(dtype: torch.dtype) -> None:
    ends = torch.iinfo(dtype)
    assert not carries(torch.tensor([ends.min, -1, 0, largest(dtype)], dtype=dtype))
    assert carries(torch.tensor([0, largest(dtype) + 1], dtype=dtype))
    assert carries(torch.tensor([ends.max], dtype=dtype))


def test_bytes_and_nothing_carry_nothing() -> None:
    assert not carries(torch.tensor([127, -128], dtype=torch.int8))
    assert not carries(torch.empty(0, 3, dtype=torch.int32))


def test_split_leaves_numbers_alone() -> None:
    x = integers(torch.int32, (20,), 1)
    before = x.clone()
    split(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("terms", [1, 2, 3, 7, 8])
def test_long_sums_are_cut(terms: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "EXACT_TERMS", 3)
    x, weight = integers(torch.int64, (4, terms), 1), integers(torch.int64, (5, terms), 2)
    y = multiply(multiply8, split(x), split(weight), width)
    assert modulo(y, width) == modulo(exact(x) @ exact(weight).T, width)


def test_no_more_terms_than_32_bits_hold() -> None:
    assert EXACT_TERMS * 128 * 128 < 2**31 <= (EXACT_TERMS + 1) * 128 * 128


def test_only_digits_that_count_are_multiplied() -> None:
    """Four products for shares of 4 bytes times bytes, ten for shares on both sides."""
    rows: list[int] = []

    def note(x: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(x))
        return multiply8(x, weight)

    shares, numbers = integers(torch.int32, (1, 6), 1), integers(torch.int8, (3, 6), 2)
    multiply(note, split(shares), split(numbers), 4)
    assert rows == [4]
    rows.clear()
    multiply(note, split(shares), split(shares), 4)
    assert sum(rows) == 10
