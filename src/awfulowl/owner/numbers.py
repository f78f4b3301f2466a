"""The arithmetic of one panel at the owner: what devices hold and get of it, and what their answers amount to."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.allocator import mapped
from awfulowl.arithmetic.local import LocalProduct, Rounded, largest_sum
from awfulowl.arithmetic.numbers import Integers, fewest_bytes, integers
from awfulowl.arithmetic.packing import pack
from awfulowl.arithmetic.products import fastest
from awfulowl.arithmetic.quantise import dequantise, quantise, rounded
from awfulowl.blocks.grid import rectangle, tiled
from awfulowl.blocks.kernels import product
from awfulowl.errors import InputError, ModelError
from awfulowl.owner.layout import Layout
from awfulowl.placement.plan import Panel
from awfulowl.randomness import Entropy, Seeded, expanded
from awfulowl.veil.base import MOST_SEEDS, SharedInputs, SharedWeights, Sharing
from awfulowl.verification.exact import ExactCheck, ExactExpectation
from awfulowl.verification.freivalds import Check, Expectation
from awfulowl.verification.training import TrainingCheck

AnyCheck = Check | ExactCheck | TrainingCheck
AnyExpectation = Expectation | ExactExpectation


class Entered(NamedTuple):
    """Inputs in the numbers of a panel: (batch, inputs, *space), and for integers the step of each sample."""

    x: Tensor
    steps: Tensor | None

    def samples(self, part: slice) -> "Entered":
        """Return some samples, as views."""
        return Entered(self.x[part], None if self.steps is None else self.steps[part])


class Numbers(ABC):
    """How a panel's weights, inputs and outputs become what devices work with, and back."""

    width: int
    """Bytes of each number in an answer; 0 stands for float32."""
    parts: int = 1
    """Tensors that `matrices` returns for each matrix."""
    fetched: int = 1
    """Tensors that a matrix consists of at a device."""
    step: int = 0
    """The last step of training that `matrices` have taken."""

    @abstractmethod
    def new_check(self, entropy: Entropy, apart: Iterable[Collection[int]]) -> AnyCheck:
        """Draw secrets to check answers with."""

    @abstractmethod
    def hold(self, check: AnyCheck) -> None:
        """Hold all weights, as they are now, to a check.

        Raises:
            ModelError: they are not those that it was made for.
        """

    @abstractmethod
    def matrices(self, check: AnyCheck, lane: int, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
        """Return what a device of a lane holds of some blocks.

        Raises:
            ModelError: the weights are not those that the check was made for.
        """

    def sent(
        self, check: AnyCheck, lane: int, rows: Sequence[int], columns: Sequence[int]
    ) -> list[Sequence[Tensor | Seeded]]:
        """Return `matrices` as they travel: each as one tensor, or as its blocks, row by row, where these are seeds."""
        return [[matrix] for matrix in self.matrices(check, lane, rows, columns)]

    @abstractmethod
    def held_bytes(self, lane: int) -> int:
        """Return the bytes that a device of a lane holds for each weight of the panel."""

    @abstractmethod
    def is_matrix(
        self, check: AnyCheck, place: tuple[int, int], rows: Sequence[int], columns: Sequence[int], found: list[Tensor]
    ) -> bool:
        """Say whether the parts of a block, of any shape, are what a device should have.

        `place` is a lane and the number of one of its matrices.
        """

    @abstractmethod
    def restore(self, block: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the float32 weights that blocks stand for, from the sum of what `Sharing.whole` names."""

    @abstractmethod
    def enter(self, x: Tensor) -> Entered:
        """Turn float32 inputs into what is multiplied.

        Raises:
            InputError: they cannot be.
        """

    @abstractmethod
    def split(self, x: Tensor, entropy: Entropy) -> SharedInputs:
        """Share inputs that have entered, afresh."""

    @abstractmethod
    def total(self, out: Tensor) -> Tensor:
        """Return where answers are added up, for results that go to `out`: not initialised, maybe `out` itself."""

    @abstractmethod
    def leave(self, total: Tensor, batch: Entered, rows: Sequence[int], out: Tensor) -> None:
        """Write a sum of answers for some rows to `out` as float32."""

    @abstractmethod
    def here(self, x: Tensor) -> Tensor:
        """Return the product of all rows, without devices, from float32 to float32."""


class Floats(Numbers):
    """float32, as everybody multiplies: answers differ in their last bits, and inputs are what they are."""

    width = 0

    def __init__(self, panel: Panel, weights: Sequence[Tensor], sharing: Sharing) -> None:
        self._panel = panel
        self._weights = weights
        self._sharing = sharing
        self._largest: Final = max((_largest(weight) for weight in weights), default=math.inf)

    def new_check(self, entropy: Entropy, apart: Iterable[Collection[int]]) -> AnyCheck:
        """Draw secrets for a check up to rounding."""
        return Check(self._weights, self._panel.grid, entropy, apart=apart)

    def hold(self, check: AnyCheck) -> None:
        """Hold the floats to it, to their last bits."""
        _require(self._panel, _holds(check).matches_whole(self._weights))

    def matrices(self, check: AnyCheck, lane: int, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
        """Return the blocks."""
        del lane
        return [
            _verified(
                self._panel, check, rectangle(self._weights, self._panel.grid, rows, columns, mapped), rows, columns
            )
        ]

    def held_bytes(self, lane: int) -> int:
        """Return the size of a float32."""
        del lane
        return 4

    def is_matrix(
        self, check: AnyCheck, place: tuple[int, int], rows: Sequence[int], columns: Sequence[int], found: list[Tensor]
    ) -> bool:
        """Ask the check, which needs no weights."""
        del place
        (weight,) = found
        return weight.dtype is torch.float32 and _holds(check).matches(weight, rows=rows, columns=columns)

    def restore(self, block: Tensor, rows: Sequence[int]) -> Tensor:
        """Return it as it is."""
        del rows
        return block

    def enter(self, x: Tensor) -> Entered:
        """Leave inputs as they are."""
        return Entered(x, None)

    def split(self, x: Tensor, entropy: Entropy) -> SharedInputs:
        """Share nothing."""
        return SharedInputs(self._sharing, x, self._panel.grid, torch.float32, entropy)

    def total(self, out: Tensor) -> Tensor:
        """Add up in place."""
        return out

    def leave(self, total: Tensor, batch: Entered, rows: Sequence[int], out: Tensor) -> None:
        """Do nothing: the sum is in place."""

    def here(self, x: Tensor) -> Tensor:
        """Multiply as PyTorch does."""
        grid = self._panel.grid
        return torch.cat([product(grid.kernel, weight.float(), x, grid.groups) for weight in self._weights], dim=1)

    def largest_weight(self) -> float:
        """Return the largest absolute weight that devices have, whatever became of those here."""
        return self._largest


class Exact(Numbers):
    """Integers: rounded here, multiplied there without any error, and scaled back here; shared if the plan says so."""

    def __init__(
        self,
        panel: Panel,
        weights: Sequence[Tensor],
        numbers: Integers,
        sharing: Sharing,
        entropy: Entropy,
    ) -> None:
        """Round weights once, to know steps and bounds; integers are made again when they are wanted."""
        self._panel = panel
        self._weights = weights
        self._numbers = numbers
        self._sharing = sharing
        self._rounded: Final = [Rounded(weight, numbers, panel.title) for weight in weights]
        self._steps: Final = torch.cat([one.steps for one in self._rounded])
        self._shared_weights = SharedWeights(sharing, numbers.ring, entropy)
        self._bound: Final = largest_sum(self._rounded, numbers)
        self.width = fewest_bytes(self._bound)

    def new_check(self, entropy: Entropy, apart: Iterable[Collection[int]]) -> ExactCheck:
        """Draw secrets for a check without a tolerance."""
        return ExactCheck(
            self._rounded, self._panel.grid, entropy, numbers=self._numbers, bound=self._bound, apart=apart
        )

    def hold(self, check: AnyCheck) -> None:
        """Hold the integers to it: floats that round to the same ones are the same."""
        _require(self._panel, _holds(check).matches_whole(self._rounded))

    def matrices(self, check: AnyCheck, lane: int, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
        """Return the integers of the blocks, or a lane's shares of them."""
        if not self._sharing.hides_weights:
            return [self._block(check, rows, columns)]
        return [_whole(blocks, len(columns)) for blocks in self._shares(check, lane, rows, columns)]

    def sent(
        self, check: AnyCheck, lane: int, rows: Sequence[int], columns: Sequence[int]
    ) -> list[Sequence[Tensor | Seeded]]:
        """Return seeds of random shares, as far as a message may have as many; the rest whole."""
        if not self._sharing.hides_weights:
            return super().sent(check, lane, rows, columns)
        return [
            blocks
            if len(blocks) <= MOST_SEEDS and all(isinstance(block, Seeded) for block in blocks)
            else [_whole(blocks, len(columns))]
            for blocks in self._shares(check, lane, rows, columns)
        ]

    def _shares(
        self, check: AnyCheck, lane: int, rows: Sequence[int], columns: Sequence[int]
    ) -> Iterator[Sequence[Tensor | Seeded]]:
        """Return a lane's matrices in blocks, row by row: what is held together may differ from lane to lane."""
        sizes = [self._panel.grid.rows[row].size for row in rows]
        strips = zip(*(torch.split(self._block(check, rows, [column]), sizes) for column in columns), strict=True)
        shares = [
            self._shared_weights.matrices(lane, block, (row, column))
            for row, strip in zip(rows, strips, strict=True)
            for column, block in zip(columns, strip, strict=True)
        ]
        return zip(*shares, strict=True)

    def held_bytes(self, lane: int) -> int:
        """Return the size of an integer, or of a lane's shares of one."""
        if not self._sharing.hides_weights:
            return self._numbers.dtype.itemsize
        return self._numbers.ring_bytes * len(self._sharing.matrices(lane))

    def is_matrix(
        self, check: AnyCheck, place: tuple[int, int], rows: Sequence[int], columns: Sequence[int], found: list[Tensor]
    ) -> bool:
        """Compare every bit."""
        (lane, part), (weight,) = place, found
        wanted = self.matrices(check, lane, rows, columns)[part]
        return weight.dtype is wanted.dtype and torch.equal(weight, wanted)

    def restore(self, block: Tensor, rows: Sequence[int]) -> Tensor:
        """Scale integers back."""
        own = self._steps_of(rows)
        return block.float() * own.view(-1, *[1] * (block.dim() - 1))

    def _block(self, check: AnyCheck, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        floats = rectangle(self._weights, self._panel.grid, rows, columns, mapped)
        return _verified(self._panel, check, quantise(floats, self._steps_of(rows), self._numbers), rows, columns)

    def _steps_of(self, rows: Sequence[int]) -> Tensor:
        spans = [self._panel.grid.rows[row] for row in rows]
        return torch.cat([self._steps[span.start : span.stop] for span in spans])

    def enter(self, x: Tensor) -> Entered:
        """Round each sample to integers.

        Raises:
            InputError: a number is not finite.
        """
        own, integers = rounded(x, self._numbers)
        if not bool(own.isfinite().all()):
            name = self._panel.title
            raise InputError(f"{name}: the inputs are not finite, and integers have no infinity and no NaN")
        return Entered(integers, own)

    def split(self, x: Tensor, entropy: Entropy) -> SharedInputs:
        """Split integers among the lanes."""
        return SharedInputs(self._sharing, x, self._panel.grid, self._numbers.ring, entropy)

    def total(self, out: Tensor) -> Tensor:
        """Return integers of the width of answers."""
        return torch.empty(out.shape, dtype=torch.int32 if self.width <= 4 else torch.int64)

    def leave(self, total: Tensor, batch: Entered, rows: Sequence[int], out: Tensor) -> None:
        """Scale the sum back."""
        if batch.steps is None:
            raise InputError("integers without steps cannot leave")
        dequantise(total, batch.steps, self._steps_of(rows), out)

    @cached_property
    def _local(self) -> LocalProduct:
        grid = self._panel.grid
        return LocalProduct(self._rounded, grid.kernel, grid.groups, self._numbers, self._panel.name)

    def here(self, x: Tensor) -> Tensor:
        """Multiply as devices do."""
        return self._local(x)

    def answer(self, check: AnyCheck, layout: Layout, inputs: Sequence[Tensor | Seeded]) -> list[Tensor]:
        """Return what an honest device answers to a request, computed here: the slow way to find out who lied."""
        grid, backend = self._panel.grid, fastest()
        x = torch.cat([expanded(one) for one in inputs], dim=1)
        widths = [grid.columns[column].span.size for column in layout.columns]
        by_part = torch.split(x, widths * len(self._sharing.matrices(layout.lane)), dim=1)
        answers: list[Tensor] = []
        for term in layout.terms:
            total: Tensor | None = None
            for column in term.columns:
                matrices = self.matrices(check, layout.lane, term.rows, [column])
                for part, matrix in enumerate(matrices):
                    own = by_part[part * len(widths) + layout.columns.index(column)]
                    groups = grid.columns[column].groups
                    y = backend.multiply(grid.kernel, backend.prepare(matrix), own.contiguous(), groups, self.width)
                    total = y if total is None else total.add_(y)
            if total is not None:
                answers += pack(total, self.width)
        return answers


def _largest(weight: Tensor) -> float:
    least, most = torch.aminmax(weight)
    return max(-float(least), float(most))


def _whole(blocks: Sequence[Tensor | Seeded], across: int) -> Tensor:
    return tiled(blocks, across, expanded)


def _verified(panel: Panel, check: AnyCheck, block: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    _require(panel, _holds(check).matches(block, rows=rows, columns=columns))
    return block


def _require(panel: Panel, unchanged: bool) -> None:
    if not unchanged:
        name = panel.title
        raise ModelError(f"{name}: the weights changed since they were scattered; scatter the model again")


def _holds(check: AnyCheck) -> Check | ExactCheck:
    """Return a check of weights that stay what they are."""
    if isinstance(check, TrainingCheck):
        raise ModelError("a check of training has no weights that stay")
    return check


def numbers_of(panel: Panel, weights: Sequence[Tensor], sharing: Sharing, entropy: Entropy) -> Numbers:
    """Return the arithmetic of a panel, with its stacked weights."""
    found = integers(panel.arithmetic)
    if found is None:
        return Floats(panel, weights, sharing)
    return Exact(panel, weights, found, sharing, entropy)
