"""The fast sums: equal to those written out, whatever the shape, the chunk, the scale and the type."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import grad

from awfulowl.blocks.kernels import Convolution, Dense, Kernel, output_shape
from awfulowl.randomness import Entropy
from awfulowl.verification import sums as module
from awfulowl.verification.sums import Sums, Transposed, compare, expect, multiply, taps
from awfulowl.verification.vectors import Keeping, Vectors
from tests.unit.verification.shapes import Layer, convolution, dense, layers, slow_measure, some

LARGEST_SCALE, SMALLEST_SCALE = 1e18, 1e-18


def secrets_of(layer: Layer) -> Vectors:
    return Keeping([layer.weights], layer.grid, Entropy(5), 3, []).select(None, None)


def sums(kernel: Kernel, secrets: Vectors, x: torch.Tensor, y: torch.Tensor) -> Sums:
    return compare(expect(kernel, secrets, x, y.shape[2:]), y)


def measure(layer: Layer, y: torch.Tensor) -> Sums:
    return sums(layer.grid.kernel, secrets_of(layer), layer.x, y)


def assert_measures(layer: Layer, y: torch.Tensor) -> None:
    """Residues to float64 rounding of what they are the difference of, energies to float32 rounding."""
    fast = measure(layer, y)
    residue, energy = slow_measure(layer, y, secrets_of(layer).r)
    rounding = (layer.weights.numel() + 8) * 2.0**-52 * energy.sqrt()
    assert bool(((fast.residue.T - residue).abs() <= rounding).all())
    torch.testing.assert_close(fast.energy.T, energy, rtol=1e-4, atol=0)


@some
@given(layers())
def test_honest_answers_are_measured_as_written_out(layer: Layer) -> None:
    assert_measures(layer, layer.y)


@some
@given(layers())
def test_any_answers_are_measured_as_written_out(layer: Layer) -> None:
    assert_measures(layer, torch.randn_like(layer.y) * layer.y.abs().amax() if layer.y.numel() else layer.y)


@pytest.mark.parametrize("layer", [dense(9, 20, 13), convolution((6, 4, 3, 2), (7, 5), 13)], ids=["dense", "conv"])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_chunks_make_no_difference(layer: Layer, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measure(layer, layer.y)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    for chunked, whole in zip(measure(layer, layer.y), expected, strict=True):
        assert chunked.shape == (3, 13)
        torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-12)


@some
@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from([SMALLEST_SCALE, 1e-9, 1e9, LARGEST_SCALE]))
def test_samples_of_any_scale_are_measured(kind: int, sample: int, scale: float) -> None:
    """Squares of 1e-25 are nothing in float32, squares of 1e25 are infinite: neither may show."""
    layer = [
        dense(9, 20, 4),
        dense(1, 1, 4),
        convolution((6, 4, 3), (7,)),
        convolution((6, 4, 2, 2), (3, 4), stride=2),
    ][kind]
    x = layer.x.clone()
    x[sample] *= scale
    if scale in (SMALLEST_SCALE, LARGEST_SCALE):
        layer = layer._replace(weights=layer.weights * scale)
    layer = layer._replace(x=x)
    energy = slow_measure(layer, layer.y, secrets_of(layer).r)[1]
    torch.testing.assert_close(measure(layer, layer.y).energy.T, energy, rtol=1e-4, atol=0)


def test_zeros_have_no_energy() -> None:
    layer = dense(9, 20, 4)
    layer.x[2] = 0
    result = measure(layer, layer.y)
    assert result.residue[:, 2].tolist() == result.energy[:, 2].tolist() == [0, 0, 0]
    assert bool((result.energy[:, :2] > 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_taken_at_their_values(dtype: torch.dtype) -> None:
    layer = dense(9, 20, 4)
    x = layer.x.to(dtype)
    narrow = sums(layer.grid.kernel, secrets_of(layer), x, layer.y)
    wide = sums(layer.grid.kernel, secrets_of(layer), x.double(), layer.y.double())
    assert torch.equal(narrow.residue, wide.residue)
    torch.testing.assert_close(narrow.energy, wide.energy, rtol=1e-6, atol=0)


def test_strided_samples_are_read_as_they_are() -> None:
    layer = convolution((6, 4, 3, 3), (7, 5), 4)
    x = layer.x.to(memory_format=torch.channels_last)
    y = layer.y.to(memory_format=torch.channels_last)
    for strided, plain in zip(sums(layer.grid.kernel, secrets_of(layer), x, y), measure(layer, layer.y), strict=True):
        torch.testing.assert_close(strided, plain, rtol=1e-6, atol=1e-12)


def test_samples_do_not_touch_each_other() -> None:
    layer = convolution((6, 4, 3), (7,), 5)
    whole = measure(layer, layer.y)
    for index in range(5):
        alone = sums(layer.grid.kernel, secrets_of(layer), layer.x[index : index + 1], layer.y[index : index + 1])
        torch.testing.assert_close(alone.residue[:, 0], whole.residue[:, index], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(alone.energy[:, 0], whole.energy[:, index], rtol=1e-6, atol=0)


def test_not_a_number_stays_in_its_sample() -> None:
    layer = dense(9, 20, 4)
    layer.x[1, 3] = math.nan
    result = measure(layer, layer.y)
    assert result.residue[0].isfinite().tolist() == [True, False, True, True]
    assert result.energy[0].isfinite().tolist() == [True, False, True, True]


def test_buffers_are_not_kept_for_large_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 10)
    monkeypatch.setattr(module, "BUFFERS", module._Buffers())
    layer = dense(9, 20, 4)
    assert_measures(layer, layer.y)
    assert all(held.numel() <= 10 for held in module.BUFFERS._held.values())


def test_inference_mode_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFERS", module._Buffers())
    layer = dense(9, 20, 4)
    with torch.inference_mode():
        inside = measure(layer, layer.y)
    outside = measure(layer, layer.y)
    with torch.inference_mode():
        again = measure(layer, layer.y)
    for one, two, three in zip(inside, outside, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_gradients_are_not_followed() -> None:
    layer = dense(9, 20, 4)
    x, y = layer.x.clone().requires_grad_(), layer.y.clone().requires_grad_()
    result = sums(layer.grid.kernel, secrets_of(layer), x, y)
    assert not result.residue.requires_grad
    assert not result.energy.requires_grad


def test_threads_do_not_share_buffers() -> None:
    layer = convolution((6, 4, 3), (40,), 64)
    expected = measure(layer, layer.y)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: measure(layer, layer.y), range(40)):
            assert torch.equal(result.residue, expected.residue)
            assert torch.equal(result.energy, expected.energy)


def transpose(weights: torch.Tensor, kernel: Convolution, dy: torch.Tensor, space: tuple[int, ...]) -> torch.Tensor:
    """What PyTorch says of the gradient of a convolution's inputs."""
    invert = grad.conv1d_input if len(space) == 1 else grad.conv2d_input
    size = len(dy), weights.shape[1], *space
    result: torch.Tensor = invert(size, weights, dy, kernel.stride, kernel.padding, kernel.dilation)  # type: ignore[no-untyped-call]
    return result


