"""What a placement is worth, one swap after the other: two blocks that change places change two output slices at most.

A pass through the layer costs n d_in d_out multiplications; a swap of blocks of b x b costs 2 n b², and where an
activation and a linear layer follow, these are passed through for the changed slices only.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.blocks.kernels import Dense, product
from awfulowl.costs import Ledger
from awfulowl.lab.scenes.loot import assemble
from awfulowl.lab.sites.site import Site

EMPTY: Final = -1
"""In a filling: no block lies there."""

_RENEWED: Final = 1000
"""Swaps after which everything is computed anew, so that rounding errors do not add up."""


class Change(NamedTuple):
    """New values (n, height, *space) of a run of outputs, before and after the activation."""

    run: slice
    before: Tensor
    after: Tensor


class Tried(NamedTuple):
    """A swap that was evaluated, and what to keep if it is made."""

    one: int
    other: int
    loss: float
    changes: tuple[Change, ...]
    hidden: Tensor


def filling(places: int, chosen: Sequence[int]) -> list[int]:
    """Return the block at every place, `EMPTY` where there is none, from the place of every block."""
    filled = [EMPTY] * places
    for block, place in enumerate(chosen):
        filled[place] = block
    return filled


def chosen_places(filled: Sequence[int], blocks: int) -> Tensor:
    """Return the place of every block, int64 (blocks,), from the block at every place."""
    chosen = torch.full((blocks,), -1, dtype=torch.int64)
    for place, block in enumerate(filled):
        if block != EMPTY:
            chosen[block] = place
    return chosen


class Incremental:
    """The mean cross-entropy of a placement on some public images, kept up to date swap by swap.

    Args:
        site: the attacked layer.
        filled: the block at every place, `EMPTY` for none; blocks fit.
        images: int64 (n,) numbers of public images.
        ledger: charged with every evaluation before it is done.
    """

    def __init__(self, site: Site, filled: Sequence[int], images: Tensor, ledger: Ledger) -> None:
        self.filled: Final = [*filled]
        self._site: Final = site
        self._ledger: Final = ledger
        self.images: Final = images
        self._labels: Final = site.labels[images]
        self._aside: Final = tuple(part[images] for part in site.entered.aside)
        # Elsewhere the tail as a whole takes the place of the linear layer, and all outputs pass through it.
        self._split: Final = site.tail.split() if isinstance(site.grid.kernel, Dense) else None
        self._runs: Final = [slice(span.start, span.stop) for span in site.grid.rows]
        self._rows: Final[list[int]] = site.places.rows.tolist()
        self._columns: Final[list[int]] = site.places.columns.tolist()
        self._inputs: Final[dict[int, Tensor]] = {}
        self._swaps = 0
        self.whole_flops: Final = len(images) * (site.layer_flops + site.tail_flops)
        self._compute()
        self.swap_flops: Final = self._count()

    def chosen(self) -> Tensor:
        """Return the place of every block: int64 (k,)."""
        return chosen_places(self.filled, len(self._site.spoils))

    @torch.no_grad()
    def try_swap(self, one: int, other: int) -> Tried:
        """Return the loss if what lies at two places of one shape, at least one of them filled, changed places.

        Raises:
            SpentError: the budget does not allow another evaluation.
            ValueError: both places are empty, or they are one.
        """
        if self.filled[one] == self.filled[other]:
            raise ValueError(f"nothing is exchanged between places {one} and {other}")
        self._ledger.spend("swap", self.swap_flops, evaluations=1)
        changes = self._changes(one, other)
        if self._split is None:
            hidden, outputs = self._hidden, self._before.clone()
            for run, before, _ in changes:
                outputs[:, run] = before
            logits = self._site.tail(outputs, self._aside)
        else:
            hidden, weight = self._hidden, self._split.linear.weight
            for run, _, after in changes:
                hidden = torch.addmm(hidden, after - self._after[:, run], weight[:, run].T)
            logits = self._split.rest(hidden)
        return Tried(one, other, float(functional.cross_entropy(logits, self._labels)), changes, hidden)

    def make(self, tried: Tried) -> None:
        """Make a swap that was tried at this placement."""
        filled = self.filled
        filled[tried.one], filled[tried.other] = filled[tried.other], filled[tried.one]
        self.loss = tried.loss
        self._swaps += 1
        if self._swaps % _RENEWED == 0:
            # Rounding errors of many small changes must not add up.
            self._compute()
            return
        for run, before, after in tried.changes:
            self._before[:, run] = before
            if self._split is not None:
                self._after[:, run] = after
        self._hidden = tried.hidden

    def _changes(self, one: int, other: int) -> tuple[Change, ...]:
        blocks = self._site.spoils.blocks
        new, old = self.filled[other], self.filled[one]
        coming = blocks[new] if new != EMPTY else torch.zeros_like(blocks[old])
        difference = coming if old == EMPTY else coming - blocks[old]
        here, there = self._column(self._columns[one]), self._column(self._columns[other])
        if self._rows[one] == self._rows[other]:
            return (self._change(self._rows[one], self._product(difference, here - there)),)
        return (
            self._change(self._rows[one], self._product(difference, here)),
            self._change(self._rows[other], self._product(difference, there).neg_()),
        )

    def _change(self, row: int, difference: Tensor) -> Change:
        run = self._runs[row]
        before = difference.add_(self._before[:, run])
        return Change(run, before, before if self._split is None else self._split.activation(before))

    def _product(self, block: Tensor, inputs: Tensor) -> Tensor:
        kernel = self._site.grid.kernel
        if isinstance(kernel, Dense):
            return inputs @ block.T
        return product(kernel, block, inputs, inputs.shape[1] // block.shape[1])

    def _column(self, column: int) -> Tensor:
        if column not in self._inputs:
            self._inputs[column] = self._site.column_inputs(column, self.images)
        return self._inputs[column]

    @torch.no_grad()
    def _compute(self) -> None:
        """Compute everything from the placement: one full evaluation."""
        site, images = self._site, self.images
        self._ledger.spend("evaluation", self.whole_flops, evaluations=1)
        weight = assemble(site.spoils, site.places.positions[self.chosen()])
        self._before = site.outputs(site.folded(weight), images)
        if self._split is None:
            self._hidden = self._after = self._before
            logits = site.tail(self._before.clone(), self._aside)
        else:
            self._after = self._split.activation(self._before)
            self._hidden = self._split.linear(self._after)
            logits = self._split.rest(self._hidden)
        self.loss = float(functional.cross_entropy(logits, self._labels))

    def _count(self) -> float:
        """Return the operations of trying a swap between two rows."""
        site, images = self._site, len(self.images)
        space = self._before[0, 0].numel()
        products = 2 * 2.0 * max((block.numel() for block in site.spoils.blocks), default=0) * space
        if self._split is None:
            return images * (products + site.tail_flops)
        linear = self._split.linear
        height = max(run.stop - run.start for run in self._runs)
        rest = site.tail_flops - 2.0 * linear.in_features * linear.out_features
        return images * (products + 2 * 2.0 * height * linear.out_features + rest)
