"""Read the pickles of CIFAR-10 and CIFAR-100 without running anything that is in them.

A pickle is a program. The official batches, written by Python 2, need dictionaries, lists, integers, byte
strings and arrays of bytes, so

1. every instruction is on a list of those that such a pickle needs, their number is bounded, and a place in
   the memo is at most the number of the instruction (a larger one would allocate all places before it);
2. the three names of numpy that stand in the batches resolve to classes of this module that keep and check
   what they are given; every other name is refused.

No numpy function is called, so an array of a forged size is not allocated either.
"""

import io
import pickle
import pickletools
from typing import ClassVar, Final

import torch
from torch import Tensor

from awfulowl.errors import InputError

_MOST_INSTRUCTIONS: Final = 2_000_000
"""The training set of CIFAR-100 has about 0.4 million."""

_INSTRUCTIONS: Final = frozenset(
    {"PROTO", "STOP", "MARK", "NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2"}
    | {"BINSTRING", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    | {"EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"}
    | {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD"}
)
_PUTS: Final = frozenset({"BINPUT", "LONG_BINPUT"})
_FAILURES: Final = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)


class StoredArray:
    """What `numpy.ndarray` stands for in a batch: bytes and their shape."""

    __slots__ = ("_raw", "_shape", "_transposed")

    def __init__(self, *_: object) -> None:
        self._shape = (0, 0)
        self._raw = b""
        self._transposed = False

    def __setstate__(self, state: object) -> None:
        """Take over what numpy wrote: version, shape, type, order, bytes."""
        match state:
            case (int(), (int() as rows, int() as columns), _StoredType(), bool(transposed), bytes(raw)) if (
                rows >= 0 and columns >= 0 and len(raw) == rows * columns
            ):
                self._shape, self._raw, self._transposed = (rows, columns), raw, transposed
            case _:
                raise pickle.UnpicklingError("an array that is not a table of bytes")

    def tensor(self) -> Tensor:
        """Return the bytes as a uint8 tensor of its own, (rows, columns)."""
        if not self._raw:
            return torch.empty(self._shape, dtype=torch.uint8)
        flat = torch.frombuffer(bytearray(self._raw), dtype=torch.uint8)
        return flat.reshape(self._shape[::-1]).T.contiguous() if self._transposed else flat.reshape(self._shape)


class _StoredType:
    """What `numpy.dtype` stands for in a batch: unsigned bytes, or nothing."""

    __slots__ = ()

    def __init__(self, code: object, *_: object) -> None:
        if code != b"u1":
            raise pickle.UnpicklingError("an array of another type than uint8")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment: a byte has neither."""


class _Unpickler(pickle.Unpickler):
    _names: ClassVar[dict[tuple[str, str], type]] = {
        ("numpy.core.multiarray", "_reconstruct"): StoredArray,
        ("numpy", "ndarray"): StoredArray,
        ("numpy", "dtype"): _StoredType,
    }

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no official batch does")
        return self._names[module, name]


def unpickle_batch(raw: bytes, where: str) -> dict[bytes, object]:
    """Return the dictionary that an official CIFAR batch holds, with `StoredArray` for arrays.

    Args:
        raw: the file's content.
        where: its name, for errors.

    Raises:
        InputError: the pickle holds anything else, or is damaged.
    """
    try:
        _scan(raw)
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except _FAILURES as error:
        raise InputError(f"{where}: refused or damaged: {error}; get the official archive") from error
    if not isinstance(batch, dict):
        raise InputError(f"{where}: holds no dictionary; get the official archive")
    return batch


def _scan(raw: bytes) -> None:
    for count, (instruction, argument, _) in enumerate(pickletools.genops(raw), 1):
        if instruction.name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"the instruction {instruction.name}, which no official batch has")
        if count > _MOST_INSTRUCTIONS:
            raise pickle.UnpicklingError(f"more than {_MOST_INSTRUCTIONS} instructions")
        if instruction.name in _PUTS and isinstance(argument, int) and argument > count:
            raise pickle.UnpicklingError(f"place {argument} of the memo at instruction {count}")
