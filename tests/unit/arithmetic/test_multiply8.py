"""Products of bytes by PyTorch: right in whatever way memory is laid out, and as GPUs want their shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.products import _in_tiles, multiply8
from tests.contract.arithmetic.cases import SEEDS, integers, strided

some = settings(max_examples=150, deadline=None)
SIDES = st.integers(1, 40)


def expected(x: Tensor, weight: Tensor) -> Tensor:
    return (x.long() @ weight.long().T).int()


def spoil(rows: int, columns: int) -> None:
    """Leave numbers in memory that is handed out next: an answer that was never written is not right by chance."""
    torch.full((rows, columns), 0x5A5A5A5A, dtype=torch.int32)


@some
@given(SIDES, SIDES, SIDES, SEEDS, st.integers(0, 2), st.integers(0, 2))
def test_bytes_are_multiplied(rows: int, outputs: int, terms: int, seed: int, of_x: int, of_weights: int) -> None:
    x = strided(integers(torch.int8, (rows, terms), seed), of_x)
    weight = strided(integers(torch.int8, (outputs, terms), seed + 1), of_weights)
    spoil(rows, outputs)
    assert torch.equal(multiply8(x, weight), expected(x, weight))


@st.composite
def views(draw: st.DrawFn, rows: int, terms: int) -> Tensor:
    """Any view: rows and columns that overlap, stand still, or lie apart."""
    memory = integers(torch.int8, (2000,), draw(SEEDS))
    down = draw(st.sampled_from([0, 1, 2, max(0, terms - 1), terms, terms + 3]))
    across = draw(st.sampled_from([0, 1, 2, max(0, rows - 1), rows, rows + 3]))
    return memory.as_strided((rows, terms), (down, across), draw(st.integers(0, 9)))


@some
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.data())
def test_any_strides_will_do(rows: int, outputs: int, terms: int, data: st.DataObject) -> None:
    """PyTorch 2.13 itself returns memory that nothing was written to for some of these."""
    x, weight = data.draw(views(rows, terms)), data.draw(views(outputs, terms))
    spoil(rows, outputs)
    assert torch.equal(multiply8(x, weight), expected(x, weight))


@pytest.mark.parametrize("down", [0, 1, 2, 8, 9])
@pytest.mark.parametrize("across", [0, 1, 2, 8, 9])
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (4, 5)])
def test_strides_of_single_rows_and_columns_mean_nothing(shape: tuple[int, int], across: int, down: int) -> None:
    view = integers(torch.int8, (200,), 1).as_strided(shape, (down, across))
    other = integers(torch.int8, (7, shape[1]), 2)
    spoil(shape[0], 7)
    assert torch.equal(multiply8(view, other), expected(view, other))
    spoil(7, shape[0])
    assert torch.equal(multiply8(other, view), expected(other, view))


@some
@given(SIDES, SIDES, SIDES, SEEDS, st.integers(0, 2), st.integers(0, 2))
def test_padding_changes_no_sum(rows: int, outputs: int, terms: int, seed: int, of_x: int, of_weights: int) -> None:
    x = strided(integers(torch.int8, (rows, terms), seed), of_x)
    weight = strided(integers(torch.int8, (outputs, terms), seed + 1), of_weights)
    product = _in_tiles(x, weight)
    assert product.shape == (rows, outputs)
    assert torch.equal(product, expected(x, weight))


@some
@given(SIDES, SIDES, SIDES)
def test_padded_shapes_are_those_that_cuda_takes(rows: int, outputs: int, terms: int) -> None:
    asked = []

    def note(x: Tensor, weight: Tensor) -> Tensor:
        asked.append((*x.shape, weight.shape[1]))
        return x.int() @ weight.int()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_int_mm", note)
        _in_tiles(torch.ones(rows, terms, dtype=torch.int8), torch.ones(outputs, terms, dtype=torch.int8))
    ((padded_rows, padded_terms, padded_outputs),) = asked
    assert padded_rows == max(32, rows)
    assert padded_terms % 8 == padded_outputs % 8 == 0
    assert padded_terms - terms < 8
    assert padded_outputs - outputs < 8
