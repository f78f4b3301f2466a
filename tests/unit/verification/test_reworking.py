"""Blocks that Adam moved, rebuilt by the owner: honest devices agree with it to the end, and lies of 1e-4 do not."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import descend
from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import gradient, product
from awfulowl.verification.reworking import Gradient, Reworked, gradient_of
from awfulowl.verification.vectors import project
from tests.unit.verification.descents import INPUTS, LAYERS, Batch, true_gradient
from tests.unit.verification.shapes import Layer, dense

STEPS = 150

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 1e-2},
    "decoupled": {"weight_decay": 1e-2, "decoupled": True},
    "short memory": {"betas": (0.8, 0.9)},
    "no bound": {"betas": (0.9, 0.8)},
    "no memory": {"betas": (0.0, 0.0)},
    "tiny epsilon": {"epsilon": 1e-20},
    "large epsilon": {"epsilon": 1e-3},
}


class Adept:
    """A device with one block, and the owner's own copy of it."""

    def __init__(self, layer: Layer, **options: Any) -> None:
        self.layer = layer
        self.grid: Grid = layer.grid
        self.state = [layer.weights.clone(), *(torch.zeros_like(layer.weights) for _ in range(3))]
        self.owner = Reworked([layer.weights])
        self._options = options
        self._taken = 0

    def rule(self, lr: float, scale: float = 1.0, **options: Any) -> Adaptation:
        """The next step."""
        self._taken += 1
        return Adaptation.adam(lr, self._taken, scale=scale, **self._options | options)

    def along(self, batches: Sequence[Batch]) -> Tensor:
        """The gradient as the device computes it: float32, batch by batch."""
        total = torch.zeros_like(self.state[0])
        for x, dy in batches:
            total += gradient(self.grid.kernel, self.grid.size, x, dy, self.grid.groups)
        return total

    def announce(self, rule: Adaptation, *batches: Batch) -> None:
        """Let the owner take a step."""
        shape = (self.grid.outputs, self.grid.inputs // self.grid.groups, *self.grid.size)
        self.owner.step(rule, gradient_of(self.grid.kernel, shape, batches, self.grid.groups))

    def step(self, rule: Adaptation, *batches: Batch) -> None:
        """Let both take a step."""
        self.announce(rule, *batches)
        descend(rule, self.state, self.along(batches))

    def moved_by(self) -> Tensor:
        """How far its weights are from where they were at first."""
        return (self.state[0] - self.layer.weights).abs()


class Taught:
    """Batches for a device that learns: inputs of a kind, gradients towards other weights."""

    def __init__(self, adept: Adept, inputs: str, seed: int = 1) -> None:
        self._adept = adept
        self._inputs = INPUTS[inputs]
        self._generator = torch.Generator().manual_seed(seed)
        self._target = torch.randn(adept.layer.weights.shape, generator=self._generator)

    def batch(self) -> Batch:
        """The next one."""
        x = self._inputs(tuple(self._adept.layer.x.shape), self._generator)
        grid = self._adept.grid
        y, wanted = (product(grid.kernel, one, x, grid.groups) for one in (self._adept.state[0], self._target))
        error = (y - wanted) / float(wanted.square().mean().sqrt())
        return x, (error + 0.3 * torch.randn(y.shape, generator=self._generator)).clamp(-3, 3) / len(x)


RUNS = [
    *(("dense", "normal", rule) for rule in RULES),
    *(("dense", inputs, "plain") for inputs in INPUTS),
    *(("dense", inputs, "decay") for inputs in ("half dead", "ones", "heavy-tailed")),
    *((name, "half dead", rule) for name in LAYERS for rule in ("decoupled", "tiny epsilon") if name != "dense"),
]


@pytest.mark.parametrize(("name", "inputs", "rule"), list(dict.fromkeys(RUNS)))
def test_an_honest_device_agrees_to_the_end(name: str, inputs: str, rule: str) -> None:
    """While rates fall from 1e-2 to 1e-6, and gradients are clipped now and then."""
    steps = STEPS if LAYERS[name].grid.size == () else STEPS // 3
    adept = Adept(LAYERS[name], **RULES[rule])
    taught = Taught(adept, inputs)
    for step in range(steps):
        batch = taught.batch()
        adept.step(adept.rule(1e-2 * 1e-4 ** (step / steps), (1.0, 0.03)[step % 7 == 3]), batch)
        if step % 20 == 0:
            assert adept.owner.agrees(adept.state), f"an honest device was suspected at step {step}"
    print(name, inputs, rule, f"{adept.owner.residue(adept.state):.3f}")
    assert adept.owner.residue(adept.state) < 0.5
    assert float(adept.moved_by().max()) > 0.05


def dead(x: Tensor, dy: Tensor) -> list[Batch]:
    return [(torch.zeros_like(x), dy)]


def cancelling(x: Tensor, dy: Tensor) -> list[Batch]:
    """0 but for rounding: all samples come a second time, in another order, with gradients the other way."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(x)))
    return [(torch.cat([x, x[order]]), torch.cat([dy, -dy[order]]))]


def times(size: float) -> Callable[[Tensor, Tensor], list[Batch]]:
    return lambda x, dy: [(x, size * dy)]


KINDS: dict[str, Callable[[Tensor, Tensor], list[Batch]]] = {
    "dead": dead,
    "constant": lambda x, dy: [(torch.ones_like(x), torch.ones_like(dy))],
    "cancelling": cancelling,
    "cancelling jobs": lambda x, dy: [(x, dy), (x.flip(0), -dy.flip(0))],
    "no samples": lambda x, dy: [(x[:0], dy[:0])],
    "several jobs": lambda x, dy: [(x[:3], dy[:3]), (x[3:], dy[3:]), (x, dy)],
    **{f"times {size:g}": times(size) for size in (1e-44, 1e-30, 1e-22, 1e-19, 1e-12, 1e15)},
    "tiny by tiny": lambda x, dy: [(1e-20 * x, 1e-23 * dy)],
}


@pytest.mark.parametrize("rule", ["plain", "decay", "decoupled", "tiny epsilon"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_all_kinds(kind: str, rule: str) -> None:
    """Also those whose squares float32 has no numbers for, and those that are nothing but rounding."""
    adept = Adept(dense(8, 12), **RULES[rule])
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        x, dy = torch.randn(6, 12, generator=generator), torch.randn(6, 8, generator=generator)
        adept.step(adept.rule(1e-3), *KINDS[kind](x, dy))
        assert adept.owner.agrees(adept.state), f"an honest device was suspected at step {step}"


@pytest.mark.parametrize("rule", ["plain", "tiny epsilon"])
def test_gradients_that_change_their_size(rule: str) -> None:
    """By sixty orders of magnitude, from one step to the next and column by column."""
    adept = Adept(dense(8, 12), **RULES[rule])
    generator = torch.Generator().manual_seed(0)
    for step in range(150):
        sizes = 10.0 ** torch.linspace(-12, 6, 12).roll(step)
        x, dy = torch.randn(6, 12, generator=generator) * sizes, torch.randn(6, 8, generator=generator)
        adept.step(adept.rule(1e-3), (x, 10.0 ** ((7 * step) % 30 - 25) * dy))
        assert adept.owner.agrees(adept.state), f"an honest device was suspected at step {step}"


def test_betas_that_change_from_step_to_step() -> None:
    """As OneCycleLR changes them: then there is no bound on a step, and none is used."""
    adept = Adept(dense(8, 12))
    taught = Taught(adept, "half dead")
    for step in range(60):
        adept.step(adept.rule(1e-3, betas=(0.95 - 0.1 * step / 60, 0.999)), taught.batch())
        assert adept.owner.agrees(adept.state)


def test_updates_below_the_last_bit_are_followed() -> None:
    adept = Adept(dense(8, 12), weight_decay=1e-3, decoupled=True)
    for _ in range(200):
        adept.step(adept.rule(1e-6), (torch.zeros(6, 12), torch.ones(6, 8)))
    assert adept.owner.agrees(adept.state)
    assert bool(adept.state[1].any())
    adept.state[1].zero_()
    assert not adept.owner.agrees(adept.state)


# States that were there before


def test_a_later_snapshot_is_where_it_goes_on() -> None:
    adept = Adept(dense(8, 12), weight_decay=1e-2)
    taught = Taught(adept, "normal")
    for _ in range(3):
        for _ in range(40):
            adept.step(adept.rule(1e-2), taught.batch())
        assert adept.owner.agrees(adept.state)
        adept.owner = Reworked([part.clone() for part in adept.state])
        assert adept.owner.residue(adept.state) == 0.0


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_that_are_missing_are_nothing(parts: int) -> None:
    state = [torch.randn(3, 4) for _ in range(parts)]
    if parts > 1:
        state[1] *= 2.0**-26
    whole = [*state, *[torch.zeros(3, 4)] * (4 - parts)]
    assert Reworked(state).agrees(whole)
    for index in range(4):
        other = [part.clone() for part in whole]
        other[index][1, 2] += 0.5
        assert not Reworked(state).agrees(other)


@pytest.mark.parametrize("large", [1.0, 1e4])
def test_whoever_takes_a_liars_block_over_is_not_blamed(large: float) -> None:
    """A snapshot with a momentum and no squares was not found out. The steps from there divide by next to nothing."""
    adept = Adept(dense(8, 12))
    adept.state[2] += large
    adept.owner = Reworked(adept.state)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        x, dy = torch.randn(6, 12, generator=generator), torch.randn(6, 8, generator=generator)
        batches = cancelling(x, 1e-3 * dy) if step % 2 else dead(x, dy)
        adept.step(adept.rule(1e-3), *batches)
        assert adept.owner.agrees(adept.state)


# Lies

SIZE = 1e-4
PARTS = {"weights": 0, "momentum": 2, "squares": 3}


def studied(name: str = "dense", steps: int = 100, **options: Any) -> tuple[Adept, Taught]:
    adept = Adept(LAYERS[name], **options)
    taught = Taught(adept, "normal")
    for _ in range(steps):
        adept.step(adept.rule(1e-3), taught.batch())
    return adept, taught


@pytest.mark.parametrize("name", ["dense", "conv2d", "grouped"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_off_by_a_ten_thousandth(part: str, name: str) -> None:
    """In all numbers, or in the largest one only."""
    adept, _ = studied(name)
    true = [one.clone() for one in adept.state]
    assert adept.owner.agrees(true)
    own = true[PARTS[part]]
    for error in (SIZE * own, SIZE * own * (own.abs() == own.abs().max())):
        false = [one.clone() for one in true]
        false[PARTS[part]] += error
        assert not adept.owner.agrees(false)


def test_what_was_lost_is_a_part_of_the_weights() -> None:
    adept, _ = studied()
    adept.state[1] += SIZE * adept.state[0].abs()
    assert not adept.owner.agrees(adept.state)


Lie = Callable[[Tensor, Tensor], Tensor]
"""From the gradient of this step and of the last to that which a device steps along."""

STEP_LIES: dict[str, Lie] = {
    "skipped": lambda along, last: 0 * along,
    "doubled": lambda along, last: 2 * along,
    "scaled": lambda along, last: (1 + SIZE) * along,
    "stale": lambda along, last: last,
    "turned": lambda along, last: -along,
    "a ten thousandth of noise": lambda along, last: (
        along
        + SIZE
        * along.norm()
        / along.numel() ** 0.5
        * torch.randn(along.shape, generator=torch.Generator().manual_seed(5))
    ),
}


@pytest.mark.parametrize("name", ["dense", "conv2d"])
@pytest.mark.parametrize("kind", STEP_LIES)
def test_a_step_along_another_gradient(kind: str, name: str) -> None:
    """One of a hundred, and honest ones after it: the mean square does not forget."""
    adept, taught = studied(name)
    last = adept.along([taught.batch()])
    batch, rule = taught.batch(), adept.rule(1e-3)
    adept.announce(rule, batch)
    descend(rule, adept.state, STEP_LIES[kind](adept.along([batch]), last))
    assert not adept.owner.agrees(adept.state)
    for _ in range(20):
        adept.step(adept.rule(1e-3), taught.batch())
    assert not adept.owner.agrees(adept.state)


@pytest.mark.parametrize(
    "changed",
    [
        {"lr": 1e-3 * (1 + SIZE)},
        {"betas": (0.9, 0.99)},
        {"betas": (0.8, 0.999)},
        {"weight_decay": 1e-2},
        {"epsilon": 1e-3},
    ],
    ids=str,
)
def test_a_step_by_another_rule(changed: dict[str, Any]) -> None:
    """Over twenty steps; a rate of a ten thousandth more is in all of them."""
    adept, taught = studied()
    for _ in range(20):
        batch, rule = taught.batch(), adept.rule(1e-3)
        adept.announce(rule, batch)
        options = {"lr": 1e-3, **changed}
        other = Adaptation.adam(options.pop("lr"), adept._taken, **options)
        descend(other, adept.state, adept.along([batch]))
    assert not adept.owner.agrees(adept.state)


def test_a_weight_that_was_moved_where_no_gradient_is() -> None:
    adept = Adept(dense(8, 12))
    for _ in range(10):
        adept.step(adept.rule(1e-3), (torch.zeros(6, 12), torch.ones(6, 8)))
    adept.state[0][3, 4] += 1e-6
    assert not adept.owner.agrees(adept.state)


def test_where_a_gradient_cancels_a_weight_moves_no_further_than_a_step() -> None:
    """The direction is anybody's guess there, but not the length."""
    adept, generator = Adept(dense(8, 12)), torch.Generator().manual_seed(0)
    for _ in range(10):
        x, dy = torch.randn(6, 12, generator=generator), torch.randn(6, 8, generator=generator)
        adept.step(adept.rule(1e-3), *cancelling(x, dy))
    assert adept.owner.agrees(adept.state)
    adept.state[0] += 0.5
    assert not adept.owner.agrees(adept.state)


@pytest.mark.parametrize(
    "state",
    [
        [],
        [torch.zeros(8, 12)] * 3,
        [torch.zeros(8, 12)] * 5,
        [torch.zeros(12, 8)] * 4,
        [torch.zeros(1)] * 4,
        [torch.full((8, 12), math.nan)] * 4,
        [torch.full((8, 12), math.inf)] * 4,
        [*[torch.zeros(8, 12)] * 3, torch.full((8, 12), math.nan)],
    ],
    ids=range(8),
)
def test_what_is_no_state(state: list[Tensor]) -> None:
    adept = Adept(dense(8, 12))
    adept.layer.weights.zero_()
    adept.owner = Reworked([torch.zeros(8, 12)])
    assert not adept.owner.agrees(state)
    assert adept.owner.residue(state) != 0.0


# Statements


@pytest.mark.parametrize("name", LAYERS)
def test_what_may_be_stated_on_the_way(name: str) -> None:
    """An image tells one weight of all that is off by a thousandth of their size."""
    adept = Adept(LAYERS[name])
    taught = Taught(adept, "normal")
    grid, generator = adept.grid, torch.Generator().manual_seed(0)
    secret = torch.rand(3, grid.outputs, dtype=torch.float64, generator=generator) * 2 - 1
    for step in range(20):
        weight = adept.state[0]
        assert adept.owner.states(secret, project(secret, weight, grid.groups, (1,))[0], grid.groups)
        false = weight.clone()
        false.view(-1)[7 * step % false.numel()] += 1e-3 * weight.abs().max()
        assert not adept.owner.states(secret, project(secret, false, grid.groups, (1,))[0], grid.groups)
        adept.step(adept.rule(1e-3), taught.batch())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_statement(value: float) -> None:
    adept = Adept(dense(8, 12))
    assert not adept.owner.states(torch.ones(3, 8, dtype=torch.float64), torch.full((3, 12), value).double(), 1)


# Gradients


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_is_that_of_the_jobs_together(name: str) -> None:
    layer = LAYERS[name]
    x, dy = layer.x, torch.randn(layer.y.shape, generator=torch.Generator().manual_seed(2))
    jobs = [(x[:1], dy[:1]), (x[1:], dy[1:])]
    found = gradient_of(layer.grid.kernel, layer.grid.shape, jobs, layer.grid.groups)
    assert isinstance(found, Gradient)
    wanted = true_gradient(layer.grid, x, dy)
    torch.testing.assert_close(found.value, wanted, rtol=1e-12, atol=1e-12)
    assert bool((found.off > 0).all())
    single = gradient(layer.grid.kernel, layer.grid.size, x, dy, layer.grid.groups).double()
    assert bool(((single - wanted).abs() <= found.off).all())
    assert float(found.off.mean()) < 1e-4 * float(wanted.abs().mean())


def test_sums_that_err_in_one_direction_are_allowed_for() -> None:
    """Equal numbers, one after the other, in float32."""
    count = 100_000
    x, dy = torch.full((count, 1), 1.1), torch.full((count, 1), 0.7)
    total = torch.cumsum((x * dy).flatten(), 0)[-1].double()
    found = gradient_of(LAYERS["dense"].grid.kernel, (1, 1), [(x, dy)], 1)
    assert 0 < float((total - found.value).abs()) <= float(found.off)
