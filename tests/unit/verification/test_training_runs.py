"""Honest training over some hundred steps: nothing is suspected, and weights stray no further than is allowed for."""

from typing import NamedTuple

import pytest
import torch

from awfulowl.arithmetic.descent import Descent
from awfulowl.verification.freivalds import Z
from awfulowl.verification.images import Side
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF
from tests.unit.verification.descents import INPUTS, LAYERS, RULES, Teacher, Trainee, projected
from tests.unit.verification.shapes import convolution, dense

STEPS = 200


class Run(NamedTuple):
    """What was seen of one run: the largest residues of y and of dx, and errors relative to what is expected."""

    trainee: Trainee
    residues: tuple[float, float]
    strayed: tuple[float, float]
    of_columns: tuple[float, float]


def strayed(trainee: Trainee, side: Side, *, transposed: bool) -> tuple[float, float]:
    """The mean square of the weights' errors in units of what is expected: of all, and of the worst column or row.

    What is rounded in the second float32 is not in `strayed`: it is what `agrees` has its slack for.
    """
    error = projected(trainee.grid, side.parts, trainee.error.square(), transposed=transposed)
    expected = MEAN_SQUARE * UNIT_ROUNDOFF**2 * side.strayed + 2.0**-88 * side.energy
    return float(error.sum() / expected.sum()), float((error / expected.clamp_min(1e-300)).max())


def run(name: str, inputs: str, rule: str, steps: int = STEPS) -> Run:
    """Train, check every product, and look at the weights at last."""
    trainee = Trainee(LAYERS[name], follow=True)
    teacher = Teacher(trainee, inputs, RULES[rule], steps)
    residues = [0.0, 0.0]
    for step in range(steps):
        batch = teacher.batch()
        assert trainee.passes(*batch) == [True, True], f"an honest device was suspected at step {step}"
        if step % 3 == 0:
            residues = list(map(max, residues, trainee.residue(*batch)))
        trainee.step(teacher.rule(), batch)
    left = strayed(trainee, trainee.check._left, transposed=False)
    right = strayed(trainee, trainee.check._right, transposed=True)
    return Run(trainee, (residues[0], residues[1]), (left[0], right[0]), (left[1], right[1]))


RUNS = [
    *(("dense", inputs, "momentum, decay") for inputs in INPUTS),
    *(("dense", "normal", rule) for rule in RULES),
    ("dense", "large mean", "much momentum"),
    ("dense", "always the same", "much momentum"),
    ("dense", "half dead", "decoupled, much momentum"),
    ("dense", "half dead", "plain, decay"),
    ("dense", "heavy-tailed", "nesterov"),
    ("dense", "heavy-tailed", "plain"),
    ("wide", "ones", "nesterov"),
    ("wide", "of all sizes", "decoupled"),
    ("conv1d", "normal", "nesterov"),
    ("conv2d", "large mean", "momentum, decay"),
    ("conv2d", "half dead", "decoupled, much momentum"),
    ("grouped", "heavy-tailed", "much momentum"),
    ("strided", "half dead", "plain, decay"),
    ("dilated", "always the same", "momentum"),
]


