"""Gradients that see through dead units: ReLU whose derivative is not 0 where the unit is off."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_RELUS: Final = frozenset({functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})


class _Leaky(torch.autograd.Function):
    """Forward as the activation does; backward with the mask leak + (1 - leak) [on]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leak: float) -> Tensor:
        y = x.clamp_min(0.0)
        ctx.save_for_backward(y)
        ctx.leak = leak
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return gradients[0] * (y > 0).to(y.dtype).mul_(1 - ctx.leak).add_(ctx.leak), None


class Softened(TorchFunctionMode):
    """Inside the block ReLUs compute what they always do, and their derivative is 1 where on and `leak` where off.

    A layer of zeros leaves units of negative bias off, and the plain gradient is blind to all their weights. With
    `leak` 1 the network is linear for the gradient; with 0 nothing changes.
    """

    def __init__(self, leak: float) -> None:
        super().__init__()
        self._leak = leak

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace ReLUs in every form that they are called in, methods and in-place ones included."""
        named = dict(kwargs or {})
        if func not in _RELUS:
            return func(*args, **named)
        x = args[0] if args else named["input"]
        # Never in place: what goes in may be needed again, or be a leaf.
        if self._leak == 0:
            return torch.relu(x)
        return _Leaky.apply(x, self._leak)  # type: ignore[no-untyped-call]
