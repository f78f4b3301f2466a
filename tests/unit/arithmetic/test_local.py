"""Exact products here: the float product up to what rounding to integers costs, and bounds that are attained."""

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from awfulowl.arithmetic.local import LocalProduct, Rounded, largest_sum
from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.arithmetic.quantise import quantise, steps
from awfulowl.blocks.kernels import Convolution, Dense, product
from awfulowl.errors import InputError, ModelError
from tests.unit.verification.shapes import Layer, convolution, dense, layers, terms

some = settings(max_examples=40, deadline=None)
each = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)
CONVOLUTION = Convolution((1,), (1,), (1,))


def local(layer: Layer, numbers: Integers) -> LocalProduct:
    return LocalProduct([layer.weights], layer.grid.kernel, layer.grid.groups, numbers)


def back(x: Tensor, numbers: Integers) -> Tensor:
    """What the integers of each vector stand for, in float64."""
    step = steps(x, numbers)
    return quantise(x, step, numbers).double() * step.double().view(-1, *[1] * (x.dim() - 1))


@each
@some
@given(layer=layers(least_batch=1))
def test_the_product_is_that_of_what_was_rounded(numbers: Integers, layer: Layer) -> None:
    """Nothing else is lost, but for the last bits of scaling back."""
    grid = layer.grid
    y = local(layer, numbers)(layer.x)
    assert y.dtype == torch.float32
    weights, x = back(layer.weights, numbers), back(layer.x, numbers)
    expected = product(grid.kernel, weights, x, grid.groups)
    # float64 rounds sums to 2^-53 of all that was added up.
    energy = product(grid.kernel, weights.abs(), x.abs(), grid.groups)
    assert bool(((y.double() - expected).abs() <= 4 * 2.0**-24 * expected.abs() + 2.0**-45 * energy).all())


@each
@some
@given(layer=layers(least_batch=1))
def test_rounding_costs_half_a_step_of_each_number(numbers: Integers, layer: Layer) -> None:
    """|y - W x| <= terms (|x| s_w / 2 + |W| s_x / 2 + s_x s_w / 4), largest numbers for each row and sample."""
    kernel, groups = layer.grid.kernel, layer.grid.groups
    y = local(layer, numbers)(layer.x).double()
    exact = product(kernel, layer.weights.double(), layer.x.double(), groups)
    ones = [1] * (y.dim() - 2)
    of_x = steps(layer.x, numbers).double().view(-1, 1, *ones)
    of_weights = steps(layer.weights, numbers).double().view(1, -1, *ones)
    largest_x = layer.x.double().flatten(1).abs().amax(1).view(-1, 1, *ones)
    largest_weight = layer.weights.double().flatten(1).abs().amax(1).view(1, -1, *ones)
    bound = terms(layer) * (largest_x * of_weights / 2 + largest_weight * of_x / 2 + of_x * of_weights / 4)
    assert bool(((y - exact).abs() <= bound * 1.01).all())


@each
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (2, 1, 4)])
def test_any_leading_dimensions_will_do(numbers: Integers, leading: tuple[int, ...]) -> None:
    layer = dense(5, 7)
    multiply = local(layer, numbers)
    x = torch.randn(*leading, 7, generator=torch.Generator().manual_seed(1))
    y = multiply(x)
    assert y.shape == (*leading, 5)
    assert torch.equal(y.reshape(-1, 5), multiply(x.reshape(-1, 7)))


@each
@pytest.mark.parametrize("leading", [(0,), (0, 3), (2, 0, 3)])
def test_no_samples_have_no_answers(numbers: Integers, leading: tuple[int, ...]) -> None:
    assert local(dense(5, 7), numbers)(torch.ones(*leading, 7)).shape == (*leading, 5)


@each
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_of_no_samples_has_no_answers(numbers: Integers, groups: int) -> None:
    multiply = LocalProduct([torch.randn(4, 3, 3)], CONVOLUTION, groups, numbers)
    assert multiply(torch.ones(0, 3 * groups, 9)).shape == (0, 4, 9)


@each
def test_samples_do_not_touch_each_other(numbers: Integers) -> None:
    layer = convolution((6, 4, 3), (7,), 5)
    layer.x[2] *= 1e6
    multiply = local(layer, numbers)
    whole = multiply(layer.x)
    for index in range(5):
        assert torch.equal(multiply(layer.x[index : index + 1])[0], whole[index])


@each
def test_stacked_weights_are_one_product(numbers: Integers) -> None:
    weights = [torch.randn(outputs, 9) * scale for outputs, scale in ((3, 1.0), (5, 1e-3), (2, 1e3))]
    x = torch.randn(4, 9)
    parts = [LocalProduct([weight], Dense(), 1, numbers)(x) for weight in weights]
    assert torch.equal(LocalProduct(weights, Dense(), 1, numbers)(x), torch.cat(parts, dim=1))


