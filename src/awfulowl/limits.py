"""Every bound on what a peer may send or cost, by name, with its unit and its reason."""

from dataclasses import dataclass, replace
from typing import Self

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds on peers; what is over a bound is refused before anything is allocated for it."""

    max_payload_bytes: int = 8 * MIB
    """One frame on the fabric. NATS advises against more than 8 MB."""

    chunk_bytes: int = 1 * MIB
    """Frames that we send. Larger ones are not faster (`benchmarks/fabric.py`), and the broker passes a frame on only
    when it has the whole of it."""

    max_message_bytes: int = 256 * MIB
    """One message, whole. A 4096 x 16000 float32 sheet fits."""

    max_header_bytes: int = 1 * MIB
    """The msgpack part of a message: 16 bytes a handle, so tens of thousands of handles."""

    max_frames: int = 8192
    """Frames of one message: twice what the longest message takes in frames of 64 KiB."""

    max_partial_messages: int = 64
    """Messages of one peer that may be under assembly at once; one more drops the one that waited longest."""

    max_partial_bytes: int = 512 * MIB
    """Bytes that one peer's unfinished messages may promise together; more drops those that waited longest."""

    remembered_messages: int = 4096
    """Numbers of finished messages that a receiver keeps, so that a doubled frame is not taken twice."""

    max_tensors: int = 1024
    """Tensors in one message."""

    max_dimensions: int = 8
    """Dimensions of a tensor."""

    max_handles: int = 65536
    """Handles in one message."""

    max_text_chars: int = 1024
    """A reason given by a peer, cut when it is shown."""

    max_in_flight: int = 1024
    """Requests that one session may have open."""

    credit_bytes: int = 32 * MIB
    """Bytes of requests and promised answers under way per device: half of the 64 MB that a NATS server keeps for a
    slow client where nobody says otherwise."""

    replay_window: int = 4096
    """Request ids below the highest seen that a device still accepts: several times `max_in_flight`."""

    remembered_replies: int = 256
    """Answers of `step` and other changes that a device keeps, so that a repeated request is not done twice."""

    remembered_reply_bytes: int = 16 * MIB
    """Bytes of those answers together."""

    device_memory_bytes: int = 64 * GIB
    """Weights that a device accepts from its owner, unless it is started with less."""

    activation_bytes: int = 4 * GIB
    """Inputs and gradients that a device under training keeps from one step to the next."""

    def fitting(self, max_payload_bytes: int) -> Self:
        """Return these limits with chunks that fit what a link takes."""
        return replace(self, chunk_bytes=min(self.chunk_bytes, max_payload_bytes))


DEFAULT = Limits()
