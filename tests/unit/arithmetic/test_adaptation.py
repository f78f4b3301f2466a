"""Steps of Adam: those of PyTorch, by ten numbers, in sums that lose nothing of the smallest updates."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic import descent
from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent, descend
from awfulowl.errors import InputError

NUMBERS = Adaptation.__struct_fields__
UNIT = 2.0**-24
LR = 2.0**-7

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "betas": {"betas": (0.5, 0.75)},
    "no momentum": {"betas": (0.0, 0.99)},
    "no memory": {"betas": (0.0, 0.0)},
    "much momentum": {"betas": (0.99, 0.9)},
    "epsilon": {"eps": 2.0**-4},
    "decay": {"weight_decay": 2.0**-5},
    "decoupled": {"weight_decay": 2.0**-5, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
    "maximize, decay": {"maximize": True, "weight_decay": 2.0**-5},
    "maximize, decoupled": {"maximize": True, "weight_decay": 2.0**-5, "decoupled_weight_decay": True},
}


def gradients(steps: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(steps)]


def rule_of(step: int, lr: float = LR, scale: float = 1.0, **options: Any) -> Adaptation:
    """The rule of a step with the options of `torch.optim.Adam`."""
    return Adaptation.adam(
        lr,
        step,
        betas=options.get("betas", (0.9, 0.999)),
        epsilon=options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 0.0),
        decoupled=options.get("decoupled_weight_decay", False),
        scale=-scale if options.get("maximize", False) else scale,
    )


def by_torch(start: Tensor, along: list[Tensor], **options: Any) -> list[Tensor]:
    """Weights, momentum and mean square after steps of `torch.optim.Adam`."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([parameter], **{"lr": LR} | options)
    for gradient in along:
        parameter.grad = gradient.clone()
        optimizer.step()
    state = optimizer.state[parameter]
    return [parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]


