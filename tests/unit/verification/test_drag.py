"""What roundings may add up to, as sides carry it, against the worst of what they can add up to."""

import math
from collections.abc import Sequence
from operator import mul
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.arithmetic.descent import Descent
from awfulowl.verification.images import _carrying, _lean
from tests.unit.verification.descents import moved, rules
from tests.unit.verification.shapes import some

Lengths = tuple[float, float, float]
"""Of weights, momentum and gradient."""


def dragged(steps: Sequence[Descent], lengths: Sequence[Lengths]) -> list[float]:
    """The bound of the weights' error after each step, as sides carry it: their matrices, and nothing else."""
    bounds, lean, found = [0.0, 0.0, 0.0], 0.0, []
    for rule, sizes in zip(steps, lengths, strict=True):
        matrix, lean = _carrying(rule, lean)[1].tolist(), _lean(rule)
        alone, by_slow, slow, fast = (sum(map(mul, row, (*bounds, *sizes))) for row in matrix)
        bounds = [min(alone, by_slow), slow, fast]
        found.append(bounds[0])
    return found


def worst(steps: Sequence[Descent], lengths: Sequence[Lengths]) -> list[float]:
    """What the weights' error can be at most after each step: every rounding as large as it can be, each of the sign
    that does most to the weights of that step."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    weight, momentum = zero[:0], zero[:0]  # what became of each rounding so far
    found = []
    for rule, (of_weight, of_momentum, of_gradient) in zip(steps, lengths, strict=True):
        weight, momentum = moved(rule, weight, momentum, torch.zeros_like(weight))
        _, b, c, d, e, f = rule.numbers
        rounded = (2.0 if rule.has_momentum else 0.0) * of_momentum + abs(b) * of_weight + abs(c) * of_gradient
        added = 2 * (abs(d) * of_weight + abs(e) * of_momentum + abs(f) * of_gradient)
        weight = torch.cat([weight, e * rounded * one, added * one])
        momentum = torch.cat([momentum, rounded * one, zero])
        found.append(float(weight.abs().sum()))
    return found


def one_rate(steps: int, **options: Any) -> list[Descent]:
    return [Descent.sgd(options.get("lr", 1.0), **{k: v for k, v in options.items() if k != "lr"})] * steps


STILL: Lengths = (1.0, 0.05, 0.01)


@some
@given(rules(40), st.randoms(use_true_random=False))
def test_no_errors_are_beyond_the_drag(steps: list[Descent], random: Random) -> None:
    """Whatever the rules, one after the other, and the lengths of what is rounded."""
    lengths = [(random.uniform(0, 2), random.uniform(0, 2), random.uniform(0, 2)) for _ in steps]
    for bound, most in zip(dragged(steps, lengths), worst(steps, lengths), strict=True):
        assert bound >= most * (1 - 1e-9)


def test_no_errors_are_beyond_the_drag_while_rates_change() -> None:
    """A warm-up and a cosine, with momentum switched off and on, and other decays."""
    steps = [
        Descent.sgd(
            min(1.0, number / 50) * (1 + math.cos(math.pi * number / 500)),
            momentum=0.0 if number % 97 == 96 else 0.9 if number < 300 else 0.95,
            weight_decay=(5e-4, 0.0, 1e-2)[number // 100 % 3],
            nesterov=number // 50 % 2 == 0,
        )
        for number in range(500)
    ]
    bounds, most = dragged(steps, [STILL] * 500), worst(steps, [STILL] * 500)
    assert all(bound >= least * (1 - 1e-9) for bound, least in zip(bounds, most, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "weight_decay": 5e-4},
        {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 5e-4, "decoupled": True},
        {"momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2},
        {"lr": 0.01, "momentum": 0.99, "weight_decay": 5e-4},
        {"weight_decay": 5e-4},
    ],
    ids=str,
)
def test_the_drag_is_what_errors_can_come_to(options: dict[str, Any]) -> None:
    """At first as after a period, and no multiple of it: weight decay draws errors back, too."""
    steps = one_rate(1000, **options)
    bounds, most = dragged(steps, [STILL] * 1000), worst(steps, [STILL] * 1000)
    assert all(least * (1 - 1e-9) <= bound <= 1.5 * least for bound, least in zip(bounds, most, strict=True))


def test_bounds_of_weights_by_themselves_would_drive_errors_away() -> None:
    """The first of both: the rule of absolute values alone comes to a hundred times what there can be."""
    (rule,) = set(one_rate(1000, momentum=0.9, weight_decay=5e-4))
    a, b, _, d, e, _ = map(abs, rule.numbers)
    growth = torch.tensor([[1 + d + e * b, e * a], [b, a]], dtype=torch.float64)
    assert float(torch.linalg.eigvals(growth).abs().max()) ** 1000 > 100
    late, early = (dragged([rule] * steps, [STILL] * steps)[-1] for steps in (2000, 1000))
    assert late < 1.01 * early
