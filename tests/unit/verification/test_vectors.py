"""The secrets: sums over streamed weights, kept for as few parts as the rows asked for allow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Dense, product
from awfulowl.errors import InputError, ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification import vectors
from awfulowl.verification.vectors import Keeping, project, reached
from tests.unit.verification.shapes import Layer, convolution, dense, layers, some


def keeping(layer: Layer, apart: list[list[int]] | None = None, count: int = 3, seed: int = 1) -> Keeping:
    return Keeping([layer.weights], layer.grid, Entropy(seed), count, apart)


@some
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(1, 3), max_size=2))
def test_projection_is_the_product_written_out(groups: int, outputs: int, inputs: int, size: list[int]) -> None:
    weights = torch.randn(groups * outputs, inputs, *size)
    r = torch.randn(2, groups * outputs, dtype=torch.float64)
    s, v = project(r, weights, groups)
    for group in range(groups):
        rows, own = slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)
        expected = torch.einsum("ko,oi...->...ki", r[:, rows], weights[rows].double())
        torch.testing.assert_close(s[..., own], expected)
        expected = torch.einsum("ko,oi...->...ki", r[:, rows].square(), weights[rows].double().square())
        torch.testing.assert_close(v[..., own], expected)


def test_projection_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, r = torch.randn(30, 7), torch.randn(3, 30, dtype=torch.float64)
    at_once = project(r, weights)
    monkeypatch.setattr(vectors, "STREAMED", 20)
    for streamed, whole in zip(project(r, weights), at_once, strict=True):
        torch.testing.assert_close(streamed, whole)


def test_projection_leaves_the_weights_alone() -> None:
    weights = torch.randn(5, 7, dtype=torch.float64)
    before = weights.clone()
    project(torch.randn(3, 5, dtype=torch.float64), weights)
    assert torch.equal(weights, before)


def test_weights_count_as_devices_hold_them() -> None:
    weights = torch.randn(5, 7, dtype=torch.float64)
    r = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(project(r, weights)[0], project(r, weights.float())[0])


def test_transposed_views_are_read_as_they_are() -> None:
    weights = torch.randn(7, 5).T
    r = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(project(r, weights)[0], r @ weights.double())


@some
@given(layers())
def test_parts_add_up_to_the_whole(layer: Layer) -> None:
    together, apart = keeping(layer, []).select(None, None), keeping(layer).select(None, None)
    torch.testing.assert_close(apart.s, together.s)
    torch.testing.assert_close(apart.v, together.v)
    assert torch.equal(apart.r, together.r)


@some
@given(layers(), st.data())
def test_any_rows_can_be_had_when_all_are_apart(layer: Layer, data: st.DataObject) -> None:
    grid = layer.grid
    rows = data.draw(st.lists(st.sampled_from(range(len(grid.rows))), min_size=1, unique=True))
    secrets = keeping(layer).select(rows, None)
    outputs = [index for row in rows for index in range(grid.rows[row].start, grid.rows[row].stop)]
    assert secrets.r.shape == (3, len(outputs))
    # A product with unit vectors is the weights themselves.
    alone = layer.weights.clone()
    alone[[index for index in range(grid.outputs) if index not in outputs]] = 0
    r = keeping(layer).select(None, None).r
    torch.testing.assert_close(secrets.s, project(r, alone, grid.groups)[0])


def test_rows_come_in_the_order_asked_for() -> None:
    layer = dense(40, 8)
    whole = keeping(layer).select(None, None)
    assert torch.equal(keeping(layer).select([2, 0], None).r, torch.cat([whole.r[:, 32:], whole.r[:, :16]], dim=1))


def test_columns_come_in_the_order_asked_for() -> None:
    layer = dense(8, 40)
    whole = keeping(layer).select(None, None)
    some = keeping(layer).select(None, [2, 0])
    assert torch.equal(some.s, torch.cat([whole.s[:, 32:], whole.s[:, :16]], dim=1))
    assert torch.equal(some.v, torch.cat([whole.v[:, 32:], whole.v[:, :16]], dim=1))


@pytest.mark.parametrize("rows", [[0], [0, 0], [1, 2, 3, 4], [9], [0, 1, 2, 3, 4, 4], []])
def test_rows_that_were_not_named_cannot_be_had(rows: list[int]) -> None:
    with pytest.raises(InputError, match="apart"):
        keeping(dense(80, 8), [[0, 1], [3, 4]]).select(rows, None)


@pytest.mark.parametrize("rows", [[0, 1], [1, 0], [3, 4], [2], [0, 1, 3, 4], [0, 1, 2, 3, 4]])
def test_unions_of_named_rows_can_be_had(rows: list[int]) -> None:
    assert keeping(dense(80, 8), [[0, 1], [3, 4]]).select(rows, None).r.shape == (3, 16 * len(rows))


def test_a_stack_of_weights_is_one_panel() -> None:
    weights = [torch.randn(outputs, 6) for outputs in (5, 9, 3)]
    grid = make_grid((17, 6), Dense(), 1, block=4, row_cuts=(5, 14))
    stacked = Keeping(weights, grid, Entropy(1), 3, None).select(None, None)
    whole = Keeping([torch.cat(weights)], grid, Entropy(1), 3, None).select(None, None)
    torch.testing.assert_close(stacked.s, whole.s)
    assert torch.equal(stacked.r, whole.r)


def test_a_row_may_cross_members_of_a_panel() -> None:
    weights = [torch.randn(5, 6), torch.randn(9, 6)]
    grid = make_grid((14, 6), Dense(), 1, block=4)
    crossing = Keeping(weights, grid, Entropy(1), 3, None).select([1], None)
    torch.testing.assert_close(crossing.s, crossing.r @ torch.cat(weights)[4:8].double())


def test_memory_at_block_256() -> None:
    layer = dense(2048, 2048, 1, block=256)
    weights_bytes = layer.weights.nbytes
    assert keeping(layer, []).memory_bytes < 0.01 * weights_bytes
    assert keeping(layer).memory_bytes < 0.05 * weights_bytes


def test_memory_counts_each_tensor_once() -> None:
    layer = dense(32, 64, 1)
    per_vector = 8 * 32 + 4 * 32 + 8 * 64 + 4 * 64
    assert keeping(layer, [], count=2).memory_bytes == 2 * per_vector
    assert keeping(layer, None, count=2).memory_bytes == 2 * (per_vector + 2 * (8 + 4) * 64)


def test_grouped_parts_keep_their_own_inputs_only() -> None:
    layer = convolution((32, 2, 3), (9,), groups=16, block=2)
    assert len(layer.grid.rows) == 16
    together, apart = keeping(layer, []).memory_bytes, keeping(layer).memory_bytes
    assert apart < 2 * together


def test_columns_reach_their_rows() -> None:
    grid = convolution((8, 2, 3), (9,), groups=4, block=2).grid
    assert reached(grid, [1]) == (1,)
    assert reached(grid, [3, 0]) == (0, 3)
    assert reached(grid, None) == (0, 1, 2, 3)
    assert product(grid.kernel, torch.ones(2, 2, 3), torch.ones(1, 2, 9)).shape == (1, 2, 9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_weights_have_to_be_finite(bad: float) -> None:
    weights = torch.ones(4, 4, dtype=torch.float64)
    weights[2, 3] = bad
    with pytest.raises(ModelError, match="finite"):
        Keeping([weights], make_grid((4, 4), Dense(), 1, block=2), Entropy(1), 3, None)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_weights_of_any_scale_are_kept(scale: float) -> None:
    layer = dense(8, 8)
    secrets = keeping(layer._replace(weights=layer.weights * scale)).select(None, None)
    assert bool(secrets.v.isfinite().all())
    torch.testing.assert_close(secrets.unit * secrets.v.double(), project(secrets.r, layer.weights * scale)[1])


def test_secrets_are_gaussian_and_differ() -> None:
    layer = dense(4096, 1, 1, block=4096)
    r = keeping(layer).select(None, None).r
    assert abs(float(r.mean())) < 5 / (3 * 4096) ** 0.5
    assert float(r.square().mean()) == pytest.approx(1, abs=5 * (2 / (3 * 4096)) ** 0.5)
    assert abs(float(torch.corrcoef(r)[0, 1])) < 5 / 4096**0.5
    assert not torch.equal(r, Keeping([layer.weights], layer.grid, Entropy(), 3, None).select(None, None).r)


def test_secrets_are_not_printed() -> None:
    kept = keeping(dense(4, 4))
    secrets = kept.select(None, None)
    for shown in (repr(kept), repr(secrets), str(secrets)):
        assert "tensor" not in shown
