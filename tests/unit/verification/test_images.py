"""Images against projections written out: of weights, of gradients, and of weights that moved."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.grid import Grid
from awfulowl.errors import ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification import sums
from awfulowl.verification.gradients import laid
from awfulowl.verification.images import LARGEST_SQUARE, Side
from awfulowl.verification.rounding import MEAN_SQUARE, UNIT_ROUNDOFF
from awfulowl.verification.steps import Step
from tests.unit.verification.descents import LAYERS, batch_of, moved, projected, rules, true_gradient
from tests.unit.verification.shapes import Layer, dense, layers, some

sides = pytest.mark.parametrize("transposed", [False, True], ids=["left", "right"])
shapes = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def ends(grid: Grid, transposed: bool) -> int:
    """How long secrets are."""
    return grid.inputs if transposed else grid.outputs


def masks(grid: Grid, transposed: bool, count: int) -> Tensor:
    """Parts that take turns."""
    return (torch.arange(ends(grid, transposed)) % count == torch.arange(count)[:, None]).float()


def side_of(
    layer: Layer, transposed: bool, parts: int = 1, seed: int | None = 2, momentum: Sequence[Tensor] = ()
) -> Side:
    """The images of a layer."""
    grid = layer.grid
    side = Side(grid, Entropy(seed), 3, masks(grid, transposed, parts), transposed=transposed)
    side.anchor([layer.weights], momentum)
    return side


def step_of(side: Side, x: Tensor, dy: Tensor) -> Step:
    """What a batch adds to the image of a gradient."""
    return Step.total([side.step(*pair) for pair in laid(x, dy, side._grid.groups)])


def assert_is(found: Tensor, exact: Tensor, size: Tensor) -> None:
    """Up to float64 rounding of sums whose terms have these absolute values."""
    assert found.dtype == torch.float64
    assert found.shape == exact.shape
    assert bool(((found - exact).abs() <= 1e-12 * size).all())


def assert_image(side: Side, found: Tensor, grid: Grid, weight: Tensor, size: Tensor, transposed: bool) -> None:
    exact = projected(grid, side.secret, weight, transposed=transposed)
    assert_is(found, exact, projected(grid, side.secret.abs(), size.abs(), transposed=transposed))


# Weights


@sides
@shapes
def test_images_of_each_kind_of_layer(layer: Layer, transposed: bool) -> None:
    side = side_of(layer, transposed)
    assert_image(side, side.weight, layer.grid, layer.weights, layer.weights, transposed)
    assert not bool(side.momentum.any())


@sides
@some
@given(layers(), st.integers(1, 3))
def test_images_are_of_the_weights(transposed: bool, layer: Layer, parts: int) -> None:
    momentum = torch.randn_like(layer.weights)
    side = side_of(layer, transposed, parts, momentum=[momentum])
    assert side.secret.shape == (3 * parts, ends(layer.grid, transposed))
    assert_image(side, side.weight, layer.grid, layer.weights, layer.weights, transposed)
    assert_image(side, side.momentum, layer.grid, momentum, momentum, transposed)
    energy = projected(layer.grid, side.parts, layer.weights.double().square(), transposed=transposed)
    assert_is(side.energy, energy, energy)
    assert not bool(side.strayed.any())


@sides
@shapes
def test_images_of_sums_have_the_bits_of_both(layer: Layer, transposed: bool) -> None:
    """What float32 would lose of the sum is in the image."""
    lost = layer.weights * 2.0**-26
    side = Side(layer.grid, Entropy(1), 3, masks(layer.grid, transposed, 1), transposed=transposed)
    side.anchor([layer.weights, lost], [layer.weights, lost])
    exact = layer.weights.double() + lost.double()
    for image in (side.weight, side.momentum):
        assert_image(side, image, layer.grid, exact, exact, transposed)


@sides
@some
@given(layers(), st.data())
def test_parts_are_those_asked_for(transposed: bool, layer: Layer, data: st.DataObject) -> None:
    side = side_of(layer, transposed, parts=3)
    chosen = data.draw(st.lists(st.integers(0, 2), min_size=1, unique=True))
    inside = side.parts[chosen].sum(dim=0)
    secret = side.secret_of(chosen)
    assert secret.shape == (3, ends(layer.grid, transposed))
    assert not bool(secret[:, inside == 0].any())
    exact = projected(layer.grid, secret, layer.weights, transposed=transposed)
    absolute = projected(layer.grid, secret.abs(), layer.weights.abs(), transposed=transposed)
    assert_is(side.image_of(chosen), exact, absolute)
    energy = projected(layer.grid, inside[None], layer.weights.double().square(), transposed=transposed)
    assert_is(side.spread_of(chosen, 7), LARGEST_SQUARE * energy, 10 * energy)


def test_secrets_are_uniform_of_variance_1() -> None:
    layer = dense(4000, 1, 1, block=4000)
    side = side_of(layer, transposed=False, parts=2)
    secret = side.secret_of([0, 1])
    assert float(secret.abs().max()) <= math.sqrt(LARGEST_SQUARE)
    deviation = (3 * 4000) ** -0.5
    assert abs(float(secret.mean())) < 5 * deviation
    assert float(secret.square().mean()) == pytest.approx(1, abs=5 * deviation * math.sqrt(9 / 5 - 1))
    for power in range(2, 9, 2):
        expected = 3 ** (power / 2) / (power + 1)
        assert float(secret.pow(power).mean()) == pytest.approx(expected, rel=0.1)
    assert float(torch.corrcoef(secret).triu(1).abs().max()) < 5 / 4000**0.5


def test_secrets_are_the_entropy_s() -> None:
    layer = LAYERS["dense"]
    same, again, other = (side_of(layer, transposed=False, seed=seed).secret for seed in (1, 1, None))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@sides
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "lost", "momentum"])
def test_what_is_not_finite_is_refused(transposed: bool, value: float, where: str) -> None:
    layer = LAYERS["grouped"]
    state = {name: torch.zeros_like(layer.weights) for name in ("weight", "lost", "momentum")}
    state[where][1, 0, 2, 1] = value
    side = Side(layer.grid, Entropy(1), 3, masks(layer.grid, transposed, 2), transposed=transposed)
    with pytest.raises(ModelError, match="finite"):
        side.anchor([state["weight"], state["lost"]], [state["momentum"]])


@sides
def test_the_largest_weights_are_finite(transposed: bool) -> None:
    layer = LAYERS["dense"]
    side = side_of(layer._replace(weights=torch.full_like(layer.weights, 3e38)), transposed)
    assert bool(side.energy.isfinite().all())


# Gradients


@sides
@some
@given(layers(least_batch=1), st.integers(1, 3), st.integers(0, 3))
def test_steps_have_the_image_of_the_gradient(transposed: bool, layer: Layer, parts: int, seed: int) -> None:
    x, dy = batch_of(layer, seed)
    side = side_of(layer, transposed, parts)
    step = step_of(side, x, dy)
    absolute = true_gradient(layer.grid, x.abs(), dy.abs())
    assert_image(side, step.image, layer.grid, true_gradient(layer.grid, x, dy), absolute, transposed)
    assert step.terms == len(dy) * math.prod(dy.shape[2:])


@sides
@shapes
def test_steps_of_each_kind_of_layer(layer: Layer, transposed: bool) -> None:
    x, dy = batch_of(layer)
    side = side_of(layer, transposed, parts=2)
    step = step_of(side, x, dy)
    absolute = true_gradient(layer.grid, x.abs(), dy.abs())
    assert_image(side, step.image, layer.grid, true_gradient(layer.grid, x, dy), absolute, transposed)
    squares = true_gradient(layer.grid, x.square(), dy.square())
    energy = projected(layer.grid, side.parts, squares, transposed=transposed)
    torch.testing.assert_close(step.energy.double(), energy, rtol=1e-4, atol=0)


@sides
@shapes
@pytest.mark.parametrize("chunk", [1, 150])
def test_chunks_make_no_difference(layer: Layer, transposed: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    side = side_of(layer, transposed)
    whole = step_of(side, *batch_of(layer))
    monkeypatch.setattr(sums, "_CHUNK", chunk)
    chunked = step_of(side, *batch_of(layer))
    torch.testing.assert_close(chunked.image, whole.image, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chunked.energy, whole.energy, rtol=1e-4, atol=0)
    assert chunked.terms == whole.terms


@sides
@shapes
def test_steps_add_up(layer: Layer, transposed: bool) -> None:
    side, (x, dy) = side_of(layer, transposed), batch_of(layer)
    together = step_of(side, x, dy)
    total = Step.total([step_of(side, x[:1], dy[:1]), step_of(side, x[1:], dy[1:])])
    torch.testing.assert_close(total.image, together.image, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(total.energy, together.energy, rtol=1e-4, atol=0)
    assert total.terms == together.terms


@sides
@shapes
def test_no_samples_make_no_gradient(layer: Layer, transposed: bool) -> None:
    side, (x, dy) = side_of(layer, transposed), batch_of(layer)
    step = step_of(side, x[:0], dy[:0])
    assert step.image.shape == side.weight.shape
    assert step.terms == 0
    assert not bool(step.image.any())
    assert not bool(step.energy.any())


# Moving


@sides
@some
@given(layers(least_batch=1), rules(4), st.integers(1, 2))
def test_images_move_with_the_weights(transposed: bool, layer: Layer, steps: list[Descent], parts: int) -> None:
    momentum = torch.randn_like(layer.weights) * any(rule.has_momentum for rule in steps)
    side = side_of(layer, transposed, parts, momentum=[momentum])
    exact = size = layer.weights.double(), momentum.double()
    for seed, rule in enumerate(steps):
        x, dy = batch_of(layer, seed)
        side.move(rule, step_of(side, x, dy))
        exact = moved(rule, *exact, true_gradient(layer.grid, x, dy))
        positive = Descent(*(abs(number) for number in (getattr(rule, field) for field in Descent.__struct_fields__)))
        size = moved(positive, size[0].abs(), size[1].abs(), true_gradient(layer.grid, x.abs(), dy.abs()))
    for image, weight, absolute in zip((side.weight, side.momentum), exact, size, strict=True):
        assert_image(side, image, layer.grid, weight, absolute, transposed)


@sides
@some
@given(rules(5))
def test_errors_are_carried_by_the_rule(transposed: bool, steps: list[Descent]) -> None:
    """The covariance of errors in weights and momentum, as that of linear combinations of independent errors."""
    layer = LAYERS["dense"]
    side = side_of(layer, transposed)
    sources: list[tuple[Tensor, Tensor]] = []
    variances: list[Tensor] = []
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for seed, rule in enumerate(steps):
        step = step_of(side, *batch_of(layer, seed))
        gradient_squared = step.image.square().mean(dim=-2, keepdim=True)
        alike = step.terms * gradient_squared**2 / step.energy.double().clamp_min(1e-300)
        random = (step.terms + 3) / 3 * (step.energy + gradient_squared)
        variances.append(random + alike / (16 * MEAN_SQUARE))
        sources = [moved(rule, *source, zero) for source in sources] + [moved(rule, zero, zero, one)]
        side.move(rule, step)
    for number, found in ((0, side._noise[0]), (1, side._noise[2])):
        shares = [source[number] ** 2 for source in sources]
        noise = sum((share * v for share, v in zip(shares, variances, strict=True)), start=torch.zeros_like(found))
        torch.testing.assert_close(found, noise, rtol=1e-6, atol=1e-30)
    assert bool((side.strayed >= side._noise[0]).all())


@sides
def test_a_momentum_that_is_not_used_stays(transposed: bool) -> None:
    """As `torch.optim.SGD` leaves its buffer alone, and `descend` the third tensor of a state."""
    layer = LAYERS["dense"]
    side = side_of(layer, transposed)
    side.move(Descent.sgd(0.1, momentum=0.9), step_of(side, *batch_of(layer)))
    before = side.momentum
    side.move(Descent.sgd(0.1), step_of(side, *batch_of(layer, 2)))
    assert torch.equal(side.momentum, before)


@sides
def test_weights_that_stand_still_stray_no_more(transposed: bool) -> None:
    layer = LAYERS["dense"]
    side = side_of(layer, transposed)
    for _ in range(10):
        side.move(Descent.sgd(0.0), step_of(side, *batch_of(layer)))
    assert not bool(side.strayed.any())
    assert side.stretched == 0


def test_what_is_decayed_only_strays_by_roundings_of_the_decay() -> None:
    """A dead input: its weights shrink by 5e-4 a step, and each such step rounds what it takes away."""
    layer = LAYERS["dense"]._replace(x=torch.zeros(8, 40))
    side = side_of(layer, transposed=False)
    rule = Descent.sgd(1.0, weight_decay=5e-4)
    for _ in range(100):
        side.move(rule, step_of(side, *batch_of(layer)))
    roundings = math.sqrt(float(side.strayed.sum())) / (5e-4 * float(layer.weights.norm()))
    assert 100 < roundings < 400


@sides
def test_stretch_is_the_relative_change(transposed: bool) -> None:
    layer = dense(96, 96, 64)
    for rate in (1e-4, 1e-3, 1e-2):
        side, (x, dy) = side_of(layer, transposed), batch_of(layer)
        side.move(Descent.sgd(rate), step_of(side, x, dy))
        change = rate * true_gradient(layer.grid, x, dy).norm() / layer.weights.norm()
        assert side.stretched == pytest.approx(float(change), rel=0.25)


@sides
def test_drift_is_the_error_relative_to_the_weights(transposed: bool) -> None:
    layer = LAYERS["conv2d"]
    side = side_of(layer, transposed)
    assert side.drift == 0
    drifts = []
    for seed in range(4):
        side.move(Descent.sgd(0.01, momentum=0.9), step_of(side, *batch_of(layer, seed)))
        drifts.append(side.drift)
    error = math.sqrt(MEAN_SQUARE * float(side.strayed.sum())) * UNIT_ROUNDOFF
    assert side.drift == pytest.approx(error / math.sqrt(float(side.energy.sum())))
    assert sorted(drifts) == drifts
    assert 0 < drifts[-1] < 1e-4


@sides
def test_weights_of_zero(transposed: bool) -> None:
    layer = LAYERS["dense"]._replace(weights=torch.zeros(24, 40))
    side = side_of(layer, transposed)
    assert side.stretched == side.drift == 0
    side.move(Descent.sgd(0.1), step_of(side, *batch_of(layer)))
    assert math.isfinite(side.stretched)
    assert side.stretched > 1e6
    assert 0 < side.drift < 1e-5


@sides
@pytest.mark.parametrize(("stretch", "seldom", "least"), [(0.3, 0.001, 1.0), (1.0, 0.15, 0.4), (2.0, 0.3, 0.1)])
def test_energy_is_seldom_too_small(transposed: bool, stretch: float, seldom: float, least: float) -> None:
    """It is known at first; later it bounds what three images estimate: column by column not always, in sum it does."""
    ratios: list[Tensor] = []
    for seed in range(20):
        layer = dense(32, 48, 24, seed=seed)
        side, (x, dy) = side_of(layer, transposed, seed=seed), batch_of(layer, seed)
        along = true_gradient(layer.grid, x, dy)
        rate = stretch * float(layer.weights.norm() / along.norm())
        side.move(Descent.sgd(rate), step_of(side, x, dy))
        energy = projected(layer.grid, side.parts, (layer.weights - rate * along).square(), transposed=transposed)
        assert 1 < float(side.energy.sum() / energy.sum()) < 3
        ratios.append((side.energy / energy).flatten())
    ratio = torch.cat(ratios)
    low = float((ratio < 1).double().mean())
    print(f"stretch {stretch}: energy / true energy is {float(ratio.min()):.2f} at least, below 1 for {low:.1%}")
    assert low <= seldom
    assert float(ratio.min()) > least
