"""Compiled loops compute what PyTorch does; without numba, or for other numbers, they step aside."""

import copy
import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl import verification
from awfulowl.arithmetic.descent import Descent
from awfulowl.owner import deployment
from awfulowl.owner.policy import Policy
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled
from awfulowl.verification.freivalds import Check, Expectation
from awfulowl.verification.images import _carrying
from awfulowl.verification.sums import is_quick
from awfulowl.verification.training import TrainingCheck
from tests.prepared import prepared
from tests.simulated.memory_fleet import still_fleet
from tests.simulated.training import perceptron, twins
from tests.unit.verification.shapes import Layer, convolution, dense, layers, some


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with prepared(compiled._LOOPS):
        yield


shapes = st.tuples(st.integers(1, 7), st.integers(0, 6), st.integers(0, 70))
"""Rows, samples, channels."""


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=dtype)
    most = 2 ** min(24, 8 * dtype.itemsize - 1)
    return torch.randint(-most, most, shape, generator=generator, dtype=dtype)


@given(shapes, st.integers(0, 2**32))
def test_products_are_pytorchs(shape: tuple[int, int, int], seed: int) -> None:
    rows, batch, channels = shape
    x, weights = numbers((batch, channels), torch.float32, seed), numbers((rows, channels), torch.float64, seed + 1)
    found = compiled.weigh(weights, x)
    assert found is not None
    torch.testing.assert_close(found, weights @ x.double().T, rtol=1e-12, atol=1e-9)


