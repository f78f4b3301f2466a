"""How answers become one product: in plan order, whoever answered first."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from awfulowl.owner.layout import Layouts, Outputs, Piece, add_up
from awfulowl.placement.cutting import Layer
from awfulowl.placement.naming import name_devices
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.planner import make_plan
from awfulowl.randomness import Entropy
from awfulowl.veil.shares import sharing_of

WEIGHT = (24, 64)
BATCH = 3


def answered(shape: Shape, devices: int) -> tuple[Layouts, Outputs, list[Piece]]:
    """The answers of some devices to one request, in which each has numbers of another size."""
    options = Options(block=4, shape=shape, replicas=1, share=1.0)
    (panel,) = make_plan([Layer("layer", WEIGHT)], name_devices(devices), options, Entropy(0)).panels
    layouts = Layouts(panel, sharing_of(None), 0)
    outputs = Outputs.of(panel.grid, range(len(panel.grid.rows)))
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for number, device in enumerate(sorted({cell.holders[0] for cell in panel.cells})):
        cells = tuple(at for at, cell in enumerate(panel.cells) if cell.holders[0] == device)
        layout = layouts.lay_out(cells, outputs.rows)
        sizes = [sum(panel.grid.rows[row].size for row in term.rows) for term in layout.terms]
        tensors = [torch.randn(BATCH, size, generator=generator) * 10.0 ** (number % 3) for size in sizes]
        pieces.append(Piece(device, layout, tensors, number))
    return layouts, outputs, pieces


def total(pieces: Sequence[Piece], layouts: Layouts, outputs: Outputs) -> Tensor:
    out = torch.full((BATCH, outputs.size), torch.nan)
    add_up(pieces, layouts, outputs, out)
    return out


def by_hand(pieces: Sequence[Piece], outputs: Outputs, dtype: torch.dtype) -> Tensor:
    """Add row after row, in the order of these pieces."""
    out = torch.zeros(BATCH, outputs.size, dtype=dtype)
    for piece in pieces:
        for term, tensor in zip(piece.layout.terms, piece.tensors, strict=True):
            position = 0
            for row in term.rows:
                span = outputs.spans[row]
                out[:, span.start : span.stop] += tensor[:, position : position + span.size]
                position += span.size
    return out


@pytest.mark.parametrize("shape", ["columns", "rectangles", "scattered"])
def test_the_sum_does_not_depend_on_who_answers_first(shape: Shape) -> None:
    layouts, outputs, pieces = answered(shape, 5)
    assert len(pieces) == 5
    sums = {total(order, layouts, outputs).numpy().tobytes() for order in itertools.permutations(pieces)}
    assert len(sums) == 1
    in_other_orders = {
        by_hand(order, outputs, torch.float32).numpy().tobytes() for order in itertools.permutations(pieces)
    }
    assert len(in_other_orders) > 1, "float32 would not have shown another order"
    torch.testing.assert_close(
        total(pieces, layouts, outputs).double(), by_hand(pieces, outputs, torch.float64), rtol=1e-5, atol=1e-4
    )


def test_the_order_is_that_of_the_columns_in_the_plan() -> None:
    layouts, outputs, pieces = answered("columns", 5)
    first = {piece.device: layouts.panel.order.index(piece.layout.columns[0]) for piece in pieces}
    assert [*first] != sorted(first, key=first.__getitem__), "another order than that of names"
    planned = sorted(pieces, key=lambda piece: first[piece.device])
    assert torch.equal(total(pieces, layouts, outputs), by_hand(planned, outputs, torch.float32))


def test_what_was_in_the_result_before_is_gone() -> None:
    layouts, outputs, pieces = answered("rectangles", 5)
    out = torch.full((BATCH, outputs.size), 7.0)
    add_up(pieces, layouts, outputs, out)
    assert torch.equal(out, total(pieces, layouts, outputs))
