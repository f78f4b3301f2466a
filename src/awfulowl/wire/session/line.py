"""What both ends of a conversation do alike: number what they send, read what they hear, beat, and recall."""

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

import xxhash

from awfulowl.errors import DamagedError, ProtocolError
from awfulowl.limits import Limits
from awfulowl.randomness import Entropy
from awfulowl.wire.codec import Buffer, encode
from awfulowl.wire.frames import Assembler, Frame, frames, in_pieces
from awfulowl.wire.messages import PROTOCOL, TEXT_CHARS, Body, Header, check_version, verb
from awfulowl.wire.text import plain

FIRST_NUMBERS: Final = 2**62
"""Numbers start at random below this, so that those of a restarted sender are not taken for old ones."""

_PAST: Final = 16
"""Sessions and boots that are recalled, to tell what is late from what is forged."""

_BEAT: Final = struct.Struct("<3sBB16sQ")
_DIGEST: Final = struct.Struct("<Q")
_MAGIC: Final = b"OWB"
BEAT_BYTES: Final = _BEAT.size + _DIGEST.size


class Role(IntEnum):
    """Who sends a beat: an echoed beat keeps nobody alive."""

    OWNER = 0
    DEVICE = 1


class Line:
    """One end's outgoing numbers and incoming assembly.

    `ignored` counts what was well-formed and came too late, twice, or in a session that is over.
    """

    def __init__(self, role: Role, limits: Limits, entropy: Entropy) -> None:
        self.ignored = 0
        self._role = role
        self._limits = limits
        self._assembler = Assembler(limits)
        self._number = entropy.below(FIRST_NUMBERS)
        self._past: deque[bytes] = deque(maxlen=_PAST)
        self._beats = 0
        self._last_heard = (b"", 0)

    def say(self, session: bytes | None, body: Body) -> list[bytes]:
        """Return the frames of a message without tensors in a session, none without one."""
        return [] if session is None else list(self.frames(encode(session, 0, body, (), self._limits)))

    def frames(self, message: Sequence[Buffer]) -> Iterator[bytes]:
        """Return the frames of a message under a number of its own, each made when it is asked for.

        What they are made of must not change until then.
        """
        self._number += 1
        return frames(message, self._number, self._limits.chunk_bytes)

    def in_pieces(self, message: Sequence[Buffer]) -> list[Frame]:
        """Return the same, not joined: what they are made of must not change until the last of them has left."""
        self._number += 1
        return list(in_pieces(message, self._number, self._limits.chunk_bytes))

    def message(self, frame: Buffer) -> Buffer | None:
        """Return the message that a frame completes, if it does.

        Raises:
            ProtocolError: the frame is refused.
        """
        return self._assembler.feed(frame)

    def text(self, reason: str) -> str:
        """Return a reason as it may be sent and shown."""
        return plain(reason, min(self._limits.max_text_chars, TEXT_CHARS))

    def retire(self, *handles: bytes | None) -> None:
        """Recall these sessions and boots as over."""
        self._past.extend(handle for handle in handles if handle is not None)

    def is_past(self, handle: bytes) -> bool:
        """Return whether a session or boot is known to be over."""
        return handle in self._past

    def is_current(self, header: Header, session: bytes | None) -> bool:
        """Return whether a message is of the open session; one of a session that is over is ignored.

        Raises:
            ProtocolError: it is of a session that never was.
        """
        if session is not None and header.session == session:
            return True
        if session is not None and not self.is_past(header.session):
            raise ProtocolError(f"{verb(header.body)} of a session that is not ours")
        self.ignored += 1
        return False

    def beat(self, session: bytes | None) -> bytes:
        """Return the next sign of life in a session, empty without one."""
        if session is None:
            return b""
        self._beats += 1
        beat = _BEAT.pack(_MAGIC, PROTOCOL, self._role, session, self._beats)
        return beat + _DIGEST.pack(xxhash.xxh3_64_intdigest(beat))

    def is_alive(self, payload: Buffer, session: bytes | None) -> bool:
        """Return whether a beat is a new one of the peer in this session; any other is ignored.

        Raises:
            DamagedError: the payload is no beat.
            VersionError: it is of another version of the protocol.
        """
        if len(payload) != BEAT_BYTES or payload[:3] != _MAGIC:
            raise DamagedError(f"a heartbeat of {len(payload)} bytes is none of this protocol")
        _, version, role, named, count = _BEAT.unpack_from(payload)
        check_version("a heartbeat", version)
        if _DIGEST.unpack_from(payload, _BEAT.size)[0] != xxhash.xxh3_64_intdigest(payload[: _BEAT.size]):
            raise DamagedError("a heartbeat does not match its digest")
        last = self._last_heard[1] if self._last_heard[0] == named else 0
        if role == self._role or named != session or count <= last:
            self.ignored += 1
            return False
        self._last_heard = (named, count)
        return True
