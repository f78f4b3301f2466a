"""The check of products while weights move: right answers pass whatever moved them, lies and missed steps do not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.grid import rectangle, take
from awfulowl.blocks.kernels import product
from awfulowl.errors import InputError, ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import VECTORS, Z
from awfulowl.verification.images import LARGEST_SQUARE
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF
from awfulowl.verification.training import TrainingCheck
from tests.contract.verification.cases import parts
from tests.unit.verification.descents import LAYERS, PAIRS, Batch, Trainee, batch_of, rules, trained, true_backward
from tests.unit.verification.shapes import Layer, convolution, dense, layers, some, terms

shapes = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def small_steps(layer: Layer, steps: list[Descent]) -> list[Descent]:
    """Steps that do not stretch the weights much, whatever the sizes of inputs and weights."""
    x, dy = batch_of(layer)
    size = float(layer.weights.norm()) / max(1e-30, float(x.norm()) * float(dy.norm()))
    return [
        Descent(
            rule.momentum_momentum,
            rule.momentum_weight,
            rule.momentum_gradient * size,
            rule.weight_weight,
            rule.weight_momentum,
            rule.weight_gradient * size,
        )
        for rule in steps
    ]


# Right answers


@some
@given(layers(least_batch=1), rules(3), st.integers(0, 100))
def test_right_answers_pass_after_any_steps(layer: Layer, steps: list[Descent], seed: int) -> None:
    trainee = Trainee(layer, seed)
    for turn, rule in enumerate(small_steps(layer, steps)):
        trainee.step(rule, batch_of(layer, turn))
    assert trainee.passes(*batch_of(layer, seed)) == [True, True]


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_right_answers_pass_after_each_kind_of_step(name: str, rule: str) -> None:
    trainee, teacher = trained(LAYERS[name], rule)
    x, dy = teacher.batch()
    assert trainee.passes(x, dy) == [True, True]
    accepted = [expectation.accepts(answer) for expectation, answer in trainee.expectations(x, dy)]
    assert [(one.shape, one.dtype) for one in accepted] == [((len(x),), torch.bool)] * 2
    assert max(trainee.residue(x, dy)) < Z / 2


@some
@given(layers(least_batch=1), st.data())
def test_each_device_is_checked_alone(layer: Layer, data: st.DataObject) -> None:
    """Columns of one device, and of rows any that these columns reach; the partial sums are the device's own."""
    trainee, grid = Trainee(layer), layer.grid
    for rule in small_steps(layer, [Descent.sgd(0.1, momentum=0.9)] * 2):
        trainee.step(rule, batch_of(layer))
    rows, columns, groups = data.draw(parts(grid))
    pieces = [rectangle([one], grid, rows, columns) for one in trainee.state]
    x = take(layer.x, grid, columns)
    y = product(grid.kernel, pieces[0], x, groups)
    assert bool(trainee.check.accepts(x, y, rows=rows, columns=columns).all())
    wrong = trainee.check.accepts(x, y + y.abs().max() + 1, rows=rows, columns=columns)
    assert not bool(wrong.any())
    assert trainee.check.matches(pieces, rows=rows, columns=columns)
    whole = rectangle([trainee.state[0]], grid, grid.columns[columns[0]].rows, columns)
    assert bool(trainee.check.accepts(x, product(grid.kernel, whole, x, groups), columns=columns).all())


