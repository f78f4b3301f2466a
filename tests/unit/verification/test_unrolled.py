"""A convolution as the dense product that it is: secrets over all positions, for the first positions that are seen."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, product
from awfulowl.randomness import Entropy
from awfulowl.verification import unrolled
from awfulowl.verification.freivalds import Check
from awfulowl.verification.unrolled import unroll
from awfulowl.verification.vectors import Vectors
from tests.unit.verification.shapes import Layer, layers, some

K3 = Convolution(stride=(1, 1), padding=(1, 1), dilation=(1, 1))


def image_layer(batch: int = 5, side: int = 6) -> Layer:
    """3 x 3 on 4 channels, to 8."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(8, 4, 3, 3, generator=generator)
    grid = make_grid(tuple(weights.shape), K3, 1, block=(4, 2))
    return Layer(weights, grid, torch.randn(batch, 4, side, side, generator=generator))


def written_out(layer: Layer) -> Tensor:
    """The matrix of a convolution, (inputs * positions, outputs * positions'), float64."""
    shape = layer.x.shape[1:]
    basis = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    return product(layer.grid.kernel, layer.weights.double(), basis, layer.grid.groups).flatten(1)


def unrolled_of(layer: Layer, weights: list[Tensor] | None = None) -> Vectors:
    found = unroll(weights or [layer.weights], layer.grid, layer.x.shape[2:], Entropy(1), 3)
    assert found is not None
    return found


@some
@given(layers())
def test_secrets_are_of_the_matrix_written_out(layer: Layer) -> None:
    assume(layer.x.dim() > 2)
    found, matrix = unrolled_of(layer), written_out(layer)
    assert found.r.shape == (3, matrix.shape[1])
    torch.testing.assert_close(found.s, found.r @ matrix.T)
    torch.testing.assert_close(found.unit * found.v.double(), found.r.square() @ matrix.T.square(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.r_squared, found.r.square().float())


def test_weights_in_several_tensors_and_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = image_layer()
    whole = unrolled_of(layer)
    monkeypatch.setattr(unrolled, "STREAMED", 40)
    for weights in ([layer.weights], list(torch.split(layer.weights, [3, 5]))):
        torch.testing.assert_close(unrolled_of(layer, weights).s, whole.s)


def test_weights_count_as_devices_hold_them() -> None:
    layer = image_layer()
    assert torch.equal(unrolled_of(layer, [layer.weights.double() + 1e-12]).s, unrolled_of(layer).s)


def test_too_many_numbers_are_checked_by_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = image_layer()
    monkeypatch.setattr(unrolled, "_MOST_NUMBERS", 3 * 12 * 36 - 1)
    assert unroll([layer.weights], layer.grid, (6, 6), Entropy(1), 3) is None
    check = Check([layer.weights], layer.grid, Entropy(1))
    assert check.expect(layer.x)._expected.product.dim() == 4
    assert bool(check.accepts(layer.x, layer.y).all())


@pytest.mark.parametrize("space", [(0, 6), (0, 0)])
def test_nothing_is_drawn_for_no_positions(space: tuple[int, int]) -> None:
    layer = image_layer()
    assert unroll([layer.weights], layer.grid, space, Entropy(1), 3) is None


def test_the_first_positions_are_unrolled_and_others_checked_by_channels() -> None:
    check = Check([image_layer().weights], image_layer().grid, Entropy(1))
    for side, dimensions in ((6, 2), (5, 4), (6, 2)):
        layer = image_layer(side=side)
        expectation = check.expect(layer.x)
        assert expectation._expected.product.dim() == dimensions
        assert bool(expectation.accepts(layer.y).all())
        lie = layer.y.clone()
        lie[3, 2, 1, 4] += 0.01
        assert expectation.accepts(lie).tolist() == [True, True, True, False, True]


def test_lies_that_are_equal_and_opposite_at_two_positions_are_found() -> None:
    layer = image_layer(batch=1)
    for seed in range(50):
        lie = layer.y.clone()
        lie[0, :, 1, 1] += 0.001
        lie[0, :, 4, 4] -= 0.001
        assert not bool(Check([layer.weights], layer.grid, Entropy(seed)).accepts(layer.x, lie).any())


def test_answers_that_lie_otherwise_in_memory_are_the_same() -> None:
    layer = image_layer()
    check = Check([layer.weights], layer.grid, Entropy(1))
    x, y = (one.to(memory_format=torch.channels_last) for one in (layer.x, layer.y))
    assert bool(check.accepts(x, y).all())


def test_some_samples_of_a_batch() -> None:
    layer = image_layer()
    expectation = Check([layer.weights], layer.grid, Entropy(1)).expect(layer.x)
    assert bool(expectation.samples(slice(1, 3)).accepts(layer.y[1:3]).all())
    assert not bool(expectation.samples(slice(1, 3)).accepts(layer.y[2:4]).any())


def test_weights_that_change_later_are_not_those_of_the_devices() -> None:
    layer = image_layer()
    weights, y = layer.weights.clone(), layer.y
    check = Check([weights], layer.grid, Entropy(1))
    weights.add_(1)
    assert bool(check.accepts(layer.x, y).all())
    assert not bool(check.accepts(layer.x, layer._replace(weights=weights).y).any())


def test_secrets_are_drawn_anew_with_the_others() -> None:
    layer, entropy, drawn = image_layer(), Entropy(1), []
    for _ in range(2):
        secrets = Check([layer.weights], layer.grid, entropy)._unroll((6, 6))
        assert secrets is not None
        drawn.append(secrets.r)
    assert not torch.equal(*drawn)


def test_secrets_are_drawn_once_whoever_asks_first() -> None:
    layer = image_layer()
    check = Check([layer.weights], layer.grid, Entropy(1))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: check._unroll((6, 6)), range(8)))
    assert all(one is found[0] for one in found)


def test_memory_is_counted() -> None:
    layer = image_layer()
    check = Check([layer.weights], layer.grid, Entropy(1))
    before = check.memory_bytes
    check.expect(layer.x)
    assert check.memory_bytes - before == 3 * 12 * (4 + 8) * 36


@some
@given(layers(least_batch=1), st.integers(0, 2**32))
def test_one_number_off_is_found(layer: Layer, seed: int) -> None:
    assume(layer.x.dim() > 2 and layer.y.numel() > 0)
    lie = layer.y.clone().flatten(1)
    place = seed % lie.shape[1]
    lie[0, place] += 0.01 * (1 + float(layer.y.abs().max()))
    accepted = Check([layer.weights], layer.grid, Entropy(seed)).accepts(layer.x, lie.view_as(layer.y))
    assert not bool(accepted[0])
    assert bool(accepted[1:].all())
