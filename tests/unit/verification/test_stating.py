"""A check of weights that devices state themselves: products are held to those, the momentum to images."""

import math

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import descend
from awfulowl.blocks.grid import rectangle
from awfulowl.blocks.kernels import backward, gradient, product
from awfulowl.errors import ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification.training import TrainingCheck
from tests.unit.verification.descents import LAYERS, Batch, batch_of, projected
from tests.unit.verification.shapes import Layer


class Stating:
    """A device with a layer, and a check that it tells its weights after each step."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.grid = layer.grid
        self.state = [layer.weights.clone(), *(torch.zeros_like(layer.weights) for _ in range(3))]
        self.check = TrainingCheck([layer.weights], layer.grid, Entropy(3))
        self.check.stated = True
        self._taken = 0

    def step(self, *batches: Batch, decay: float = 0.0) -> None:
        """Take a step, and state what became of it."""
        self._taken += 1
        rule = Adaptation.adam(1e-2, self._taken, weight_decay=decay)
        self.check.move(rule.linear, [self.check.see(x, dy) for x, dy in batches])
        along = torch.zeros_like(self.state[0])
        for x, dy in batches:
            along += gradient(self.grid.kernel, self.grid.size, x, dy, self.grid.groups)
        descend(rule, self.state, along)
        self.check = self.check.stating(self.state[0])

    def passes(self, x: Tensor, dy: Tensor) -> list[bool]:
        """Whether its two products are accepted, all samples of each."""
        y = product(self.grid.kernel, self.state[0], x, self.grid.groups)
        space = tuple(x.shape[2:])
        dx = backward(self.grid.kernel, self.state[0], dy, space, self.grid.groups)
        forth, back = self.check.expect(x), self.check.expect_transposed(dy, space)
        return [bool(forth.accepts(y).all()), bool(back.accepts(dx).all())]


def stated(name: str = "dense", steps: int = 20, decay: float = 0.0) -> Stating:
    device = Stating(LAYERS[name])
    for seed in range(steps):
        device.step(batch_of(device.layer, seed), batch_of(device.layer, seed + 100), decay=decay)
    return device


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", LAYERS)
def test_an_honest_device_passes(name: str, decay: float) -> None:
    device = stated(name, decay=decay)
    assert device.passes(*batch_of(device.layer, 7)) == [True, True]
    assert device.check.matches(device.state)
    assert device.check.matches_whole(device.state)
    assert all(
        device.check.matches(
            [rectangle([part], device.grid, [row], [column]) for part in device.state], rows=[row], columns=[column]
        )
        for column, placed in enumerate(device.grid.columns)
        for row in placed.rows
    )


@pytest.mark.parametrize("name", ["dense", "conv2d", "grouped"])
def test_products_with_other_weights_than_were_stated(name: str) -> None:
    device = stated(name)
    device.state[0] *= 1 + 1e-3
    assert device.passes(*batch_of(device.layer, 7)) == [False, False]


@pytest.mark.parametrize(
    ("part", "error"),
    [(0, 1e-6), (2, 1e-4), (3, -1.0), (0, math.nan), (1, math.nan), (2, math.nan), (3, math.nan), (3, math.inf)],
)
def test_states_that_are_not_what_was_followed(part: int, error: float) -> None:
    """Of squares nothing is known but that they are none below 0."""
    device = stated()
    device.state[part][3, 5] += error
    assert not device.check.matches(device.state)
    assert not device.check.matches_whole(device.state)


def test_what_was_lost_is_below_the_last_bit() -> None:
    device = stated()
    assert device.check.matches([device.state[0], 0 * device.state[1], *device.state[2:]])
    assert not device.check.matches([device.state[0], device.state[1] + 1e-3, *device.state[2:]])


@pytest.mark.parametrize("parts", [0, 1, 3, 5])
def test_a_state_has_four_parts(parts: int) -> None:
    device = stated(steps=2)
    assert not device.check.matches([*device.state, device.state[3]][:parts])


def test_without_statements_it_has_three() -> None:
    check = TrainingCheck([LAYERS["dense"].weights], LAYERS["dense"].grid, Entropy(3))
    zero = torch.zeros_like(LAYERS["dense"].weights)
    assert check.matches([LAYERS["dense"].weights, zero, zero])
    assert not check.matches([LAYERS["dense"].weights, zero, zero, zero])


def test_the_check_before_stays_as_it_was() -> None:
    device = stated()
    before, weight, batch = device.check, device.state[0].clone(), batch_of(device.layer, 7)
    after = before.stating(2 * weight)
    assert (before.stated, after.stated) == (True, True)
    assert device.passes(*batch) == [True, True]
    device.check, device.state[0] = after, 2 * weight
    assert device.passes(*batch) == [True, True]
    assert device.check.matches(device.state)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers(value: float) -> None:
    device = stated(steps=1)
    device.state[0][0, 0] = value
    with pytest.raises(ModelError, match="not finite"):
        device.check.stating(device.state[0])


def test_nothing_strays_but_the_momentum() -> None:
    """Each statement begins anew, so that tolerances of products do not grow."""
    device = stated(steps=1)
    early = float(device.check.drift)
    for seed in range(60):
        device.step(batch_of(device.layer, seed))
    assert device.check.drift == early == 0.0
    assert device.check.stretched == 0.0


@pytest.mark.parametrize("name", ["dense", "wide", "conv2d", "grouped"])
def test_an_image_of_some_blocks_from_that_of_all(name: str) -> None:
    device = stated(name, steps=3)
    weight, said = device.state[0].clone(), device.check.statement
    device.step(batch_of(device.layer))  # what was said stays what it was
    for index, column in enumerate(device.grid.columns):
        for row in column.rows:
            span = device.grid.rows[row]
            secret, image = device.check.part_of(said, [row], [index])
            assert secret.shape == (3, span.size)
            whole = torch.zeros(3, device.grid.outputs, dtype=torch.float64)
            whole[:, span.start : span.stop] = secret
            wanted = projected(device.grid, whole, weight)[..., column.span.start : column.span.stop]
            torch.testing.assert_close(image, wanted, rtol=1e-10, atol=1e-10)
