"""The blocks that a device holds, and the products it makes of them."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Final

import msgspec
import torch
from torch import Tensor

from awfulowl.arithmetic.packing import pack
from awfulowl.arithmetic.patches import padded_size
from awfulowl.arithmetic.products import Backend, Weights, fastest
from awfulowl.blocks.grid import Span, tiled
from awfulowl.blocks.kernels import Convolution, Dense, output_shape, product
from awfulowl.device import dense
from awfulowl.device.products import Product, Recipe, add_up, join
from awfulowl.device.sheets import Held, State, spans
from awfulowl.device.shortage import is_shortage
from awfulowl.errors import InputError, LimitError, RefusedError
from awfulowl.limits import Limits
from awfulowl.randomness import Seeded, expanded
from awfulowl.wire.messages import Apply, Load
from awfulowl.wire.parts import Sheet, Term

_REMEMBERED_RECIPES: Final = 1024

_HELD: Final = frozenset(
    {
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    }
)
"""Types of weights: floats become float32, integers stay what they are."""


class Store:
    """Blocks by handle, in memory only.

    Products accumulate in float32: reduced-precision modes of the backends are off (`dense.full_precision`).
    The order of summation within a device is the order of the request, so equal requests give equal bits.
    """

    def __init__(self, limits: Limits, memory_bytes: int, accelerator: str = "cpu") -> None:
        self._limits = limits
        self.accelerator: Final = torch.device(accelerator)
        self.dense: Final = dense.fastest() if self.accelerator.type == "cpu" else dense.PLAIN
        self._offered_bytes = min(memory_bytes, limits.device_memory_bytes)
        self._memory_bytes = self._offered_bytes
        self._sheets: list[Held] = []
        self._at: dict[bytes, list[Held]] = {}  # sheets by the slices that they hold
        self._recipes: OrderedDict[Apply, tuple[Recipe, ...]] = OrderedDict()

    @property
    def _backend(self) -> Backend:
        """What multiplies integers; found out when the first come, since trying takes some tens of milliseconds."""
        return fastest(self.accelerator.type)

    @property
    def held_bytes(self) -> int:
        """Bytes that all sheets take."""
        return sum(sheet.nbytes for sheet in self._sheets)

    def check_room(self, size: int) -> None:
        """See whether there is room for so many bytes more.

        Raises:
            LimitError: there is not.
        """
        if self.held_bytes + size > self._memory_bytes:
            raise LimitError(f"{self.held_bytes + size} bytes of blocks asked for, {self._memory_bytes} offered")

    def __len__(self) -> int:
        """Return the number of blocks held."""
        return sum(len(sheet.rows) * len(sheet.slices) for sheet in self._sheets)

    def load(self, request: Load, tensors: Sequence[Tensor | Seeded]) -> None:
        """Hold these blocks; float16 and bfloat16 weights are raised to float32, and seeds expanded if there is room.

        Raises:
            RefusedError: a tensor does not fit its sheet, or a block is held already.
            LimitError: there is no memory left for them.
        """
        if len(tensors) != request.takes:
            raise RefusedError(f"load: takes {request.takes} tensors, got {len(tensors)}")
        self.check_room(sum(tensor.nbytes for tensor in tensors))
        dealt = request.dealt(tensors)
        held = []
        for sheet in request.sheets:
            weight, *rest = (self._own(*each) for each in islice(dealt, request.parts))
            held.append(self._hold(sheet, weight, State(request.step, rest)))
        self.check_room(sum(new.nbytes for new in held))
        for new in held:
            self._replace(new)
            self._remember(new)
        self._recipes.clear()

    def _own(self, sheet: Sheet, tensors: Sequence[Tensor | Seeded]) -> Tensor:
        """Return a copy on the accelerator: what came lies in memory for frames, which would be held as long."""
        if not tensors:
            raise RefusedError("load: a sheet without blocks")
        dtype, size = tensors[0].dtype, tuple(tensors[0].shape[2:])
        axes = len(sheet.kernel.stride) if isinstance(sheet.kernel, Convolution) else 0
        for (outputs, inputs), tensor in zip(sheet.cut, tensors, strict=True):
            wanted = (outputs, inputs // sheet.groups, *size)
            if tuple(tensor.shape) != wanted or len(size) != axes or tensor.dtype != dtype or dtype not in _HELD:
                raise RefusedError(
                    f"load: {tensor.dtype} of shape {tuple(tensor.shape)} came for a sheet of {wanted[:2]}"
                )
        whole = tiled(tensors, len(sheet.slice_sizes) if sheet.apart else 1, expanded)
        came = len(tensors) == 1 and isinstance(tensors[0], Tensor)
        return whole.to(self.accelerator, torch.float32 if dtype.is_floating_point else dtype, copy=came)

    def _hold(self, sheet: Sheet, weight: Tensor, state: State) -> Held:
        rows = spans(sheet.rows, sheet.row_sizes)
        slices = spans(sheet.slices, sheet.slice_sizes)
        if sheet.groups > 1 and (isinstance(sheet.kernel, Dense) or len(slices) > 1 or len(rows) > 1):
            raise RefusedError("load: a sheet with groups is one block of a convolution")
        if sheet.groups > 1 and (len(weight) % sheet.groups or sheet.slice_sizes[0] % sheet.groups):
            raise RefusedError("load: the groups do not divide the block")
        if any(part.dtype != weight.dtype or part.shape != weight.shape for part in state.parts):
            raise RefusedError("load: the parts of a sheet are of different types or shapes")
        weights = Weights(weight[None]) if weight.is_floating_point() else self._backend.prepare(weight)
        return Held(weights, sheet.kernel, sheet.groups, rows, slices, state)

    def _replace(self, new: Held) -> None:
        """Drop older sheets that hold a block of the new one: a repeated load is the later truth."""
        neighbours = {id(s): s for handle in new.slices for s in self._at.get(handle, ())}
        for old in [s for s in neighbours.values() if s.rows.keys() & new.rows.keys()]:
            if not (old.rows.keys() <= new.rows.keys() and old.slices.keys() <= new.slices.keys()):
                raise RefusedError("load: the sheet overlaps blocks that are held as part of another sheet")
            self._forget(old)

    def _remember(self, sheet: Held) -> None:
        self._sheets.append(sheet)
        for handle in sheet.slices:
            self._at.setdefault(handle, []).append(sheet)

    def _forget(self, sheet: Held) -> None:
        self._sheets.remove(sheet)
        for handle in sheet.slices:
            self._at[handle].remove(sheet)

    def release(self, slices: Sequence[bytes]) -> None:
        """Forget every sheet that holds one of these slices, whole."""
        for handle in slices:
            for sheet in list(self._at.get(handle, ())):
                self._forget(sheet)
            self._at.pop(handle, None)
        self._recipes.clear()

    def give_up(self, slices: Sequence[bytes]) -> tuple[bytes, ...]:
        """Forget these slices for want of memory, and take no more than is left from now on; return all that is gone.

        Whoever loaded them would load them again otherwise, and again.
        """
        held = [handle for handle, sheets in self._at.items() if sheets]
        self.release([handle for handle in slices if handle in self._at])
        self._memory_bytes = self.held_bytes
        return tuple(handle for handle in held if not self._at.get(handle))

    def clear(self) -> None:
        """Forget everything, shortages too."""
        self._memory_bytes = self._offered_bytes
        self._sheets.clear()
        self._at.clear()
        self._recipes.clear()

    def apply(self, request: Apply, x: Tensor) -> list[Tensor]:
        """Multiply: for each term a tensor of float32, or the parts of integers of as many bytes as the request says.

        Args:
            request: which slices the inputs belong to, and the sums that are asked for.
            x: (batch, sum of slice sizes) or (batch, sum of slice sizes, *space); integers where the blocks are.

        Raises:
            RefusedError: a block is not here, or the inputs do not fit the blocks.
            LimitError: the answer would be larger than one message.
        """
        asked = msgspec.structs.replace(request, keep=0) if request.keep else request
        recipes = self._recipes.get(asked)
        if recipes is None:
            recipes = self._look_up(asked, x)
            self._recipes[asked] = recipes
            if len(self._recipes) > _REMEMBERED_RECIPES:
                self._recipes.popitem(last=False)
        self._check_sizes(recipes, x, request.width)
        if request.width == 0:
            x = x.to(self.accelerator, torch.float32)
        elif x.is_floating_point():
            raise RefusedError("apply: inputs of floats for blocks of integers")
        try:
            x = x.to(self.accelerator)
            return [part.cpu() for recipe in recipes for part in self._sum(recipe, x, request.width)]
        except (InputError, RuntimeError) as error:  # the latter is PyTorch's word for shapes that do not fit
            if is_shortage(error):
                raise
            raise RefusedError(f"apply: the inputs do not fit the blocks: {type(error).__name__}") from error

    def _sum(self, recipe: Recipe, x: Tensor, width: int) -> list[Tensor]:
        if width == 0:
            return [add_up(recipe, x, self._multiply_floats)]
        return pack(add_up(recipe, x, partial(self._multiply_integers, width)), width)

    def _multiply_floats(self, one: Product, x: Tensor) -> Tensor:
        weight = one.weights.planes[0]
        if isinstance(one.kernel, Dense):
            return self.dense.multiply(x, weight)
        return product(one.kernel, weight, x, one.groups)

    def _multiply_integers(self, width: int, one: Product, x: Tensor) -> Tensor:
        return self._backend.multiply(one.kernel, one.weights, x, one.groups, width)

    def _check_sizes(self, recipes: Sequence[Recipe], x: Tensor, width: int) -> None:
        total = 0
        for recipe in recipes:
            first = recipe.products[0]
            weight = first.weights.planes[0]
            if x.dim() != weight.dim():
                raise RefusedError(f"apply: inputs of {x.dim()} dimensions for blocks of {weight.dim()}")
            elements = 1
            for length in output_shape(first.kernel, recipe.outputs, tuple(weight.shape[2:]), x.shape):
                elements *= max(length, 0)
            total += (width or 4) * elements
            if isinstance(first.kernel, Convolution):
                padded = x.itemsize * padded_size(first.kernel, x.shape)
                if padded > self._limits.max_message_bytes:
                    raise LimitError(
                        f"apply: padded inputs of {padded} bytes are over {self._limits.max_message_bytes}"
                    )
        if total > self._limits.max_message_bytes:
            raise LimitError(f"apply: an answer of {total} bytes is over {self._limits.max_message_bytes}")

    def _look_up(self, request: Apply, x: Tensor) -> tuple[Recipe, ...]:
        if x.dim() < 2:
            raise RefusedError("apply: the inputs need a batch and a feature dimension")
        inputs = self.slices(request.slices)
        width = inputs[request.slices[-1]].stop
        if width != x.shape[1]:
            raise RefusedError(f"apply: inputs of width {x.shape[1]} for slices of width {width}")
        recipes = tuple(self._recipe(term, inputs) for term in request.terms)
        exact = request.width > 0
        if any(one.weights.planes.is_floating_point() == exact for recipe in recipes for one in recipe.products):
            raise RefusedError(f"apply: answers of {'integers' if exact else 'floats'} are asked of other blocks")
        return recipes

    def at(self, handle: bytes) -> Sequence[Held]:
        """Return the sheets that hold a slice.

        Raises:
            RefusedError: none does.
        """
        sheets = self._at.get(handle)
        if not sheets:
            raise RefusedError("a slice is named that is not held here")
        return sheets

    def sheets(self, slices: Sequence[bytes]) -> list[Held]:
        """Return every sheet that holds one of some slices, once.

        Raises:
            RefusedError: a slice is not here.
        """
        return list({id(sheet): sheet for handle in slices for sheet in self.at(handle)}.values())

    def of(self, terms: Sequence[Term]) -> list[Held]:
        """Return every sheet that lies in the rectangles rows x slices, once.

        Raises:
            RefusedError: a slice is not here.
        """
        found: dict[int, Held] = {}
        for term in terms:
            rows = set(term.rows)
            found |= {id(sheet): sheet for sheet in self.sheets(term.slices) if rows.issuperset(sheet.rows)}
        return list(found.values())

    def freeze(self, terms: Sequence[Term], number: int) -> None:
        """Copy the blocks of some rectangles under a number; 0 forgets the copies.

        Raises:
            RefusedError: a slice is not here, or its blocks are integers.
            LimitError: there is no room for copies.
        """
        sheets = self.of(terms)
        if any(not sheet.weights.planes.is_floating_point() for sheet in sheets):
            raise RefusedError("freeze: blocks of integers do not change")
        if number:
            self.check_room(sum(sheet.nbytes - 2 * sheet.frozen_nbytes for sheet in sheets))
        for sheet in sheets:
            sheet.freeze(number)

    def slices(self, handles: Sequence[bytes]) -> dict[bytes, Span]:
        """Return where each of some slices lies when they lie side by side.

        Raises:
            RefusedError: one is not here, or comes twice.
        """
        return spans(handles, [self.at(handle)[0].slices[handle].size for handle in handles])

    def _recipe(self, term: Term, inputs: dict[bytes, Span]) -> Recipe:
        if not term.rows or not term.slices:
            raise RefusedError("apply: a term names no rows or no slices")
        products: list[Product] = []
        outputs = 0
        for handle in term.slices:
            if handle not in inputs:
                raise RefusedError("apply: a term names a slice without inputs")
            outputs = self._append(products, term.rows, handle, inputs[handle])
        return Recipe(tuple(products), outputs)

    def _append(self, products: list[Product], rows: Sequence[bytes], handle: bytes, source: Span) -> int:
        """Add the products of one slice, joining neighbours that lie side by side in one sheet."""
        position = 0
        for sheet, first, last in self.runs(rows, handle):
            outputs = Span(sheet.rows[first].start, sheet.rows[last].stop)
            target = Span(position, position + outputs.size)
            position = target.stop
            new = Product(sheet.part(outputs, sheet.slices[handle]), sheet.kernel, sheet.groups, source, target)
            joined = join(products[-1], new) if products else None
            if joined is None:
                products.append(new)
            else:
                products[-1] = joined
        return position

    def runs(self, rows: Sequence[bytes], handle: bytes) -> list[tuple[Held, bytes, bytes]]:
        """Return (sheet, first row, last row) so that together they are `rows`, each run contiguous in its sheet.

        Raises:
            RefusedError: a block is not here.
        """
        runs: list[tuple[Held, bytes, bytes]] = []
        for row in rows:
            sheet = next((s for s in self._at.get(handle, ()) if row in s.rows), None)
            if sheet is None:
                raise RefusedError("a block is named that is not held here")
            if runs and runs[-1][0] is sheet and sheet.rows[runs[-1][2]].stop == sheet.rows[row].start:
                runs[-1] = (sheet, runs[-1][1], row)
            else:
                runs.append((sheet, row, row))
        return runs

    def fetch(self, rows: Sequence[bytes], slices: Sequence[bytes], parts: int = 1, frozen: int = 0) -> list[Tensor]:
        """Return parts of the rectangle rows x slices: (sum of rows, sum of slices / groups, *size) each.

        Args:
            rows: handles, at least one.
            slices: handles, at least one.
            parts: how many, in the order of `sheets.Held.whole`.
            frozen: the number of the frozen copy that is wanted; 0 for what is there now.

        Raises:
            RefusedError: a block or a copy is not here, or no rows or slices are named.
        """
        if not rows or not slices:
            raise RefusedError("fetch: no rows or no slices are named")
        return [self._joined(rows, slices, part, frozen).cpu() for part in range(parts)]

    def _joined(self, rows: Sequence[bytes], slices: Sequence[bytes], part: int, frozen: int) -> Tensor:
        columns = []
        for handle in slices:
            pieces = []
            for sheet, first, last in self.runs(rows, handle):
                across, down = sheet.slices[handle], Span(sheet.rows[first].start, sheet.rows[last].stop)
                if sheet.weights.planes.is_floating_point():
                    pieces.append(sheet.cut(sheet.whole(part, frozen), down, across))
                    continue
                if part:
                    raise RefusedError("fetch: blocks of integers have no other parts")
                pieces.append(self._backend.restore(sheet.part(down, across).planes))
            columns.append(torch.cat(pieces))
        return torch.cat(columns, dim=1)
