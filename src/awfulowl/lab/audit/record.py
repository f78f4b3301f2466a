"""What came of a cell, as it is kept on disk: finished cells are never done twice."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.lab.files import write_whole
from awfulowl.lab.request import Cell
from awfulowl.lab.scenes.grading import Grade
from awfulowl.limits import MIB

_MOST_BYTES: Final = 16 * MIB


class Graded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `Grade` without tensors: `right` has one bit for each of `images` test images."""

    positions_right: float | None
    rows_right: float | None
    columns_right: float | None
    accuracy: float
    agreement: float
    cosine: float
    cosines: dict[str, float]
    validation: float | None
    right: bytes
    images: Annotated[int, Meta(ge=1)]

    @classmethod
    def of(cls, grade: Grade) -> Self:
        """Return a grade as it is kept."""
        return cls(
            positions_right=grade.positions_right,
            rows_right=grade.rows_right,
            columns_right=grade.columns_right,
            accuracy=grade.accuracy,
            agreement=grade.agreement,
            cosine=grade.cosine,
            cosines=dict(grade.cosines),
            validation=grade.validation if grade.validation == grade.validation else None,
            right=np.packbits(grade.right.numpy()).tobytes(),
            images=len(grade.right),
        )

    def answers(self) -> Tensor:
        """Return which test images are right: bool (images,)."""
        bits = np.unpackbits(np.frombuffer(self.right, dtype=np.uint8), count=self.images)
        return torch.from_numpy(bits.astype(bool))


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a cell: numbers, or why there are none.

    `graded` is the network as it was recovered, `completed` the one that the pirate ends with, made in the way `way`.
    `held` is the share of the attacked weights that is held, `seen` that of their inputs that is seen, `block_size` the
    rows and columns of their largest block.
    """

    seed: int
    seconds: float = 0.0
    missing: str | None = None
    graded: Graded | None = None
    completed: Graded | None = None
    way: str | None = None
    cost: dict[str, float] = {}
    completion_cost: dict[str, float] = {}
    held: float | None = None
    seen: float | None = None
    block_size: tuple[int, int] | None = None


class Store:
    """Records in a folder, one file for each cell.

    Args:
        folder: is made when something is kept.
        context: everything that a number depends on beside its cell.
    """

    def __init__(self, folder: Path, context: Mapping[str, object]) -> None:
        self._folder: Final = folder
        self._context: Final = msgspec.json.encode(context, order="deterministic")

    def path(self, cell: Cell, suffix: str = "json") -> Path:
        """Return where a cell's record is, or its weights."""
        name = hashlib.blake2b(msgspec.json.encode(cell) + self._context, digest_size=12).hexdigest()
        return self._folder / f"{type(cell).__struct_config__.tag}-{name}.{suffix}"

    def find(self, cell: Cell) -> Record | None:
        """Return what came of a cell, or None where it was not done, or its file is damaged."""
        try:
            content = self.path(cell).read_bytes()
            return None if len(content) > _MOST_BYTES else msgspec.json.decode(content, type=Record)
        except (OSError, msgspec.DecodeError):
            return None

    def keep(self, cell: Cell, record: Record) -> None:
        """Write down what came of a cell.

        Raises:
            InputError: it cannot be written.
        """
        write_whole(self.path(cell), msgspec.json.encode(record))


def numbers(record: Record) -> Graded:
    """Return the numbers of a record that has some.

    Raises:
        InputError: it has none.
    """
    if record.graded is None:
        raise InputError(f"there are no numbers: {record.missing}")
    return record.graded
