"""What the owner does with integers, in loops that are compiled where numba is installed; None where no loop can.

PyTorch goes through memory for each operation: five times to round inputs, four for a sum of numbers of 3 bytes, three
to scale a sum back. A loop goes once, and gives the same bits.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from awfulowl.compiling import Loops

_SUMS: Final = frozenset({torch.int32, torch.int64})


def _call_all() -> None:
    some, step = torch.ones(1, 1), torch.ones(1)
    for dtype in (torch.int8, torch.int16):
        round_all(some, 1.0, 1.0, dtype)
    parts = torch.ones(1, dtype=torch.int16), torch.ones(1, dtype=torch.int8)
    put(torch.ones(1, dtype=torch.int32), parts)
    add(torch.ones(1, dtype=torch.int32), parts)
    for dtype in _SUMS:
        scale(some.to(dtype), step, step, some)


_LOOPS: Final = Loops("awfulowl.arithmetic.loops", _call_all)

prepare: Final = _LOOPS.prepare


def round_all(x: Tensor, largest: float, smallest: float, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return the step of each vector, (vectors,) float32, and its whole multiples of it, of the shape of x.

    A step is not finite where a vector is not, and its multiples mean nothing then.

    Args:
        x: (vectors, ...) float32.
        largest: how many steps the largest number of a vector has.
        smallest: the smallest step, a float32.
        dtype: int8 or int16.
    """
    if _LOOPS.module is None or x.dtype is not torch.float32 or x.dim() < 2 or not _plain(x):
        return None
    x = x.detach()
    out, steps = torch.empty(x.shape, dtype=dtype), torch.empty(len(x))
    rows, bounds = (len(x), -1) if len(x) else (0, 0), torch.tensor([largest, smallest]).numpy()
    operands = x.view(rows), x.view(torch.int32).view(rows), steps, steps.view(torch.int32), out.view(rows)
    numbers, bits, *results = (tensor.numpy() for tensor in operands)
    _LOOPS.module.round_all(numbers, bits, bounds[0], bounds[1], *results)
    return steps, out


def put(total: Tensor, parts: Sequence[Tensor]) -> bool:
    """Write numbers of 3 bytes, in two parts, to an int32 of their shape, and say whether that was possible."""
    return _of_three(total, parts, "put")


def add(total: Tensor, parts: Sequence[Tensor]) -> bool:
    """Add numbers of 3 bytes, in two parts, to an int32 of their shape, and say whether that was possible."""
    return _of_three(total, parts, "add")


def _of_three(total: Tensor, parts: Sequence[Tensor], loop: str) -> bool:
    if _LOOPS.module is None or [part.dtype for part in parts] != [torch.int16, torch.int8]:
        return False
    if total.dtype is not torch.int32 or any(part.shape != total.shape for part in parts) or not _plain(total, *parts):
        return False
    low, high, out = (tensor.view(-1).numpy() for tensor in (*parts, total))
    getattr(_LOOPS.module, loop)(low, high, out)
    return True


def scale(y: Tensor, of_inputs: Tensor, of_weights: Tensor, out: Tensor) -> bool:
    """Write y · input step · weight step to `out`, and say whether that was possible.

    Args:
        y: (batch, outputs, *space) int32 or int64.
        of_inputs: (batch,) float32.
        of_weights: (outputs,) float32.
        out: float32 of the shape of y.
    """
    floats = (of_inputs, of_weights, out)
    if _LOOPS.module is None or y.dtype not in _SUMS or any(one.dtype is not torch.float32 for one in floats):
        return False
    if not _plain(y, *floats) or out.shape != y.shape or y.numel() == 0:
        return False
    if (of_inputs.shape, of_weights.shape) != (y.shape[:1], y.shape[1:2]):
        return False
    shape = (*y.shape[:2], -1)
    _LOOPS.module.scale(y.view(shape).numpy(), of_inputs.numpy(), of_weights.numpy(), out.view(shape).numpy())
    return True


def _plain(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
