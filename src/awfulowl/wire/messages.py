"""The verbs of the protocol: what owner and device say to each other (docs/protocol.md).

Owner to device: `hello`, `load`, `apply`, `apply_transposed`, `step`, `fetch`, `commit`, `release`, `cancel`, `bye`.
Device to owner: `hello`, `answer`, `refuse`, `error`, `evict`, `bye`.

A device knows blocks by handles only: a *row* handle names an output slice, a *slice* handle names an input
slice, and the pair names a block. Handles are random, so they say nothing about layer or position.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from awfulowl.blocks.kernels import Convolution, Dense

PROTOCOL = 1

Handle = Annotated[bytes, Meta(min_length=16, max_length=16)]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Text = Annotated[str, Meta(max_length=1024)]
Seconds = Annotated[float, Meta(ge=0.0, le=86400.0)]
Dtype = Literal["float32", "float16", "bfloat16", "float64", "int8", "int16", "int32", "uint8"]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="verb"):
    """The base of all verbs."""


class DeviceHello(_Body, frozen=True, tag="hello.device"):
    """A device is there. It repeats this until its owner opens a session; `boot` changes with every start."""

    name: Name
    protocol: Natural
    boot: Handle
    memory_bytes: Natural
    threads: Size


class OwnerHello(_Body, frozen=True, tag="hello.owner"):
    """The owner opens a session with the boot it names. Silence longer than the lease drops all blocks."""

    protocol: Natural
    boot: Handle
    lease_s: Seconds
    heartbeat_s: Seconds
    credit_bytes: Natural


class Sheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A full rectangle of blocks: its tensor is (sum of row sizes, sum of slice sizes / groups, *size)."""

    rows: tuple[Handle, ...]
    row_sizes: tuple[Size, ...]
    slices: tuple[Handle, ...]
    slice_sizes: tuple[Size, ...]
    kernel: Dense | Convolution
    groups: Size = 1


class Load(_Body, frozen=True, tag="load"):
    """Hold these blocks; one tensor for each sheet. Answered without tensors."""

    sheets: tuple[Sheet, ...]


class Term(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sum: for each of `rows`, the blocks at `slices` times their inputs, added up at the device."""

    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]


class Apply(_Body, frozen=True, tag="apply"):
    """y = W x. One tensor, the inputs of `slices` side by side; the answer has one tensor for each term."""

    slices: tuple[Handle, ...]
    terms: tuple[Term, ...]


class ApplyTransposed(_Body, frozen=True, tag="apply_transposed"):
    """dx = Wᵀ dy. One tensor, the gradients of `rows` side by side; one tensor for each term comes back (part 3)."""

    rows: tuple[Handle, ...]
    terms: tuple[Term, ...]


class Step(_Body, frozen=True, tag="step"):
    """Update the blocks of `terms` once for this step id, however often it is asked (part 3)."""

    step: Natural
    terms: tuple[Term, ...]
    rule: Text


class Fetch(_Body, frozen=True, tag="fetch"):
    """Send back the rectangle rows x slices as one tensor shaped like a sheet's."""

    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]


class Commit(_Body, frozen=True, tag="commit"):
    """State the digest of the rectangle rows x slices (BLAKE2b-256 of its bytes), as one uint8 tensor of 32."""

    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]


class Release(_Body, frozen=True, tag="release"):
    """Forget every block at these slices. Answered without tensors."""

    slices: tuple[Handle, ...]


class Cancel(_Body, frozen=True, tag="cancel"):
    """The answer to request `target` is no longer wanted. Never answered."""

    target: Natural


class Answer(_Body, frozen=True, tag="answer"):
    """Request `to` is done; the tensors are its result."""

    to: Natural


class Refuse(_Body, frozen=True, tag="refuse"):
    """Request `to` will not be done: it is over a limit, or names blocks that are not here."""

    to: Natural
    reason: Text


class Error(_Body, frozen=True, tag="error"):
    """Request `to` failed at the device."""

    to: Natural
    reason: Text


class Evict(_Body, frozen=True, tag="evict"):
    """The device no longer holds these slices."""

    slices: tuple[Handle, ...]
    reason: Text


class Bye(_Body, frozen=True, tag="bye"):
    """The sender leaves; a device has dropped its blocks."""

    reason: Text


OwnerBody = OwnerHello | Load | Apply | ApplyTransposed | Step | Fetch | Commit | Release | Cancel | Bye
DeviceBody = DeviceHello | Answer | Refuse | Error | Evict | Bye
Body = (
    DeviceHello
    | OwnerHello
    | Load
    | Apply
    | ApplyTransposed
    | Step
    | Fetch
    | Commit
    | Release
    | Cancel
    | Answer
    | Refuse
    | Error
    | Evict
    | Bye
)


class TensorHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Type and shape of one tensor; its bytes follow the header, little-endian, in order."""

    dtype: Dtype
    shape: tuple[Natural, ...]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The msgpack part of a message. `session` is the boot's handle in a `hello.device`, else the session's."""

    session: Handle
    id: Natural
    body: Body
    tensors: tuple[TensorHeader, ...]
