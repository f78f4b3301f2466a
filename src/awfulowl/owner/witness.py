"""What a device's own blocks say: the last word on an answer that a check of training rejects.

Images of weights that move stray, and products are held to what they may have strayed together. Blocks are held to it
one column at a time, which nothing can add up against an honest device. So a suspect's blocks are fetched and verified,
and the owner multiplies with them: then nothing is left but the rounding of one product.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from awfulowl.blocks.kernels import backward, product
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.gather import Source, fetch_state
from awfulowl.owner.layout import Sum
from awfulowl.owner.peer import Peer
from awfulowl.placement.plan import Panel
from awfulowl.verification.freivalds import Z
from awfulowl.verification.rounding import SMALLEST, variance


class Witness:
    """Verified weights of some cells of a panel."""

    def __init__(self, panel: Panel, weights: Mapping[int, Tensor]) -> None:
        self._panel = panel
        self._weights = weights

    def _block(self, column: int, rows: Sequence[int]) -> Tensor:
        """Return the weights of a column for some rows that one cell holds together: float64."""
        for number, weight in self._weights.items():
            cell = self._panel.cells[number]
            if cell.column == column and set(rows) <= set(cell.rows):
                sizes = [self._panel.grid.rows[row].size for row in cell.rows]
                parts = dict(zip(cell.rows, torch.split(weight, sizes), strict=True))
                return torch.cat([parts[row] for row in rows]).double()
        raise KeyError(column)

    def multiplies(self, term: Sum, x: Tensor, answer: Tensor) -> bool:
        """Say whether an answer is W x, each number up to its rounding.

        Args:
            term: rows and columns that it is the sum for.
            x: all inputs of the panel, (batch, inputs, *space).
            answer: (batch, rows, *space').
        """
        grid = self._panel.grid
        exact, energy, terms = torch.zeros(()), torch.zeros(()), 0
        for column in term.columns:
            span, groups = grid.columns[column].span, grid.columns[column].groups
            weight, own = self._block(column, term.rows), x[:, span.start : span.stop].double()
            exact = exact + product(grid.kernel, weight, own, groups)
            energy = energy + product(grid.kernel, weight.square(), own.square(), groups)
            terms += weight[0].numel()
        return _within(answer, exact, energy, terms)

    def multiplies_back(self, term: Sum, dy: Tensor, space: tuple[int, ...], answer: Tensor) -> bool:
        """Say whether an answer is Wᵀ dy, each number up to its rounding.

        Args:
            term: rows that it is the sum over, and the columns that it is for, side by side.
            dy: all gradients of the panel, (batch, outputs, *space').
            space: the spatial shape of the answer.
            answer: (batch, inputs of the columns, *space).
        """
        grid = self._panel.grid
        spans = [grid.rows[row] for row in term.rows]
        own = torch.cat([dy[:, span.start : span.stop] for span in spans], dim=1).double()
        parts = torch.split(answer, [grid.columns[column].span.size for column in term.columns], dim=1)
        for column, part in zip(term.columns, parts, strict=True):
            weight, groups = self._block(column, term.rows), grid.columns[column].groups
            exact = backward(grid.kernel, weight, own, space, groups)
            energy = backward(grid.kernel, weight.square(), own.square(), space, groups)
            if not _within(part, exact, energy, weight[:, 0].numel()):
                return False
        return True


def _within(answer: Tensor, exact: Tensor, energy: Tensor, terms: int) -> bool:
    allowed = Z**2 * variance(terms) * (energy + exact.square()) + (terms * SMALLEST) ** 2
    return bool(((answer - exact).square() <= allowed).all())


async def witness(deployment: Deployment, number: int, cells: Sequence[int], peer: Peer) -> Witness | None:
    """Fetch some cells from a device that holds them; None if one is not what it should be by now.

    Raises:
        PeerError: the device does not answer.
    """
    weights = {}
    for cell in cells:
        state = await fetch_state(deployment, number, cell, 0, Source(peer))
        if state is None:
            return None
        weights[cell] = state[0]
    return Witness(deployment.panels[number], weights)
