"""Training at a device: products with transposed weights, and steps along gradients that nobody but it computes.

A device keeps the inputs of a block and the gradients of its outputs until the step, and multiplies them only then:
the gradient of a block is made some rows at a time and used at once, so it is never in memory as a whole.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Final, NamedTuple

import torch
from torch import Tensor

from awfulowl.arithmetic.descent import descend
from awfulowl.blocks.grid import Span
from awfulowl.blocks.kernels import Dense, backward, gradient, output_shape
from awfulowl.device.sheets import Held, spans
from awfulowl.device.shortage import is_shortage
from awfulowl.device.store import Store
from awfulowl.errors import InputError, LimitError, RefusedError
from awfulowl.limits import Limits
from awfulowl.wire.messages import Apply, ApplyTransposed, Measure, Step
from awfulowl.wire.parts import Term

_GRADIENT: Final = 1 << 20
"""Numbers of a gradient at a time: 4 MiB, enough for a fast product and not much more than a cache."""


class _Inputs(NamedTuple):
    """Inputs x (batch, sum of slices, *space), and where each slice lies."""

    x: Tensor
    slices: dict[bytes, Span]


class _Job(NamedTuple):
    """A part of the next step: inputs, and the gradients dy (batch, sum of rows, *space') of some rows."""

    inputs: _Inputs
    dy: Tensor
    rows: dict[bytes, Span]


class _Product(NamedTuple):
    """A rectangle of a sheet: gradients of `source` are multiplied into inputs `target` of the answer."""

    sheet: Held
    rows: Span
    slices: Span
    source: Span
    target: Span


class Learner:
    """Everything that a device keeps from one step to the next, beside the blocks in its store."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.tamper: Callable[[int, Tensor], None] | None = None
        """(a block, its gradient): falsifies it in place; set only by tests, benchmarks and demonstrations."""
        self._store = store
        self._limits = limits
        self._kept: OrderedDict[int, _Inputs] = OrderedDict()
        self._jobs: dict[int, list[_Job]] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of inputs and gradients that wait for a step."""
        jobs = [job for parts in self._jobs.values() for job in parts]
        tensors = [
            *(kept.x for kept in self._kept.values()),
            *(job.inputs.x for job in jobs),
            *(job.dy for job in jobs),
        ]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._jobs.clear()

    def keep(self, request: Apply, x: Tensor) -> None:
        """Keep the inputs of a product as far as there is room; who misses them sends them again."""
        slices = self._store.slices(request.slices)
        if 4 * x.numel() > self._limits.activation_bytes:
            return
        self._kept[request.keep] = _Inputs(x.to(self._store.accelerator, torch.float32), slices)
        self._kept.move_to_end(request.keep)
        self._make_room()

    def _make_room(self) -> None:
        """Forget kept inputs, the oldest first; who misses them sends them again."""
        while self.held_bytes > self._limits.activation_bytes and self._kept:
            self._kept.popitem(last=False)

    def apply_transposed(self, request: ApplyTransposed, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply gradients by transposed weights, and take note of the job: for each term (batch, inputs, *space).

        Raises:
            RefusedError: a block or a kept input is not here, or the tensors do not fit the blocks.
            LimitError: there is no room for the job, or the answer would be larger than one message.
        """
        dy = tensors[0].to(self._store.accelerator)
        rows = self._rows(request, dy)
        self._check_space(request, dy)
        job = _Job(self._inputs(request, tensors), dy, rows) if request.job else None
        total = (
            4
            * dy.shape[0]
            * prod(request.space)
            * sum(self._store.slices(term.slices)[term.slices[-1]].stop for term in request.terms)
        )
        if total > self._limits.max_message_bytes:
            raise LimitError(f"apply_transposed: an answer of {total} bytes is over {self._limits.max_message_bytes}")
        try:
            found = [self._transposed(term, request, dy, rows).cpu() for term in request.terms]
        except (InputError, RuntimeError) as error:  # the latter is PyTorch's word for shapes that do not fit
            if is_shortage(error):
                raise
            raise RefusedError(f"apply_transposed: the gradients do not fit: {type(error).__name__}") from error
        if job is not None:
            self._note(request, job)
        return found

    def _check_space(self, request: ApplyTransposed, dy: Tensor) -> None:
        """Refuse gradients of another space than that of products of the inputs."""
        named = (*request.slices, *(handle for term in request.terms for handle in term.slices))
        for sheet in self._store.sheets(named):
            size = tuple(sheet.weights.planes.shape[3:])
            inputs = torch.Size((len(dy), 1, *request.space))
            fits = len(size) == len(request.space)
            if not fits or tuple(dy.shape[2:]) != output_shape(sheet.kernel, 1, size, inputs)[2:]:
                raise RefusedError(f"apply_transposed: gradients of {tuple(dy.shape)} for inputs of {request.space}")

    def _rows(self, request: ApplyTransposed, dy: Tensor) -> dict[bytes, Span]:
        """Return where each row lies in dy."""
        known = {
            row: span.size
            for handle in request.slices
            for sheet in self._store.at(handle)
            for row, span in sheet.rows.items()
        }
        try:
            rows = spans(request.rows, [known[row] for row in request.rows])
        except KeyError:
            raise RefusedError("apply_transposed: a row is named that is not held here") from None
        if dy.dim() < 2 or dy.shape[1] != rows[request.rows[-1]].stop:
            raise RefusedError(f"apply_transposed: gradients of shape {tuple(dy.shape)} for other rows")
        return rows

    def _inputs(self, request: ApplyTransposed, tensors: Sequence[Tensor]) -> _Inputs:
        slices = self._store.slices(request.slices)
        if request.kept:
            kept = self._kept.get(request.kept)
            if (
                kept is None
                or not slices.keys() <= kept.slices.keys()
                or len(kept.x) != len(tensors[0])
                or kept.x.shape[2:] != request.space
            ):
                raise RefusedError("apply_transposed: inputs are named that are not kept here")
            return kept
        x = tensors[1].to(self._store.accelerator)
        if x.shape[1:] != (slices[request.slices[-1]].stop, *request.space):
            raise RefusedError(f"apply_transposed: inputs of shape {tuple(x.shape)} for other slices")
        return _Inputs(x, slices)

    def _note(self, request: ApplyTransposed, job: _Job) -> None:
        parts = self._jobs.setdefault(request.job, [])
        wanted = set(request.slices)
        if any(wanted <= part.inputs.slices.keys() and part.rows.keys() >= job.rows.keys() for part in parts):
            return
        parts.append(job)
        self._make_room()
        if self.held_bytes > self._limits.activation_bytes:
            parts.pop()
            raise LimitError(f"no room: inputs and gradients are over {self._limits.activation_bytes} bytes")

    def _transposed(self, term: Term, request: ApplyTransposed, dy: Tensor, rows: dict[bytes, Span]) -> Tensor:
        targets = self._store.slices(term.slices)
        dx = dy.new_zeros((len(dy), targets[term.slices[-1]].stop, *request.space))
        products = list(self._products(term, rows, targets))
        for one in products:
            weight = one.sheet.part(one.rows, one.slices).planes[0]
            source = dy[:, one.source.start : one.source.stop]
            if isinstance(one.sheet.kernel, Dense):
                part = self._store.dense.transposed(source, weight)
            else:
                part = backward(one.sheet.kernel, weight, source, request.space, one.sheet.groups)
            if len(products) == 1:
                return part
            dx[:, one.target.start : one.target.stop] += part
        return dx

    def _products(self, term: Term, rows: dict[bytes, Span], targets: dict[bytes, Span]) -> Iterator[_Product]:
        """Yield the products of a term, neighbouring slices of one sheet in one."""
        found: list[_Product] = []
        for handle in term.slices:
            for sheet, first, last in self._store.runs(term.rows, handle):
                source = _lying(rows, sheet, first, last)
                own = Span(sheet.rows[first].start, sheet.rows[last].stop)
                new = _Product(sheet, own, sheet.slices[handle], source, targets[handle])
                old = next((one for one in found if _neighbours(one, new)), None)
                if old is None:
                    found.append(new)
                else:
                    found[found.index(old)] = old._replace(
                        slices=Span(old.slices.start, new.slices.stop), target=Span(old.target.start, new.target.stop)
                    )
        yield from found

    def step(self, request: Step) -> None:
        """Move all blocks of some rectangles, once for each number of a step.

        Raises:
            RefusedError: a block or a job is not here, or the blocks are at another step; nothing moved.
            LimitError: there is no room for what is kept beside the weights; nothing moved.
        """
        sheets = self._store.of(request.terms)
        if any(not sheet.weights.planes.is_floating_point() for sheet in sheets):
            raise RefusedError("step: blocks of integers are not trained")
        todo = [sheet for sheet in sheets if sheet.state.step != request.step]
        if any(sheet.state.step + 1 != request.step for sheet in todo):
            raise RefusedError("step: the blocks are at another step")
        works = [self._gradients(sheet, request.jobs) for sheet in todo]
        wanted = request.rule.parts
        new = [max(0, wanted - 1 - len(sheet.state.parts)) * sheet.weights.planes.nbytes for sheet in todo]
        self._store.check_room(sum(new))
        for sheet, work in zip(todo, works, strict=True):
            while len(sheet.state.parts) < wanted - 1:
                sheet.state.parts.append(sheet.whole(len(sheet.state.parts) + 1))
            state = [sheet.weights.planes[0], *sheet.state.parts]
            for rows, part in work():
                if self.tamper is not None:
                    self.tamper(hash((id(sheet), rows.start)), part)
                descend(request.rule, [one[rows] for one in state[:wanted]], part)
            sheet.state.step = request.step
        if todo:
            self.forget([handle for term in request.terms for handle in term.slices])

    def measure(self, request: Measure) -> Tensor:
        """Return the sum of the squares of a gradient, as 1 float64.

        Raises:
            RefusedError: a block or a job is not here.
        """
        total = torch.zeros(1, dtype=torch.float64)
        wanted: dict[int, tuple[Held, set[bytes], dict[bytes, None]]] = {}
        for handle in request.slices:
            for sheet, first, last in self._store.runs(request.rows, handle):
                _, rows, slices = wanted.setdefault(id(sheet), (sheet, set(), {}))
                rows |= {row for row, _ in _run(sheet, first, last)}
                slices[handle] = None
        for sheet, rows, slices in wanted.values():
            if rows != sheet.rows.keys():
                raise RefusedError("measure: some rows of a sheet are named, and others are not")
            for _, part in self._gradients(sheet, request.jobs)():
                for span in (sheet.slices[handle] for handle in slices):
                    own = part[:, span.start // sheet.groups : span.stop // sheet.groups]
                    total += own.double().square().sum().cpu()
        return total

    def _gradients(self, sheet: Held, numbers: Sequence[int]) -> Callable[[], Iterator[tuple[slice, Tensor]]]:
        """Look up all operands of a sheet's gradient, and return what yields it some rows at a time.

        Raises:
            RefusedError: one is not here.
        """
        operands = [self._operands(sheet, number) for number in numbers]
        weight = sheet.weights.planes[0]
        if not weight.is_floating_point():
            raise RefusedError("step: blocks of integers are not trained")

        def dense() -> Iterator[tuple[slice, Tensor]]:
            outputs, inputs = weight.shape
            height = max(1, _GRADIENT // inputs)
            # Both with the samples last, which the products that sum over them are fastest with.
            pairs = [(x.T.contiguous(), dy.T.contiguous()) for x, dy in operands]
            for start in range(0, outputs, height):
                rows = slice(start, min(start + height, outputs))
                parts = [self._store.dense.multiply(dy[rows], x) for x, dy in pairs if x.shape[1]]
                total = parts[0] if parts else weight.new_zeros(rows.stop - rows.start, inputs)
                for part in parts[1:]:
                    total += part
                yield rows, total

        def convolution() -> Iterator[tuple[slice, Tensor]]:
            total = torch.zeros_like(weight)
            for x, dy in operands:
                total += gradient(sheet.kernel, tuple(weight.shape[2:]), x, dy, sheet.groups)
            yield slice(None), total

        return dense if isinstance(sheet.kernel, Dense) else convolution

    def _operands(self, sheet: Held, number: int) -> tuple[Tensor, Tensor]:
        """Return x and dy of a sheet in a job."""
        parts = self._jobs.get(number, [])
        slices, rows = list(sheet.slices), list(sheet.rows)
        for job in parts:
            if job.inputs.slices.keys() >= sheet.slices.keys() and job.rows.keys() >= sheet.rows.keys():
                return _side_by_side(job.inputs.x, job.inputs.slices, slices), _side_by_side(job.dy, job.rows, rows)
        raise RefusedError("step: a job is named that is not here")

    def forget(self, slices: Sequence[bytes]) -> None:
        """Forget jobs and kept inputs of some slices."""
        gone = set(slices)
        for number in [number for number, kept in self._kept.items() if not gone.isdisjoint(kept.slices)]:
            del self._kept[number]
        for number, parts in list(self._jobs.items()):
            left = [job for job in parts if gone.isdisjoint(job.inputs.slices)]
            if left:
                self._jobs[number] = left
            else:
                del self._jobs[number]


def _run(sheet: Held, first: bytes, last: bytes) -> list[tuple[bytes, Span]]:
    """Return the rows of a sheet from one to another, and where they lie."""
    start, stop = sheet.rows[first].start, sheet.rows[last].stop
    return [(row, span) for row, span in sheet.rows.items() if start <= span.start < stop]


def _lying(rows: dict[bytes, Span], sheet: Held, first: bytes, last: bytes) -> Span:
    """Return where a run of a sheet's rows lies in dy; they have to lie there in the same order."""
    offset = rows[first].start - sheet.rows[first].start
    if any(rows[row].start - span.start != offset for row, span in _run(sheet, first, last)):
        raise RefusedError("apply_transposed: rows come in another order than they are held")
    return Span(rows[first].start, rows[last].stop)


def _neighbours(left: _Product, right: _Product) -> bool:
    return (
        left.sheet is right.sheet
        and left.sheet.groups == 1
        and left.rows == right.rows
        and left.slices.stop == right.slices.start
        and left.target.stop == right.target.start
    )


def _side_by_side(whole: Tensor, at: dict[bytes, Span], handles: Sequence[bytes]) -> Tensor:
    """Return some slices of a tensor along dimension 1: a view where they lie side by side."""
    found = [at[handle] for handle in handles]
    if all(left.stop == right.start for left, right in pairwise(found)):
        return whole[:, found[0].start : found[-1].stop]
    return torch.cat([whole[:, span.start : span.stop] for span in found], dim=1)
