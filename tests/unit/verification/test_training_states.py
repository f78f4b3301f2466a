"""What a device holds after some steps: the honest state is known again, by parts and as a whole, and no other is."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.grid import rectangle, rejoin
from awfulowl.errors import InputError
from awfulowl.randomness import Entropy
from awfulowl.verification.training import TrainingCheck
from tests.contract.verification.cases import parts
from tests.unit.verification.descents import LAYERS, PAIRS, RULES, Teacher, Trainee, batch_of, rules, trained
from tests.unit.verification.shapes import Layer, convolution, dense, layers, some

SOME = ("dense", "conv2d", "grouped")
shapes = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
some_shapes = pytest.mark.parametrize("layer", [LAYERS[name] for name in SOME], ids=SOME)


def verdicts(trainee: Trainee, state: list[Tensor]) -> list[bool]:
    return [trainee.check.matches(state), trainee.check.matches_whole(state)]


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_the_honest_state_matches(name: str, rule: str) -> None:
    trainee = trained(LAYERS[name], rule)[0]
    assert verdicts(trainee, trainee.state) == [True, True]


@some
@given(layers(least_batch=1), rules(4))
def test_the_honest_state_matches_after_any_steps(layer: Layer, steps: list[Descent]) -> None:
    """Even where the steps are far too large."""
    trainee = Trainee(layer)
    for turn, rule in enumerate(steps):
        trainee.step(rule, batch_of(layer, turn))
    if all(bool(part.isfinite().all()) for part in trainee.state):
        assert verdicts(trainee, trainee.state) == [True, True]


@pytest.mark.parametrize("rule", ["momentum, decay", "nesterov", "much momentum", "decoupled", "plain, decay"])
def test_the_states_of_many_dead_inputs_match(rule: str) -> None:
    """Each has a limit of its own, made from what three images tell of its size: none may be too small by chance."""
    layer = dense(4, 100_000, 1, block=100_000)
    trainee, dy = Trainee(layer._replace(x=torch.zeros(1, 100_000))), torch.ones(1, 4)
    for first in (True, False, False):
        trainee.step(Descent.sgd(0.01, **RULES[rule], first=first), (trainee.layer.x, dy))
        assert verdicts(trainee, trainee.state) == [True, True]


@some
@given(layers(least_batch=1), st.data())
def test_every_rectangle_matches_where_it_belongs(layer: Layer, data: st.DataObject) -> None:
    trainee, grid = Trainee(layer), layer.grid
    trainee.step(Descent.sgd(1e-3, momentum=0.9), batch_of(layer))
    rows, columns, _ = data.draw(parts(grid))
    pieces = [rectangle([part], grid, rows, columns) for part in trainee.state]
    assert trainee.check.matches(pieces, rows=rows, columns=columns)
    pieces[0] += pieces[0].abs().max()
    assert not trainee.check.matches(pieces, rows=rows, columns=columns)


@shapes
def test_a_state_put_together_from_rectangles_matches(layer: Layer) -> None:
    trainee, grid = trained(layer)[0], layer.grid
    places = [(column.rows, [index]) for index, column in enumerate(grid.columns)]
    whole = []
    for part in trainee.state:
        pieces = [(rows, columns, rectangle([part], grid, rows, columns)) for rows, columns in places]
        whole.append(rejoin(pieces, grid))
    assert verdicts(trainee, whole) == [True, True]


# Changes


def far(part: Tensor) -> Tensor:
    changed = part.clone()
    changed.view(-1)[part.numel() // 2] += 1e-3 * float(part.abs().max() + 1e-3)
    return changed


def smaller(part: Tensor) -> Tensor:
    return 0.999 * part - 1e-6


def swapped(part: Tensor) -> Tensor:
    return part.roll(1, dims=0)


CHANGES: list[Callable[[Tensor], Tensor]] = [far, smaller, swapped]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("part", [0, 2], ids=["weight", "momentum"])
@some_shapes
def test_changes_show(layer: Layer, part: int, change: Callable[[Tensor], Tensor]) -> None:
    trainee = trained(layer)[0]
    state = list(trainee.state)
    state[part] = change(state[part])
    assert verdicts(trainee, state) == [False, False]


@some_shapes
def test_a_lost_part_that_is_another_shows(layer: Layer) -> None:
    trainee = trained(layer)[0]
    weight, lost, momentum = trainee.state
    assert verdicts(trainee, [weight, lost + 1e-3 * weight, momentum]) == [False, False]
    assert verdicts(trainee, [weight, far(weight) - weight, momentum]) == [False, False]


@some_shapes
def test_weights_are_the_sum_as_float32_rounds_it(layer: Layer) -> None:
    """Images know of the sum only, but products, snapshots and the model that comes home take the weights alone."""
    trainee = trained(layer)[0]
    weight, lost, momentum = trainee.state
    assert torch.equal(weight + lost, weight)
    away = (weight + 100 * weight.abs().max()) - weight
    last = torch.nextafter(weight, torch.full_like(weight, math.inf)) - weight
    assert verdicts(trainee, [torch.zeros_like(weight), weight, momentum]) == [False, False]
    assert verdicts(trainee, [weight + away, lost - away, momentum]) == [False, False]
    assert verdicts(trainee, [weight + last, lost - last, momentum]) == [False, False]


@some_shapes
def test_every_bit_counts_when_secrets_are_new(layer: Layer) -> None:
    """Nothing has strayed yet: neither the last bit of a weight nor what was lost of it may be another."""
    trainee = trained(layer)[0]
    trainee.renew()
    weight, lost, momentum = trainee.state
    assert verdicts(trainee, trainee.state) == [True, True]
    for position in (0, weight.numel() // 2, -1):
        next_one = weight.clone()
        next_one.view(-1)[position] = torch.nextafter(next_one.view(-1)[position], torch.tensor(math.inf))
        assert verdicts(trainee, [next_one, lost, momentum]) == [False, False]
        other = momentum.clone()
        other.view(-1)[position] *= 1 + 1e-5
        assert verdicts(trainee, [weight, lost, other]) == [False, False]
    assert bool(lost.any())
    assert verdicts(trainee, [weight, torch.zeros_like(lost), momentum]) == [False, False]
    assert verdicts(trainee, [weight, -lost, momentum]) == [False, False]


@some_shapes
def test_what_is_allowed_is_no_more_than_the_drift(layer: Layer) -> None:
    """A weight may be another by what roundings explain, and that is little."""
    trainee = trained(layer)[0]
    weight, lost, momentum = trainee.state
    assert 0 < trainee.check.drift < 1e-4
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    unit = weight.norm() / noise.norm() * trainee.check.drift
    assert verdicts(trainee, [weight + 1e-3 * unit * noise, lost, momentum]) == [True, True]
    assert verdicts(trainee, [weight + 30 * unit * noise, lost, momentum]) == [False, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["weight", "lost", "momentum"])
@some_shapes
def test_numbers_that_are_none_match_nothing(layer: Layer, part: int, value: float) -> None:
    trainee = trained(layer, steps=2)[0]
    state = [one.clone() for one in trainee.state]
    state[part].view(-1)[1] = value
    assert verdicts(trainee, state) == [False, False]


@pytest.mark.parametrize("shape", [(24, 39), (40, 24), (24, 40, 1), (960,), (), (0, 40), (23, 40)])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["weight", "lost", "momentum"])
def test_another_shape_matches_nothing(part: int, shape: tuple[int, ...]) -> None:
    trainee = Trainee(LAYERS["dense"])
    state = list(trainee.state)
    state[part] = torch.zeros(shape)
    assert not trainee.check.matches(state)
    assert not trainee.check.matches_whole(state)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_another_number_of_parts_matches_nothing(count: int) -> None:
    trainee = Trainee(LAYERS["dense"])
    state = (trainee.state * 2)[:count]
    assert not trainee.check.matches(state)
    assert not trainee.check.matches_whole(state)


def test_the_state_of_a_step_ago_matches_no_more() -> None:
    trainee = trained(LAYERS["conv2d"])[0]
    before = [part.clone() for part in trainee.state]
    assert verdicts(trainee, before) == [True, True]
    trainee.step(Descent.sgd(1e-2, momentum=0.9), batch_of(trainee.layer))
    assert verdicts(trainee, before) == [False, False]
    assert verdicts(trainee, trainee.state) == [True, True]


def test_matching_changes_nothing() -> None:
    trainee = trained(LAYERS["grouped"])[0]
    before = [part.clone() for part in trainee.state]
    assert verdicts(trainee, trainee.state) == verdicts(trainee, trainee.state) == [True, True]
    assert all(torch.equal(part, old) for part, old in zip(trainee.state, before, strict=True))


# Parts that are known together


def test_rows_that_were_not_named_cannot_be_matched() -> None:
    layer = dense(80, 8, 2)
    trainee = Trainee(layer, apart=[(0, 1), (3, 4)])
    trainee.step(Descent.sgd(0.01, momentum=0.9), batch_of(layer))
    for rows in ([0, 1], [1, 0], [3, 4], [2], [4, 2, 0, 1, 3]):
        pieces = [torch.cat([part[16 * row : 16 * (row + 1)] for row in rows]) for part in trainee.state]
        assert trainee.check.matches(pieces, rows=rows)
        assert not trainee.check.matches([part.roll(1, dims=0) for part in pieces], rows=rows)
    for rows in ([0], [0, 0], [1, 2, 3, 4], [9], [-1], [0, 1, 2, 3, 4, 4], []):
        with pytest.raises(InputError, match="apart"):
            trainee.check.matches(trainee.state, rows=rows)
        with pytest.raises(InputError, match="apart"):
            trainee.check.expect(layer.x, rows=rows)


def test_rows_in_another_order_are_other_rows() -> None:
    trainee = trained(dense(32, 8, 3, block=16))[0]
    state = [torch.cat([part[16:], part[:16]]) for part in trainee.state]
    assert trainee.check.matches(state, rows=[1, 0])
    assert not trainee.check.matches(state, rows=[0, 1])
    assert not trainee.check.matches(state)


def test_columns_of_several_groups_match_as_they_are_cut() -> None:
    trainee = trained(convolution((12, 2, 3), (9,), groups=6, block=4))[0]
    columns = trainee.grid.columns
    assert [column.groups for column in columns] == [2, 2, 2]
    pieces = [
        [rectangle([part], trainee.grid, column.rows, [at]) for part in trainee.state]
        for at, column in enumerate(columns)
    ]
    assert [trainee.check.matches(piece, columns=[at]) for at, piece in enumerate(pieces)] == [True] * 3
    assert not trainee.check.matches(pieces[0], columns=[1])


# New secrets


@pytest.mark.parametrize("rule", ["plain", "momentum, decay", "much momentum", "nesterov"])
@some_shapes
def test_secrets_drawn_anew_follow_on(layer: Layer, rule: str) -> None:
    """From what a device holds, the momentum included, and what was strayed is forgotten."""
    trainee = Trainee(layer)
    teacher = Teacher(trainee, "normal", RULES[rule], steps=60)
    for renewal in range(3):
        for _ in range(10):
            x, dy = teacher.batch()
            assert trainee.passes(x, dy) == [True, True]
            trainee.step(teacher.rule(), (x, dy))
        assert verdicts(trainee, trainee.state) == [True, True]
        strayed = trainee.check._left.strayed
        trainee.renew(renewal)
        assert bool(strayed.any())
        assert not bool(trainee.check._left.strayed.any())
        assert trainee.check.drift == trainee.check.stretched == 0
        assert verdicts(trainee, trainee.state) == [True, True]


def test_a_state_without_momentum_is_one_of_zeros() -> None:
    layer = LAYERS["dense"]
    none = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    zeros = TrainingCheck([layer.weights], layer.grid, Entropy(1), momentum=[torch.zeros_like(layer.weights)])
    x, dy = batch_of(layer)
    for check in (none, zeros):
        check.move(Descent.sgd(0.1, momentum=0.9), [check.see(x, dy)])
    assert torch.equal(none._left.weight, zeros._left.weight)
    assert torch.equal(none._right.momentum, zeros._right.momentum)


def test_secrets_drawn_without_the_momentum_do_not_follow() -> None:
    trainee = trained(LAYERS["dense"])[0]
    weight, lost, _ = trainee.state
    trainee.check = TrainingCheck([weight, lost], trainee.grid, Entropy(2))
    assert verdicts(trainee, trainee.state) == [False, False]
    x, dy = batch_of(trainee.layer)
    trainee.step(Descent.sgd(0.01, momentum=0.9), (x, dy))
    assert trainee.passes(x, dy) == [False, False]


def test_secrets_drawn_without_what_was_lost_do_not_follow() -> None:
    trainee = trained(LAYERS["dense"])[0]
    weight, _, momentum = trainee.state
    trainee.check = TrainingCheck([weight], trainee.grid, Entropy(2), momentum=[momentum])
    assert verdicts(trainee, trainee.state) == [False, False]
