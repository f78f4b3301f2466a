"""What every backend promises: products of integers, equal to Python's own modulo what was asked for."""

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.arithmetic import digits, patches, products
from awfulowl.arithmetic.products import BACKENDS, Backend, Digits, Weights
from awfulowl.blocks.kernels import Convolution, Dense, Kernel
from awfulowl.errors import InputError
from tests.contract.arithmetic.cases import (
    DTYPES,
    SEEDS,
    WIDTHS,
    Case,
    convolutions,
    denses,
    integers,
    modulo,
    oracle,
    strided,
)

some = settings(max_examples=60, deadline=None)
backends = pytest.mark.parametrize("backend", BACKENDS, ids=[backend.name for backend in BACKENDS])


def is_known(weights: Weights, weight: torch.Tensor, width: int) -> bool:
    """Say whether prepared weights give products of that width; only those that outgrow their digits may not."""
    if width <= weights.modulus_bytes:
        return True
    assert weights.modulus_bytes == weight.itemsize > 1
    assert int(weight.max()) > sum(0x7F << (8 * place) for place in range(weight.itemsize))
    return False


def assert_multiplies(backend: Backend, case: Case, width: int) -> None:
    weights = backend.prepare(case.weight)
    if not is_known(weights, case.weight, width):
        with pytest.raises(InputError, match=f"no products of {width} bytes"):
            backend.multiply(case.kernel, weights, case.x, case.groups, width)
        width = weights.modulus_bytes
    expected = oracle(case)
    y = backend.multiply(case.kernel, weights, case.x, case.groups, width)
    assert y.shape == expected.shape
    assert y.dtype == (torch.int32 if width <= 4 else torch.int64)
    assert modulo(y, width) == modulo(expected, width)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@backends
@some
@given(denses(), WIDTHS)
def test_dense_products_are_those_of_integers(backend: Backend, case: Case, width: int) -> None:
    assert_multiplies(backend, case, width)


@backends
@some
@given(denses(), WIDTHS)
def test_upright_products_are_transposed(backend: Backend, case: Case, width: int) -> None:
    weights = backend.prepare(case.weight)
    width = min(width, weights.modulus_bytes)
    y = backend.upright(weights.planes, case.x, width)
    assert y.shape == (len(case.weight), len(case.x))
    assert modulo(y.mT, width) == modulo(oracle(case), width)
    assert modulo(y.mT, width) == modulo(backend.dense(weights.planes, case.x, width), width)


@backends
@some
@given(convolutions(), WIDTHS)
def test_convolutions_are_those_of_integers(backend: Backend, case: Case, width: int) -> None:
    assert_multiplies(backend, case, width)


@some
@given(denses() | convolutions(), WIDTHS)
def test_products_padded_as_gpus_want_them_are_those_of_integers(case: Case, width: int) -> None:
    with patch.object(products, "multiply8", products._in_tiles):
        assert_multiplies(Digits(), case, width)


@backends
@pytest.mark.parametrize("of_x", DTYPES)
@pytest.mark.parametrize("of_weights", DTYPES)
def test_all_types_at_all_widths(backend: Backend, of_weights: torch.dtype, of_x: torch.dtype) -> None:
    case = Case(Dense(), integers(of_weights, (5, 19), 1), integers(of_x, (4, 19), 2))
    for width in range(1, 9):
        assert_multiplies(backend, case, width)


@backends
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("of_x", DTYPES)
@pytest.mark.parametrize("of_weights", DTYPES)
def test_the_ends_of_each_range(backend: Backend, of_weights: torch.dtype, of_x: torch.dtype, width: int) -> None:
    """All numbers at one end: no sum is larger."""
    ends, others = torch.iinfo(of_weights), torch.iinfo(of_x)
    weight = torch.tensor([[ends.min], [ends.max]], dtype=of_weights).repeat(1, 300)
    x = torch.tensor([[others.min], [others.max]], dtype=of_x).repeat(1, 300)
    assert_multiplies(backend, Case(Dense(), weight, x), width)


@backends
@some
@given(denses() | convolutions().filter(lambda case: case.groups == 1), st.data())
def test_rectangles_of_prepared_weights_are_rectangles_of_weights(
    backend: Backend, case: Case, data: st.DataObject
) -> None:
    whole = backend.prepare(case.weight)
    top, left = (data.draw(st.integers(0, length - 1)) for length in case.weight.shape[:2])
    bottom = data.draw(st.integers(top + 1, case.weight.shape[0]))
    right = data.draw(st.integers(left + 1, case.weight.shape[1]))
    part = Case(case.kernel, case.weight[top:bottom, left:right], case.x[:, left:right])
    planes = whole.planes[:, top:bottom, left:right]
    width = min(data.draw(WIDTHS), whole.modulus_bytes)
    y = backend.multiply(part.kernel, whole._replace(planes=planes), part.x, 1, width)
    assert modulo(y, width) == modulo(oracle(part), width)
    assert torch.equal(backend.restore(planes), part.weight)