def moved(rule: Adaptation, state: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Weights, momentum and mean square after one step, as the module's first lines write it."""
    weight, momentum, square = state
    root = rule.square_weight * weight + rule.square_gradient * gradient
    momentum = rule.momentum_momentum * momentum + rule.momentum_weight * weight + rule.momentum_gradient * gradient
    square = rule.square_square * square + root * root
    update = momentum / (rule.lift * square.sqrt() + rule.epsilon)
    return [weight + rule.weight_weight * weight + rule.weight_momentum * update, momentum, square]


def fresh(weight: Tensor) -> list[Tensor]:
    """The state of a device before its first step."""
    return [weight.clone(), *(torch.zeros_like(weight) for _ in range(3))]


def exactly(state: list[Tensor]) -> Tensor:
    """Weights with what was lost when they were rounded."""
    return state[0].double() + state[1].double()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_that_of_torch(options: dict[str, Any]) -> None:
    """The ten numbers are rounded to float32: no more than that is between them."""
    start, *along = gradients(151, 5, 3)
    found = [start, torch.zeros_like(start), torch.zeros_like(start)]
    for step, gradient in enumerate(along, start=1):
        found = moved(rule_of(step, **options), found, gradient)
    for one, other in zip(found, by_torch(start, along, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_devices_take_the_steps_of_torch(options: dict[str, Any]) -> None:
    start, *along = (one.float() for one in gradients(151, 5, 3))
    state = fresh(start)
    for step, gradient in enumerate(along, start=1):
        descend(rule_of(step, **options), state, gradient.clone())
    wanted = by_torch(start.double(), [one.double() for one in along], **options)
    for one, other in zip((exactly(state), *state[2:]), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=3e-5, atol=3e-6)


def test_decoupled_is_adamw() -> None:
    start, *along = gradients(50, 4)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=LR, weight_decay=0.25)
    found = [start, torch.zeros_like(start), torch.zeros_like(start)]
    for step, gradient in enumerate(along, start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        found = moved(rule_of(step, weight_decay=0.25, decoupled_weight_decay=True), found, gradient)
    torch.testing.assert_close(found[0], parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_scale_is_that_of_the_gradients_and_of_nothing_else(options: dict[str, Any]) -> None:
    start, *along = gradients(20, 5, 3)
    found = [start, torch.zeros_like(start), torch.zeros_like(start)]
    for step, gradient in enumerate(along, start=1):
        found = moved(rule_of(step, scale=0.25, **options), found, gradient)
    wanted = by_torch(start, [0.25 * gradient for gradient in along], **options)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)


def test_means_are_raised_by_what_they_are_too_small_at_first() -> None:
    """The first step goes as far as the rate, whatever the gradient: |M| / √V is 1 then."""
    for gradient in (1e-3, 1.0, 1e3):
        weight, _, _ = moved(rule_of(1), [torch.zeros(3, dtype=torch.float64)] * 3, torch.full((3,), gradient).double())
        torch.testing.assert_close(weight, torch.full((3,), -LR).double(), rtol=2e-5, atol=0.0)
    late = rule_of(10**9)
    assert (late.weight_momentum, late.lift) == (-LR, 1.0)


def test_it_has_a_momentum_and_four_parts() -> None:
    assert (rule_of(1).parts, rule_of(1).has_momentum) == (4, True)
    assert Adaptation.parts == 4


def test_what_is_linear_in_it_is_the_momentum() -> None:
    start, *along = gradients(8, 5, 3)
    state, image = [start, torch.zeros_like(start), torch.zeros_like(start)], torch.zeros_like(start)
    for step, gradient in enumerate(along, start=1):
        rule = rule_of(step, weight_decay=0.5)
        assert isinstance(rule.linear, Descent)
        still, image = rule.linear.moved(state[0], image, gradient)
        assert torch.equal(still, state[0])
        state = moved(rule, state, gradient)
        torch.testing.assert_close(image, state[1], rtol=1e-12, atol=1e-12)


# The numbers


@given(
    lr=st.floats(0, 10),
    step=st.integers(1, 10**6),
    first=st.floats(0, 0.9999),
    second=st.floats(0, 0.99999),
    epsilon=st.floats(1e-30, 1),
    weight_decay=st.floats(0, 1),
    scale=st.floats(-2, 2),
    decoupled=st.booleans(),
)
def test_every_number_is_a_float32(
    lr: float,
    step: int,
    first: float,
    second: float,
    epsilon: float,
    weight_decay: float,
    scale: float,
    decoupled: bool,
) -> None:
    rule = Adaptation.adam(
        lr,
        step,
        betas=(first, second),
        epsilon=epsilon,
        weight_decay=weight_decay,
        decoupled=decoupled,
        scale=scale,
    )
    assert [float(np.float32(getattr(rule, name))) for name in NUMBERS] == [getattr(rule, name) for name in NUMBERS]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rule), type=Adaptation) == rule


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "scale", "eps"])
def test_rules_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    options: dict[str, Any] = {"weight_decay": 0.5, name: bad}
    with pytest.raises(InputError, match="no step"):
        rule_of(3, **options)


@pytest.mark.parametrize("lr", [1e39, -1e300])
def test_rules_beyond_float32_are_refused(lr: float) -> None:
    with pytest.raises(InputError, match="not finite"):
        rule_of(3, lr)


@pytest.mark.parametrize("epsilon", [0.0, -1e-8, 1e-60])
def test_nothing_is_divided_by_nothing(epsilon: float) -> None:
    with pytest.raises(InputError, match="divide by nothing"):
        rule_of(3, eps=epsilon)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1), (math.nan, 0.9), (0.9, math.nan)])
def test_means_that_never_forget_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="betas"):
        rule_of(3, betas=betas)


@pytest.mark.parametrize("beta", [1 - 1e-9, 1 - 2.0**-26])
def test_betas_that_float32_rounds_to_one_are_steps_all_the_same(beta: float) -> None:
    rule = rule_of(1, betas=(0.9, beta))
    assert rule.square_square == 1.0
    assert math.isfinite(rule.lift)


@pytest.mark.parametrize(
    "changed",
    [
        {"epsilon": None},
        {"lift": "1"},
        {"lift": True},
        {"square_square": b"1234"},
        {"more": 1.0},
        {"type": "descent"},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"lift": 0.0},
        {"square_square": 1.5},
        {"square_square": -0.5},
        {"momentum_gradient": math.inf},
        {"weight_weight": math.nan},
    ],
    ids=str,
)
def test_nothing_else_is_decoded_as_a_rule(changed: dict[str, object]) -> None:
    good: dict[str, object] = {"type": "adam", **dict.fromkeys(NUMBERS, 0.5)}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(good), type=Adaptation) == Adaptation(*[0.5] * 10)
    with pytest.raises((msgspec.ValidationError, InputError)):
        msgspec.msgpack.decode(msgspec.msgpack.encode(good | changed), type=Adaptation)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_rule_has_all_ten_numbers(name: str) -> None:
    fields = {"type": "adam", **dict.fromkeys(NUMBERS, 0.5)}
    del fields[name]
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Adaptation)


