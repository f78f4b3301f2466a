"""What a pirate really got: blocks without their positions, answers to its queries, inputs that its devices saw.

Loot is drawn from a plan (the blocks of the devices that the pirate controls), or as a share of all blocks. A `Scene`
is all that an attack may look at; the `Truth` belongs to the grader.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.blocks.grid import Grid
from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.scenes.threat import ThreatModel
from awfulowl.lab.victims.answers import Answers
from awfulowl.models.data import Labelled

LEFT_OUT: Final = (-1, -1)
"""The place of a block that is put nowhere."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spoils:
    """What the pirate holds of one layer.

    `blocks` are float32 (rows, columns, *size) each, in an order that says nothing; `bias` is (outputs,), or None where
    it is not known or the layer has none. `together` (k,) int64 numbers the blocks whose inputs are equal, as devices
    see; `columns` (k,) int64 are the true block columns, which a client who knows the layers before finds by
    comparison with its own queries. Both are None where the threat model does not grant them.
    """

    grid: Grid
    blocks: tuple[Tensor, ...]
    bias: Tensor | None = None
    together: Tensor | None = None
    columns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def stacked(self, held: Tensor) -> Tensor:
        """Return held blocks of one shape as one tensor (h, rows, columns, *size)."""
        return torch.stack([self.blocks[index] for index in held.tolist()])


def positions(grid: Grid) -> Tensor:
    """Return the positions of all blocks, int64 (blocks, 2) of row and column, by row and then by column."""
    found = [(row, index) for index, column in enumerate(grid.columns) for row in column.rows]
    return torch.tensor(sorted(found), dtype=torch.int64).reshape(-1, 2)


