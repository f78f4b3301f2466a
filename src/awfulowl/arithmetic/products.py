"""Exact products of integers, modulo 2^(8 width): several ways, one answer.

`Oracle` is slow and plainly right. `Pieces` multiplies in float64, on every machine. `Digits` multiplies bytes,
where the processor has instructions for that: an eighth of the time of a float32 product, if it is also right.
Which of them serves is found out when a process first multiplies: whatever is not equal to the oracle is out,
and of the others the fastest is in.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import ClassVar, Final, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional

from awfulowl.arithmetic import digits
from awfulowl.arithmetic.patches import patches
from awfulowl.arithmetic.pieces import in_pieces
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, output_shape
from awfulowl.errors import InputError

_WHOLE: Final = 9
"""Bytes of modulus of weights that stand for themselves."""

_PIECE: Final = 1 << 20
"""Weights held in float64 at a time."""

_ALIASED: Final = 2048
"""Rows of a multiple of so many bytes begin in few sets of a processor's cache, and drive each other out of it."""

_GAP: Final = 64
"""Bytes between such rows, a line of the cache: a product of 64 x 4096 x 4096 takes .64 of its time."""


class Weights(NamedTuple):
    """Weights as a backend wants them.

    `planes` is (planes, outputs, inputs / groups, *size), so that a rectangle of it is a rectangle of the weights; in
    memory inputs come last, as in patches, and rows may lie apart. They stand for the weights modulo
    256^modulus_bytes.
    """

    planes: Tensor
    modulus_bytes: int = _WHOLE

    @property
    def nbytes(self) -> int:
        """Bytes that they take, with what is between rows."""
        planes, outputs = self.planes.shape[:2]
        return max(self.planes.nbytes, planes * outputs * self.planes.stride(1) * self.planes.itemsize)


