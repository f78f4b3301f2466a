"""The check as the owner calls it: honest answers pass whatever their shape, changed weights show, errors say what."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.blocks.grid import make_grid, rectangle, take
from awfulowl.blocks.kernels import Dense, product
from awfulowl.errors import InputError, ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Check, Z
from awfulowl.verification.rounding import variance
from tests.unit.verification.shapes import Layer, convolution, dense, layers, slow_measure, some, terms


def check_of(layer: Layer, seed: int = 3, **options: object) -> Check:
    return Check([layer.weights], layer.grid, Entropy(seed), **options)  # type: ignore[arg-type]


@some
@given(layers())
def test_honest_answers_pass(layer: Layer) -> None:
    accepted = check_of(layer).accepts(layer.x, layer.y)
    assert accepted.shape == (len(layer.x),)
    assert accepted.dtype == torch.bool
    assert bool(accepted.all())


@some
@given(layers(least_batch=1), st.booleans())
def test_tolerance_is_the_derived_bound(layer: Layer, by_channel: bool) -> None:
    check = check_of(layer)
    unrolled = None if by_channel else check._unroll(tuple(layer.x.shape[2:]))
    rows = range(len(layer.grid.rows)) if by_channel else None
    residue, energy = slow_measure(layer, layer.y, (unrolled or check._keeping.select(None, None)).r)
    deviation = (variance(terms(layer)) * energy).sqrt()
    torch.testing.assert_close(check.tolerance(layer.x, layer.y, rows=rows), Z * deviation, rtol=1e-4, atol=0)
    expected = torch.where(residue == 0, residue, residue / deviation)
    torch.testing.assert_close(check.residue(layer.x, layer.y, rows=rows), expected, rtol=1e-3, atol=1e-4)


@some
@given(layers(least_batch=1), st.data())
def test_each_device_is_checked_alone(layer: Layer, data: st.DataObject) -> None:
    """Columns of one device, and of rows any that these columns reach; the partial sums are the device's own."""
    grid, check = layer.grid, check_of(layer)
    first = data.draw(st.sampled_from(grid.columns))
    beside = [index for index, column in enumerate(grid.columns) if column.rows == first.rows]
    alone = first.groups > 1
    columns = (
        [grid.columns.index(first)] if alone else data.draw(st.lists(st.sampled_from(beside), min_size=1, unique=True))
    )
    rows = list(first.rows) if alone else data.draw(st.lists(st.sampled_from(first.rows), min_size=1, unique=True))
    piece = rectangle([layer.weights], grid, rows, columns)
    x = take(layer.x, grid, columns)
    y = product(grid.kernel, piece, x, first.groups)
    assert bool(check.accepts(x, y, columns=columns, rows=rows).all())
    assert check.matches(piece, columns=columns, rows=rows)
    whole = rectangle([layer.weights], grid, first.rows, columns)
    assert bool(check.accepts(x, product(grid.kernel, whole, x, first.groups), columns=columns).all())
    assert check.matches(whole, columns=columns)


def test_parts_are_held_to_no_looser_bound_than_the_total() -> None:
    layer = dense(32, 64)
    check = check_of(layer)
    x = take(layer.x, layer.grid, [1])
    part = product(Dense(), rectangle([layer.weights], layer.grid, [0, 1], [1]), x)
    assert bool((check.tolerance(x, part, columns=[1]) < check.tolerance(layer.x, layer.y)).all())


def test_the_bound_grows_with_the_terms_of_one_output_only() -> None:
    grouped, plain = convolution((8, 2, 3), (9,), groups=4, block=2), convolution((8, 8, 3), (9,))
    assert check_of(grouped)._terms(None) == 2 * 3
    assert check_of(plain)._terms(None) == 8 * 3
    assert check_of(grouped)._terms([1]) == 2 * 3
    assert check_of(dense(4, 40))._terms([0, 2]) == 16 + 8


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_one_input_and_one_output(mean: float) -> None:
    layer = dense(1, 1, 1000)
    layer = layer._replace(x=layer.x + mean)
    assert bool(check_of(layer).accepts(layer.x, layer.y).all())
    assert not bool(check_of(layer).accepts(layer.x, layer.y * 1.0001).any())


@pytest.mark.parametrize("layer", [dense(3, 4, 0), convolution((3, 4, 2), (5,), 0)], ids=["dense", "convolution"])
def test_no_samples_have_no_residues(layer: Layer) -> None:
    assert check_of(layer).residue(layer.x, layer.y).shape == (0, 3)


def test_zeros_have_to_be_answered_by_zeros() -> None:
    layer = dense(5, 6)
    check, x = check_of(layer), torch.zeros(2, 6)
    y = torch.zeros(2, 5)
    assert check.tolerance(x, y).tolist() == check.residue(x, y).tolist() == [[0, 0, 0]] * 2
    y[1, 2] = 1e-30
    assert check.accepts(x, y).tolist() == [True, False]


