"""A message and its tensors to bytes and back; strict, and without copying tensor data.

::

    0   magic b"OWL" · version u8 · header bytes u32 · message bytes u64     (little-endian, 16 bytes)
    16  msgpack `Header`: session, id, body, and type and shape of each tensor
    ..  zeros up to a multiple of 64, then the bytes of the first tensor
    ..  zeros up to a multiple of 64, then the bytes of the second tensor, and so on to the end of the message

Trust rules of `decode`, in order. Nothing is allocated for what a peer announces before it was compared with
a limit and with the bytes that are really there:

1. the prefix is whole, of this protocol and version, and announces exactly the bytes that came;
2. the header is within its limit and is one msgpack value of the types in `messages`: no unknown verb, field
   or element type, nothing behind it;
3. handles, tensors and dimensions are within their limits;
4. the byte counts of the tensors, computed in Python integers, fill the message to its last byte; tensors that are
   given by seeds have none, come with an `apply` or a `load` only, and may take together what one message may;
5. padding is zero; a request has an id and nothing else has one; the tensors suit the verb.

Seeds are returned as they are: whoever wants their numbers expands them, and until then they take no memory.

The tensors that `decode` returns are views of the message. **They are never written to**: whoever else holds
the message, such as a fabric that delivers it twice, would see the change. Who needs to write makes a copy.
"""

import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, overload

import msgspec
import torch
from torch import Tensor

from awfulowl.errors import InputError, LimitError, ProtocolError
from awfulowl.limits import Limits
from awfulowl.randomness import Seeded
from awfulowl.wire.buffers import ALIGNMENT
from awfulowl.wire.messages import PROTOCOL, Body, Header, Request, check_version, handle_count, verb
from awfulowl.wire.parts import Dtype, TensorHeader
from awfulowl.wire.text import plain

