"""Dense products at a device: PyTorch's own, or oneDNN's where that is right and faster.

PyTorch multiplies float32 matrices on CPUs with MKL, which uses no AVX-512 on processors of other makers. oneDNN, which
PyTorch brings along for its convolutions, does, and takes .45 of the time on AMD's Zen 5, .8 to .95 on Zen 4. The two
round differently, so the processor decides and no clock does: a training that is resumed comes to the same bits.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.verification.rounding import variance

Multiply = Callable[[Tensor, Tensor], Tensor]
"""(x (batch, in), W (out, in)) -> x Wᵀ (batch, out), float32."""

_INTEL: Final = "GenuineIntel"
_CPU_INFO: Final = Path("/proc/cpuinfo")

_TRIAL: Final = (64, 512, 1024)
"""Batch, inputs, outputs of the trial: some hundred microseconds."""


def plain(x: Tensor, weight: Tensor) -> Tensor:
    """Return x Wᵀ as PyTorch does."""
    return functional.linear(x, weight)


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """Return x Wᵀ as oneDNN does; of weights that are a part of others as PyTorch does."""
    if not weight.is_contiguous():
        return plain(x, weight)  # oneDNN takes these too, by a loop that is a thousand times slower
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, None, "none", [], None)  # noqa: SLF001  no public name
    return product


def plain_transposed(dy: Tensor, weight: Tensor) -> Tensor:
    """Return dy W as PyTorch does."""
    return dy @ weight


def onednn_transposed(dy: Tensor, weight: Tensor) -> Tensor:
    """Return dy W as oneDNN does, which reads whole matrices in either order; of parts as PyTorch does."""
    if not weight.is_contiguous():
        return plain_transposed(dy, weight)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(dy.contiguous(), weight.T, None, "none", [], None)  # noqa: SLF001
    return product


class Products(NamedTuple):
    """How to multiply with a matrix W (out, in), and with its transpose.

    `multiply` is from x (batch, in) and W to x Wᵀ (batch, out), `transposed` from dy (batch, out) and W to dy W.
    """

    multiply: Multiply
    transposed: Multiply


PLAIN: Final = Products(plain, plain_transposed)


@functools.cache
def fastest() -> Products:
    """Return those that are faster on this kind of processor, if they are right; every start makes the same choice."""
    if not mkl_holds_back():
        return PLAIN
    right = is_right(onednn) and is_right(lambda x, weight: onednn_transposed(x, weight.T.contiguous()))
    return Products(onednn, onednn_transposed) if right else PLAIN


def mkl_holds_back() -> bool:
    """Say whether this processor has AVX-512 that MKL does not use; False where we cannot tell who made it."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return wide and has_mkl and maker() not in (None, _INTEL)


def maker(file: Path = _CPU_INFO) -> str | None:
    """Return who made this processor, as it names itself, from what Linux says of it; None where nothing does."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = (line.partition(":") for line in text.splitlines())
    return next((value.strip() or None for name, _, value in fields if name.strip() == "vendor_id"), None)


def is_right(multiply: Multiply) -> bool:
    """Say whether errors are those of float32 sums, in a trial against float64; half precision and TF32 are not.

    Their mean square is held to what the owner's check takes for honest (`verification.rounding`).
    """
    x, weight = _operands()
    try:
        y = multiply(x, weight)
    except (AttributeError, RuntimeError):  # this build of PyTorch has no such product
        return False
    exact = x.double() @ weight.double().T
    energy = x.double().square() @ weight.double().square().T + exact.square()
    if y.shape != exact.shape or y.dtype is not torch.float32:
        return False
    return bool((y - exact).square().mean() <= variance(x.shape[1]) * energy.mean())


def _operands() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, inputs, outputs = _TRIAL
    return torch.randn(batch, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)


def full_precision() -> None:
    """Turn off every mode in which PyTorch would multiply float32 with fewer bits (design, section 3)."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
