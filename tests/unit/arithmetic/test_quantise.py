"""Rounding to integers: how far off, where exactly not at all, and each vector by itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.arithmetic.quantise import dequantise, quantise, steps

some = settings(max_examples=40, deadline=None)
each = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALLEST = 2.0**-126


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    """Some vectors, of any finite floats or of floats of one size."""
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    if draw(st.booleans()):
        count = math.prod(shape)
        values = draw(st.lists(FLOATS, min_size=count, max_size=count))
        return torch.tensor(values, dtype=torch.float32).reshape(shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-44, 37))


def rounded(x: Tensor, numbers: Integers) -> Tensor:
    return quantise(x, steps(x, numbers), numbers)


def wide(step: Tensor, x: Tensor) -> Tensor:
    return step.double().view(-1, *[1] * (x.dim() - 1))


@each
@some
@given(x=vectors())
def test_no_number_is_off_by_more_than_half_a_step(numbers: Integers, x: Tensor) -> None:
    """And what the division by the step is rounded by."""
    step = steps(x, numbers)
    q = quantise(x, step, numbers)
    assert q.dtype == numbers.dtype
    assert q.shape == x.shape
    allowed = 0.5 + numbers.largest * 2.0**-23
    assert bool(((x.double() - wide(step, x) * q.double()).abs() <= allowed * wide(step, x)).all())


@each
@some
@given(x=vectors())
def test_integers_are_symmetric(numbers: Integers, x: Tensor) -> None:
    q = rounded(x, numbers).long()
    assert bool((q.abs() <= numbers.largest).all())
    assert torch.equal(rounded(-x, numbers).long(), -q)


@each
@some
@given(x=vectors())
def test_the_largest_number_of_a_vector_is_the_largest_integer(numbers: Integers, x: Tensor) -> None:
    """Unless it is so small that the step is the smallest that there is."""
    flat = x.flatten(1)
    q = rounded(x, numbers).flatten(1).long().abs()
    largest = flat.abs().amax(1)
    normal = largest >= 2 * numbers.largest * SMALLEST
    at_largest = flat.abs() == largest[:, None]
    assert bool((q[at_largest & normal[:, None]] == numbers.largest).all())


@each
@pytest.mark.parametrize("largest", [1e-30, 1e-3, 1.0, 3.0, 1e6, 3e38, torch.finfo(torch.float32).max])
def test_both_signs_of_the_largest(numbers: Integers, largest: float) -> None:
    x = torch.tensor([[largest, -largest, 0.0, largest / 2]])
    q = rounded(x, numbers)[0].tolist()
    assert q[:3] == [numbers.largest, -numbers.largest, 0]
    assert abs(q[3] - numbers.largest / 2) <= 0.5


@each
@some
@given(x=vectors(), seed=st.integers(0, 2**31))
def test_each_vector_is_rounded_by_itself(numbers: Integers, x: Tensor, seed: int) -> None:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    step = steps(x, numbers)
    assert torch.equal(steps(x[order], numbers), step[order])
    assert torch.equal(rounded(x[order], numbers), rounded(x, numbers)[order])
    for index in range(len(x)):
        assert torch.equal(rounded(x[index : index + 1], numbers)[0], rounded(x, numbers)[index])


@each
def test_zeros_become_zeros(numbers: Integers) -> None:
    x = torch.tensor([[0.0, -0.0], [0.0, 0.0], [1.0, 0.0]])
    step = steps(x, numbers)
    assert step[:2].tolist() == [SMALLEST] * 2
    assert rounded(x, numbers).tolist() == [[0, 0], [0, 0], [numbers.largest, 0]]


@each
def test_denormals_become_whole_multiples_of_the_smallest_step(numbers: Integers) -> None:
    x = torch.tensor([[2.0**-149, -(2.0**-149)], [2.0**-128, 2.0**-127], [2.0**-126, -3 * 2.0**-126]])
    assert steps(x, numbers).tolist() == [SMALLEST] * 3
    assert rounded(x, numbers).tolist() == [[0, 0], [0, 0], [1, -3]]


@each
def test_an_outlier_takes_the_range_of_its_own_vector_only(numbers: Integers) -> None:
    x = torch.linspace(-1, 1, 64).repeat(3, 1)
    x[1, 7] = 1e6
    q = rounded(x, numbers)
    assert torch.equal(q[0], q[2])
    assert int(q[1, 7]) == numbers.largest
    assert int(q[1].abs().long().sum()) == numbers.largest  # all others are below half a step


@each
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_steps_tell_which_vector_is_not_finite(numbers: Integers, value: float) -> None:
    x = torch.ones(3, 2, 2)
    x[1, 0, 1] = value
    assert steps(x, numbers).isfinite().tolist() == [True, False, True]


@each
def test_ties_go_to_even(numbers: Integers) -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert quantise(x, torch.ones(1), numbers).tolist() == [[0, 2, 2, 0, -2, -2]]


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_taken_at_their_values(numbers: Integers, dtype: torch.dtype) -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert steps(x, numbers).dtype == torch.float32
    assert torch.equal(steps(x, numbers), steps(x.float(), numbers))
    assert torch.equal(rounded(x, numbers), rounded(x.float(), numbers))


@each
def test_layouts_make_no_difference(numbers: Integers) -> None:
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    other = x.to(memory_format=torch.channels_last)
    assert torch.equal(rounded(other, numbers), rounded(x, numbers))


@each
def test_floats_are_left_alone_and_gradients_are_not_followed(numbers: Integers) -> None:
    x = torch.randn(4, 9).requires_grad_()
    before = x.detach().clone()
    q = rounded(x, numbers)
    assert torch.equal(x.detach(), before)
    assert not q.requires_grad


@pytest.mark.parametrize("space", [(), (3,), (3, 2)])
def test_integers_are_scaled_back(space: tuple[int, ...]) -> None:
    y = torch.randint(-(2**31), 2**31, (4, 5, *space), generator=torch.Generator().manual_seed(0))
    of_x, of_weights = torch.rand(4) + 0.5, torch.rand(5) + 0.5
    out = torch.full(y.shape, math.nan)
    dequantise(y, of_x, of_weights, out)
    ones = [1] * len(space)
    expected = y.double() * of_x.double().view(-1, 1, *ones) * of_weights.double().view(1, -1, *ones)
    torch.testing.assert_close(out.double(), expected, rtol=3 * 2.0**-23, atol=0)


@each
@some
@given(x=vectors())
def test_what_is_rounded_is_its_own_rounding(numbers: Integers, x: Tensor) -> None:
    """Scaled back and rounded again with the same steps, nothing changes."""
    step = steps(x, numbers)
    q = quantise(x, step, numbers)
    back = q.float() * step.view(-1, *[1] * (x.dim() - 1))
    back = back.clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
    assert torch.equal(quantise(back, step, numbers), q)


@pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)
def test_nothing_overflows_on_the_way_back(numbers: Integers) -> None:
    """Inputs of 1e36 on weights of 1e-6 have a product of 1e30, though y times the step of the inputs is no float32."""
    weight, x = torch.full((4, 8), 1e-6), torch.full((2, 8), 1e36)
    x[1] = 1.0
    of_weights, of_inputs = steps(weight, numbers), steps(x, numbers)
    y = quantise(x, of_inputs, numbers).long() @ quantise(weight, of_weights, numbers).long().T
    out = torch.empty(2, 4)
    dequantise(y, of_inputs, of_weights, out)
    torch.testing.assert_close(out, (x.double() @ weight.double().T).float())
    alone = torch.empty(1, 4)
    dequantise(y[1:], of_inputs[1:], of_weights, alone)
    assert torch.equal(alone[0], out[1])