@given(shapes, st.integers(1, 7), st.integers(0, 2**32))
def test_energies_are_pytorchs(shape: tuple[int, int, int], others: int, seed: int) -> None:
    rows, batch, channels = shape
    x, weights = numbers((batch, channels), torch.float32, seed), numbers((rows, channels), torch.float64, seed + 1)
    spread = numbers((others, channels), torch.float32, seed + 2).square()
    found = compiled.measure(weights, spread, x)
    assert found is not None
    torch.testing.assert_close(found[0], weights @ x.double().T, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(found[1], spread @ x.square().T, rtol=1e-5, atol=0)


BOUNDS = compiled.Bounds(z=10.0, variance=1e-14, at_least=0.0, least=2.0**-90, most=2.0**120)


@given(shapes, st.booleans(), st.sampled_from([0.0, 1e-8, 1e-4]), st.integers(0, 2**32))
def test_verdicts_are_pytorchs(shape: tuple[int, int, int], shared: bool, error: float, seed: int) -> None:
    k, batch, outputs = shape[0], shape[1], shape[2] + 1
    r, y = numbers((k, outputs), torch.float64, seed), numbers((batch, outputs), torch.float32, seed + 1)
    energy = numbers((1 if shared else k, batch), torch.float32, seed + 2).square() + 1
    squares = r[:1].square().float() if shared else r.square().float()
    product = r @ y.double().T + error * numbers((k, batch), torch.float64, seed + 3)
    judged = compiled.judge(r, squares, y, product, energy, 3.0, BOUNDS)
    assert judged is not None
    found, sure = judged
    assert sure is None
    residue = (r @ y.double().T - product).abs()
    tolerance = 10 * (1e-14 * (3 * energy.double() + squares.double() @ y.double().square().T)).sqrt()
    clear = ((residue / tolerance - 1).abs() > 1e-3).all(dim=0)
    assert torch.equal(found[clear], (residue <= tolerance).all(dim=0)[clear])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_answers_that_are_not_finite_are_not_judged_for_sure(value: float) -> None:
    """Nor accepted by what judges them then."""
    layer = dense(8, 6)
    check = Check([layer.weights], layer.grid, Entropy(1))
    y = layer.y
    y[0, 3] = value
    ones, outputs = torch.ones(1, len(y)), torch.ones(1, y.shape[1])
    judged = compiled.judge(outputs.double(), outputs, y, ones.double(), ones, 1.0, BOUNDS)
    assert judged is not None
    assert judged[1] is not None
    assert judged[1].tolist() == [False] + [True] * (len(y) - 1)
    assert not bool(judged[0][0])
    assert check.accepts(layer.x, y).tolist() == [False] + [True] * (len(y) - 1)


def in_ring(weights: Tensor, x: Tensor) -> Tensor:
    """Weights xᵀ modulo 2^64, as Python has it."""
    exact = weights.numpy().astype(object) @ x.numpy().astype(object).T
    wrapped = (exact + 2**63) % 2**64 - 2**63
    return torch.from_numpy(wrapped.astype(np.int64)).view(len(weights), len(x))


def full(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """Integers as large as there are, both ends among them."""
    ends = torch.iinfo(dtype)
    found = torch.randint(ends.min, ends.max, shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    found.view(-1)[::5], found.view(-1)[1::5] = ends.min, ends.max
    return found


@given(shapes, st.sampled_from([torch.int8, torch.int16]), st.integers(0, 2**32))
def test_sums_of_integers_wrap_around(shape: tuple[int, int, int], dtype: torch.dtype, seed: int) -> None:
    rows, batch, channels = shape
    x, weights = full((batch, channels), dtype, seed), full((rows, channels), torch.int64, seed + 1)
    found = compiled.add_up(weights, x)
    assert found is not None
    if channels:
        assert torch.equal(found, in_ring(weights, x))
    else:
        assert not bool(found.any())


@given(shapes, st.sampled_from([torch.int32, torch.int64]), st.integers(0, 62), st.integers(0, 2**32))
def test_integers_are_congruent_or_not(
    shape: tuple[int, int, int], dtype: torch.dtype, bound_bits: int, seed: int
) -> None:
    """And within the bound or not, each sample for itself."""
    k, batch, outputs = shape[0], shape[1], shape[2] + 1
    generator, bound = torch.Generator().manual_seed(seed), 2**bound_bits
    y = full((batch, outputs), dtype, seed) >> torch.randint(0, 8 * dtype.itemsize, (batch, 1), generator=generator)
    r = full((k, outputs), torch.int64, seed + 1)
    product, off = in_ring(r, y), torch.randint(-1, 2, (k, batch), generator=generator)
    off *= torch.randint(0, 2, (batch,), generator=generator)
    found = compiled.congruent(r, y, bound, product + off)
    assert found is not None
    within = [all(-bound <= one <= bound for one in sample) for sample in y.tolist()]
    assert found.tolist() == [fits and not bool(off[:, at].any()) for at, fits in enumerate(within)]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_bound_is_held_in_every_place(dtype: torch.dtype) -> None:
    """A sample is beyond it by one number alone, at either end, and at most by one."""
    for bound in (0, 5, 2**31 - 1):
        y = torch.zeros(80, 40, dtype=dtype)
        y[torch.arange(80), torch.arange(80) // 2] = torch.tensor([bound, -bound], dtype=dtype).repeat(40)
        nothing = torch.zeros(1, 40, dtype=torch.int64), torch.zeros(1, 80, dtype=torch.int64)
        found = compiled.congruent(nothing[0], y, bound, nothing[1])
        assert found is not None
        assert bool(found.all())
        if bound:
            narrow = compiled.congruent(nothing[0], y, bound - 1, nothing[1])
            assert narrow is not None
            assert not bool(narrow.any())


@given(shapes, st.integers(1, 1100), st.integers(1, 3), st.integers(0, 2**32))
def test_gradients_are_pytorchs(shape: tuple[int, int, int], channels: int, parts: int, seed: int) -> None:
    """Over blocks of 512 channels, and samples four at a time."""
    k, batch, outputs = shape
    secret = numbers((k, outputs), torch.float64, seed)
    dy, x = numbers((batch, outputs), torch.float32, seed + 1), numbers((batch, channels), torch.float32, seed + 2)
    masks = torch.randint(0, 2, (parts, outputs), generator=torch.Generator().manual_seed(seed)).float()
    found = compiled.correlate(secret, masks, dy, x)
    assert found is not None
    torch.testing.assert_close(found[0], (secret @ dy.double().T) @ x.double(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], (masks @ dy.square().T) @ x.square(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("batch", range(1, 6))
def test_gradients_that_are_not_finite_are_noticed(value: float, batch: int) -> None:
    for sample in range(batch):
        dy, x = torch.ones(batch, 3), torch.ones(batch, 5)
        x[sample, 2] = value
        found = compiled.correlate(torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3), dy, x)
        assert found is not None
        assert [one.isfinite()[0].tolist() for one in found] == [[True, True, False, True, True]] * 2


@some
@given(layers(least_batch=1), st.integers(0, 2**32))
def test_training_sees_the_same(layer: Layer, seed: int) -> None:
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    dy = numbers(tuple(layer.y.shape), torch.float32, seed)
    ours = check.see(layer.x, dy)
    with pytest.MonkeyPatch.context() as monkeypatch:
        without(monkeypatch)
        theirs = check.see(layer.x, dy)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.image, other.image, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.energy, other.energy, rtol=1e-5, atol=1e-6)
        assert one.terms == other.terms


RULES = [
    Descent.sgd(0.1),
    Descent.sgd(0.1, weight_decay=0.01, decoupled=True),
    Descent.sgd(0.1, momentum=0.9),
    Descent.sgd(0.1, momentum=0.9, dampening=0.5, weight_decay=0.01, nesterov=True),
    Descent.sgd(0.1, momentum=0.9, first=True),
]


@some
@given(layers(least_batch=1), st.lists(st.sampled_from(RULES), min_size=1, max_size=4), st.integers(0, 2**32))
def test_steps_lead_to_the_same(layer: Layer, rules: list[Descent], seed: int) -> None:
    """Images, energies, and what devices may have strayed, with momentum and without, one after the other."""
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    other = check.copy()
    for number, rule in enumerate(rules):
        dy = numbers(tuple(layer.y.shape), torch.float32, seed + number)
        seen = check.see(layer.x, dy)
        assert (
            check._left._moved(rule, seen[0], _carrying(rule, check._left._lean)) is not None or layer.grid.groups > 1
        )
        check.move(rule, [seen])
        with pytest.MonkeyPatch.context() as monkeypatch:
            without(monkeypatch)
            other.move(rule, [other.see(layer.x, dy)])
    for one, same in zip((check._left, check._right), (other._left, other._right), strict=True):
        torch.testing.assert_close((one.weight, one.momentum, one.energy), (same.weight, same.momentum, same.energy))
        torch.testing.assert_close((one._noise, one._drag), (same._noise, same._drag), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(one._reach, same._reach)
    assert math.isclose(check.drift, other.drift, rel_tol=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("inputs", [511, 512, 513, 1100])
def test_long_steps_lead_to_the_same(inputs: int, parts: int) -> None:
    """Numbers go through the loop 512 at a time, image by image of each part."""
    layer = dense(6, inputs, block=2)
    apart = [range(3)] if parts == 1 else None
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1), apart=apart)
    other = check.copy()
    for number, rule in enumerate(RULES):
        seen = check.see(layer.x, numbers((8, 6), torch.float32, number))
        check.move(rule, [seen])
        with pytest.MonkeyPatch.context() as monkeypatch:
            without(monkeypatch)
            other.move(rule, [seen])
    for one, same in zip((check._left, check._right), (other._left, other._right), strict=True):
        assert len(one.parts) == (1 if one is check._right else parts)
        torch.testing.assert_close((one.weight, one.momentum), (same.weight, same.momentum))
        torch.testing.assert_close(one._tracked, same._tracked, rtol=1e-9, atol=1e-12)


@some
@given(layers(least_batch=1), st.lists(st.sampled_from(RULES), max_size=2), st.integers(0, 2**32))
def test_what_checks_whole_products_is_the_same(layer: Layer, rules: list[Descent], seed: int) -> None:
    """From both sides, before any step and after some."""
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    for number, rule in enumerate(rules):
        check.move(rule, [check.see(layer.x, numbers(tuple(layer.y.shape), torch.float32, seed + number))])
    for side in (check._left, check._right):
        ours = side.whole(7)
        with pytest.MonkeyPatch.context() as monkeypatch:
            without(monkeypatch)
            theirs = copy.copy(side)
            theirs._whole = None
            found = theirs.whole(7)
        assert torch.equal(ours.r, found.r)
        assert torch.equal(ours.s, found.s)
        assert torch.equal(ours.r_squared, found.r_squared)
        assert math.isclose(ours.unit, found.unit, rel_tol=1e-12)
        torch.testing.assert_close(ours.v, found.v, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_tolerances_that_are_no_numbers_stay_so(value: float) -> None:
    """Nothing is accepted by them."""
    layer = dense(8, 6)
    check = TrainingCheck([layer.weights], layer.grid, Entropy(1))
    check._left._tracked[7, 0, 2] = value
    assert not bool(check._left.whole(9).v.isfinite().all())
    assert not bool(check.accepts(layer.x, layer.y).any())


def test_weights_that_are_zero_have_no_spread() -> None:
    found = compiled.spread(torch.zeros(8, 2, 5, dtype=torch.float64), 1.0)
    assert found is not None
    assert found[0].shape == (1, 5)
    assert not bool(found[0].any())
    assert found[1] == 1


def test_only_little_arithmetic_waits_for_the_answer() -> None:
    """A dense product in compiled loops; anything else is done while devices multiply."""
    layer, curved = dense(8, 6), convolution((3, 4, 2), (5,), 2)
    assert is_quick(layer.grid.kernel, layer.x)
    assert not is_quick(layer.grid.kernel, torch.empty(1 << 18, 8))
    assert not is_quick(curved.grid.kernel, curved.x)
    compiled._LOOPS.module = None
    assert not is_quick(layer.grid.kernel, layer.x)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_comes_out_as_it_should(value: float) -> None:
    x = torch.ones(3, 40)
    x[1, 17] = value
    found = compiled.measure(torch.ones(3, 40, dtype=torch.float64), torch.ones(3, 40), x)
    assert found is not None
    for sums in found:
        assert sums.isfinite().all(dim=0).tolist() == [True, False, True]


def test_opposite_infinities_are_no_number() -> None:
    x = torch.tensor([[float("inf"), float("-inf")]])
    found = compiled.weigh(torch.ones(1, 2, dtype=torch.float64), x)
    assert found is not None
    assert bool(found.isnan().all())


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(6, 4).T,
        torch.ones(4, 12)[:, ::2],
        torch.ones(4, 6, dtype=torch.bfloat16),
        torch.ones(4, 6, dtype=torch.float64),
        torch.ones(4, 6, device="meta"),
    ],
    ids=["transposed", "strided", "bfloat16", "float64", "another device"],
)
def test_other_numbers_are_left_to_pytorch(x: Tensor) -> None:
    secrets = torch.ones(3, 6, dtype=torch.float64)
    assert compiled.weigh(secrets, x) is None
    assert compiled.measure(secrets, torch.ones(3, 6), x) is None


def test_gradients_are_no_hindrance() -> None:
    x = torch.ones(4, 6, requires_grad=True)
    assert compiled.weigh(torch.ones(3, 6, dtype=torch.float64), x) is not None
    assert compiled.measure(torch.ones(3, 6, dtype=torch.float64), torch.ones(3, 6), x) is not None


def test_nothing_is_compiled_before_it_is_asked_for() -> None:
    compiled._LOOPS.module = None
    assert compiled.weigh(torch.ones(3, 6, dtype=torch.float64), torch.ones(4, 6)) is None
    assert compiled.measure(torch.ones(3, 6, dtype=torch.float64), torch.ones(3, 6), torch.ones(4, 6)) is None


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, and the loops have never been imported."""
    compiled._LOOPS.module = None
    monkeypatch.delitem(sys.modules, "awfulowl.verification.loops")
    monkeypatch.delattr(verification, "loops")


@pytest.mark.usefixtures("fresh")
def test_without_numba_all_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not compiled.prepare()


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled._LOOPS, "module", None)


@some
@given(layers(least_batch=1), st.sampled_from([Check, TrainingCheck]))
def test_checks_find_the_same(layer: Layer, kind: type[Check] | type[TrainingCheck]) -> None:
    check = kind([layer.weights], layer.grid, Entropy(1))
    ours = check.expect(layer.x).tolerance(layer.y), check.expect(layer.x).residue(layer.y)
    with pytest.MonkeyPatch.context() as monkeypatch:
        without(monkeypatch)
        theirs = check.expect(layer.x).tolerance(layer.y), check.expect(layer.x).residue(layer.y)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert bool(check.accepts(layer.x, layer.y).all())


def test_samples_that_float32_cannot_square_are_done_again() -> None:
    """In float64, by PyTorch."""
    layer = dense(8, 6)
    check = Check([layer.weights], layer.grid, Entropy(1))
    for scale in (1e-25, 1e25):
        own = layer._replace(x=layer.x * scale)
        assert bool(check.accepts(own.x, own.y).all())
        assert not bool(check.accepts(own.x, own.y * 1.001).any())


@pytest.mark.parametrize("worth", [120, 121])
def test_a_fleet_compiles_for_large_models_alone(monkeypatch: pytest.MonkeyPatch, worth: int) -> None:
    """Of 96 and 24 weights."""
    compiled._LOOPS.module = None
    monkeypatch.setattr(deployment, "WORTH_COMPILING", worth)
    with still_fleet(2, Policy()) as fleet:
        pair = twins(fleet, perceptron())
        assert (compiled._LOOPS.module is not None) is (worth == 120)
        pair.step(2)
        pair.agree()


def test_samples_without_energy_are_done_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = dense(8, 6)
    check, x, y = Check([layer.weights], layer.grid, Entropy(1)), layer.x.clone(), layer.y
    x[2], y[2] = 0, 0
    x[4], y[4, 1] = 0, 1e-30
    compared = []
    compare = Expectation._compared

    def counted(self: Expectation, y: Tensor) -> Tensor:
        compared.append(len(y))
        return compare(self, y)

    monkeypatch.setattr(Expectation, "_compared", counted)
    y[7] *= 1.01
    assert check.accepts(x, y).tolist() == [True] * 4 + [False, True, True, False]
    assert compared == [2]


def test_what_does_not_fit_is_left_to_pytorch() -> None:
    """Which says so: a loop would read beyond the end."""
    secrets, some, few = torch.ones(3, 6, dtype=torch.float64), torch.ones(4, 6), torch.ones(3, 5)
    ones = torch.ones(3, 4)
    assert compiled.weigh(secrets, few) is None
    assert compiled.measure(secrets, few, some) is None
    assert compiled.judge(secrets, few, some, ones.double(), ones, 1.0, BOUNDS) is None
    assert compiled.judge(secrets, secrets.float(), some, ones[:, :3].double(), ones, 1.0, BOUNDS) is None
    assert compiled.judge(secrets, secrets.float(), some, ones.double(), ones[:2], 1.0, BOUNDS) is None
    assert compiled.judge(secrets, secrets.float()[:2], some, ones.double(), ones[:2], 1.0, BOUNDS) is None
    assert compiled.weigh(secrets, some.int()) is None
    whole = secrets.long()
    assert compiled.add_up(whole, few.int()) is None
    assert compiled.add_up(whole, some) is None
    assert compiled.add_up(whole, some.int()) is None
    assert compiled.congruent(whole, some.int(), 1, ones[:2].long()) is None
    assert compiled.congruent(whole, few.int(), 1, ones.long()) is None
    assert compiled.congruent(whole, some.char(), 1, ones.long()) is None
    assert compiled.congruent(whole[:, :0], some.int()[:, :0], 1, ones.long()) is None
    assert compiled.correlate(secrets, secrets.float(), some, some[:3]) is None
    assert compiled.correlate(secrets, few, some, some) is None
    assert compiled.correlate(secrets, secrets.float(), some, some[:, :, None]) is None


def test_steps_that_do_not_fit_are_left_to_pytorch() -> None:
    images, base = [torch.ones(6, 5, dtype=torch.float64)] * 4, torch.ones(2, 5, dtype=torch.float64)
    tracked, carrying, sums = torch.ones(8, 2, 5, dtype=torch.float64), _carrying(RULES[0], 0.0), base.float()

    def found(images: list[Tensor] = images, spent: Tensor = sums, tracked: Tensor = tracked) -> object:
        return compiled.advance(RULES[0].numbers, carrying, (1.0,) * 4, images, base, spent, tracked)

    assert found() is not None
    assert found(images=[*images[:3], images[3][:, :4].contiguous()]) is None
    assert found(images=[one[:, :4].contiguous() for one in images]) is None
    assert found(images=[one[:5] for one in images]) is None
    assert found(images=[torch.ones(1, 6, 5, dtype=torch.float64)] * 4) is None
    assert found(spent=base) is None
    assert found(spent=sums[:1]) is None
    assert found(tracked=tracked[:7]) is None
    assert found(tracked=tracked.transpose(0, 1).contiguous().transpose(0, 1)) is None
    assert compiled.spread(tracked.transpose(1, 2), 1.0) is None
    compiled._LOOPS.module = None
    assert found() is None
    assert compiled.spread(tracked, 1.0) is None
