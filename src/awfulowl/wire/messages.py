"""The verbs of the protocol: what owner and device say to each other (docs/protocol.md).

Owner to device: `hello`, `load`, `apply`, `apply_transposed`, `step`, `measure`, `freeze`, `fetch`, `commit`,
`release`, `cancel`, `bye`. Device to owner: `hello`, `answer`, `refuse`, `error`, `evict`, `bye`.

A device knows blocks by handles only: a *row* handle names an output slice, a *slice* handle names an input
slice, and the pair names a block. Handles are random, so they say nothing about layer or position.

Each verb knows what is wrong with a message of its kind as far as the message alone can tell (`fault`);
whether the blocks it names are held is for the device to say.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Final, TypeVar

import msgspec
from msgspec import Meta

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.arithmetic.packing import PARTS
from awfulowl.errors import VersionError
from awfulowl.wire.parts import Handle, Natural, Sheet, Size, TensorHeader, Term, distinct

PROTOCOL: Final = 5
TEXT_CHARS: Final = 1024
STATE_PARTS: Final = 4
"""Tensors that a block under training consists of."""

T = TypeVar("T")
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
Text = Annotated[str, Meta(max_length=TEXT_CHARS)]
Seconds = Annotated[float, Meta(gt=0.0, le=86400.0)]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="verb"):
    """The base of all verbs."""

    any_tensors: ClassVar[bool] = False
    """Whether the message alone leaves open which tensors come along."""
    seeds: ClassVar[bool] = False
    """Whether tensors may be given by seeds: a receiver then allocates more than it was sent."""

    def fault(self, tensors: Sequence[TensorHeader]) -> str | None:
        """Say what is wrong with this message and the tensors beside it, or return None."""
        return f"takes no tensors, got {len(tensors)}" if tensors and not self.any_tensors else None


class _Request(_Body, frozen=True):
    """The base of the verbs that are answered."""

    changes: ClassVar[bool] = False
    """Whether doing it twice differs from doing it once: the device then keeps the answer and repeats it."""

    def answer_tensors(self) -> int:
        """Return how many tensors the answer has."""
        return 0


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


class Load(_Request, frozen=True, tag="load"):
    """Hold these blocks; `parts` tensors for each sheet, or for each block of one that comes apart. Answered without.

    The parts are weights; what was lost when they were rounded; momentum; and mean square. Missing ones are 0. `step`
    is the last step that the blocks have taken.
    """

    changes: ClassVar[bool] = True
    seeds: ClassVar[bool] = True
    sheets: tuple[Sheet, ...]
    parts: Annotated[int, Meta(ge=1, le=STATE_PARTS)] = 1
    step: Natural = 0

    def fault(self, tensors: Sequence[TensorHeader]) -> str | None:
        """Say which sheet has no fitting tensors, or return None."""
        if len(tensors) != self.takes:
            return f"takes {self.takes} tensors, got {len(tensors)}"
        return next(filter(None, (sheet.fault(own) for sheet, own in self.dealt(tensors))), None)

    @property
    def takes(self) -> int:
        """How many tensors come along."""
        return self.parts * sum(sheet.takes for sheet in self.sheets)

    def dealt(self, tensors: Sequence[T]) -> Iterator[tuple[Sheet, Sequence[T]]]:
        """Yield each sheet, once for each part, with the tensors of that part: of as many as this takes."""
        start = 0
        for sheet in self.sheets:
            for _ in range(self.parts):
                yield sheet, tensors[start : start + sheet.takes]
                start += sheet.takes


class Apply(_Request, frozen=True, tag="apply"):
    """y = W x. Tensors, side by side the inputs of `slices`; the answer has one tensor for each term.

    `width` is 0 in float32. For integers it is the bytes of each number in the answer, which is exact modulo
    2^(8 width). Numbers of 3, 5, 6 and 7 bytes are answered in parts (`arithmetic.packing`), a tensor for each.
    Under a number `keep` other than 0 the device keeps the inputs until the next step, as far as it has room.
    """

    seeds: ClassVar[bool] = True
    slices: tuple[Handle, ...]
    terms: tuple[Term, ...]
    width: Annotated[int, Meta(ge=0, le=8)] = 0
    keep: Natural = 0

    def fault(self, tensors: Sequence[TensorHeader]) -> str | None:
        """Say what is wrong with the inputs or the terms, or return None."""
        if not tensors:
            return "takes tensors, got none"
        first = tensors[0]
        # Tensors of one dimension have no other to lie along.
        if len(tensors) > 1 and (len(first.shape) < 2 or any(_beside(tensor) != _beside(first) for tensor in tensors)):
            return "has tensors that do not lie side by side"
        return _terms_fault(self.slices, [term.slices for term in self.terms])

    def answer_tensors(self) -> int:
        """Return the number of terms, times the parts of a number."""
        return len(self.terms) * (len(PARTS[self.width]) if self.width else 1)


class ApplyTransposed(_Request, frozen=True, tag="apply_transposed"):
    """dx = Wᵀ dy, and a part of the next step. The answer has one tensor for each term, its slices side by side.

    The first tensor is dy, the gradients of `rows` side by side. `space` is the spatial shape of the inputs. A `job`
    other than 0 asks that dy and the inputs x of `slices` count in the step that names this job: x is what was kept
    under the number `kept`, or, where that is 0, the second tensor. The same job may be given again, for the same or
    other slices: it counts once. Without terms nothing but the job is asked for.
    """

    any_tensors: ClassVar[bool] = True
    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]
    terms: tuple[Term, ...]
    space: tuple[Size, ...] = ()
    job: Natural = 0
    kept: Natural = 0

    def fault(self, tensors: Sequence[TensorHeader]) -> str | None:
        """Say what is wrong with the gradients, the inputs or the terms, or return None."""
        wanted = 2 if self.job and not self.kept else 1
        if len(tensors) != wanted:
            return f"takes {wanted} tensors, got {len(tensors)}"
        if any(tensor.dtype != "float32" or len(tensor.shape) != 2 + len(self.space) for tensor in tensors):
            return f"takes float32 of {2 + len(self.space)} dimensions"
        if tensors[0].shape[0] != tensors[-1].shape[0]:
            return "has gradients and inputs of different batches"
        if not distinct(self.slices):
            return "names a handle twice"
        return _terms_fault(self.rows, [term.rows for term in self.terms])

    def answer_tensors(self) -> int:
        """Return the number of terms."""
        return len(self.terms)


class Step(_Request, frozen=True, tag="step"):
    """Move the blocks of `terms` by `rule` along the sum of the gradients of `jobs`.

    All jobs of their slices are forgotten. `step` is one more than the last step of these blocks; where it is
    the last one already, nothing is done. Answered without tensors.
    """

    changes: ClassVar[bool] = True
    terms: tuple[Term, ...]
    step: Natural
    jobs: tuple[Natural, ...]
    rule: Descent | Adaptation


class Measure(_Request, frozen=True, tag="measure"):
    """Answer the sum of the squares of all numbers in the gradient of `jobs` of the blocks rows x slices: 1 float64."""

    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]
    jobs: tuple[Natural, ...]

    def answer_tensors(self) -> int:
        """Return one: the number."""
        return 1


class Freeze(_Request, frozen=True, tag="freeze"):
    """Keep a copy of all parts of the blocks of `terms` as they are now, under a number; 0 forgets the copies.

    There is one copy at most of each block. Answered without tensors.
    """

    changes: ClassVar[bool] = True
    terms: tuple[Term, ...]
    number: Natural


class Fetch(_Request, frozen=True, tag="fetch"):
    """Send back `parts` of the rectangle rows x slices, each shaped like a sheet's tensor; see `Load`.

    With a number `frozen` other than 0 they are sent as they were when `Freeze` named it.
    """

    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]
    parts: Annotated[int, Meta(ge=1, le=STATE_PARTS)] = 1
    frozen: Natural = 0

    def answer_tensors(self) -> int:
        """Return the number of parts."""
        return self.parts


class Commit(_Request, frozen=True, tag="commit"):
    """State the digest of what `Fetch` would send: BLAKE2b-256 of its bytes, as 32 uint8."""

    rows: tuple[Handle, ...]
    slices: tuple[Handle, ...]
    parts: Annotated[int, Meta(ge=1, le=STATE_PARTS)] = 1

    def answer_tensors(self) -> int:
        """Return one: the digest."""
        return 1


class Release(_Request, frozen=True, tag="release"):
    """Forget every block at these slices. Answered without tensors."""

    changes: ClassVar[bool] = True
    slices: tuple[Handle, ...]


class Cancel(_Body, frozen=True, tag="cancel"):
    """The answer to request `target` is no longer wanted. Never answered; a change is done all the same."""

    target: Natural


class Answer(_Body, frozen=True, tag="answer"):
    """Request `to` is done; the tensors are its result."""

    any_tensors: ClassVar[bool] = True
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


Order = Load | Step | Freeze | Release
Question = Apply | ApplyTransposed | Measure | Fetch | Commit
Request = Order | Question
OwnerBody = OwnerHello | Request | Cancel | Bye
DeviceBody = DeviceHello | Answer | Refuse | Error | Evict | Bye
Body = OwnerBody | DeviceBody


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The msgpack part of a message.

    `session` is the boot's handle in a `hello.device`, else the session's. `id` numbers requests from 1 and
    is 0 in every other message.
    """

    session: Handle
    id: Natural
    body: Body
    tensors: tuple[TensorHeader, ...]


