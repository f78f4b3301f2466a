"""The plan: the owner's secret of which block is where, under which rules, and who saw what so far."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from torch import Tensor, nn

from awfulowl.arithmetic.numbers import FLOAT32
from awfulowl.blocks.grid import Grid, Span
from awfulowl.placement.ledger import Device, Ledger, Sealed
from awfulowl.placement.rules import Rules

PLAN_VERSION: Final = 2
DIGEST_BYTES: Final = 32


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One linear map of a panel: its product, as `path` or `path/name`, and its rows of the stacked outputs."""

    product: str
    rows: Span


class Cell(Sealed, frozen=True):
    """Blocks of one column that live together: the unit of placement.

    `column` and `rows` index the panel's grid, `lane` says which part of a sharing this is (0 without one). `holders`
    are all devices that this cell was ever given to, in order of preference; those that serve it are the first live
    ones (see `Assignment.holders`).
    """

    column: int
    rows: tuple[int, ...]
    holders: tuple[str, ...]
    lane: int = 0


class Panel(Sealed, frozen=True):
    """Layers with one input, stacked along their outputs and cut by one grid.

    `order` is the secret permutation of the columns in which slices are dealt and partial sums are added.
    `positions` are the vectors per sample that come out, `input_positions` those that go in (1 for a plain
    dense layer, pixels for a convolution); `first` marks the layer that sees the model's input. `slice_handles` name
    the columns of each matrix of each lane (`slice_handle`). `error` is what the arithmetic costs on the example: the
    length of the error over that of the product, None where there was no example.
    """

    name: str
    members: tuple[Member, ...]
    grid: Grid
    row_handles: tuple[bytes, ...]
    slice_handles: tuple[bytes, ...]
    order: tuple[int, ...]
    cells: tuple[Cell, ...]
    positions: int = 1
    input_positions: int = 1
    first: bool = False
    arithmetic: str = FLOAT32
    error: float | None = None

    @property
    def title(self) -> str:
        """The name for people to read; a model that is one layer has none of its own."""
        return self.name or "the model"

    def slice_handle(self, column: int, matrix: int = 0) -> bytes:
        """Return the name of a column to whoever holds a matrix, counted over all lanes."""
        return self.slice_handles[matrix * len(self.grid.columns) + column]

    def _shown(self) -> list[tuple[str, Any]]:
        rows, columns = len(self.grid.rows), len(self.grid.columns)
        return [("name", self.name), ("rows", rows), ("columns", columns), ("blocks", self.grid.blocks)]


class Plan(Sealed, frozen=True):
    """Everything the owner must remember to serve a scattered model. Secret: keep it in a plan file (`store`).

    `model` is the digest of the model it was made for, `neighbours` are pairs of panels that follow each other,
    `kept` names what stays at the owner and why, `notes` say what was relaxed or assumed.
    """

    model: bytes
    devices: tuple[Device, ...]
    panels: tuple[Panel, ...]
    rules: Rules
    ledger: Ledger
    neighbours: tuple[tuple[int, int], ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    unsafe: bool = False
    arithmetic: str = FLOAT32
    sharing: str | None = None
    version: int = PLAN_VERSION

    def twin(self, model: nn.Module) -> nn.Module:
        """Return an ordinary local module that computes the very integers that devices compute, bit for bit.

        Args:
            model: the one that the plan was made for; it is not changed.

        Raises:
            InputError: the plan is of float32, where every machine rounds in its own order.
            PlanError: the plan was made for another model.
        """
        from awfulowl.placement.twin import twin  # noqa: PLC0415 - it knows plans

        return twin(model, self)

    def _shown(self) -> list[tuple[str, Any]]:
        return [
            ("panels", len(self.panels)),
            ("blocks", sum(panel.grid.blocks for panel in self.panels)),
            ("devices", len(self.devices)),
            ("kept", len(self.kept)),
            ("rules", self.rules),
            ("arithmetic", self.arithmetic),
            ("sharing", self.sharing),
            ("unsafe", self.unsafe),
        ]


def weights(grid: Grid, column: int, rows: Iterable[int]) -> int:
    """Return the number of weights in the blocks of one column at `rows`."""
    outputs = sum(grid.rows[row].size for row in rows)
    return outputs * grid.columns[column].span.size // grid.columns[column].groups * math.prod(grid.size)


def model_digest(parameters: Iterable[tuple[str, Tensor]]) -> bytes:
    """Return BLAKE2b-256 over the names, shapes and types of a model's parameters, in any order.

    Values are left out: training changes them and the plan stays right.
    """
    facts = sorted((name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in parameters)
    return hashlib.blake2b(msgspec.msgpack.encode(facts), digest_size=DIGEST_BYTES).digest()
