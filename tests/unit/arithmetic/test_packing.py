"""Integers in as few bytes as hold them: every number that their parts hold comes back, others modulo their bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.arithmetic.packing import PARTS, add, fold, most, pack, put, unpack

WIDTHS = st.integers(1, 8)
SHAPES = st.lists(st.integers(0, 4), max_size=3)
widths = pytest.mark.parametrize("width", range(1, 9))


def room(width: int) -> list[torch.dtype]:
    """Types of numbers that have as many bytes."""
    return [dtype for dtype in (torch.int32, torch.int64) if dtype.itemsize >= width]


def least(width: int) -> int:
    """The smallest number that parts hold: the one behind the largest, modulo 2^(8 width)."""
    return most(width) + 1 - (1 << 8 * width)


def kept(number: int, width: int) -> int:
    """What is left of a number modulo 2^(8 width): the one from the smallest to the largest that parts hold."""
    return least(width) + (number - least(width)) % (1 << 8 * width)


def ends(width: int) -> list[int]:
    """Numbers at which parts, bytes or signs turn over, as far as the parts hold them."""
    turns = [0, least(width), -most(width), most(width)]
    turns += [sign * 2**bit for bit in range(8 * width) for sign in (-1, 1)]
    near = {turn + step for turn in turns for step in (-2, -1, 0, 1, 2)}
    return sorted(number for number in near if least(width) <= number <= most(width))


@st.composite
def numbers(draw: st.DrawFn, width: int, *, beyond: bool = False) -> torch.Tensor:
    """Integers of any shape that parts of that many bytes hold, or that they may not."""
    dtype = draw(st.sampled_from(room(width)))
    of_type = torch.iinfo(dtype)
    first, last = (of_type.min, of_type.max) if beyond else (least(width), min(most(width), of_type.max))
    shape = draw(SHAPES)
    count = torch.Size(shape).numel()
    values = draw(st.lists(st.integers(first, last), min_size=count, max_size=count))
    return torch.tensor(values, dtype=dtype).reshape(shape)


@given(WIDTHS, st.data())
def test_what_is_packed_comes_back(width: int, data: st.DataObject) -> None:
    y = data.draw(numbers(width))
    parts = pack(y.clone(), width)
    assert [part.dtype for part in parts] == list(PARTS[width])
    assert {part.shape for part in parts} == {y.shape}
    assert sum(part.nbytes for part in parts) == width * y.numel()
    back = unpack(parts, width)
    assert back.dtype == (torch.int32 if width <= 4 else torch.int64)
    assert back.shape == y.shape
    assert torch.equal(back.long(), y.long())


@given(WIDTHS, st.data())
def test_any_numbers_are_kept_modulo_their_bytes(width: int, data: st.DataObject) -> None:
    y = data.draw(numbers(width, beyond=True))
    back = unpack(pack(y.clone(), width), width)
    assert back.shape == y.shape
    assert back.reshape(-1).tolist() == [kept(number, width) for number in y.reshape(-1).tolist()]


@widths
def test_ends_come_back(width: int) -> None:
    held = ends(width)
    assert {-most(width), most(width), least(width), -1, 0, 1} <= set(held)
    for dtype in room(width):
        assert unpack(pack(torch.tensor([held], dtype=dtype), width), width).tolist() == [held]


@widths
def test_larger_numbers_are_kept_modulo_their_bytes(width: int) -> None:
    half = 2 ** (8 * width - 1)
    for dtype in room(width):
        of_type = torch.iinfo(dtype)
        large = [of_type.max, of_type.min, 2**40 + 5, -(2**40) - 5, most(width) + 1, least(width) - 1, half, -half - 1]
        large = [number for number in large if of_type.min <= number <= of_type.max]
        back = unpack(pack(torch.tensor(large, dtype=dtype), width), width)
        assert back.tolist() == [kept(number, width) for number in large]
        assert all((one - other) % 2 ** (8 * width) == 0 for one, other in zip(back.tolist(), large, strict=True))


@widths
def test_the_parts_add_up_to_the_number(width: int) -> None:
    held = ends(width)
    parts = pack(torch.tensor(held), width)
    total, shift = [0] * len(held), 0
    for part in parts:
        total = [one + (two << shift) for one, two in zip(total, part.tolist(), strict=True)]
        shift += 8 * part.itemsize
    assert total == held
    assert shift == 8 * width


@pytest.mark.parametrize(
    ("width", "number", "parts"),
    [
        (1, -2, [-2]),
        (2, -2, [-2]),
        (3, -2, [-2, 0]),
        (3, 40_000, [40_000 - 2**16, 1]),
        (3, -40_000, [2**16 - 40_000, -1]),
        (4, 2**31 - 1, [2**31 - 1]),
        (5, 2**31, [-(2**31), 1]),
        (6, -(2**31) - 1, [2**31 - 1, -1]),
        (7, 2**47, [0, -(2**15), 1]),
        (7, 2**55 - 2**47 - 2**31 - 1, [2**31 - 1, 2**15 - 1, 127]),
        (8, -(2**63), [-(2**63)]),
    ],
)
def test_parts_are_signed_and_the_low_one_comes_first(width: int, number: int, parts: list[int]) -> None:
    assert [part.item() for part in pack(torch.tensor(number), width)] == parts
    assert unpack(pack(torch.tensor(number), width), width).item() == number


def test_the_largest_numbers() -> None:
    assert [most(width) for width in range(1, 9)] == [
        2**7 - 1,
        2**15 - 1,
        2**23 - 2**15 - 1,
        2**31 - 1,
        2**39 - 2**31 - 1,
        2**47 - 2**31 - 1,
        2**55 - 2**47 - 2**31 - 1,
        2**63 - 1,
    ]


def test_the_parts_of_a_width_have_its_bytes_and_no_more_of_them_than_are_needed() -> None:
    assert list(PARTS) == list(range(1, 9))
    for width, dtypes in PARTS.items():
        sizes = [dtype.itemsize for dtype in dtypes]
        assert sum(sizes) == width
        assert len(sizes) == width.bit_count()
        assert sizes == sorted(sizes, reverse=True)
        assert all(dtype.is_signed and not dtype.is_floating_point for dtype in dtypes)


@widths
def test_no_number_is_overwritten(width: int) -> None:
    for dtype in room(width):
        y = torch.tensor(ends(width), dtype=dtype)
        before = y.clone()
        parts = pack(y.clone(), width)
        packed = [part.clone() for part in parts]
        first, second = unpack(parts, width), unpack(parts, width)
        assert torch.equal(first, second)
        assert torch.equal(y, before)
        assert all(map(torch.equal, parts, packed))


@widths
def test_other_layouts_are_packed_as_they_are(width: int) -> None:
    y = torch.arange(-60, 60).reshape(2, 3, 20) * (most(width) // 60)
    parts = pack(y.clone().movedim(2, 1)[:, ::2], width)
    assert torch.equal(unpack(parts, width).long(), y.movedim(2, 1)[:, ::2])
    parts = [part[:, 1:, ::3] for part in pack(y.clone(), width)]
    assert torch.equal(unpack(parts, width).long(), y[:, 1:, ::3])


@widths
def test_some_samples_of_the_parts_are_those_of_the_numbers(width: int) -> None:
    held = ends(width)
    y = torch.tensor([held, held[::-1], held, [0] * len(held)])
    parts = pack(y.clone(), width)
    for samples in (slice(0, 0), slice(0, 1), slice(1, 3), slice(3, None), slice(None)):
        assert torch.equal(unpack([part[samples] for part in parts], width).long(), y[samples])


@given(WIDTHS, st.data(), st.integers(1, 4), st.integers(0, 2**32))
def test_sums_of_shares_are_folded_to_the_number(width: int, data: st.DataObject, shares: int, seed: int) -> None:
    """Shares are uniform in a ring of 4 or 8 bytes; what devices answer of them is known modulo 2^(8 width) only."""
    ring = torch.int32 if width <= 4 else torch.int64
    y = data.draw(numbers(width)).clamp(-most(width), most(width)).to(ring)
    bounds, generator = torch.iinfo(ring), torch.Generator().manual_seed(seed)
    random = [torch.randint(bounds.min, bounds.max, y.shape, generator=generator).to(ring) for _ in range(shares - 1)]
    last = y - sum(random, torch.zeros_like(y))
    answers = [pack(share.clone(), width) for share in (*random, last)]
    total = torch.empty_like(y)
    put(total, answers[0])
    for parts in answers[1:]:
        add(total, parts)
    fold(total, width)
    assert torch.equal(total, y)