@some
@given(layers(least_batch=1))
def test_transposed_products_are_gradients_of_inputs(layer: Layer) -> None:
    """Of any space that leads to the same positions: those of dy do not tell it where strides skip inputs."""
    kernel, size, space = layer.grid.kernel, layer.grid.size, tuple(layer.x.shape[2:])
    outputs = layer.grid.outputs
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(*size, 3, outputs, generator=generator, dtype=torch.float64)
    positions = output_shape(kernel, outputs, size, layer.x.shape)[2:]
    dy = torch.randn(2, outputs, *positions, generator=generator)
    found = multiply(Transposed(kernel), p, dy, space)
    weights = p.movedim((-1, -2), (0, 1))
    exact = transpose(weights, kernel, dy.double(), space) if isinstance(kernel, Convolution) else dy.double() @ weights
    torch.testing.assert_close(found.transpose(0, 1), exact)


@pytest.mark.parametrize("space", [(7,), (8,), (9,)])
def test_transposed_taps_are_those_of_the_product_the_other_way_round(space: tuple[int, ...]) -> None:
    kernel = Convolution((3,), (1,), (2,))
    there = list(taps(kernel, (2,), space, (3,)))
    back = list(taps(Transposed(kernel), (2,), (3,), space))
    assert back == [(sources, targets) for targets, sources in there]
    assert list(taps(Transposed(Dense()), (), (), ())) == [((), ())]


@pytest.mark.parametrize(
    "layer", [convolution((6, 4, 3, 2), (7, 5), 3, stride=2), dense(6, 4, 3)], ids=["conv", "dense"]
)
def test_transposed_sums_are_measured_as_written_out(layer: Layer) -> None:
    """A product the other way is the product with the weights turned round: same residues, same energies."""
    kernel, size, space = layer.grid.kernel, layer.grid.size, tuple(layer.x.shape[2:])
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    dy = torch.randn(layer.y.shape, generator=generator)
    weights = layer.weights.double()
    p = torch.einsum("ki,oi...->...ko", q, weights)
    v = torch.einsum("ki,oi...->...ko", q.square(), weights.square()).float()
    dx = torch.randn(layer.x.shape, generator=generator)
    secrets = Vectors(q, p, v, 1.0, q.square().float())
    found = compare(expect(Transposed(kernel), secrets, dy, space), dx)

    def back(weights: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        return transpose(weights, kernel, dy, space) if isinstance(kernel, Convolution) else dy @ weights

    error = torch.einsum("ki,bi...->bk...", q, dx.double() - back(weights, dy.double()))
    energy = back(weights.square(), dy.double().square()) + dx.double().square()
    spread = torch.einsum("ki,bi...->bk...", q.square(), energy)
    torch.testing.assert_close(found.residue.T, error.flatten(2).norm(dim=2) if size else error.abs())
    torch.testing.assert_close(found.energy.T, spread.flatten(2).sum(dim=2) if size else spread, rtol=1e-4, atol=0)