class Backend(ABC):
    """One way to multiply integers; unless it says otherwise, with weights as they are, in one plane."""

    name: ClassVar[str]

    def prepare(self, weight: Tensor) -> Weights:
        """Return integer weights (outputs, inputs / groups, *size) as `multiply` wants them."""
        return Weights(_like_patches(weight[None]))

    def restore(self, planes: Tensor) -> Tensor:
        """Return the integers that `planes` were prepared from."""
        return planes[0]

    @abstractmethod
    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        """Return x wᵀ (M, N) modulo 256^width, for planes of (N, K) weights and x (M, K)."""

    def upright(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        """Return the transpose of `dense`, w xᵀ (N, M), in any order of memory."""
        return self.dense(planes, x, width).mT

    @final
    def multiply(self, kernel: Kernel, weights: Weights, x: Tensor, groups: int, width: int) -> Tensor:
        """Return the product of integers, modulo 256^width.

        Args:
            kernel: dense, or a convolution.
            weights: from `prepare`, or a rectangle of them.
            x: (batch, inputs) or (batch, inputs, *space), integers.
            groups: groups of a convolution.
            width: bytes of a number in the answer.

        Returns:
            (batch, outputs) or (batch, outputs, *space'): int32 up to 4 bytes, int64 beyond.

        Raises:
            InputError: there are no samples, or these weights are known modulo fewer bytes than `width`.
        """
        if len(x) == 0:
            raise InputError("a product of no samples")
        if width > weights.modulus_bytes:
            raise InputError(f"weights modulo 2^{8 * weights.modulus_bytes} give no products of {width} bytes")
        if isinstance(kernel, Dense):
            return self.dense(weights.planes, x, width)
        planes = weights.planes
        size = planes.shape[3:]
        shape = output_shape(kernel, planes.shape[1], tuple(size), x.shape)
        if groups > 1:
            return _in_ring(_convolve(kernel, size, x, shape, partial(_grouped, self.restore(planes), groups)), width)
        matrix = planes.movedim(2, -1).reshape(*planes.shape[:2], -1)
        return _convolve(kernel, size, x, shape, lambda rows: self.upright(matrix, rows, width))


class Oracle(Backend):
    """PyTorch's product of int64, which wraps around as the ring does: some thousand times slower than floats."""

    name: ClassVar[str] = "oracle"

    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        """Multiply in int64."""
        return _in_ring(x.to(torch.int64) @ planes[0].to(torch.int64).T, width)


class Pieces(Backend):
    """Products of digits in float64 (`pieces`): on every machine."""

    name: ClassVar[str] = "float64"

    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        """Multiply in float64, some outputs at a time."""
        weight = planes[0]
        step = max(1, _PIECE // max(1, weight.shape[1]))
        parts = [in_pieces(_linear, x, rows, weight.shape[1]) for rows in torch.split(weight, step)]
        return _in_ring(torch.cat(parts, dim=1), width)


class Digits(Backend):
    """Products of bytes (`digits`), by the instructions that processors and GPUs have for them."""

    name: ClassVar[str] = "int8"

    def prepare(self, weight: Tensor) -> Weights:
        """Split the weights into digits."""
        length = weight[:1].numel()
        gap = _GAP if length and length % _ALIASED == 0 and not weight.is_cuda else 0
        planes = _like_patches(digits.split(weight), gap)
        return Weights(planes, weight.itemsize if digits.carries(weight) else _WHOLE)

    def restore(self, planes: Tensor) -> Tensor:
        """Put the digits together."""
        return digits.join(planes)

    def dense(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        """Multiply digit by digit."""
        if width > x.itemsize and digits.carries(x):
            x = x.to(torch.int64)
        return digits.multiply(multiply8, digits.split(x), planes, width)

    def upright(self, planes: Tensor, x: Tensor, width: int) -> Tensor:
        """Multiply the other way round where both are bytes, and sums of 32 bits will do: one product is as good."""
        if width <= 4 and len(planes) == x.itemsize == 1:
            return multiply8(planes[0], x)
        return super().upright(planes, x, width)


def _like_patches(planes: Tensor, gap: int = 0) -> Tensor:
    """Return planes (planes, outputs, inputs / groups, *size) whose inputs lie side by side in memory, rows apart."""
    last = planes.movedim(2, -1)
    length = last[:1, :1].numel()
    rows = planes.new_zeros((*planes.shape[:2], length + gap))[..., :length]
    return rows.view(last.shape).copy_(last).movedim(-1, 2)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return x.to(torch.float64) @ weight.to(torch.float64).mT


def multiply8(x: Tensor, weight: Tensor) -> Tensor:
    """Return x wᵀ (M, N) int32, modulo 2^32, of (M, K) and (N, K) int8."""
    if not x.is_cuda:
        product: Tensor = torch._int_mm(_in_order(x), _in_order(weight.T))  # noqa: SLF001  no public name
        return product
    return _in_tiles(x, weight)


def _in_order(matrix: Tensor) -> Tensor:
    """Copy a matrix unless it is stored row by row, or column by column, without an overlap.

    oneDNN refuses others, and PyTorch 2.13 then returns uninitialised memory (pytorch/pytorch issue 195066). Among them
    are single rows and columns, since what a dimension of length 1 has for a stride means nothing, and the patches of
    one sample of one channel, which overlap.
    """
    (rows, length), (down, across) = matrix.shape, matrix.stride()
    by_row = across == 1 and down >= length
    by_column = down == 1 and across >= rows and min(rows, length) > 1
    return matrix if by_row or by_column else matrix.clone(memory_format=torch.contiguous_format)


def _in_tiles(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply as CUDA wants it: more than 16 rows, other lengths multiples of 8. Zeros change no sum."""
    rows, terms = x.shape
    outputs = len(weight)
    x = functional.pad(x, (0, -terms % 8, 0, max(0, 32 - rows)))
    weight = functional.pad(weight, (0, -terms % 8, 0, -outputs % 8))
    product: Tensor = torch._int_mm(x, weight.T)  # noqa: SLF001  no public name
    return product[:rows, :outputs]


def _in_ring(y: Tensor, width: int) -> Tensor:
    return y.to(torch.int32) if width <= 4 else y


def _convolve(
    kernel: Convolution, size: Sequence[int], x: Tensor, shape: tuple[int, ...], multiply: Callable[[Tensor], Tensor]
) -> Tensor:
    """Multiply patches, some at a time.

    Args:
        kernel: stride, padding and dilation.
        size: taps along each axis.
        x: (batch, channels, *space).
        shape: (batch, outputs, *space') of the answer.
        multiply: from rows of patches to (outputs, rows): so numbers of one output lie side by side, as in the answer.
    """
    y: Tensor | None = None
    for rows, (samples, positions) in patches(kernel, size, x):
        part = multiply(rows)
        if y is None:
            y = part.new_empty(shape)
        target = y[samples, :, positions].movedim(1, 0)
        target.copy_(part.view(target.shape))
    if y is None:
        raise InputError(f"a convolution without outputs: {shape}")
    return y


def _grouped(weight: Tensor, groups: int, rows: Tensor) -> Tensor:
    """Return products of patches with all groups at once, (outputs, rows), in float64: there may be hundreds of groups.

    Args:
        weight: (outputs, inputs / groups, *size).
        groups: of the convolution.
        rows: (rows, taps * inputs).
    """
    matrix = weight.movedim(1, -1).reshape(groups, len(weight) // groups, -1)
    by_group = rows.view(len(rows), -1, groups, weight.shape[1]).movedim(2, 0).reshape(groups, len(rows), -1)
    return in_pieces(_linear, by_group, matrix, matrix.shape[2]).mT.reshape(len(weight), len(rows))


BACKENDS: Final = (Oracle(), Pieces(), Digits())
"""Contract tests run every one; `fastest` chooses."""

_ORACLE: Final = BACKENDS[0]


@functools.cache
def fastest(device: str = "cpu") -> Backend:
    """Return the fastest backend that is right, as this machine turns out; tried once in a process."""
    right = [backend for backend in BACKENDS[1:] if is_right(backend, device)]
    return min(right or BACKENDS[:1], key=lambda backend: _seconds(backend, device))


def is_right(backend: Backend, device: str = "cpu") -> bool:
    """Say whether a backend gives the oracle's bits, also where sums are as large as they get.

    Processors before VNNI saturate pairs of products of bytes at 16 bits: the largest numbers, all of one sign, tell.
    So many of them that their sum does not fit 32 bits tell sums that saturate there, or that are kept in float32.
    """
    generator = torch.Generator().manual_seed(0)
    for dtypes, shape, width in _TRIALS:
        x, weight = (_trial(dtype, rows, shape[2], generator) for dtype, rows in zip(dtypes, shape[:2], strict=True))
        try:
            prepared = backend.prepare(weight.to(device))
            y = backend.dense(prepared.planes, x.to(device), width).cpu()
        except (AttributeError, RuntimeError):  # this build of PyTorch, or this processor, has no such product
            return False
        if not torch.equal(y, _ORACLE.dense(_ORACLE.prepare(weight).planes, x, width)):
            return False
    return True


_Trial = tuple[tuple[torch.dtype, torch.dtype], tuple[int, int, int], int]

_TRIALS: Final[Sequence[_Trial]] = (
    ((torch.int8, torch.int8), (5, 7, 1), 4),
    ((torch.int8, torch.int8), (5, 7, 3), 4),
    ((torch.int8, torch.int8), (5, 1, 65), 4),
    ((torch.int8, torch.int8), (1, 7, 65), 4),
    ((torch.int8, torch.int8), (33, 65, 515), 4),
    ((torch.int8, torch.int8), (2, 2, 2**17 + 5), 4),
    ((torch.int16, torch.int16), (6, 9, 260), 6),
    ((torch.int32, torch.int8), (17, 33, 129), 4),
    ((torch.int32, torch.int32), (17, 33, 129), 4),
    ((torch.int64, torch.int16), (4, 11, 65), 8),
    ((torch.int64, torch.int64), (4, 11, 65), 8),
)
"""Types of inputs and weights; samples, outputs, terms; bytes of the answer."""


def _trial(dtype: torch.dtype, rows: int, terms: int, generator: torch.Generator) -> Tensor:
    """Return numbers of which a third are the smallest, a third the largest, and a third anything between."""
    bounds = torch.iinfo(dtype)
    largest = {torch.int8: 127, torch.int16: 127 * 257}.get(dtype, bounds.max)
    x = torch.randint(bounds.min, bounds.max, (rows, terms), dtype=torch.int64, generator=generator).clamp_(
        -largest, largest
    )
    x[::3], x[1::3] = -largest if dtype is not torch.int8 else bounds.min, largest
    return x.to(dtype)


def _seconds(backend: Backend, device: str) -> float:
    """Return the shortest of three times of a product."""
    x = torch.ones(64, 512, dtype=torch.int8, device=device)
    weights = backend.prepare(torch.ones(512, 512, dtype=torch.int8, device=device))
    times = []
    for _ in range(3):
        start = perf_counter()
        backend.dense(weights.planes, x, 4).cpu()
        times.append(perf_counter() - start)
    return min(times)