if sys.byteorder != "little":
    raise ImportError(
        "awfulowl.wire: tensors travel as little-endian bytes without conversion, and this machine is "
        f"{sys.byteorder}-endian; run owner and devices on little-endian machines"
    )

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"OWL"
DTYPES: Final[dict[Dtype, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_PREFIX: Final = struct.Struct("<3sBIQ")
_HANDLE_BYTES: Final = 18
"""A handle in msgpack: 16 bytes after a mark and a length."""
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Header)

with warnings.catch_warnings():
    # Torch warns once in a process about the first view of read-only bytes. Ours are views on purpose and
    # never written to, so the one warning is spent here, where nobody has to wonder about it.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


class _Place(NamedTuple):
    """Where the bytes of a tensor lie in a message; the gap before `start` is padding."""

    gap: int
    start: int
    stop: int


def encode(
    session: bytes, request_id: int, body: Body, tensors: Sequence[Tensor | Seeded], limits: Limits
) -> list[Buffer]:
    """Return the pieces of a message, to be joined in order.

    The bytes of a contiguous tensor on the CPU are not copied: its piece is a view, so it must not change
    until the pieces are joined.

    Args:
        session: the handle that goes into the header.
        request_id: number of a request, 0 for every other verb.
        body: the verb.
        tensors: whatever shapes the verb takes, of the types in `DTYPES`; or what the receiver expands from a seed.
        limits: what the peer is expected to accept.

    Raises:
        InputError: the tensors do not suit the verb, or are of a type that does not travel.
        LimitError: the message is over a limit.
    """
    header = Header(session=session, id=request_id, body=body, tensors=tuple(map(_described, tensors)))
    if fault := _fault(header):
        raise InputError(f"{fault}; nothing was sent")
    packed = _ENCODER.encode(header)
    _bound_header(len(packed), limits)
    _bound_counts(header, len(packed), limits)
    places = list(_places(header.tensors, _PREFIX.size + len(packed), limits))
    total = places[-1].stop if places else _PREFIX.size + len(packed)
    _bound_message(total, limits)
    pieces: list[Buffer] = [_PREFIX.pack(MAGIC, PROTOCOL, len(packed), total) + packed]
    for place, tensor in zip(places, tensors, strict=True):
        if not isinstance(tensor, Seeded):
            pieces += [bytes(place.start - place.gap), _raw(tensor)]
    return [piece for piece in pieces if len(piece)]


@overload
def decode(message: Buffer, limits: Limits) -> tuple[Header, list[Tensor]]: ...


@overload
def decode(message: Buffer, limits: Limits, *, seeds: bool) -> tuple[Header, list[Tensor | Seeded]]: ...


def decode(
    message: Buffer, limits: Limits, *, seeds: bool = False
) -> tuple[Header, list[Tensor]] | tuple[Header, list[Tensor | Seeded]]:
    """Return the header of a message and its tensors, which are views of it and must not be written to, or seeds.

    Args:
        message: all of it.
        limits: what is accepted.
        seeds: whether its sender may give tensors by seeds, which cost a receiver more than they cost to send.

    Raises:
        VersionError: the message is of another version of the protocol.
        LimitError: the message, or something it announces, is over a limit.
        ProtocolError: it is anything else but one whole message.
    """
    view = memoryview(message)
    body_start = _PREFIX.size + _header_bytes(view, limits)
    header = _header(view[_PREFIX.size : body_start])
    _bound_counts(header, body_start, limits)
    places = list(_places(header.tensors, body_start, limits))
    promised = places[-1].stop if places else body_start
    if promised != len(view):
        raise ProtocolError(f"the header promises {promised} bytes, the message has {len(view)}")
    if any(view[place.gap : place.start].tobytes().strip(b"\0") for place in places):
        raise ProtocolError("the padding between tensors is not zero")
    if fault := _fault(header, seeds=seeds):
        raise ProtocolError(fault)
    return header, [_tensor(view, place, announced) for place, announced in zip(places, header.tensors, strict=True)]


def _described(tensor: Tensor | Seeded) -> TensorHeader:
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise InputError(f"tensors of {tensor.dtype} do not travel; convert to one of {', '.join(DTYPES)}")
    seed = tensor.seed if isinstance(tensor, Seeded) else None
    return TensorHeader(dtype=name, shape=tuple(tensor.shape), seed=seed)


def _raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor as a view; numpy has no bfloat16, but every type can be seen as uint8."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _tensor(view: memoryview, place: _Place, announced: TensorHeader) -> Tensor | Seeded:
    dtype = DTYPES[announced.dtype]
    if announced.seed is not None:
        return Seeded(announced.seed, dtype, announced.shape)
    if place.start == place.stop:
        return torch.empty(announced.shape, dtype=dtype)  # torch makes no view of no bytes
    count = (place.stop - place.start) // dtype.itemsize
    return torch.frombuffer(view, dtype=dtype, count=count, offset=place.start).reshape(announced.shape)


def _header_bytes(view: memoryview, limits: Limits) -> int:
    if len(view) < _PREFIX.size:
        raise ProtocolError(f"a message of {len(view)} bytes is shorter than its prefix of {_PREFIX.size}")
    magic, version, header_bytes, total = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise ProtocolError("these bytes are no message: they do not begin with the mark of one")
    check_version("a message", version)
    _bound_message(total, limits)
    _bound_header(header_bytes, limits)
    if total != len(view):
        raise ProtocolError(f"a message announces {total} bytes and has {len(view)}")
    if header_bytes > total - _PREFIX.size:
        raise ProtocolError(f"a header of {header_bytes} bytes does not fit a message of {total}")
    return int(header_bytes)


def _header(packed: memoryview) -> Header:
    try:
        return _DECODER.decode(packed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the header is not one of this protocol: {plain(str(error), 200)}") from None


def _fault(header: Header, *, seeds: bool = True) -> str | None:
    if isinstance(header.body, Request) != (header.id > 0):
        return f"{verb(header.body)} with id {header.id}: requests count from 1, other messages have 0"
    seeded = any(tensor.seed is not None for tensor in header.tensors)
    fault = "takes no seeds" if seeded and not (seeds and header.body.seeds) else header.body.fault(header.tensors)
    return f"{verb(header.body)} {fault}" if fault else None


def _bound_message(total: int, limits: Limits) -> None:
    if total > limits.max_message_bytes:
        raise LimitError(f"a message of {total} bytes, max_message_bytes is {limits.max_message_bytes}")


def _bound_header(header_bytes: int, limits: Limits) -> None:
    if header_bytes > limits.max_header_bytes:
        raise LimitError(f"a header of {header_bytes} bytes, max_header_bytes is {limits.max_header_bytes}")


def _bound_counts(header: Header, header_bytes: int, limits: Limits) -> None:
    if len(header.tensors) > limits.max_tensors:
        raise LimitError(f"{len(header.tensors)} tensors, max_tensors is {limits.max_tensors}")
    dimensions = max((len(tensor.shape) for tensor in header.tensors), default=0)
    if dimensions > limits.max_dimensions:
        raise LimitError(f"a tensor of {dimensions} dimensions, max_dimensions is {limits.max_dimensions}")
    # A short header cannot hold too many handles, so the hot path counts none.
    if header_bytes > _HANDLE_BYTES * limits.max_handles and handle_count(header.body) > limits.max_handles:
        raise LimitError(f"{handle_count(header.body)} handles, max_handles is {limits.max_handles}")


def _places(tensors: Sequence[TensorHeader], end: int, limits: Limits) -> Iterator[_Place]:
    """Lay the tensors out after byte `end`, and refuse tensors that no message could hold."""
    expanded = 0
    for tensor in tensors:
        size = DTYPES[tensor.dtype].itemsize
        # An empty tensor of giant other dimensions holds no byte, but overflows in torch.
        extent = size
        for length in tensor.shape:
            extent *= max(length, 1)
        if extent > limits.max_message_bytes:
            raise LimitError(f"a tensor of {extent} bytes, max_message_bytes is {limits.max_message_bytes}")
        if tensor.seed is not None:
            expanded += extent
            if expanded > limits.max_message_bytes:
                raise LimitError(f"seeds for {expanded} bytes, max_message_bytes is {limits.max_message_bytes}")
            yield _Place(end, end, end)
            continue
        start = -(-end // ALIGNMENT) * ALIGNMENT
        stop = start if 0 in tensor.shape else start + extent
        yield _Place(end, start, stop)
        end = stop