def test_weights_of_zero_have_to_give_zeros() -> None:
    layer = dense(5, 6)._replace(weights=torch.zeros(5, 6))
    assert bool(check_of(layer).accepts(layer.x, layer.y).all())
    assert not bool(check_of(layer).accepts(layer.x, layer.y + 1e-20).any())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("layer", [dense(5, 6, 3), convolution((5, 6, 2, 2), (4, 4), 3)], ids=["dense", "convolution"])
def test_what_is_not_finite_never_passes(layer: Layer, side: str, value: float) -> None:
    x, y = layer.x.clone(), layer.y.clone()
    (x if side == "x" else y)[1, 2] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_of(layer).accepts(x, y).tolist() == [True, False, True]


def test_large_honest_answers_pass() -> None:
    """Squares of 1e30 are beyond float32, and 3e38 is nearly infinite itself."""
    layer = dense(5, 6)
    x = layer.x * 1e30
    assert bool(check_of(layer).accepts(x, x @ layer.weights.T).all())


def test_inputs_that_travelled_as_halves_are_checked_as_such() -> None:
    layer = dense(40, 64)
    seen = layer.x.half()
    y = seen.float() @ layer.weights.T
    assert bool(check_of(layer).accepts(seen, y).all())
    assert not bool(check_of(layer).accepts(layer.x, y).any())


def test_half_precision_weights_are_checked_as_devices_hold_them() -> None:
    layer = dense(40, 64)
    layer = layer._replace(weights=layer.weights.half())
    y = layer.x @ layer.weights.float().T
    assert bool(check_of(layer).accepts(layer.x, y).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_the_device_is_a_lie(dtype: torch.dtype) -> None:
    layer = dense(256, 1024, 64)
    y = (layer.x.to(dtype) @ layer.weights.T.to(dtype)).float()
    assert not bool(check_of(layer).accepts(layer.x, y).any())


def test_weights_that_changed_show() -> None:
    layer = dense(40, 64, block=16)
    check = check_of(layer)
    assert check.matches(layer.weights)
    for row, column in ((0, 0), (39, 63), (17, 30)):
        changed = layer.weights.clone()
        changed[row, column] = torch.nextafter(changed[row, column], torch.tensor(math.inf))
        assert not check.matches(changed)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_match_nothing(value: float) -> None:
    layer = dense(4, 6)
    changed = layer.weights.clone()
    changed[1, 1] = value
    assert not check_of(layer).matches(changed)


@pytest.mark.parametrize("shape", [(4, 5), (6, 4), (24,), (4, 6, 1), ()])
def test_another_shape_matches_nothing(shape: tuple[int, ...]) -> None:
    assert not check_of(dense(4, 6)).matches(torch.ones(shape))


def test_rows_together_match_together_only() -> None:
    layer = dense(64, 32)
    check = check_of(layer, apart=[(0, 1), (2, 3)])
    assert check.matches(layer.weights[32:], rows=(2, 3))
    with pytest.raises(InputError, match=r"rows \[1\] .*apart"):
        check.matches(layer.weights[16:32], rows=(1,))


def test_new_secrets_are_new() -> None:
    layer = dense(30, 20)
    entropy = Entropy()
    old, check = (Check([layer.weights], layer.grid, entropy) for _ in range(2))
    assert not torch.equal(check._keeping.select(None, None).r, old._keeping.select(None, None).r)
    assert bool(check.accepts(layer.x, layer.y).all())
    assert not bool(check.accepts(layer.x, layer.y * 1.01).any())


def test_secrets_are_of_the_weights_given() -> None:
    layer = dense(30, 20)
    check = Check([layer.weights * 2], layer.grid, Entropy(3))
    assert bool(check.accepts(layer.x, layer.y * 2).all())
    assert not bool(check.accepts(layer.x, layer.y).any())


def test_weights_that_are_not_finite_are_refused() -> None:
    layer = dense(30, 20)
    with pytest.raises(ModelError, match="finite"):
        Check([layer.weights * math.nan], layer.grid, Entropy(3))


def test_more_vectors_and_another_z() -> None:
    layer = dense(30, 20)
    strict, wide = check_of(layer, vectors=5, z=1e-9), check_of(layer, vectors=5, z=1e9)
    assert strict.residue(layer.x, layer.y).shape == (8, 5)
    assert not bool(strict.accepts(layer.x, layer.y).any())
    assert bool(wide.accepts(layer.x, layer.y * 1.01).all())


def test_panels_of_several_layers() -> None:
    weights = [torch.randn(outputs, 20) for outputs in (5, 40, 7)]
    grid = make_grid((52, 20), Dense(), 1, block=16, row_cuts=(5, 45))
    check, x = Check(weights, grid, Entropy(1)), torch.randn(6, 20)
    y = torch.cat([x @ weight.T for weight in weights], dim=1)
    assert bool(check.accepts(x, y).all())
    middle = [row for row, span in enumerate(grid.rows) if 5 <= span.start < 45]
    assert bool(check.accepts(x, y[:, 5:45], rows=middle).all())
    assert not bool(check.accepts(x, y[:, 4:44], rows=middle).any())