@pytest.mark.parametrize(("name", "inputs", "rule"), list(dict.fromkeys(RUNS)))
def test_nothing_is_suspected_of_honest_training(name: str, inputs: str, rule: str) -> None:
    """While rates fall to 1e-6. Errors are within what is expected of them, in which roundings count as if they were
    all alike; the residues are far from the limit."""
    seen = run(name, inputs, rule, STEPS if name in ("dense", "wide") else STEPS // 2)
    trainee = seen.trainee
    print(name, inputs, rule, [f"{one:.3f}" for one in (*seen.residues, *seen.strayed, *seen.of_columns)])
    assert max(seen.residues) < 0.5 * Z
    assert max(seen.strayed) < 0.5
    assert max(seen.of_columns) < 2
    assert trainee.check.matches(trainee.state)
    assert trainee.check.matches_whole(trainee.state)
    assert trainee.check.drift < 1e-4
    assert float(trainee.check._left.energy.sum()) > float(trainee.exact[0].square().sum())


@pytest.mark.parametrize("rule", ["momentum, decay", "much momentum", "plain"])
def test_a_step_left_out_shows_however_late(rule: str) -> None:
    """After a hundred honest steps, each of which widened the tolerance."""
    trainee = Trainee(LAYERS["dense"])
    teacher = Teacher(trainee, "normal", RULES[rule], steps=1000)
    for _ in range(100):
        trainee.step(teacher.rule(), teacher.batch())
    batch = teacher.batch()
    trainee.announce(teacher.rule(), [batch])
    assert trainee.passes(*batch) == [False, False]
    assert not trainee.check.matches(trainee.state)


@pytest.mark.parametrize("inputs", ["normal", "half dead", "ones"])
def test_updates_below_the_last_bit_are_followed(inputs: str) -> None:
    """A decay of 1e-7 by itself moves no float32, but what devices keep beside it; the images see it all the same."""
    layer = dense(16, 24)
    trainee = Trainee(layer, follow=True)
    x = INPUTS[inputs]((8, 24), torch.Generator().manual_seed(1))
    dy = 1e-12 * torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    rule = Descent.sgd(0.1, weight_decay=1e-7)
    for _ in range(300):
        trainee.step(rule, (x, dy))
    assert trainee.passes(x, torch.randn(8, 16)) == [True, True]
    assert trainee.check.matches_whole(trainee.state)
    assert float(trainee.error.norm() / (trainee.exact[0] - layer.weights.double()).norm()) < 1e-3


def test_renewing_as_one_goes_along() -> None:
    """As an owner does: every so many steps from the state that devices hold."""
    layer = convolution((4, 3, 3, 3), (6, 6), 4)
    trainee = Trainee(layer)
    teacher = Teacher(trainee, "normal", RULES["momentum, decay"], steps=150)
    for step in range(150):
        batch = teacher.batch()
        assert trainee.passes(*batch) == [True, True]
        trainee.step(teacher.rule(), batch)
        if step % 40 == 39:
            assert trainee.check.matches_whole(trainee.state)
            trainee.renew(step)


def test_weights_that_begin_at_zero() -> None:
    layer = LAYERS["conv2d"]._replace(weights=torch.zeros_like(LAYERS["conv2d"].weights))
    trainee = Trainee(layer)
    teacher = Teacher(trainee, "normal", RULES["momentum, decay"], steps=100)
    for _ in range(100):
        batch = teacher.batch()
        assert trainee.passes(*batch) == [True, True]
        trainee.step(teacher.rule(), batch)
    assert trainee.check.matches_whole(trainee.state)


@pytest.mark.parametrize(("inputs", "outputs", "samples"), [(512, 100, 1000), (2048, 10, 1000), (4096, 16, 512)])
def test_a_fresh_classifier_of_inputs_with_a_mean(inputs: int, outputs: int, samples: int) -> None:
    """What the owner loses of r dy would be the same in every column, and these inputs would add it up."""
    generator = torch.Generator().manual_seed(1)
    layer = dense(outputs, inputs, samples, block=4096)
    x = torch.sigmoid(torch.randn(samples, inputs, generator=generator))
    trainee = Trainee(layer._replace(weights=torch.zeros(outputs, inputs), x=x))
    labels = torch.nn.functional.one_hot(torch.arange(samples) % outputs, outputs)
    for _ in range(3):
        dy = ((x @ trainee.state[0].T).softmax(dim=1) - labels) / samples
        trainee.step(Descent.sgd(0.1), (x, dy))
        assert trainee.passes(x, dy) == [True, True]
        assert max(trainee.residue(x, dy)) < Z / 2


@pytest.mark.parametrize("scale", [1e-18, 1e-20, 1e-23, 1e-30])
def test_energies_below_float32_let_no_lie_pass(scale: float) -> None:
    """One column of the inputs, and one of the gradients, is so small that its squares are 0."""
    generator = torch.Generator().manual_seed(1)
    layer = dense(8, 256, 64, block=256)
    x, dy = torch.randn(64, 256, generator=generator), torch.randn(64, 8, generator=generator)
    x[:, 5] *= scale
    dy[:, 3] *= scale
    trainee = Trainee(layer)
    trainee.step(Descent.sgd(0.1), (x, dy))
    x, dy = torch.randn(64, 256, generator=generator), torch.randn(64, 8, generator=generator)
    assert trainee.passes(x, dy) == [True, True]
    weight = trainee.state[0]
    y, dx = x @ weight.T, dy @ weight
    assert not bool(trainee.check.accepts(x, 1.001 * y).any())
    assert not bool(trainee.check.expect_transposed(dy, ()).accepts(1.001 * dx).any())
    assert trainee.check.drift < 1e-4
