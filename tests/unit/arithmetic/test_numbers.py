"""The integers there are, and how many bytes their sums take."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.arithmetic.digits import carries
from awfulowl.arithmetic.numbers import FLOAT32, INTEGERS, NAMES, Integers, fewest_bytes, integers
from awfulowl.arithmetic.packing import most, pack, unpack
from awfulowl.errors import InputError

each = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)


@each
def test_most_terms_is_the_largest_number_that_fits_half_of_the_ring(numbers: Integers) -> None:
    half = 2 ** (8 * numbers.ring_bytes - 1)
    assert numbers.most_terms * numbers.largest**2 < half <= (numbers.most_terms + 1) * numbers.largest**2


def test_terms_of_the_two() -> None:
    assert INTEGERS["int8"].most_terms == 133_144
    assert INTEGERS["int16"].most_terms > 2**33


@each
def test_numbers_fit_their_type_and_its_digits(numbers: Integers) -> None:
    ends = torch.tensor([-numbers.largest, numbers.largest])
    assert torch.equal(ends.to(numbers.dtype).long(), ends)
    assert not carries(ends.to(numbers.dtype))
    assert numbers.ring_bytes == numbers.ring.itemsize > numbers.dtype.itemsize


def test_integers_by_name() -> None:
    assert integers(FLOAT32) is None
    assert [integers(name) for name in NAMES[1:]] == list(INTEGERS.values())
    assert all(found.name == name for name, found in INTEGERS.items())


@pytest.mark.parametrize("name", ["", "int4", "INT8", "float16"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is none of float32, int8, int16"):
        integers(name)


@pytest.mark.parametrize("width", range(1, 9))
def test_bytes_at_their_ends(width: int) -> None:
    assert fewest_bytes(most(width)) == width
    if width < 8:
        assert fewest_bytes(most(width) + 1) == width + 1


@pytest.mark.parametrize(
    ("bound", "width"),
    [
        (2**7 - 1, 1),
        (2**7, 2),
        (2**15 - 1, 2),
        (2**15, 3),
        (2**23 - 2**15 - 1, 3),
        (2**23 - 2**15, 4),  # 3 bytes hold it in two's complement, and their parts do not
        (2**31 - 1, 4),
        (2**31, 5),
        (2**39 - 2**31 - 1, 5),
        (2**39 - 2**31, 6),
        (2**47 - 2**31 - 1, 6),
        (2**47 - 2**31, 7),
        (2**55 - 2**47 - 2**31 - 1, 7),
        (2**55 - 2**47 - 2**31, 8),
        (2**63 - 1, 8),
    ],
)
def test_bytes_at_ends_that_are_written_out(bound: int, width: int) -> None:
    assert fewest_bytes(bound) == width


@given(st.integers(0, 63).flatmap(lambda bits: st.integers(0, 2**bits - 1)))
def test_bytes_hold_the_bound_with_either_sign_and_no_fewer_do(bound: int) -> None:
    width = fewest_bytes(bound)
    ends = [-bound, bound]
    assert unpack(pack(torch.tensor(ends), width), width).tolist() == ends
    for fewer in range(1, width):
        assert unpack(pack(torch.tensor(ends), fewer), fewer).tolist() != ends


def test_nothing_takes_a_byte() -> None:
    assert fewest_bytes(0) == 1


@pytest.mark.parametrize("bound", [2**63, 2**64, 2**100])
def test_more_than_8_bytes_are_refused(bound: int) -> None:
    with pytest.raises(InputError, match="do not fit 8 bytes"):
        fewest_bytes(bound)


@each
def test_the_longest_sums_fit_the_ring(numbers: Integers) -> None:
    assert fewest_bytes(numbers.most_terms * numbers.largest**2) == numbers.ring_bytes
