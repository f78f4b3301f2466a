"""The plan: the owner's secret of which block is where, under which rules, and who saw what so far."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from torch import Tensor

from awfulowl.blocks.grid import Grid, Span
from awfulowl.placement.ledger import Device, Ledger, Sealed
from awfulowl.placement.rules import Rules

PLAN_VERSION: Final = 1
DIGEST_BYTES: Final = 32


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One linear map of a panel: its product, as `path` or `path/name`, and its rows of the stacked outputs."""

    product: str
    rows: Span


class Cell(Sealed, frozen=True):
    """Blocks of one column that live together: the unit of placement.

    `column` and `rows` index the panel's grid. `holders` are all devices that this cell was ever given to, in
    order of preference; those that serve it are the first live ones (see `Assignment.holders`).
    """

    column: int
    rows: tuple[int, ...]
    holders: tuple[str, ...]


class Panel(Sealed, frozen=True):
    """Layers with one input, stacked along their outputs and cut by one grid.

    `order` is the secret permutation of the columns in which slices are dealt and partial sums are added.
    `positions` are the vectors per sample that come out, `input_positions` those that go in (1 for a plain
    dense layer, pixels for a convolution); `first` marks the layer that sees the model's input.
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
    arithmetic: str = "float32"
    sharing: None = None
    version: int = PLAN_VERSION

    def _shown(self) -> list[tuple[str, Any]]:
        return [
            ("panels", len(self.panels)),
            ("blocks", sum(panel.grid.blocks for panel in self.panels)),
            ("devices", len(self.devices)),
            ("kept", len(self.kept)),
            ("rules", self.rules),
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