def check_version(what: str, version: int) -> None:
    """Refuse what speaks another version of the protocol.

    Raises:
        VersionError: `version` is not ours.
    """
    if version != PROTOCOL:
        raise VersionError(
            f"{what} speaks version {version} of the protocol, and this is version {PROTOCOL}; "
            "install the same version of awfulowl at both ends"
        )


def handle_count(value: object) -> int:
    """Return how many handles a body names, wherever they stand in it."""
    if isinstance(value, bytes):
        return 1
    if isinstance(value, tuple):
        return sum(map(handle_count, value))
    if isinstance(value, msgspec.Struct):
        return sum(handle_count(getattr(value, field)) for field in value.__struct_fields__)
    return 0


def verb(body: Body) -> str:
    """Return the name that a body bears on the wire."""
    return str(body.__struct_config__.tag)


def _beside(tensor: TensorHeader) -> tuple[object, ...]:
    """Return what tensors that lie side by side along dimension 1 have in common."""
    return tensor.dtype, tensor.shape[:1], tensor.shape[2:], len(tensor.shape)


def _terms_fault(given: tuple[Handle, ...], wanted: Sequence[tuple[Handle, ...]]) -> str | None:
    there = set(given)
    if len(there) != len(given):
        return "names a handle twice"
    if not all(there.issuperset(part) for part in wanted):
        return "has a term over slices whose tensor did not come along"
    return None