@each
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_have_to_be_finite(numbers: Integers, value: float) -> None:
    for layer in (dense(5, 7, 3), convolution((5, 7, 3), (4,), 3)):
        layer.x[1, 2] = value
        with pytest.raises(InputError, match="not finite"):
            local(layer, numbers)(layer.x)


@each
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_have_to_be_finite(numbers: Integers, value: float) -> None:
    layer = dense(5, 7)
    layer.weights[3, 2] = value
    with pytest.raises(ModelError, match="not finite"):
        local(layer, numbers)


@pytest.mark.parametrize(("given", "said"), [(("first/q",), "first/q"), (("",), "the model"), ((), "the model")])
def test_errors_name_the_layer(given: tuple[str, ...], said: str) -> None:
    weight, numbers = torch.ones(2, 3), INTEGERS["int8"]
    with pytest.raises(InputError, match=f"^{said}: the inputs are not finite, and integers have no infinity"):
        LocalProduct([weight], Dense(), 1, numbers, *given)(torch.tensor([[1.0, math.nan, 2.0]]))
    weight[1, 1] = math.inf
    with pytest.raises(ModelError, match=f"^{said}: weights are not finite, and integers have no infinity"):
        LocalProduct([weight], Dense(), 1, numbers, *given)


@each
def test_weights_that_are_rounded_already_stay_as_they_are_rounded(numbers: Integers) -> None:
    integers = torch.randint(-numbers.largest + 1, numbers.largest, (5, 7)).float()
    integers[:, 2] = numbers.largest
    weight, x = integers / numbers.largest, torch.randn(4, 7)
    rounded, before = Rounded(weight, numbers), LocalProduct([weight], Dense(), 1, numbers)(x)
    weight.sub_(0.4 / numbers.largest)
    assert torch.equal(rounded[slice(None)].float(), integers)
    assert torch.equal(LocalProduct([rounded], Dense(), 1, numbers)(x), before)
    assert not torch.equal(LocalProduct([weight], Dense(), 1, numbers)(x), before)


@each
def test_weights_of_zero_give_zeros(numbers: Integers) -> None:
    layer = dense(5, 7)._replace(weights=torch.zeros(5, 7))
    assert torch.equal(local(layer, numbers)(layer.x), torch.zeros(8, 5))


@each
def test_floats_are_left_alone(numbers: Integers) -> None:
    layer = dense(5, 7)
    before = layer.weights.clone(), layer.x.clone()
    local(layer, numbers)(layer.x)
    assert torch.equal(layer.weights, before[0])
    assert torch.equal(layer.x, before[1])


@each
@some
@given(layer=layers())
def test_no_sum_is_larger_than_the_largest(numbers: Integers, layer: Layer) -> None:
    rounded = Rounded(layer.weights, numbers)
    integers = rounded[slice(None)].double()
    bound = largest_sum([rounded], numbers)
    row = int(integers.flatten(1).abs().sum(1).argmax())
    worst = integers[row].sign() * numbers.largest
    assert int((integers[row] * worst).sum()) == bound
    assert bool(((integers.flatten(1) @ worst.flatten()).abs() <= bound).all())


@each
def test_the_largest_sum_of_a_stack_is_that_of_its_largest_member(numbers: Integers) -> None:
    members = [Rounded(torch.ones(2, count), numbers) for count in (3, 9, 5)]
    assert largest_sum(members, numbers) == 9 * numbers.largest**2
    assert largest_sum(members[:1], numbers) == 3 * numbers.largest**2


@each
@some
@given(layer=layers())
def test_rounded_weights_are_rounded_row_by_row(numbers: Integers, layer: Layer) -> None:
    rounded = Rounded(layer.weights, numbers)
    assert rounded.shape == layer.weights.shape
    assert len(rounded) == len(layer.weights)
    assert torch.equal(rounded.steps, steps(layer.weights, numbers))
    whole = quantise(layer.weights, rounded.steps, numbers)
    assert torch.equal(rounded[slice(None)], whole)
    assert torch.equal(rounded[1:3], whole[1:3])
    for count in (1, 10, 10**6):
        assert torch.equal(torch.cat(list(rounded.pieces(count))), whole)


def test_pieces_are_of_about_the_size_asked_for() -> None:
    rounded = Rounded(torch.ones(10, 6), INTEGERS["int8"])
    assert [len(piece) for piece in rounded.pieces(12)] == [2] * 5
    assert [len(piece) for piece in rounded.pieces(1)] == [1] * 10


def test_weights_are_looked_at_when_they_are_wanted() -> None:
    weight = torch.ones(2, 3)
    rounded = Rounded(weight, INTEGERS["int8"])
    weight[0, 0] = -1
    assert rounded[:1].tolist() == [[-127, 127, 127]]