def test_the_sum_of_micro_batches_is_one_batch() -> None:
    layer = LAYERS["conv2d"]
    trainee, (x, dy) = Trainee(layer), batch_of(layer)
    rule = Descent.sgd(0.01, momentum=0.9)
    trainee.step(rule, (x[:1], dy[:1]), (x[1:3], dy[1:3]), (x[3:], dy[3:]))
    assert trainee.passes(x, dy) == [True, True]
    other = Trainee(layer)
    other.step(rule, (x, dy))
    torch.testing.assert_close(trainee.check._left.weight, other.check._left.weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(trainee.check._right.strayed, other.check._right.strayed, rtol=1e-4, atol=0)


def test_momentum_may_be_switched_off_and_on() -> None:
    trainee, (x, dy) = Trainee(LAYERS["dense"]), batch_of(LAYERS["dense"])
    for momentum in (0.9, 0.0, 0.5, 0.0):
        trainee.step(Descent.sgd(0.01, momentum=momentum), (x, dy))
        assert trainee.passes(x, dy) == [True, True]
        assert trainee.check.matches_whole(trainee.state)


def test_gradients_of_other_samples_than_those_multiplied() -> None:
    """What is checked and what is learnt from need not have to do with each other."""
    layer = LAYERS["grouped"]
    trainee, (x, dy) = Trainee(layer), batch_of(layer)
    trainee.step(Descent.sgd(0.01), (x[1:], dy[1:]))
    assert trainee.passes(x * 3, dy.flip(0)) == [True, True]


# Tolerances


@shapes
@pytest.mark.parametrize("steps", [0, 3])
def test_the_tolerance_is_the_stated_one(layer: Layer, steps: int) -> None:
    """κ u² 3 ((n + 6)/3 (V x² + |y|²) + D x²); what weights have strayed may count a little more than that."""
    trainee, teacher = trained(layer, steps=steps)
    x, dy = teacher.batch()
    kernel, groups = layer.grid.kernel, layer.grid.groups
    (forward, y), _ = trainee.expectations(x, dy)
    n, left = terms(layer), trainee.check._left

    def spread(columns: Tensor) -> Tensor:
        """Columns' energies times x²: a product with one output to a group, of which each sees its own inputs."""
        by_input = columns.sum(dim=-2).movedim(-1, 0)
        one = by_input.reshape(groups, -1, *layer.grid.size)
        return product(kernel, one, x.double().square(), groups).flatten(1).sum(1)

    energy = spread(left.energy.double()) + y.double().square().flatten(1).sum(1)
    strayed = spread(left.strayed)
    scale = MEAN_SQUARE * UNIT_ROUNDOFF**2 * LARGEST_SQUARE
    least = (scale * ((n + 6) / 3 * energy + strayed)).sqrt()[:, None]
    most = (scale * ((n + 6) / 3 * energy + (n + 6) / (n + 3) * strayed)).sqrt()[:, None]
    found = forward.tolerance(y) / Z
    assert found.expand(-1, VECTORS).shape == (len(x), VECTORS)
    assert bool((found > 0.999 * least).all())
    assert bool((found < 1.001 * most).all())


@shapes
def test_the_residue_is_that_of_the_secrets(layer: Layer) -> None:
    trainee, teacher = trained(layer, steps=3, follow=True)
    x, dy = teacher.batch()
    for transposed, (expectation, answer) in enumerate(trainee.expectations(x, dy)):
        side = trainee.check._right if transposed else trainee.check._left
        wrong = answer + answer.abs().mean()
        exact = (
            true_backward(layer.grid, trainee.exact[0], dy, x.shape[2:])
            if transposed
            else product(layer.grid.kernel, trainee.exact[0], x.double(), layer.grid.groups)
        )
        secret = side.secret_of(range(len(side.parts)))
        error = torch.einsum("ko,bo...->bk...", secret, wrong.double() - exact)
        residue = error.flatten(2).norm(dim=2) if error.dim() > 2 else error.abs()
        found = expectation.residue(wrong) * expectation.tolerance(wrong) / Z
        torch.testing.assert_close(found, residue, rtol=1e-3, atol=0)


def test_another_z() -> None:
    layer = LAYERS["dense"]
    x, y = layer.x, layer.y
    strict, wide = (TrainingCheck([layer.weights], layer.grid, Entropy(1), z=z) for z in (1e-9, 1e9))
    assert not bool(strict.accepts(x, y).any())
    assert bool(wide.accepts(x, y * 1.01).all())


# Numbers of any size


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["dense", "conv2d"])
def test_what_is_not_finite_never_passes(name: str, value: float) -> None:
    trainee, teacher = trained(LAYERS[name])
    for expectation, answer in trainee.expectations(*teacher.batch()):
        answer[1].view(-1)[3] = value
        assert expectation.accepts(answer).tolist() == [index != 1 for index in range(len(answer))]


@pytest.mark.parametrize("size", [1e-30, 1e-36, 0.0])
def test_small_gradients_pass(size: float) -> None:
    """A sample that is classified for certain has gradients like these."""
    layer = LAYERS["dense"]
    trainee, (x, dy) = Trainee(layer), batch_of(layer)
    dy[2] *= size
    assert trainee.passes(x, dy) == [True, True]
    trainee.step(Descent.sgd(0.01, momentum=0.9), (x, dy))
    assert trainee.passes(x, dy) == [True, True]


# Errors


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_cannot_be_checked(value: float) -> None:
    layer = LAYERS["dense"]
    bad = layer.weights.clone()
    bad[3, 5] = value
    with pytest.raises(ModelError, match="finite"):
        TrainingCheck([bad], layer.grid, Entropy(1))
    with pytest.raises(ModelError, match="finite"):
        TrainingCheck([layer.weights, bad], layer.grid, Entropy(1))
    with pytest.raises(ModelError, match="finite"):
        TrainingCheck([layer.weights], layer.grid, Entropy(1), momentum=[bad])


