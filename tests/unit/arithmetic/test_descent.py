"""Steps of gradient descent: those of PyTorch, by six numbers, in sums that lose nothing of the smallest updates."""

import math
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic import descent
from awfulowl.arithmetic.descent import Descent, descend
from awfulowl.errors import InputError

NUMBERS = Descent.__struct_fields__
UNIT = 2.0**-24
"""Half the distance from 1 to the next float32."""


class Options(NamedTuple):
    """Options of SGD that float32 holds exactly, and so do their products."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


VARIANTS = [
    Options(momentum, dampening, weight_decay, nesterov)
    for momentum in (0.0, 0.75)
    for dampening in (0.0, 0.25)
    for weight_decay in (0.0, 2.0**-5)
    for nesterov in (False, True)
    if not nesterov or (momentum > 0 and dampening == 0)
]
LR = 0.125


def gradients(steps: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(steps)]


def by_torch(start: Tensor, along: list[Tensor], *, decoupled: float = 0.0, **options: Any) -> tuple[Tensor, Tensor]:
    """Weights and momentum after steps of `torch.optim.SGD`; decoupled decay as `torch.optim.AdamW` does it."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([parameter], lr=LR, **options)
    for gradient in along:
        parameter.grad = gradient.clone()
        with torch.no_grad():
            parameter.mul_(1 - LR * decoupled)
        optimizer.step()
    buffer = optimizer.state[parameter].get("momentum_buffer")
    return parameter.detach(), torch.zeros_like(start) if buffer is None else buffer


def by_rules(start: Tensor, along: list[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """The same, by the six numbers."""
    weight, momentum = start, torch.zeros_like(start)
    for number, gradient in enumerate(along):
        rule = Descent.sgd(LR, first=number == 0, **options)
        weight, momentum = rule.moved(weight, momentum, gradient)
    return weight, momentum


def agree(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_is_that_of_torch(options: Options) -> None:
    (start, *along) = gradients(7, 5, 3)
    agree(by_rules(start, along, **options._asdict()), by_torch(start, along, **options._asdict()))


@pytest.mark.parametrize("options", [one for one in VARIANTS if one.weight_decay], ids=str)
def test_decoupled_decay_is_that_of_torch(options: Options) -> None:
    (start, *along) = gradients(7, 5, 3)
    wanted = by_torch(start, along, decoupled=options.weight_decay, **options._replace(weight_decay=0.0)._asdict())
    agree(by_rules(start, along, decoupled=True, **options._asdict()), wanted)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_scale_is_that_of_the_gradients_and_of_nothing_else(options: Options) -> None:
    (start, *along) = gradients(7, 5, 3)
    wanted = by_torch(start, [0.5 * gradient for gradient in along], **options._asdict())
    agree(by_rules(start, along, scale=0.5, **options._asdict()), wanted)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_negative_scale_climbs(options: Options) -> None:
    (start, *along) = gradients(7, 5, 3)
    wanted = by_torch(start, along, maximize=True, **options._asdict())
    agree(by_rules(start, along, scale=-1.0, **options._asdict()), wanted)


def test_the_first_step_is_not_dampened() -> None:
    first, second = (Descent.sgd(LR, momentum=0.75, dampening=0.25, scale=0.5, first=first) for first in (True, False))
    assert (first.momentum_gradient, second.momentum_gradient) == (0.5, 0.375)
    decayed = Descent.sgd(LR, momentum=0.75, dampening=0.25, weight_decay=0.5, first=True)
    assert (decayed.momentum_weight, decayed.momentum_gradient) == (0.5, 1.0)


def test_a_momentum_is_kept_where_there_is_one() -> None:
    assert not Descent.sgd(LR, dampening=0.5, weight_decay=0.5).has_momentum
    assert Descent.sgd(LR, momentum=0.75).has_momentum
    assert Descent.sgd(LR, momentum=0.75, scale=0.0).has_momentum
    assert Descent(0.0, 0.0, 1.0, 0.0, -1.0, 0.0).has_momentum


@given(
    lr=st.floats(0, 10),
    momentum=st.floats(0, 0.999),
    dampening=st.floats(0, 1),
    weight_decay=st.floats(0, 1),
    scale=st.floats(-2, 2),
    nesterov=st.booleans(),
    decoupled=st.booleans(),
)
def test_every_number_is_a_float32(
    lr: float, momentum: float, dampening: float, weight_decay: float, scale: float, nesterov: bool, decoupled: bool
) -> None:
    rule = Descent.sgd(
        lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        scale=scale,
        nesterov=nesterov,
        decoupled=decoupled,
    )
    assert [float(np.float32(getattr(rule, name))) for name in NUMBERS] == [getattr(rule, name) for name in NUMBERS]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rule), type=Descent) == rule


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "scale"])
def test_rules_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    options: dict[str, Any] = {"lr": LR, "momentum": 0.75, "weight_decay": 0.5, "scale": 1.0, name: bad}
    with pytest.raises(InputError, match="not finite"):
        Descent.sgd(**options)


