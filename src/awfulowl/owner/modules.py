"""Turn a model into one whose scattered products are asked of the fleet."""

import threading
import weakref
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.blocks.adapters.stand_in import Multiply
from awfulowl.blocks.kernels import Dense, output_shape
from awfulowl.blocks.surgery import substitute
from awfulowl.errors import InputError, ScatteredError
from awfulowl.owner.autograd import FleetProduct
from awfulowl.owner.backward import TransposedProduct
from awfulowl.owner.deployment import Deployment
from awfulowl.owner.history import Tape
from awfulowl.owner.loop import LoopThread
from awfulowl.owner.product import Product
from awfulowl.owner.training import TrainedDeployment
from awfulowl.placement.plan import Panel
from awfulowl.placement.survey import Part

_MISSES_FORGIVEN: Final = 3


class _Memory(NamedTuple):
    """The last input of a panel in one thread, and the rows of its product that nobody took yet."""

    x: "weakref.ref[Tensor]"
    version: int | Tensor
    when: object
    outputs: dict[int, Tensor]


class PanelCalls:
    """The products of one panel's members.

    Members with the same input (q, k and v) are multiplied in one request: the first one asks for all, the others
    find their rows here. "The same" means the same tensor object, unchanged since: by its version counter, or, under
    `torch.inference_mode`, where there is none, by comparing values.
    """

    def __init__(self, deployment: Deployment, number: int, loop: LoopThread) -> None:
        self._deployment = deployment
        self._number = number
        self._panel: Panel = deployment.panels[number]
        self._loop = loop
        self._memory = threading.local()
        self._rows = deployment.member_rows[number]
        self._misses = 0
        self._training = deployment if isinstance(deployment, TrainedDeployment) else None
        self._anchor = torch.zeros(()) if self._training is None else self._training.anchors[number]

    @property
    def title(self) -> str:
        """The panel's name for people to read."""
        return self._panel.title

    def multiply(self, member: int, x: Tensor) -> Tensor:
        """Return W x for one member: (..., outputs) or (batch, outputs, *space), in float32 on x's device."""
        remembered = self._recall(member, x)
        if remembered is not None:
            return remembered
        # Rows that were asked for in vain, again and again: these members do not share their input after all.
        together = self._misses <= _MISSES_FORGIVEN
        members = list(range(len(self._rows))) if together else [member]
        y = self._differentiable(x, members) if self._learns(x) else self.product(x, members)
        if len(members) == 1:
            return y
        dim = -1 if isinstance(self._panel.grid.kernel, Dense) else 1
        sizes = [self._panel.members[index].rows.size for index in members]
        # Not by `split`: of views that were made together none may be changed in place where gradients pass.
        parts = [y.narrow(dim, end - size, size) for end, size in zip(accumulate(sizes), sizes, strict=True)]
        outputs = dict(zip(members, parts, strict=True))
        mine = outputs.pop(member)
        self._remember(x, outputs)
        return mine

    def _recall(self, member: int, x: Tensor) -> Tensor | None:
        memory: _Memory | None = getattr(self._memory, "value", None)
        if memory is None:
            return None
        if memory.x() is x and _unchanged(x, memory.version) and memory.when == self._when and member in memory.outputs:
            y = memory.outputs.pop(member)
            if not memory.outputs:
                self._memory.value = None
            return y
        self._misses += 1
        self._memory.value = None
        return None

    def _remember(self, x: Tensor, outputs: dict[int, Tensor]) -> None:
        self._memory.value = _Memory(weakref.ref(x), _version(x), self._when, outputs)

    @property
    def _when(self) -> object:
        """What must not have changed for rows of a product to be those of now: steps, and whether gradients pass."""
        return (
            None if self._training is None else (self._training.histories[self._number].step, torch.is_grad_enabled())
        )

    def _learns(self, x: Tensor) -> bool:
        return (
            self._training is not None and torch.is_grad_enabled() and (self._anchor.requires_grad or x.requires_grad)
        )

    def _differentiable(self, x: Tensor, members: list[int]) -> Tensor:
        y: Tensor = FleetProduct.apply(x, self._anchor.view(()), self, members)  # type: ignore[no-untyped-call]
        return y

    def product(self, x: Tensor, members: Sequence[int], tape: Tape | None = None) -> Tensor:
        """Return W x for the rows of some members, side by side; `tape` is filled for the way back."""
        grid = self._panel.grid
        flat = self._flat(x, grid.inputs)
        rows = [row for index in members for row in self._rows[index]]
        outputs = sum(grid.rows[row].size for row in rows)
        if flat.numel() == 0:
            y = torch.zeros(output_shape(grid.kernel, outputs, grid.size, flat.shape))
        else:
            y = self._loop.run(Product(self._deployment, self._number, rows, tape).multiply(flat))
        if isinstance(grid.kernel, Dense):
            y = y.reshape(*x.shape[:-1], outputs)
        return y.to(x.device)

    def tape(self) -> Tape:
        """Return an empty tape for the way back of one product.

        Raises:
            ScatteredError: the model is not trained.
        """
        if self._training is None:
            raise ScatteredError(f"{self._panel.title} was scattered to be served: scatter it with train=True")
        return Tape(self._training.number, keeps=self._training.histories[self._number].trainable)

    def transposed(
        self, x: Tensor, dy: Tensor, members: Sequence[int], tape: Tape, *, wanted: bool, learnt: bool
    ) -> Tensor | None:
        """Return Wᵀ dy for the rows of some members, and have the fleet learn of x and dy."""
        if self._training is None or not tape.passes:
            return torch.zeros_like(x) if wanted else None
        grid = self._panel.grid
        inputs = self._flat(x, grid.inputs)
        gradients = self._flat(dy, dy.shape[-1] if isinstance(grid.kernel, Dense) else dy.shape[1])
        if len(members) < len(self._rows):  # the others' outputs were not asked for: no gradient comes from them
            whole = gradients.new_zeros(len(gradients), grid.outputs, *gradients.shape[2:])
            position = 0
            for index in members:
                span = self._panel.members[index].rows
                whole[:, span.start : span.stop] = gradients[:, position : position + span.size]
                position += span.size
            gradients = whole
        work = TransposedProduct(self._training, self._number)
        order = self._training.call()
        dx = self._loop.run(work.multiply(inputs, gradients, tape, order, wanted=wanted, learnt=learnt))
        return dx.reshape(x.shape).to(x.device) if wanted else None

    def _flat(self, x: Tensor, features: int) -> Tensor:
        """Return x as (batch, features, *space) in main memory."""
        grid = self._panel.grid
        flat = x.detach().reshape(-1, features) if isinstance(grid.kernel, Dense) else x.detach()
        if flat.shape[1] != features or flat.dim() != 2 + len(grid.size):
            raise InputError(f"{self._panel.title}: {tuple(x.shape)} where {features} features are multiplied")
        return flat.to("cpu", torch.float32)