def span(grid: Grid, row: int, column: int) -> tuple[slice, slice]:
    """Return where a block lies in the weights (outputs, inputs / groups, *size).

    Raises:
        InputError: the grid has no such block.
    """
    if not 0 <= column < len(grid.columns) or row not in grid.columns[column].rows:
        raise InputError(
            f"no block at row {row}, column {column} of {len(grid.rows)} rows, {len(grid.columns)} columns"
        )
    down, across = grid.rows[row], grid.columns[column]
    start = 0 if across.groups > 1 else across.span.start % grid.shape[1]
    return slice(down.start, down.stop), slice(start, start + across.span.size // across.groups)


def block_shape(grid: Grid, row: int, column: int) -> tuple[int, ...]:
    """Return the shape (rows, columns, *size) of the block at a position."""
    down, across = span(grid, row, column)
    return (down.stop - down.start, across.stop - across.start, *grid.size)


def largest_block(grid: Grid) -> tuple[int, int]:
    """Return the rows and columns of the largest block of a grid; others are smaller where it is ragged."""
    shapes = [block_shape(grid, row, column) for row, column in positions(grid).tolist()]
    rows, columns, *_ = max(shapes, key=math.prod)
    return rows, columns


def cut_blocks(weight: Tensor, grid: Grid, places: Tensor) -> tuple[Tensor, ...]:
    """Return copies of the blocks at places (k, 2) of weights (outputs, inputs / groups, *size), as float32."""
    return tuple(
        weight.detach()[span(grid, row, column)].to(torch.float32, copy=True) for row, column in places.tolist()
    )


@torch.no_grad()
def assemble(spoils: Spoils, placement: Tensor, into: Tensor | None = None) -> Tensor:
    """Put held blocks at places.

    Args:
        spoils: of the layer.
        placement: int64 (k, 2), row and column of each held block, or `LEFT_OUT`.
        into: weights that lie below, which are copied; zeros without.

    Returns:
        float32 weights (outputs, inputs / groups, *size).

    Raises:
        InputError: a place is not in the grid, or a block does not fit it.
    """
    whole = torch.zeros(spoils.grid.shape) if into is None else into.detach().to(torch.float32, copy=True)
    for block, (row, column) in zip(spoils.blocks, placement.tolist(), strict=True):
        if row < 0:
            continue
        target = whole[span(spoils.grid, row, column)]
        if target.shape != block.shape:
            raise InputError(
                f"a block of shape {tuple(block.shape)} at row {row}, column {column}, where {tuple(target.shape)} fits"
            )
        target.copy_(block)
    return whole


class Watched(NamedTuple):
    """What came of queries: answers (n, classes), and by attacked layer the inputs (n, inputs, *space) that were seen.

    Channels that no device of the pirate saw are zero; `seen` (inputs,) says which were.
    """

    logits: Tensor
    inputs: Mapping[str, Tensor]
    seen: Mapping[str, Tensor]


class Service:
    """The victim's interface to its clients, and what the pirate's devices see while it answers.

    Args:
        model: answers.
        watched: whose activations devices see, which is the model itself but in controls.
        seen: by layer, which of its inputs (inputs,) the pirate's devices see; empty where they see none.
        batch: inputs at once.
    """

    def __init__(self, model: nn.Module, watched: nn.Module, seen: Mapping[str, Tensor], *, batch: int = 256) -> None:
        self.seen: Final = seen
        self._model: Final = model
        self._watched: Final = watched
        self._batch: Final = batch

    @torch.no_grad()
    def ask(self, inputs: Tensor, ledger: Ledger) -> Tensor:
        """Return the answers (n, classes) to inputs; the victim's own computation is not the pirate's cost.

        Raises:
            SpentError: there are fewer queries left.
        """
        ledger.spend("queries", 0, queries=len(inputs))
        return torch.cat([self._model(part) for part in torch.split(inputs, self._batch)])

    @torch.no_grad()
    def watch(self, inputs: Tensor, ledger: Ledger) -> Watched:
        """Ask, and return beside the answers what the pirate's devices saw on the way.

        Raises:
            InputError: the pirate's devices see nothing.
            SpentError: there are fewer queries left.
        """
        if not self.seen:
            raise InputError("the pirate's devices see no inputs: set sees_inputs = true in the threat model")
        ledger.spend("queries", 0, queries=len(inputs))
        found: dict[str, list[Tensor]] = {name: [] for name in self.seen}
        logits = []
        handles = [
            self._watched.get_submodule(name).register_forward_pre_hook(_keep(kept)) for name, kept in found.items()
        ]
        try:
            for part in torch.split(inputs, self._batch):
                answer = self._watched(part)
                logits.append(answer if self._watched is self._model else self._model(part))
        finally:
            for handle in handles:
                handle.remove()
        inside = {name: _only(torch.cat(kept), self.seen[name]) for name, kept in found.items()}
        return Watched(torch.cat(logits), inside, self.seen)


def _keep(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: kept.append(inputs[0].detach().clone())


def _only(inputs: Tensor, seen: Tensor) -> Tensor:
    return inputs * seen.reshape(1, -1, *[1] * (inputs.dim() - 2))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """All that an attack may look at.

    Attributes:
        threat: what the pirate holds, sees, knows and may spend.
        model: the victim as far as it is known, in eval mode: `unknown` entries of its state are zero, or fresh where
            zeros would mean something. An attack that changes it works on a copy (`fresh_copy`).
        unknown: names in `model.state_dict()` that the pirate does not know.
        layers: what it holds, by attacked layer.
        public: its images and labels, to learn from; labels are -1 where they are not known.
        validation: more of them, to choose by.
        service: what answers its queries.
        build: makes a fresh network of the victim's architecture from a seed.
        forward_flops: of one image through the model.
    """

    threat: ThreatModel
    model: nn.Module
    unknown: frozenset[str]
    layers: Mapping[str, Spoils]
    public: Labelled
    validation: Labelled
    service: Service
    build: Callable[[int], nn.Module]
    forward_flops: float

    def fresh_copy(self) -> nn.Module:
        """Return a copy of `model`, in eval mode, that may be changed."""
        return copy.deepcopy(self.model).eval()

    @property
    def only_layer(self) -> str:
        """The attacked layer, where there is only one.

        Raises:
            InputError: there are several.
        """
        if len(self.layers) != 1:
            raise InputError(f"one attacked layer is expected, there are {len(self.layers)}: {', '.join(self.layers)}")
        return next(iter(self.layers))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """What only the grader sees.

    Attributes:
        positions: int64 (k, 2), row and column of each held block, by layer.
        answers: those of the model that was robbed.
        validation: the pirate's own, with labels even where the pirate has none.
        test: images for the report only.
        seed: of the victim; no attack starts from it.
    """

    positions: Mapping[str, Tensor]
    answers: Answers
    validation: Labelled
    test: Labelled
    seed: int

    @property
    def victim(self) -> nn.Module:
        """The model that was robbed."""
        return self.answers.victim


def input_channels(grid: Grid, columns: Tensor) -> Tensor:
    """Return which inputs (inputs,) of a layer lie in some of its block columns."""
    seen = torch.zeros(grid.inputs, dtype=torch.bool)
    for column in set(columns.tolist()):
        seen[grid.columns[column].span.start : grid.columns[column].span.stop] = True
    return seen


def seen_share(seen: Mapping[str, Tensor]) -> float:
    """Return the share of input channels that were seen, over all layers; 0 of none."""
    total = sum(len(channels) for channels in seen.values())
    return sum(int(channels.sum()) for channels in seen.values()) / total if total else 0.0


def held_share(spoils: Spoils) -> float:
    """Return the share of a layer's weights that is held."""
    return sum(block.numel() for block in spoils.blocks) / math.prod(spoils.grid.shape)
