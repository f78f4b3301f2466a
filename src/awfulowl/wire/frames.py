"""Messages in frames that a fabric can carry, and back, though it may lose, double, reorder or damage them.

::

    0   magic b"OWF" · version u8 · piece u32 · number u64 · total u64 · offset u64     (little-endian)
    32  xxh3-64 of the payload, seeded with the xxh3-64 of bytes 0 to 32 · 24 zeros
    64  payload: bytes [offset, offset + piece) of the message, fewer at its end

Every frame of a message but the last has `piece` bytes of payload, so offsets are multiples of it and two
frames cannot overlap. The frame header has 64 bytes, so that tensors in a message of one frame stay aligned as
the frame itself is. The digest finds damage; who sent the frame is for the fabric to prove.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import xxhash

from awfulowl.errors import DamagedError, LimitError, ProtocolError
from awfulowl.limits import Limits
from awfulowl.wire.buffers import ALIGNMENT, BUFFERS
from awfulowl.wire.codec import Buffer
from awfulowl.wire.messages import PROTOCOL, check_version

MAGIC: Final = b"OWF"
FRAME_HEADER_BYTES: Final = ALIGNMENT

_HEAD: Final = struct.Struct("<3sBIQQQ")
_DIGEST: Final = struct.Struct("<Q24s")
_ZEROS: Final = bytes(24)


class _Head(NamedTuple):
    """What a frame says about itself, checked."""

    piece: int
    number: int
    total: int
    offset: int


class Frame:
    """A frame as the parts that it is made of, in order, to be sent from where they lie; `bytes` joins them."""

    __slots__ = ("_size", "parts")

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self.parts: Final = parts
        self._size: Final = sum(map(len, parts))

    def __len__(self) -> int:
        """Return the bytes of the whole frame."""
        return self._size

    def __bytes__(self) -> bytes:
        """Return the frame as it travels."""
        return b"".join(self.parts)


def frames(message: Sequence[Buffer], number: int, chunk_bytes: int) -> Iterator[bytes]:
    """Cut a message as `in_pieces` does; every byte of it is copied once, into its frame."""
    return map(bytes, in_pieces(message, number, chunk_bytes))


def in_pieces(message: Sequence[Buffer], number: int, chunk_bytes: int) -> Iterator[Frame]:
    """Cut a message into frames of at most `chunk_bytes`, whose parts are views of it.

    Args:
        message: the pieces that `codec.encode` returned.
        number: of this message, never used before by this sender towards this receiver.
        chunk_bytes: length of a frame, its header of 64 bytes included.
    """
    piece = chunk_bytes - FRAME_HEADER_BYTES
    total = sum(map(len, message))
    for index, parts in enumerate(_cut(message, piece)):
        head = _HEAD.pack(MAGIC, PROTOCOL, piece, number, total, index * piece)
        digest = xxhash.xxh3_64(seed=xxhash.xxh3_64_intdigest(head))
        for part in parts:
            digest.update(part)
        yield Frame((head + _DIGEST.pack(digest.intdigest(), _ZEROS), *parts))


class Assembler:
    """Puts the messages of one peer together again, within limits.

    Frames of a message may come in any order, and any of them again. A number counts once: what arrives of a
    finished message is ignored, for as long as its number is remembered. Unfinished messages are never waited
    for: when a new one needs their place, those that got no frame for longest are dropped and counted in
    `dropped`.
    """

    def __init__(self, limits: Limits) -> None:
        self.dropped = 0
        self._limits = limits
        self._partial: dict[int, _Partial] = {}  # the one that waited longest comes first
        self._finished: dict[int, None] = {}  # oldest first

    def feed(self, frame: Buffer) -> memoryview | None:
        """Take a frame and return the message that it completes, if it does.

        A message of one frame is a view of the frame; a longer one is a buffer of its own.

        Raises:
            DamagedError: the frame is not what was sent.
            VersionError: the frame is of another version of the protocol.
            LimitError: the frame, or the message that it announces, is over a limit.
            ProtocolError: the frame contradicts itself, or an earlier one of its message.
        """
        head, payload = _opened(memoryview(frame), self._limits)
        if head.number in self._finished:
            return None
        if head.total <= head.piece:
            return self._finish(head.number, payload)
        partial = self._partial.pop(head.number, None) or self._begin(head)
        self._partial[head.number] = partial
        partial.add(head, payload)
        if partial.missing:
            return None
        del self._partial[head.number]
        return self._finish(head.number, partial.buffer)

    def _begin(self, head: _Head) -> "_Partial":
        promised = head.total + sum(len(partial.buffer) for partial in self._partial.values())
        while self._partial and (
            len(self._partial) >= self._limits.max_partial_messages or promised > self._limits.max_partial_bytes
        ):
            promised -= len(self._partial.pop(next(iter(self._partial))).buffer)
            self.dropped += 1
        return _Partial(head)

    def _finish(self, number: int, message: memoryview) -> memoryview:
        self._finished[number] = None
        if len(self._finished) > self._limits.remembered_messages:
            del self._finished[next(iter(self._finished))]
        return message


class _Partial:
    """A message of several frames under assembly."""

    __slots__ = ("_first", "_seen", "buffer", "missing")

    def __init__(self, head: _Head) -> None:
        self.buffer = BUFFERS.take(head.total)
        self.missing = head.total
        self._first = head
        self._seen: set[int] = set()

    def add(self, head: _Head, payload: memoryview) -> None:
        if (head.total, head.piece) != (self._first.total, self._first.piece):
            raise ProtocolError(f"frames of message {head.number} disagree on its length or on theirs")
        if head.offset in self._seen:
            return
        self._seen.add(head.offset)
        self.buffer[head.offset : head.offset + len(payload)] = payload
        self.missing -= len(payload)


def _cut(message: Sequence[Buffer], piece: int) -> Iterator[list[memoryview]]:
    """Yield the parts of one frame after the other."""
    parts: list[memoryview] = []
    room = piece
    for buffer in message:
        view = memoryview(buffer)
        while view:
            part, view = view[:room], view[room:]
            parts.append(part)
            room -= len(part)
            if not room:
                yield parts
                parts, room = [], piece
    if parts:
        yield parts


def _opened(frame: memoryview, limits: Limits) -> tuple[_Head, memoryview]:
    """Return what a frame says about itself and its payload, both whole, consistent and within limits."""
    if len(frame) > limits.max_payload_bytes:
        raise LimitError(f"a frame of {len(frame)} bytes, max_payload_bytes is {limits.max_payload_bytes}")
    if len(frame) <= FRAME_HEADER_BYTES:
        raise DamagedError(f"a frame of {len(frame)} bytes has no payload behind its header")
    magic, version, piece, number, total, offset = _HEAD.unpack_from(frame)
    if magic != MAGIC:
        raise DamagedError("these bytes are no frame: they do not begin with the mark of one")
    check_version("a frame", version)
    payload = frame[FRAME_HEADER_BYTES:]
    digest, zeros = _DIGEST.unpack_from(frame, _HEAD.size)
    seed = xxhash.xxh3_64_intdigest(frame[: _HEAD.size])
    if digest != xxhash.xxh3_64_intdigest(payload, seed=seed) or zeros != _ZEROS:
        raise DamagedError(f"a frame of {len(frame)} bytes does not match its digest")
    head = _Head(piece, number, total, offset)
    _check(head, len(payload), limits)
    return head, payload


def _check(head: _Head, payload_bytes: int, limits: Limits) -> None:
    most = min(limits.max_message_bytes, limits.max_partial_bytes)
    if head.total > most:
        raise LimitError(f"a message of {head.total} bytes is announced, {most} are allowed")
    if head.piece == 0 or head.offset % head.piece or head.offset >= head.total:
        raise ProtocolError(f"a frame at byte {head.offset} of a message of {head.total}")
    if payload_bytes != min(head.piece, head.total - head.offset):
        raise ProtocolError(f"a frame of {payload_bytes} bytes, in a message cut into {head.piece}")
    if -(-head.total // head.piece) > limits.max_frames:
        raise LimitError(f"a message in pieces of {head.piece} bytes, max_frames is {limits.max_frames}")
