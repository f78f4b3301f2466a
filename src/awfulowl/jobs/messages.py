"""What is said between the sandbox, where a job's code runs, and the process outside that holds the keys.

Inward goes one order, followed by the files of data; outward go events. Each is a length and that many bytes of
msgpack. Neither side believes the other more than its decoder does: behind the events is the client's code.
"""

from collections.abc import Iterator
from typing import IO, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from awfulowl.errors import ProtocolError
from awfulowl.jobs.checks.catalogue import Which
from awfulowl.jobs.failures import Failure
from awfulowl.limits import MIB

MAX_ORDER_BYTES: Final = 128 * MIB
MAX_EVENT_BYTES: Final = 16 * MIB
_LENGTH_BYTES: Final = 4

Action = Literal["preflight", "run", "answer", "verify"]
Word = Annotated[str, Meta(max_length=4096)]


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be done; the files of data follow, in this order."""

    action: Action
    job: bytes
    """Canonical bytes."""
    code: bytes
    """An archive."""
    files: dict[str, Annotated[int, Meta(ge=0)]]
    """Bytes of each file of data."""
    directory: str = ""
    """Of the proof."""
    challenge: bytes = b""
    """In msgpack."""
    answered: bool = False
    which: Which = "sound"
    thorough: bool = False


class Stage(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """What goes on now."""

    text: Word


class Progress(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Steps done, steps in all, and the loss."""

    done: int
    total: int
    loss: float


class Finished(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The order was carried out; `result` is what it asked for, in msgpack."""

    result: bytes


class Failed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """It was not."""

    reason: Failure
    text: Word


Event = Stage | Progress | Finished | Failed
_EVENTS: Final = msgspec.msgpack.Decoder(Event)


def write(pipe: IO[bytes], value: msgspec.Struct) -> None:
    """Write one message."""
    content = msgspec.msgpack.encode(value)
    pipe.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
    pipe.flush()


def read_order(pipe: IO[bytes]) -> Order:
    """Read the order.

    Raises:
        ProtocolError: it is none, or cut short.
    """
    content = _read(pipe, MAX_ORDER_BYTES)
    if content is None:
        raise ProtocolError("no order came")
    try:
        return msgspec.msgpack.decode(content, type=Order)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"what came is no order: {error}") from error


def read_events(pipe: IO[bytes]) -> Iterator[Event]:
    """Yield events until the other side closes its pipe.

    Raises:
        ProtocolError: something is no event, too large, or cut short.
    """
    while (content := _read(pipe, MAX_EVENT_BYTES)) is not None:
        try:
            yield _EVENTS.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"what came out of the sandbox is no event: {error}") from error


def read_exactly(pipe: IO[bytes], size: int) -> bytes:
    """Read so many bytes.

    Raises:
        ProtocolError: there are fewer.
    """
    content = pipe.read(size)
    if len(content) != size:
        raise ProtocolError("a message was cut short")
    return content


def _read(pipe: IO[bytes], limit: int) -> bytes | None:
    head = pipe.read(_LENGTH_BYTES)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    if len(head) < _LENGTH_BYTES or size > limit:
        raise ProtocolError(f"a message is cut short, or has more than {limit} bytes")
    return read_exactly(pipe, size)
