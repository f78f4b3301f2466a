"""Products in float64: cut so that nothing is rounded, and put together as Python would."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.pieces import EXACT_BITS, _digits, digit_sizes, in_pieces
from tests.contract.arithmetic.cases import DTYPES, SEEDS, exact, integers, modulo

some = settings(max_examples=150, deadline=None)
BITS = st.integers(1, 64)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return x.to(torch.float64) @ weight.to(torch.float64).T


@pytest.mark.parametrize(
    "terms",
    [1, 2, 3, *(2**power + off for power in (2, 7, 15, 16, 17, 20, 30) for off in (-1, 0, 1)), 2**31 - 1, 2**31],
)
def test_no_sum_of_digits_outgrows_a_float(terms: int) -> None:
    for x_bits in range(1, 65):
        for w_bits in range(1, 65):
            size_x, size_w = digit_sizes(x_bits, w_bits, terms)
            assert 1 <= size_x <= x_bits
            assert 1 <= size_w <= w_bits
            assert Fraction(2) ** (size_x + size_w - 2) * terms <= 2**EXACT_BITS


@some
@given(BITS, BITS, st.integers(1, 2**31))
def test_digits_are_as_large_as_they_can_be(x_bits: int, w_bits: int, terms: int) -> None:
    """Either nothing is cut, or one bit more in either would be one too many, with terms rounded to a power of two."""
    size_x, size_w = digit_sizes(x_bits, w_bits, terms)
    if (size_x, size_w) != (x_bits, w_bits):
        assert size_x + size_w + 1 - 2 + (terms - 1).bit_length() > EXACT_BITS


@some
@given(st.sampled_from(DTYPES), st.integers(2, 53), SEEDS)
def test_digits_add_up_and_stay_within_theirs(dtype: torch.dtype, size: int, seed: int) -> None:
    x = integers(dtype, (40,), seed)
    parts = list(_digits(x, size, 8 * dtype.itemsize))
    total = sum(exact(part) * 2**shift for shift, part in parts)
    assert modulo(total, 8) == modulo(x, 8)
    assert all(int(part.abs().max()) <= 2 ** (size - 1) for _, part in parts if part.dtype is torch.int64)


def test_numbers_of_one_digit_are_not_copied() -> None:
    x = integers(torch.int16, (5,), 1)
    ((shift, digit),) = _digits(x, 20, 16)
    assert shift == 0
    assert digit is x


@some
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 200)),
    SEEDS,
)
def test_products_are_those_of_integers(
    of_x: torch.dtype, of_weights: torch.dtype, shape: tuple[int, int, int], seed: int
) -> None:
    rows, outputs, terms = shape
    x, weight = integers(of_x, (rows, terms), seed), integers(of_weights, (outputs, terms), seed + 1)
    y = in_pieces(linear, x, weight, terms)
    assert y.dtype == torch.int64
    assert modulo(y, 8) == modulo(exact(x) @ exact(weight).T, 8)


@some
@given(st.integers(0, 31), SEEDS)
def test_digits_of_any_size_are_put_together(terms_bits: int, seed: int) -> None:
    """More terms than there are make digits smaller, and no difference."""
    x, weight = integers(torch.int64, (3, 5), seed), integers(torch.int64, (4, 5), seed + 1)
    y = in_pieces(linear, x, weight, max(5, 2**terms_bits))
    assert modulo(y, 8) == modulo(exact(x) @ exact(weight).T, 8)


@some
@given(BITS, BITS, st.integers(1, 60), SEEDS)
def test_bits_may_be_told(x_bits: int, w_bits: int, terms: int, seed: int) -> None:
    """Numbers in [-2^(bits - 1), 2^(bits - 1)): those of b bits with their sign."""
    x = integers(torch.int64, (3, terms), seed) >> (64 - x_bits)
    weight = integers(torch.int64, (4, terms), seed + 1) >> (64 - w_bits)
    y = in_pieces(linear, x, weight, terms, x_bits=x_bits, w_bits=w_bits)
    assert modulo(y, 8) == modulo(exact(x) @ exact(weight).T, 8)


@pytest.mark.parametrize("x_bits", [8, 32, 54, 62, 63])
@pytest.mark.parametrize("w_bits", [8, 32, 53])
def test_both_ends_of_the_bits_that_are_told(x_bits: int, w_bits: int) -> None:
    """2^(bits - 1) itself is within the bound."""
    x = torch.tensor([[2 ** (x_bits - 1)], [-(2 ** (x_bits - 1))]]).repeat(1, 1000)
    weight = torch.tensor([[2 ** (w_bits - 1)], [-(2 ** (w_bits - 1))], [2 ** (w_bits - 1) - 1]]).repeat(1, 1000)
    weight[:, ::7] = 1
    y = in_pieces(linear, x, weight, 1000, x_bits=x_bits, w_bits=w_bits)
    assert modulo(y, 8) == modulo(exact(x) @ exact(weight).T, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_numbers_all_of_one_sign(dtype: torch.dtype) -> None:
    ends = torch.iinfo(dtype)
    x = torch.tensor([[ends.min], [ends.max]], dtype=dtype).repeat(1, 70_000)
    y = in_pieces(linear, x, x, 70_000)
    expected = [[70_000 * one * other for one in (ends.min, ends.max)] for other in (ends.min, ends.max)]
    assert modulo(y, 8) == [number % 2**64 for row in expected for number in row]


def test_floats_that_hold_integers_will_do() -> None:
    x, weight = torch.tensor([[3.0, -(2.0**40)]], dtype=torch.float64), torch.tensor([[2**50, 2**20 + 1]])
    y = in_pieces(linear, x, weight, 2, x_bits=42, w_bits=52)
    assert y.tolist() == [[3 * 2**50 - 2**40 * (2**20 + 1)]]


def test_the_inputs_are_left_alone() -> None:
    x, weight = integers(torch.int64, (3, 9), 1), integers(torch.int64, (2, 9), 2)
    before = x.clone(), weight.clone()
    in_pieces(linear, x, weight, 9)
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


def test_each_piece_is_multiplied_once() -> None:
    calls = []

    def note(x: Tensor, weight: Tensor) -> Tensor:
        calls.append((x.dtype, weight.dtype))
        return linear(x, weight)

    x = integers(torch.int8, (3, 9), 1)
    in_pieces(note, x, x, 9)
    assert calls == [(torch.int8, torch.int8)]