@backends
@some
@given(convolutions())
def test_weights_lie_in_memory_as_patches_do(backend: Backend, case: Case) -> None:
    """So nothing of them is copied for a product of the whole."""
    planes = backend.prepare(case.weight).planes
    rows = planes.movedim(2, -1)
    assert rows.is_contiguous()
    assert rows.reshape(*planes.shape[:2], -1).data_ptr() == planes.data_ptr()
    assert torch.equal(backend.restore(planes), case.weight)


LONG = [
    (Dense(), (5, 2048), (3, 2048)),
    (Dense(), (2, 4096), (4, 4096)),
    (Convolution((1, 1), (0, 0), (1, 1)), (3, 512, 2, 2), (2, 512, 3, 4)),
]


@backends
@pytest.mark.parametrize("of_x", DTYPES)
@pytest.mark.parametrize("of_weights", DTYPES)
@pytest.mark.parametrize(("kernel", "shape", "inputs"), LONG, ids=["2048", "4096", "patches of 2048"])
def test_rows_that_a_cache_would_mix_up(
    backend: Backend,
    kernel: Kernel,
    shape: tuple[int, ...],
    inputs: tuple[int, ...],
    of_weights: torch.dtype,
    of_x: torch.dtype,
) -> None:
    """They lie apart where bytes are multiplied; nothing is copied for a product, and the gaps are counted."""
    case = Case(kernel, integers(of_weights, shape, 1), integers(of_x, inputs, 2))
    weights = backend.prepare(case.weight)
    rows = weights.planes.movedim(2, -1)
    length, apart = case.weight[0].numel(), rows.stride(1)
    assert apart == length + 64 * (backend.name == "int8")
    assert weights.nbytes == len(rows) * len(case.weight) * apart * weights.planes.itemsize
    assert weights.nbytes <= 1.04 * weights.planes.nbytes
    assert rows.reshape(*rows.shape[:2], -1).data_ptr() == weights.planes.data_ptr()
    assert torch.equal(backend.restore(weights.planes), case.weight)
    assert_multiplies(backend, case, min(4, weights.modulus_bytes))
    part = Case(kernel, case.weight[1:, 64:192], case.x[:, 64:192])
    y = backend.multiply(kernel, weights._replace(planes=weights.planes[:, 1:, 64:192]), part.x, 1, 1)
    assert modulo(y, 1) == modulo(oracle(part), 1)


@pytest.mark.parametrize("shape", [(1, 2048), (0, 2048), (3, 0), (1, 1)])
def test_bytes_of_rows_of_any_number(shape: tuple[int, int]) -> None:
    for backend in BACKENDS:
        weights = backend.prepare(torch.zeros(shape, dtype=torch.int8))
        assert weights.planes.nbytes <= weights.nbytes <= weights.planes.nbytes + 64 * shape[0]


@backends
def test_groups_of_prepared_weights_are_groups_of_weights(backend: Backend) -> None:
    kernel = Convolution((1,), (1,), (1,))
    case = Case(kernel, integers(torch.int16, (6, 2, 3), 1), integers(torch.int8, (2, 6, 7), 2), 3)
    planes = backend.prepare(case.weight).planes[:, 2:6]
    y = backend.multiply(kernel, Weights(planes), case.x[:, 2:], 2, 2)
    assert modulo(y, 2) == modulo(oracle(case)[:, 2:], 2)


@backends
@some
@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 6), min_size=2, max_size=4), SEEDS, st.integers(0, 2))
def test_weights_are_restored(backend: Backend, dtype: torch.dtype, shape: list[int], seed: int, layout: int) -> None:
    weight = strided(integers(dtype, shape, seed), layout)
    planes = backend.prepare(weight).planes
    assert planes.shape[1:] == weight.shape
    restored = backend.restore(planes)
    assert restored.dtype == dtype
    assert torch.equal(restored, weight)


@backends
def test_nothing_is_written_to(backend: Backend) -> None:
    weight, x = integers(torch.int32, (5, 9), 1), integers(torch.int32, (4, 9), 2)
    before = weight.clone(), x.clone()
    weights = backend.prepare(weight)
    planes = weights.planes.clone()
    first = backend.multiply(Dense(), weights, x, 1, 4)
    assert torch.equal(backend.multiply(Dense(), weights, x, 1, 4), first)
    assert torch.equal(weight, before[0])
    assert torch.equal(x, before[1])
    assert torch.equal(weights.planes, planes)


