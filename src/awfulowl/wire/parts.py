"""What messages are made of: handles, the headers of tensors, and the names of blocks and sums."""

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from awfulowl.blocks.kernels import Convolution, Dense, Kernel

MOST: Final = 2**31 - 1

Handle = Annotated[bytes, Meta(min_length=16, max_length=16)]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, Meta(ge=1, le=MOST)]
Seed = Annotated[bytes, Meta(min_length=32, max_length=32)]
Dtype = Literal["float32", "float16", "bfloat16", "float64", "int8", "int16", "int32", "int64", "uint8"]


class TensorHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Type and shape of one tensor; its bytes follow the header, little-endian, in order.

    With a `seed` no bytes follow: the tensor is the keystream of AES-256 in counter mode under that key.
    """

    dtype: Dtype
    shape: tuple[Natural, ...]
    seed: Seed | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"TensorHeader({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show to `rich` what `repr` shows: no seed."""
        return [("dtype", self.dtype), ("shape", self.shape), ("seeded", self.seed is not None)]


class Sheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A full rectangle of blocks: its tensor is (sum of row sizes, sum of slice sizes / groups, *size).

    Where blocks come `apart`, each has a tensor of its own, (row size, slice size / groups, *size), row by row.
    """

    rows: tuple[Handle, ...]
    row_sizes: tuple[Size, ...]
    slices: tuple[Handle, ...]
    slice_sizes: tuple[Size, ...]
    kernel: Dense | Convolution
    groups: Size = 1
    apart: bool = False

    @property
    def takes(self) -> int:
        """How many tensors come along for each of its parts."""
        return len(self.row_sizes) * len(self.slice_sizes) if self.apart else 1

    @property
    def cut(self) -> list[tuple[int, int]]:
        """The outputs and inputs of its tensor, or of each of them where blocks come apart."""
        if self.apart:
            return list(product(self.row_sizes, self.slice_sizes))
        return [(sum(self.row_sizes), sum(self.slice_sizes))]

    def fault(self, tensors: Sequence[TensorHeader]) -> str | None:
        """Say what is wrong with this sheet and its tensor or tensors, or return None."""
        if not self.rows or not self.slices:
            return "a sheet has no rows or no slices"
        if len(self.rows) != len(self.row_sizes) or len(self.slices) != len(self.slice_sizes):
            return "a sheet has not one size for each handle"
        if not distinct(self.rows) or not distinct(self.slices):
            return "a sheet names a handle twice"
        if not _fits_torch(self.kernel):
            return f"a sheet's kernel has a stride, padding or dilation over {MOST}"
        if any((tensor.dtype, tensor.shape[2:]) != (tensors[0].dtype, tensors[0].shape[2:]) for tensor in tensors):
            return "a sheet has blocks of several types or kernel sizes"
        found = (self._misfit(*each) for each in zip(self.cut, tensors, strict=True))
        return next(filter(None, found), None)

    def _misfit(self, wanted: tuple[int, int], tensor: TensorHeader) -> str | None:
        (outputs, inputs), axes = wanted, _axes(self.kernel)
        fits = (
            len(tensor.shape) == 2 + axes
            and tensor.shape[0] == outputs
            and tensor.shape[1] * self.groups == inputs
            and (axes > 0 or self.groups == 1)
            and all(tensor.shape[2:])
        )
        what = "a block" if self.apart else "a sheet"
        return None if fits else f"{what} of {outputs} x {inputs} comes with a tensor of shape {tensor.shape}"


class Term(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sum: for each of `rows`, the blocks at `slices` times their inputs, added up at the device."""

    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]


def distinct(handles: tuple[Handle, ...]) -> bool:
    """Say whether no handle comes twice."""
    return len(set(handles)) == len(handles)


def _axes(kernel: Kernel) -> int:
    return len(kernel.stride) if isinstance(kernel, Convolution) else 0


def _fits_torch(kernel: Kernel) -> bool:
    """Whether every number of a kernel is one that torch can take; that they make sense the kernel itself checks."""
    if isinstance(kernel, Dense):
        return True
    return max(*kernel.stride, *kernel.padding, *kernel.dilation) <= MOST