# How far a weight may move


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[float, float], list[float], list[float]]:
    """Betas, gradients of one weight, of which some are alike, and how each step is scaled."""
    betas = draw(st.sampled_from([(0.9, 0.999), (0.9, 0.9), (0.5, 0.3), (0.0, 0.5), (0.99, 0.9999), (0.9, 0.82)]))
    kind = draw(st.sampled_from(["any", "one", "growing", "alike"]))
    steps = draw(st.integers(1, 60))
    if kind == "any":
        along = draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=steps, max_size=steps))
    elif kind == "one":
        along = [0.0] * (steps - 1) + [draw(st.floats(-1e6, 1e6, width=32))]
    elif kind == "growing":  # by the ratio at which Cauchy and Schwarz are equal
        along = [(betas[1] / max(betas[0], 1e-3)) ** (0.5 * step) for step in range(steps)]
    else:
        along = [draw(st.sampled_from([1e-3, 1.0, -50.0]))] * steps
    return betas, along, draw(st.lists(st.sampled_from([1.0, 0.1, -1.0]), min_size=steps, max_size=steps))


@settings(max_examples=60, deadline=None)
@given(runs(), st.sampled_from([0.0, 0.1]))
def test_no_weight_moves_further_than_the_furthest(
    run: tuple[tuple[float, float], list[float], list[float]], decay: float
) -> None:
    betas, along, scales = run
    state = [torch.ones(1, dtype=torch.float64), *[torch.zeros(1, dtype=torch.float64)] * 2]
    for step, (gradient, scale) in enumerate(zip(along, scales, strict=True), start=1):
        rule = rule_of(step, scale=scale, betas=betas, weight_decay=decay)
        before = float(state[0])
        state = moved(rule, state, torch.tensor([gradient], dtype=torch.float64))
        most = abs(rule.weight_momentum) * rule.furthest
        assert abs(float(state[0]) - before) <= most * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.9), (0.0, 0.9)], ids=str)
def test_some_weight_moves_nearly_as_far(betas: tuple[float, float]) -> None:
    """A gradient whose age is weighed alike in both means: the bound is no larger than it has to be."""
    ratio = betas[0] / betas[1]
    along = [ratio**age for age in range(200)][::-1]  # the oldest are the smallest
    state = [torch.zeros(1, dtype=torch.float64)] * 3
    moves = []
    for step, gradient in enumerate(along, start=1):
        rule, before = rule_of(step, betas=betas, eps=1e-30), float(state[0])
        state = moved(rule, state, torch.tensor([gradient], dtype=torch.float64))
        moves.append(abs(float(state[0]) - before) / (abs(rule.weight_momentum) * rule.furthest))
    assert moves[-1] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("betas", "scale"), [((0.9, 0.8), 1.0), ((0.9, 0.5), 1.0), ((0.9, 0.0), 1.0), ((0.9, 0.999), 0.0)]
)
def test_there_may_be_no_bound(betas: tuple[float, float], scale: float) -> None:
    assert rule_of(5, betas=betas, scale=scale).furthest == math.inf


# At devices

single = st.floats(-2, 2, width=32)
positive = st.floats(2.0**-10, 2, width=32)
rules = st.builds(
    Adaptation,
    *[single] * 3,
    *[st.floats(0, 1, width=32), single, single],
    *[single] * 2,
    *[positive] * 2,
)


