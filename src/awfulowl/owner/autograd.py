"""Products on the fleet as PyTorch differentiates them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from awfulowl.owner.modules import PanelCalls


class FleetProduct(torch.autograd.Function):
    """y = W x with W elsewhere: the way back asks the fleet for dx, and has it learn of x and dy.

    The second operand is a number that requires a gradient where W is trained, so that there is a way back even from
    inputs that need none; it never gets one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, calls: "PanelCalls", members: list[int]) -> Tensor:
        """Return the rows of some members of a panel, and keep what the way back needs."""
        del anchor
        tape = calls.tape()
        y = calls.product(x, members, tape)
        ctx.save_for_backward(x)
        ctx.calls, ctx.members, ctx.tape = calls, members, tape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Return dx, where it is needed."""
        (x,) = ctx.saved_tensors
        dx = ctx.calls.transposed(x, dy, ctx.members, ctx.tape, wanted=ctx.needs_input_grad[0])
        return dx, None, None, None
