"""A device that learns, without a network: its store and its learner, and what they should have come to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.kernels import Convolution, Kernel, output_shape, product
from awfulowl.device.learning import Learner
from awfulowl.device.store import Store
from awfulowl.limits import MIB, Limits
from awfulowl.wire.messages import Apply, ApplyTransposed, Load, Measure, Step
from awfulowl.wire.parts import Sheet, Term
from tests.unit.device.test_store import CONV, DENSE, handles

PLAIN = Descent.sgd(0.125)
HEAVY = Descent.sgd(0.125, momentum=0.75, weight_decay=2.0**-5)
HALVED = Convolution((2, 2), (1, 1), (1, 1))

KERNELS: list[tuple[Kernel, tuple[int, ...], tuple[int, ...], int]] = [
    (DENSE, (), (), 1),
    (CONV, (3, 3), (5, 6), 1),
    (HALVED, (3, 3), (6, 6), 1),
    (Convolution((2,), (1,), (2,)), (2,), (8,), 1),
    (Convolution((1, 1), (0, 0), (1, 1)), (1, 1), (5, 6), 1),
    (CONV, (3, 3), (5, 6), 3),
    (HALVED, (3, 3), (6, 6), 6),
]


class Pupil:
    """A store and a learner under the same limits."""

    def __init__(self, memory_bytes: int = 64 * MIB, *, accelerator: str = "cpu", **limits: int) -> None:
        own = Limits(**limits)
        self.store = Store(own, memory_bytes, accelerator)
        self.learner = Learner(self.store, own)

    def load(self, layout: Sheet, *parts: Tensor, step: int = 0) -> None:
        self.store.load(Load((layout,), len(parts), step), parts)

    def keep(self, number: int, slices: Sequence[bytes], x: Tensor) -> None:
        self.learner.keep(Apply(tuple(slices), (), keep=number), x)

    def job(
        self,
        number: int,
        rows: Sequence[bytes],
        slices: Sequence[bytes],
        dy: Tensor,
        x: Tensor | None = None,
        *,
        kept: int = 0,
        terms: Sequence[Term] = (),
    ) -> list[Tensor]:
        """Give it a job, with its inputs or with the number that they are kept under."""
        space = tuple(dy.shape[2:]) if x is None else tuple(x.shape[2:])
        body = ApplyTransposed(tuple(rows), tuple(slices), tuple(terms), space, number, kept)
        return self.learner.apply_transposed(body, [dy] if x is None else [dy, x])

    def transposed(
        self,
        rows: Sequence[bytes],
        slices: Sequence[bytes],
        terms: Sequence[Term],
        dy: Tensor,
        space: tuple[int, ...] = (),
    ) -> list[Tensor]:
        """Ask for products only."""
        return self.learner.apply_transposed(ApplyTransposed(tuple(rows), tuple(slices), tuple(terms), space), [dy])

    def transposed_with_job(self, number: int, layout: Sheet, dy: Tensor, x: Tensor) -> list[Tensor]:
        """Ask for the product with a whole sheet, and give it a job."""
        term = Term(layout.rows, layout.slices)
        return self.job(number, layout.rows, layout.slices, dy, x, terms=[term])

    def step(
        self, number: int, slices: Sequence[bytes], jobs: Sequence[int], rule: Descent | Adaptation = PLAIN
    ) -> None:
        self.learner.step(Step((self._all(slices),), number, tuple(jobs), rule))

    def freeze(self, slices: Sequence[bytes], number: int) -> None:
        """Copy all blocks of some slices."""
        self.store.freeze([self._all(slices)], number)

    def _all(self, slices: Sequence[bytes]) -> Term:
        """All rows that are held of some slices; the slices as they are named, held or not."""
        held = [sheet for handle in slices for sheet in self.store._at.get(handle, ())]
        return Term(tuple(dict.fromkeys(row for sheet in held for row in sheet.rows)), tuple(slices))

    def measure(self, rows: Sequence[bytes], slices: Sequence[bytes], jobs: Sequence[int]) -> float:
        found = self.learner.measure(Measure(tuple(rows), tuple(slices), tuple(jobs)))
        assert (found.shape, found.dtype) == (torch.Size([1]), torch.float64)
        return float(found)

    def weights(self, layout: Sheet) -> Tensor:
        """What it multiplies with."""
        return self.store.fetch(layout.rows, layout.slices)[0]

    def state(self, layout: Sheet, parts: int = 3) -> list[Tensor]:
        """Weights, what was lost in rounding, momentum, and the mean square where four are asked for."""
        return self.store.fetch(layout.rows, layout.slices, parts)

    def exactly(self, layout: Sheet) -> Tensor:
        """Weights with what was lost."""
        weight, lost, _ = self.state(layout)
        return weight.double() + lost.double()


def by_torch(
    kernel: Kernel,
    weight: Tensor,
    steps: Sequence[Sequence[tuple[Tensor, Tensor]]],
    groups: int = 1,
    kind: type[torch.optim.Optimizer] = torch.optim.SGD,
    **options: Any,
) -> Tensor:
    """Weights after steps of SGD or another kind in float64, each along the jobs (x, dy) of its own."""
    parameter = torch.nn.Parameter(weight.double())
    optimizer = kind([parameter], **options)
    for jobs in steps:
        optimizer.zero_grad()
        for x, dy in jobs:
            product(kernel, parameter, x.double(), groups).backward(dy.double())  # type: ignore[no-untyped-call]
        optimizer.step()
    return parameter.detach()


def taught(outputs: int, inputs: int, **limits: int) -> tuple[Pupil, Sheet, Tensor]:
    """Return a pupil that holds one dense sheet of one block, the sheet, and its weights."""
    layout = Sheet(handles("r", 1), (outputs,), handles("s", 1), (inputs,), DENSE)
    pupil, weight = Pupil(accelerator="cpu", **limits), torch.randn(outputs, inputs)
    pupil.load(layout, weight)
    return pupil, layout, weight


def some_jobs(
    count: int,
    outputs: int,
    inputs: int,
    kernel: Kernel = DENSE,
    size: tuple[int, ...] = (),
    space: tuple[int, ...] = (),
) -> list[tuple[Tensor, Tensor]]:
    """Inputs, and gradients of outputs, of some batches."""
    xs = [torch.randn(3, inputs, *space) for _ in range(count)]
    return [(x, torch.randn(output_shape(kernel, outputs, size, x.shape))) for x in xs]


def summed(jobs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient along dense jobs, in float64."""
    return sum((dy.double().T @ x.double() for x, dy in jobs), start=torch.zeros((), dtype=torch.float64))
