"""Products on the fleet as PyTorch differentiates them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from awfulowl.owner.modules import PanelCalls


class FleetProduct(torch.autograd.Function):
    """y = W x with W elsewhere: the way back asks the fleet for dx, and has it learn of x and dy.

    The second operand comes from a number that requires a gradient where W is trained, so that there is a way back even
    from inputs that need none. It never gets one; whether it was to get one says whether the step is to know.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, calls: "PanelCalls", members: list[int]) -> Tensor:
        """Return the rows of some members of a panel, and keep what the way back needs."""
        tape = calls.tape()
        y = calls.product(x, members, tape)
        # Not saved for backward: members of a panel share this product, and may go back one after the other.
        ctx.x, ctx.version = x.detach(), x._version  # noqa: SLF001  public in C++, and the only one
        ctx.calls, ctx.members, ctx.tape = calls, members, tape
        ctx.way_to_anchor = anchor.grad_fn
        return y.detach()  # a view that was made in here could not be changed in place, as activations do

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Return dx, where it is needed."""
        if ctx.x._version != ctx.version:  # noqa: SLF001
            raise RuntimeError(
                f"an input of {ctx.calls.title} was modified by an inplace operation, and is needed as it was: clone it"
            )
        wanted = ctx.needs_input_grad[0]
        # torch.autograd.grad(loss, x) leaves the gradients of parameters alone.
        way = ctx.way_to_anchor
        learnt = way is not None and torch._C._will_engine_execute_node(way)  # noqa: SLF001
        dx = ctx.calls.transposed(ctx.x, dy, ctx.members, ctx.tape, wanted=wanted, learnt=learnt)
        return dx, None, None, None