@pytest.mark.parametrize("shape", [(8, 23), (8, 24, 1), (24,), (8, 25)])
def test_gradients_of_other_shapes_are_named(shape: tuple[int, ...]) -> None:
    check = Trainee(LAYERS["dense"]).check
    with pytest.raises(InputError, match="24 outputs got gradients of shape"):
        check.expect_transposed(torch.ones(shape), ())
    with pytest.raises(InputError, match=r"answer of shape \(8, 39\), not \(8, 40\)"):
        check.expect_transposed(torch.ones(8, 24), ()).accepts(torch.ones(8, 39))


def test_gradients_of_other_shapes_are_named_for_convolutions() -> None:
    check = Trainee(LAYERS["conv2d"]).check
    with pytest.raises(InputError, match="6 outputs got gradients of shape"):
        check.expect_transposed(torch.ones(4, 5, 5, 6), (5, 6))
    with pytest.raises(InputError, match=r"answer of shape \(4, 4, 5, 5\), not \(4, 4, 5, 6\)"):
        check.expect_transposed(torch.ones(4, 6, 5, 6), (5, 6)).accepts(torch.ones(4, 4, 5, 5))


def test_a_step_needs_a_batch() -> None:
    trainee = Trainee(LAYERS["dense"])
    before = trainee.check._left.weight.clone()
    with pytest.raises(InputError, match="at least one batch"):
        trainee.check.move(Descent.sgd(0.1), [])
    assert torch.equal(trainee.check._left.weight, before)


@shapes
def test_what_checks_whole_products_is_made_once_for_a_state(layer: Layer) -> None:
    """A copy keeps its own, and what the next state has is that state's."""
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    x, dy = batch_of(layer)
    before, _ = check._select(None, None)
    assert check._select(None, None)[0] is before
    seen, still = check.see(x, dy), check.copy()
    check.move(Descent.sgd(0.1), [seen])
    counted = check.memory_bytes
    after, _ = check._select(None, None)
    assert check.memory_bytes >= counted + after.v.nbytes + after.r_squared.nbytes
    assert still._select(None, None)[0] is before
    assert torch.equal(after.s, check._left.image_of(range(len(check._parts))))
    assert not torch.equal(after.s, before.s)
    assert after.unit > before.unit
    stated = check.stating(layer.weights)
    assert torch.allclose(stated._select(None, None)[0].s, before.s)
    assert check._select(None, None)[0] is after


@shapes
def test_whole_products_are_checked_as_all_rows_and_columns_are(layer: Layer) -> None:
    check, grid = TrainingCheck([layer.weights], layer.grid, Entropy(1)), layer.grid
    check.move(Descent.sgd(0.01), [check.see(*batch_of(layer))])
    rows, columns = range(len(grid.rows)), range(len(grid.columns))
    (ours, terms), (named, named_terms) = check._select(None, None), check._select(rows, columns)
    assert terms == named_terms
    for one, other in ((ours.r, named.r), (ours.s, named.s), (ours.v * ours.unit, named.v * named.unit)):
        torch.testing.assert_close(one, other)


def test_a_check_does_not_print_its_secrets() -> None:
    check = Trainee(LAYERS["dense"]).check
    assert "tensor" not in repr(check) + str(check) + repr(check._left)


def test_weights_are_not_kept() -> None:
    layer = dense(64, 64)
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    x, y = layer.x, layer.y
    layer.weights.zero_()
    assert bool(check.accepts(x, y).all())


def test_columns_of_a_stride_that_reach_nothing() -> None:
    """Inputs that no output sees have no gradient, and any other than 0 is a lie."""
    layer = convolution((4, 3, 1), (5,), 2, stride=3, padding=0)
    trainee, dy = Trainee(layer), batch_of(layer)[1]
    dx = trainee.dx(dy, (5,))
    assert not bool(dx[..., [1, 2, 4]].any())
    expectation = trainee.check.expect_transposed(dy, (5,))
    assert bool(expectation.accepts(dx).all())
    dx[1, 0, 4] += 1e-3
    assert expectation.accepts(dx).tolist() == [True, False]


def test_batches_are_noted_as_they_are() -> None:
    """`see` reads, and writes nothing."""
    layer = LAYERS["strided"]
    check = Trainee(layer).check
    batch: Batch = batch_of(layer)
    before = [one.clone() for one in batch]
    check.see(*batch)
    check.move(Descent.sgd(0.1), [check.see(*batch)])
    assert all(torch.equal(one, old) for one, old in zip(batch, before, strict=True))