@given(rules, st.integers(0, 2**32))
def test_devices_do_what_the_rule_says_up_to_rounding(rule: Adaptation, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, momentum, gradient, square = torch.randn(4, 50, generator=generator)
    lost = UNIT * weight * (torch.rand(50, generator=generator) - 0.5)
    square.square_()
    state = [weight.clone(), lost.clone(), momentum.clone(), square.clone()]
    descend(rule, state, gradient.clone())
    start = [one.double() for one in (weight, momentum, square)]
    wanted = moved(rule, start, gradient.double())
    absolute = [abs(getattr(rule, name)) for name in NUMBERS[:3]]
    sizes = Descent(*absolute, *[0.0] * 3)
    of_momentum = sizes.moved(weight.double().abs(), momentum.double().abs(), gradient.double().abs())[1]
    root = abs(rule.square_weight) * weight.double().abs() + abs(rule.square_gradient) * gradient.double().abs()
    of_square = rule.square_square * square.double() + root**2
    divisor = rule.lift * wanted[2].sqrt() + rule.epsilon
    of_divisor = rule.lift * (of_square * UNIT * 8).sqrt()  # where two roots nearly cancel
    of_update = of_momentum / divisor + wanted[1].abs() * of_divisor / divisor**2 / (8 * UNIT)
    of_weight = abs(rule.weight_weight) * weight.double().abs() + abs(rule.weight_momentum) * of_update
    of_weight = of_weight + UNIT * weight.double().abs()  # what was lost is rounded itself
    found = (exactly(state) - lost.double(), *state[2:])
    for one, other, size in zip(found, wanted, (of_weight, of_momentum, of_square), strict=True):
        assert bool(((one.double() - other).abs() <= 16 * UNIT * size + 1e-42).all())


def test_images_follow_a_momentum_that_is_made_of_weights_alone() -> None:
    """Without a memory, and gradients scaled to nothing by clipping, decay is all that is left of it."""
    rule = rule_of(1, betas=(0.0, 0.999), scale=0.0, weight_decay=0.5)
    weight, momentum, gradient = torch.randn(3, 20, dtype=torch.float64)
    assert torch.equal(rule.linear.moved(weight, momentum, gradient)[1], rule.momentum_weight * weight)


def test_any_shape_is_moved_in_place() -> None:
    for shape in ((0,), (0, 3), (3, 5), (2, 3, 4, 5)):
        weight, gradient = torch.randn(2, *shape)
        state = fresh(weight)
        places = [one.data_ptr() for one in state]
        descend(rule_of(1), state, gradient.clone())
        assert [one.data_ptr() for one in state] == places
        assert [one.shape for one in state] == [torch.Size(shape)] * 4
        torch.testing.assert_close(state[2], 0.1 * gradient, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(state[3], 0.001 * gradient.square(), rtol=1e-5, atol=0.0)
        torch.testing.assert_close(state[0], weight - LR * gradient.sign(), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("size", [1, 6, 7, 8, 15, 100])
def test_a_step_is_the_same_in_chunks(size: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    weight, lost, momentum, square, gradient = torch.randn(5, size, generator=torch.Generator().manual_seed(0))
    start = [weight, UNIT * lost, momentum, square.square()]
    whole, chunked = ([one.clone() for one in start] for _ in range(2))
    descend(rule_of(7, **options), whole, gradient.clone())
    monkeypatch.setattr(descent, "_CHUNK", 7)
    descend(rule_of(7, **options), chunked, gradient.clone())
    assert all(map(torch.equal, whole, chunked))
    assert not torch.equal(whole[0], weight)


@pytest.mark.parametrize("decoupled", [False, True])
def test_thousands_of_tiny_steps_are_not_lost(decoupled: bool) -> None:
    """At a rate of 1e-9 no float32 of 1 would move by a step, nor by a decay of 1e-11."""
    options = {"weight_decay": 1e-2, "decoupled_weight_decay": decoupled}
    state, wanted = fresh(torch.ones(3)), [torch.ones(3, dtype=torch.float64), *[torch.zeros(3).double()] * 2]
    along = torch.full((3,), 0.5)
    for step in range(1, 3001):
        rule = rule_of(step, 1e-9, **options)
        wanted = moved(rule, wanted, along.double())
        descend(rule, state, along.clone())
    far = (wanted[0] - 1).abs()
    assert bool((far > 25 * UNIT).all())
    assert bool(((exactly(state) - wanted[0]).abs() <= 1e-5 * far).all())
    assert bool((state[1].abs() <= UNIT * 1.001).all())


def test_weights_without_gradients_stay_where_they_are() -> None:
    """0 / ε is 0: a dead input moves nothing, ever."""
    state = fresh(torch.randn(5))
    before = state[0].clone()
    for step in range(1, 20):
        descend(rule_of(step), state, torch.zeros(5))
    assert torch.equal(state[0], before)
    assert not any(bool(part.any()) for part in state[1:])