@backends
@pytest.mark.parametrize(
    "case",
    [
        Case(Dense(), integers(torch.int16, (256, 300), 3), integers(torch.int32, (64, 300), 4)),
        Case(
            Convolution((1, 1), (1, 1), (1, 1)),
            integers(torch.int16, (32, 16, 3, 3), 3),
            integers(torch.int8, (4, 16, 12, 12), 4),
        ),
    ],
    ids=["dense", "convolution"],
)
def test_threads_make_no_difference(backend: Backend, case: Case, two_threads: None) -> None:
    weights = backend.prepare(case.weight)
    two = backend.multiply(case.kernel, weights, case.x, 1, 2)
    torch.set_num_threads(1)
    assert torch.equal(backend.multiply(case.kernel, weights, case.x, 1, 2), two)


@backends
@pytest.mark.parametrize(
    ("dtype", "largest", "terms"),
    [
        (torch.int8, 127, 140_000),
        (torch.int8, -128, 140_000),
        (torch.int8, -128, 2**17),
        (torch.int16, 127 * 257, 140_000),
        (torch.int16, -(2**15), digits.EXACT_TERMS + 1),
    ],
)
def test_sums_beyond_32_bits(backend: Backend, dtype: torch.dtype, largest: int, terms: int) -> None:
    """They wrap around where 4 bytes are asked for, and are exact where 8 are."""
    x = torch.full((2, terms), largest, dtype=dtype)
    x[1, ::3] = 1
    weights = backend.prepare(torch.full((1, terms), largest, dtype=dtype))
    expected = np.array([[terms * largest**2], [(terms - len(x[1, ::3])) * largest**2 + len(x[1, ::3]) * largest]])
    assert abs(expected[0, 0]) >= 2**31
    exact = backend.multiply(Dense(), weights, x, 1, 8)
    assert exact.tolist() == expected.tolist()
    wrapped = backend.multiply(Dense(), weights, x, 1, 4)
    assert wrapped.tolist() == expected.astype(np.int32).tolist()


@backends
@pytest.mark.parametrize("width", [3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [1, 2000, 6000])
def test_pieces_make_no_difference(
    backend: Backend, groups: int, width: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Convolution((2, 1), (1, 0), (1, 2))
    case = Case(kernel, integers(torch.int32, (6, 4, 2, 3), 1), integers(torch.int16, (5, 4 * groups, 6, 7), 2), groups)
    monkeypatch.setattr(patches, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(products, "_PIECE", 1)
    monkeypatch.setattr(digits, "EXACT_TERMS", 5)
    assert_multiplies(backend, case, width)
    assert_multiplies(backend, Case(Dense(), case.weight.flatten(1), case.weight.flatten(1)), width)


@backends
@pytest.mark.parametrize("width", [4, 5, 8])
def test_weights_known_modulo_too_little_are_refused(backend: Backend, width: int) -> None:
    weights = Weights(backend.prepare(torch.ones(3, 4, dtype=torch.int16)).planes, width - 1)
    x = torch.ones(2, 4, dtype=torch.int8)
    with pytest.raises(InputError, match=rf"weights modulo 2\^{8 * (width - 1)} give no products of {width} bytes"):
        backend.multiply(Dense(), weights, x, 1, width)
    assert backend.multiply(Dense(), weights, x, 1, width - 1).tolist() == [[4] * 3] * 2


def test_weights_that_outgrow_their_digits_are_known_modulo_their_own_bytes() -> None:
    for dtype in DTYPES[1:]:
        largest = sum(0x7F << (8 * place) for place in range(dtype.itemsize))
        assert Digits().prepare(torch.tensor([[largest]], dtype=dtype)).modulus_bytes > 8
        assert Digits().prepare(torch.tensor([[largest + 1]], dtype=dtype)).modulus_bytes == dtype.itemsize
        assert Digits().prepare(torch.tensor([[torch.iinfo(dtype).min]], dtype=dtype)).modulus_bytes > 8
    assert Digits().prepare(torch.tensor([[127, -128]], dtype=torch.int8)).modulus_bytes > 8


@backends
@pytest.mark.parametrize("groups", [1, 2])
def test_no_samples_are_refused(backend: Backend, groups: int) -> None:
    weights = backend.prepare(torch.ones(4, 2, 3, dtype=torch.int8))
    with pytest.raises(InputError, match="no samples"):
        backend.multiply(
            Convolution((1,), (0,), (1,)), weights, torch.ones(0, 2 * groups, 5, dtype=torch.int8), groups, 4
        )
    dense = backend.prepare(torch.ones(4, 2, dtype=torch.int8))
    with pytest.raises(InputError, match="no samples"):
        backend.multiply(Dense(), dense, torch.ones(0, 2, dtype=torch.int8), 1, 4)
