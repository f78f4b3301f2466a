"""Lies about products and about steps: each is caught, the latter by the next product."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from tests.unit.verification.descents import LAYERS, Trainee, trained
from tests.unit.verification.shapes import Layer

shapes = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)

Lie = Callable[[Tensor, torch.Generator], Tensor]


def one_row(y: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.zeros_like(y)
    direction[:, 1] = 1
    return direction


def random(y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(y.shape, generator=generator)


def low_rank(y: Tensor, generator: torch.Generator) -> Tensor:
    mix = torch.randn(y.shape[1], 2, generator=generator) @ torch.randn(2, y.shape[1], generator=generator)
    return torch.einsum("oi,bi...->bo...", mix, y)


def along(y: Tensor, generator: torch.Generator) -> Tensor:
    return y


@pytest.mark.parametrize("lie", [one_row, random, low_rank, along], ids=lambda lie: lie.__name__)
@shapes
def test_wrong_products_are_caught(layer: Layer, lie: Lie) -> None:
    """In either direction, in every sample, at a hundredth of the right answer."""
    trainee, teacher = trained(layer)
    for expectation, answer in trainee.expectations(*teacher.batch()):
        direction = lie(answer, torch.Generator().manual_seed(1))
        length = answer.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)
        wrong = answer + 1e-2 * length.view(-1, *[1] * (answer.dim() - 1)) * direction
        assert bool(expectation.accepts(answer).all())
        assert not bool(expectation.accepts(wrong).any())
        mixed = torch.cat([answer[:1], wrong[1:]])
        assert expectation.accepts(mixed).tolist() == [True, *[False] * (len(answer) - 1)]


@shapes
def test_products_with_old_weights_are_caught(layer: Layer) -> None:
    """A device that answers by the weights of a step ago, in either direction."""
    trainee, teacher = trained(layer, rule="plain")
    x, dy = teacher.batch()
    old = trainee.y(x), trainee.dx(dy, x.shape[2:])
    trainee.step(teacher.rule(), (x, dy))
    for (expectation, answer), stale in zip(trainee.expectations(x, dy), old, strict=True):
        assert bool(expectation.accepts(answer).all())
        assert not bool(expectation.accepts(stale).any())


Tampering = Callable[[Trainee, Descent, Tensor, Tensor], None]
"""Takes a step of one's own: (device, rule, gradient, gradient of the step before)."""


def skipped(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    pass


def doubled(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    trainee.descend(rule, gradient)
    trainee.descend(rule, gradient)


def scaled(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    trainee.descend(rule, 1.5 * gradient)


def backwards(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    trainee.descend(rule, -gradient)


def along_the_one_before(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    trainee.descend(rule, before)


def without_momentum(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    trainee.state[2].zero_()
    trainee.descend(rule, gradient)


def in_one_row(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    changed = gradient.clone()
    changed[1] *= 1.5
    trainee.descend(rule, changed)


def in_half_precision(trainee: Trainee, rule: Descent, gradient: Tensor, before: Tensor) -> None:
    trainee.descend(rule, gradient.bfloat16().float())


TAMPERINGS: list[Tampering] = [
    skipped,
    doubled,
    scaled,
    backwards,
    along_the_one_before,
    without_momentum,
    in_one_row,
    in_half_precision,
]


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda tampering: tampering.__name__)
@pytest.mark.parametrize("rule", ["plain", "momentum, decay", "nesterov", "decoupled"])
@pytest.mark.parametrize("name", ["dense", "conv2d", "grouped"])
def test_wrong_steps_are_noticed_at_the_next_product(name: str, rule: str, tampering: Tampering) -> None:
    """By inputs of which it has heard, and by others."""
    if tampering is without_momentum and rule == "plain":
        pytest.skip("there is no momentum")
    trainee, teacher = trained(LAYERS[name], rule=rule)
    before = trainee.gradient([teacher.batch()])
    batch = teacher.batch()
    step = teacher.rule()
    assert trainee.passes(*batch) == [True, True]
    trainee.announce(step, [batch])
    tampering(trainee, step, trainee.gradient([batch]), before)
    for x, dy in (batch, teacher.batch()):
        accepted = trainee.passes(x, dy)
        assert not accepted[0]
        assert not accepted[1] or tampering is in_half_precision
    assert not trainee.check.matches(trainee.state)
    assert not trainee.check.matches_whole(trainee.state)


def test_a_wrong_step_is_not_forgotten() -> None:
    """Honest steps afterwards do not hide it."""
    trainee, teacher = trained(LAYERS["dense"])
    batch, step = teacher.batch(), teacher.rule()
    trainee.announce(step, [batch])
    for _ in range(20):
        batch, step = teacher.batch(), teacher.rule()
        trainee.step(step, batch)
        assert trainee.passes(*batch) == [False, False]