@pytest.mark.parametrize("lr", [1e39, -1e300])
def test_rules_beyond_float32_are_refused(lr: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        Descent.sgd(lr)


@pytest.mark.parametrize(
    "changed",
    [
        {"weight_gradient": None},
        {"weight_gradient": "1"},
        {"weight_gradient": True},
        {"weight_gradient": b"1234"},
        {"more": 1.0},
        {"type": "ascent"},
    ],
    ids=str,
)
def test_nothing_else_is_decoded_as_a_rule(changed: dict[str, object]) -> None:
    good: dict[str, object] = {"type": "descent", **dict.fromkeys(NUMBERS, 0.5)}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(good), type=Descent) == Descent(*[0.5] * 6)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(good | changed), type=Descent)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_rule_has_all_six_numbers(name: str) -> None:
    fields = {"type": "descent", **dict.fromkeys(NUMBERS, 0.5)}
    del fields[name]
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Descent)


single = st.floats(-2, 2, width=32)
rules = st.builds(Descent, *[single] * 6)
factors = st.tuples(single, single)


@given(rules, factors, st.integers(0, 2**32))
def test_what_becomes_of_weights_is_linear(rule: Descent, factors: tuple[float, float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    together = rule.moved(*(factors[0] * one + factors[1] * other))
    apart = zip(rule.moved(*one), rule.moved(*other), strict=True)
    for found, (left, right) in zip(together, apart, strict=True):
        torch.testing.assert_close(found, factors[0] * left + factors[1] * right, rtol=1e-12, atol=1e-12)


@given(rules, st.integers(0, 2**32))
def test_devices_do_what_the_rule_says_up_to_rounding(rule: Descent, seed: int) -> None:
    assume(rule.has_momentum or rule.momentum_weight == 0)  # no step of SGD is such
    generator = torch.Generator().manual_seed(seed)
    weight, momentum, gradient = torch.randn(3, 50, generator=generator)
    lost = UNIT * weight * (torch.rand(50, generator=generator) - 0.5)
    state = [weight.clone(), lost.clone(), *([momentum.clone()] if rule.has_momentum else [])]
    descend(rule, state, gradient.clone())
    wanted = rule.moved(weight.double(), momentum.double(), gradient.double())
    sizes = Descent(*[abs(getattr(rule, name)) for name in NUMBERS]).moved(
        weight.double().abs(), momentum.double().abs(), gradient.double().abs()
    )
    found = state[0].double() + state[1].double(), *state[2:]
    for one, other, size in zip(found, (wanted[0] + lost.double(), wanted[1]), sizes, strict=False):
        # Measured over 10,000 rules: 3.2 roundings at most. Numbers that underflow are rounded to the smallest of all.
        assert bool(((one - other).abs() <= 6 * UNIT * size + 1e-43).all())


def test_a_step_without_momentum_leaves_it_as_it_is() -> None:
    weight, momentum, gradient = gradients(3, 4)
    moved, after = Descent.sgd(LR, weight_decay=0.5).moved(weight, momentum, gradient)
    assert torch.equal(after, momentum)
    torch.testing.assert_close(moved, weight - LR * (gradient + 0.5 * weight))


# Compensated sums


def exactly(state: list[Tensor]) -> Tensor:
    """Weights with what was lost when they were rounded."""
    return state[0].double() + state[1].double()


@pytest.mark.parametrize(
    ("start", "gradient", "rule"),
    [
        (1.0, 1.0, Descent.sgd(1e-9)),
        (0.7, -0.3, Descent.sgd(1e-8)),
        (-5.0, 0.1, Descent.sgd(1e-7)),
        (3.3, 0.0, Descent.sgd(1e-3, weight_decay=1e-5)),
        (3.3, 1e-6, Descent.sgd(1e-3, weight_decay=1e-5, decoupled=True)),
    ],
    ids=str,
)
def test_ten_thousand_tiny_updates_are_not_lost(start: float, gradient: float, rule: Descent) -> None:
    state = [torch.full((3,), start), torch.zeros(3)]
    along = torch.full((3,), gradient)
    naive, wanted = state[0].clone(), state[0].double()
    for _ in range(10_000):
        naive += rule.weight_gradient * along + rule.weight_weight * naive
        wanted += rule.weight_gradient * along.double() + rule.weight_weight * wanted
        descend(rule, state, along.clone())
    moved = (wanted - torch.full((3,), start).double()).abs()
    assert torch.equal(naive, torch.full((3,), start))
    assert bool((moved > 100 * UNIT * abs(start)).all())
    assert bool(((exactly(state) - wanted).abs() <= 1e-6 * moved).all())
    assert bool((state[1].abs() <= UNIT * state[0].abs() * 1.001).all())


@given(st.floats(-12, -7.3), st.integers(0, 2**32))
def test_an_update_below_a_rounding_is_kept_to_48_bits(power: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(50, generator=generator) + 1
    lost = UNIT * (torch.rand(50, generator=generator) - 0.5)
    gradient = torch.rand(50, generator=generator)
    rule = Descent.sgd(10.0**power)
    state = [weight.clone(), lost.clone()]
    descend(rule, state, gradient.clone())
    wanted = weight.double() + lost.double() + rule.weight_gradient * gradient.double()
    assert bool(((exactly(state) - wanted).abs() <= 2.0**-45).all())


@given(st.integers(0, 2**32), st.integers(-12, 12))
def test_weight_and_rest_are_the_sum_whatever_is_larger(seed: int, power: int) -> None:
    """Also where the update is larger than the weight, of which nothing is lost either."""
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randint(-(2**23), 2**23, (2, 50), generator=generator).float() * 2.0**-20
    rule = Descent(0.0, 0.0, 0.0, 0.0, 0.0, 2.0**power)  # its product with the gradient is exact
    state = [weight.clone(), torch.zeros(50)]
    descend(rule, state, gradient.clone())
    wanted = weight.double() + rule.weight_gradient * gradient.double()
    assert torch.equal(exactly(state), wanted)
    assert torch.equal(state[0], wanted.float())


# Chunks


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
@pytest.mark.parametrize("size", [1, 6, 7, 8, 13, 14, 15, 100])
def test_a_step_is_the_same_in_chunks(size: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Descent.sgd(0.1, weight_decay=1e-3, **options)
    weight, lost, momentum, gradient = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    start = [weight, UNIT * lost, *([momentum] if rule.has_momentum else [])]
    whole, chunked = ([one.clone() for one in start] for _ in range(2))
    descend(rule, whole, gradient.clone())
    monkeypatch.setattr(descent, "_CHUNK", 7)
    descend(rule, chunked, gradient.clone())
    assert all(map(torch.equal, whole, chunked))
    assert not torch.equal(whole[0], weight)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_what_is_about_as_large_as_a_chunk(more: int) -> None:
    size = 2 * descent._CHUNK + more
    weight, gradient = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    state = [weight.clone(), torch.zeros(size)]
    rule = Descent.sgd(0.5)
    descend(rule, state, gradient.clone())
    assert torch.equal(exactly(state), weight.double() - 0.5 * gradient.double())


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 5), (2, 3, 4, 5)], ids=str)
def test_any_shape_is_moved_in_place(shape: tuple[int, ...]) -> None:
    weight, lost, momentum, gradient = torch.randn(4, *shape).double().float()
    state = [weight, lost.zero_(), momentum.zero_()]
    before, places = weight.clone(), [one.data_ptr() for one in state]
    along = gradient.clone()
    descend(Descent.sgd(0.5, momentum=0.5, first=True), state, gradient)
    assert [one.data_ptr() for one in state] == places
    assert [one.shape for one in state] == [torch.Size(shape)] * 3
    assert torch.equal(momentum, along)
    torch.testing.assert_close(weight, before - 0.5 * along)