def _version(x: Tensor) -> int | Tensor:
    return x.clone() if x.is_inference() else x._version  # noqa: SLF001  public in C++, and the only one


def _unchanged(x: Tensor, version: int | Tensor) -> bool:
    return torch.equal(x, version) if isinstance(version, Tensor) else not x.is_inference() and x._version == version  # noqa: SLF001


def scatter(
    model: nn.Module,
    deployment: Deployment,
    parts: Iterable[Part],
    loop: LoopThread,
) -> nn.Module:
    """Return a copy of the model that asks the fleet, and leave the original as it is.

    It shares every kept tensor, unless it is trained: then it has its own.

    Args:
        model: the original.
        deployment: where its products are.
        parts: its scattered modules.
        loop: the thread in which the fleet lives.
    """
    where = {
        member.product: (number, index)
        for number, panel in enumerate(deployment.panels)
        for index, member in enumerate(panel.members)
    }
    calls = [PanelCalls(deployment, number, loop) for number in range(len(deployment.panels))]
    deployment.users = weakref.WeakSet(calls)
    replacements: dict[nn.Module, nn.Module] = {}
    for part in parts:
        multiplies: dict[str, Multiply] = {}
        for name, product in part.products().items():
            number, index = where[name]
            multiplies[product.name] = _bind(calls[number], index)
        train = isinstance(deployment, TrainedDeployment)
        replacements[part.target.module] = part.target.replace(multiplies, unfold=part.unfold, train=train)
    return substitute(model, replacements, tensors="own" if isinstance(deployment, TrainedDeployment) else "frozen")


def _bind(calls: PanelCalls, index: int) -> Multiply:
    return lambda x: calls.multiply(index, x)
