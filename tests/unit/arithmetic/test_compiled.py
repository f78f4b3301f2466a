"""Compiled loops of integers have PyTorch's bits; without numba, or for other numbers, they step aside."""

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl import arithmetic
from awfulowl.arithmetic import compiled
from awfulowl.arithmetic.local import LocalProduct
from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.arithmetic.packing import PARTS, add, pack, put, unpack
from awfulowl.arithmetic.quantise import dequantise, quantise, rounded, steps
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.errors import InputError
from tests.prepared import prepared

SMALLEST = 2.0**-126

each = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)
SHAPES = st.tuples(st.integers(0, 6), st.integers(1, 70)) | st.tuples(
    st.integers(0, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)
)
SIZES = st.sampled_from([0.0, 1e-44, 1e-38, 1e-20, 1.0, 1e20, 3e38])


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with prepared(compiled._LOOPS):
        yield


def floats(shape: tuple[int, ...], size: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).mul_(2).sub_(1).mul_(size)


def whole(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Return integers of all sizes, ties of the rounding to float32 among them."""
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.iinfo(dtype)
    x = torch.randint(bounds.min, bounds.max, shape, dtype=dtype, generator=generator)
    return x >> torch.randint(0, bounds.bits - 1, shape, generator=generator)


@each
@given(SHAPES, SIZES, st.integers(0, 2**32))
def test_rounding_is_pytorchs_bit_by_bit(numbers: Integers, shape: tuple[int, ...], size: float, seed: int) -> None:
    x = floats(shape, size, seed)
    found = compiled.round_all(x, numbers.largest, SMALLEST, numbers.dtype)
    assert found is not None
    own = steps(x, numbers) if len(x) else torch.empty(0)
    assert torch.equal(found[0], own)
    assert found[1].dtype is numbers.dtype
    assert torch.equal(found[1], quantise(x, own, numbers))


@each
def test_ties_go_to_even(numbers: Integers) -> None:
    x = torch.tensor([[numbers.largest, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert rounded(x, numbers)[1].tolist() == [[numbers.largest, 0, 2, 2, 0, -2, -2]]


@each
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_in_the_step_of_its_vector_alone(numbers: Integers, bad: float) -> None:
    x = floats((5, 9), 1.0, 0)
    x[2, 4] = bad
    own, found = rounded(x, numbers)
    assert own.isfinite().tolist() == [True, True, False, True, True]
    others = [0, 1, 3, 4]
    assert torch.equal(own[others], steps(x, numbers)[others])
    assert torch.equal(found[others], quantise(x[others], own[others], numbers))


@each
def test_vectors_of_zeros_become_zeros(numbers: Integers) -> None:
    for zero in (0.0, -0.0, 1e-45):
        own, found = rounded(torch.full((2, 3), zero), numbers)
        assert own.tolist() == [SMALLEST] * 2
        assert not found.any()


@given(SHAPES, st.integers(0, 2**32), st.integers(2, 4))
def test_sums_of_three_bytes_are_pytorchs(shape: tuple[int, ...], seed: int, count: int) -> None:
    all_parts = [pack(whole(shape, torch.int32, seed + number), 3) for number in range(count)]
    total = torch.full(shape, 5, dtype=torch.int32)
    assert compiled.put(total, all_parts[0])
    for parts in all_parts[1:]:
        assert compiled.add(total, parts)
    wanted = sum((low.long() + 2**16 * high.long() for low, high in all_parts), torch.zeros(shape, dtype=torch.int64))
    assert torch.equal(total, wanted.to(torch.int32))
    assert torch.equal(unpack(all_parts[0], 3).long(), all_parts[0][0].long() + 2**16 * all_parts[0][1].long())


def test_sums_wrap_around_as_their_ring_does() -> None:
    total = torch.tensor([2**31 - 1, -(2**31)], dtype=torch.int32)
    parts = [torch.tensor([1, -1], dtype=torch.int16), torch.tensor([0, 0], dtype=torch.int8)]
    assert compiled.add(total, parts)
    assert total.tolist() == [-(2**31), 2**31 - 1]


@given(SHAPES, st.sampled_from([torch.int32, torch.int64]), SIZES, st.integers(0, 2**32))
def test_scaling_back_is_pytorchs_bit_by_bit(
    shape: tuple[int, ...], dtype: torch.dtype, size: float, seed: int
) -> None:
    y = whole(shape, dtype, seed)
    of_inputs, of_weights = floats(shape[:1], size, seed + 1), floats(shape[1:2], 1.0, seed + 2)
    found, wanted = torch.full(shape, math.nan), torch.full(shape, math.nan)
    assert compiled.scale(y, of_inputs, of_weights, found) is (y.numel() > 0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(compiled._LOOPS, "module", None)
        dequantise(y, of_inputs.clamp_max(2.0**60), of_weights, wanted)
    dequantise(y, of_inputs.clamp_max(2.0**60), of_weights, found)
    assert torch.equal(found, wanted)


def test_steps_that_are_too_large_for_float32_are_done_again_in_float64() -> None:
    y, out = torch.tensor([[2**40], [3]]), torch.empty(2, 1)
    dequantise(y, torch.tensor([2.0**100, 1.0]), torch.tensor([2.0**-60]), out)
    assert out.tolist() == [[2.0**80], [3 * 2.0**-60]]


@each
@pytest.mark.parametrize("space", [(), (5, 4)], ids=["dense", "convolution"])
def test_products_here_are_the_same_with_loops_and_without(
    numbers: Integers, space: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Convolution((1, 1), (1, 1), (1, 1)) if space else Dense()
    weight = floats((6, 3, *([3, 3] if space else [])), 1.0, 1)
    local, x = LocalProduct([weight], kernel, 1, numbers), floats((7, 3, *space), 1.0, 2)
    with_loops = local(x)
    bad = x.clone()
    bad[1, 1] = math.inf
    with pytest.raises(InputError, match="not finite"):
        local(bad)
    monkeypatch.setattr(compiled._LOOPS, "module", None)
    assert torch.equal(local(x), with_loops)
    with pytest.raises(InputError, match="not finite"):
        local(bad)


def test_gradients_are_no_hindrance() -> None:
    x = torch.ones(4, 6, requires_grad=True)
    own, found = rounded(x, INTEGERS["int8"])
    assert not own.requires_grad
    assert found.tolist() == [[127] * 6] * 4


def test_what_does_not_fit_is_left_to_pytorch() -> None:
    """A loop would read beyond the end, or numbers that lie elsewhere."""
    x, y, out = torch.ones(4, 6), torch.ones(4, 6, dtype=torch.int32), torch.ones(4, 6)
    of_inputs, of_weights = torch.ones(4), torch.ones(6)
    for other in (x.double(), x[:, ::2], x[0], x.T):
        assert compiled.round_all(other, 127, SMALLEST, torch.int8) is None
    for operands in (
        (y.to(torch.int16), of_inputs, of_weights, out),
        (y.T.contiguous().T, of_inputs, of_weights, out),
        (y, of_weights, of_weights, out),
        (y, of_inputs, of_inputs, out),
        (y, of_inputs, of_weights, out[:3]),
        (y, of_inputs, of_weights, out.double()),
        (y, of_inputs.double(), of_weights, out),
    ):
        assert not compiled.scale(*operands)
    parts = pack(y.clone(), 3)
    for total, some in (
        (y.long(), parts),
        (y[:3], parts),
        (y[:, ::2], [part[:, ::2] for part in parts]),
        (y, parts[:1]),
        (y, parts[::-1]),
        (y, [*parts, parts[1]]),
    ):
        assert not compiled.put(total, some)
        assert not compiled.add(total, some)
    assert y.tolist() == [[1] * 6] * 4


@pytest.mark.parametrize("width", PARTS)
def test_numbers_of_every_width_are_put_and_added(width: int) -> None:
    y = whole((3, 5), torch.int32 if width <= 4 else torch.int64, 3) >> (8 * max(0, 4 - width) if width <= 4 else 0)
    parts = pack(y.clone(), width)
    total = torch.full_like(y, 7)
    put(total, parts)
    once = total.clone()
    add(total, parts)
    bits = 8 * width if width not in (4, 8) else 0
    assert torch.equal(total, 2 * once)
    assert bits == 0 or not bool(((once - y) % 2**bits).any())


def test_nothing_is_compiled_before_it_is_asked_for() -> None:
    compiled._LOOPS.module = None
    assert compiled.round_all(torch.ones(2, 3), 127, SMALLEST, torch.int8) is None
    assert not compiled.put(torch.ones(1, dtype=torch.int32), pack(torch.ones(1, dtype=torch.int32), 3))


def test_without_numba_all_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled._LOOPS.module = None
    monkeypatch.delitem(sys.modules, "awfulowl.arithmetic.loops")
    monkeypatch.delattr(arithmetic, "loops")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not compiled.prepare()
    own, found = rounded(torch.ones(2, 3), INTEGERS["int8"])
    assert own.shape == (2,)
    assert found.tolist() == [[127] * 3] * 2


def test_loops_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError(arguments)

    monkeypatch.setattr(compiled._LOOPS, "_call_all", never)
    assert compiled.prepare()
