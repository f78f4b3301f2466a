"""The log of a training: one record for each step, one for each second, in batches chained by hash and signed.

A file of frames: length (4 bytes), signature (64 bytes), batch in msgpack. Each batch names the digest of the one
before it, the first one the job, so that none can be left out, repeated, or taken from another job.

A log may be larger than the memory of whoever reads it, who believes nobody: it is read batch by batch, as often as
somebody goes through it.
"""

import errno
import math
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import IO, Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs.job import MOST_STEPS, Job
from awfulowl.jobs.merkle import DIGEST_BYTES, digest_of
from awfulowl.limits import MIB

MOST_FRAME_BYTES: Final = 8 * MIB
MOST_RECORDS: Final = 16384
"""Records of one kind in a batch."""
FULL: Final = MOST_RECORDS // 4
"""Records of one kind that end a batch, whether a state is stored then or not."""
MOST_LOG_BYTES: Final = 1024 * MIB
MOST_BATCHES: Final = 1 << 20
"""Of a log: as many signatures take a minute to check."""

_SIGNATURE_BYTES: Final = 64
_LENGTH_BYTES: Final = 4
_STEP_BYTES: Final = 44
"""Of the log for each step: a record of four float64 and a number, and its share of what else a batch holds."""
_BATCH_BYTES: Final = 192
"""Of the log for each batch beside its steps: frame, digest, numbers, a sample and an evaluation."""
_BATCH: Final = "awfulowl records"
_NO_FILE: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}

Step = Annotated[int, Meta(ge=0, le=MOST_STEPS)]
Kind = TypeVar("Kind")


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One line of the log; times are seconds since 1970, in UTC."""


class Iteration(_Record, frozen=True, array_like=True, gc=False):
    """One step."""

    step: Step
    loss: float
    rate: float
    norm: float
    at: float


class Sample(_Record, frozen=True, array_like=True, gc=False):
    """The machine at one moment: share of the declared threads, or of the GPU, in use; bytes of memory."""

    at: float
    utilisation: float
    memory_bytes: Annotated[int, Meta(ge=0)]


class Evaluation(_Record, frozen=True, array_like=True, gc=False):
    """The mean loss of the state before `step`, which ends an epoch, on the examples that the seed chooses for it."""

    step: Step
    loss: float


class RecordBatch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The records between two moments; `last` is the step that comes next after it."""

    before: Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    first: Step
    last: Step
    resumed: bool
    iterations: Annotated[tuple[Iteration, ...], Meta(max_length=MOST_RECORDS)]
    samples: Annotated[tuple[Sample, ...], Meta(max_length=MOST_RECORDS)]
    evaluations: Annotated[tuple[Evaluation, ...], Meta(max_length=MOST_RECORDS)]


class Frame(NamedTuple):
    """A batch as it stands in the file: where it ends, and the digest that the next one names."""

    batch: RecordBatch
    end: int
    digest: bytes


class Rows(Collection[Kind]):
    """Records of one kind: whoever goes through them reads the log again, and has one batch in memory at a time."""

    def __init__(
        self, batches: Callable[[], Iterator[RecordBatch]], pick: Callable[[RecordBatch], Iterable[Kind]], length: int
    ) -> None:
        self._batches: Final = batches
        self._pick: Final = pick
        self._length: Final = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Kind]:
        for batch in self._batches():
            yield from self._pick(batch)

    def __contains__(self, value: object) -> bool:
        return any(one == value for one in self)


class Log(NamedTuple):
    """All records of a training, in order."""

    iterations: Collection[Iteration]
    samples: Collection[Sample]
    evaluations: Collection[Evaluation]
    resumed: Collection[int]
    """Steps from which the runner went on after it had been ended."""
    head: bytes
    """Digest of the last batch."""


def genesis(job: Job) -> bytes:
    """Return what the first batch of a job names as the one before it."""
    return digest_of(_BATCH, job.digest)


def encode_frame(batch: RecordBatch, key: Ed25519PrivateKey) -> tuple[bytes, bytes]:
    """Return the frame of a batch, and the digest that the next batch names."""
    content = msgspec.msgpack.encode(batch)
    named = digest_of(_BATCH, content)
    return b"".join((len(content).to_bytes(_LENGTH_BYTES, "big"), key.sign(named), content)), named


def frames(file: IO[bytes], job: Job, key: Ed25519PublicKey | None, *, torn: bool = False) -> Iterator[Frame]:
    """Yield the frames of a log, one at a time.

    Args:
        file: of the log.
        job: that the first frame has to name.
        key: of the runner; None: signatures were checked before, and the chain alone is followed.
        torn: the writer may have been ended at any moment: stop where the frames stop.

    Raises:
        ProofError: a frame is cut short, unsigned, out of its order or no batch, and the log is not `torn`; or the log
            is over a limit.
    """
    size, place, before = os.fstat(file.fileno()).st_size, 0, genesis(job)
    if size > MOST_LOG_BYTES:
        raise ProofError(f"the log is larger than {MOST_LOG_BYTES} bytes")
    for number in count():
        if place >= size:
            return
        if number == MOST_BATCHES:
            raise ProofError(f"the log has more than {MOST_BATCHES} batches")
        try:
            frame = _frame(file, place, before, key)
        except ProofError:
            if torn:
                return
            raise
        yield frame
        place, before = frame.end, frame.digest


def _frame(file: IO[bytes], place: int, before: bytes, key: Ed25519PublicKey | None) -> Frame:
    head = file.read(_LENGTH_BYTES + _SIGNATURE_BYTES)
    length = int.from_bytes(head[:_LENGTH_BYTES], "big")
    body = file.read(length) if length <= MOST_FRAME_BYTES else b""
    if len(head) < _LENGTH_BYTES + _SIGNATURE_BYTES or len(body) != length:
        raise ProofError(f"the log is cut short, or damaged, at byte {place}")
    named = digest_of(_BATCH, body)
    try:
        if key is not None:
            key.verify(head[_LENGTH_BYTES:], named)
        batch = msgspec.msgpack.decode(body, type=RecordBatch)
    except InvalidSignature:
        raise ProofError(f"the log's batch at byte {place} is not signed by the runner") from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProofError(f"the log's batch at byte {place} holds no records: {error}") from error
    if batch.before != before:
        raise ProofError(f"the log's batch at byte {place} does not follow the one before it, or is of another job")
    return Frame(batch, place + len(head) + length, named)


def check_length(steps: int, kept: int) -> None:
    """See that the log of a job can be read when it is written.

    Args:
        steps: of the job.
        kept: states that are stored, each of which ends a batch.

    Raises:
        InputError: it is over a limit.
    """
    batches = kept + steps // FULL
    if batches > MOST_BATCHES:
        raise InputError(
            f"the log of {steps} steps has about {batches} batches, one for each state that is stored, and "
            f"{MOST_BATCHES} are read: raise checkpoint_every or batch"
        )
    size = steps * _STEP_BYTES + batches * _BATCH_BYTES
    if size > MOST_LOG_BYTES:
        raise InputError(
            f"the log of {steps} steps takes about {size} bytes, and {MOST_LOG_BYTES} are read: raise batch, so that "
            "there are fewer steps, or make several jobs of it"
        )


def read_log(path: Path, job: Job) -> Log:
    """Check the log of a job from end to end, and return what reads it again, batch by batch.

    That it is still the same is known only when it was read to its end again.

    Raises:
        ProofError: missing, too large, damaged, of another job or not signed by its runner; when it is read again, too.
    """
    head, counts = genesis(job), [0, 0, 0, 0]
    with _opened(path) as file:
        for batch, _, named in frames(file, job, job.keys.runner.verifying_key()):
            head = named
            for place, pick in enumerate(_PICKS):
                counts[place] += len(pick(batch))

    def again() -> Iterator[RecordBatch]:
        found = genesis(job)
        with _opened(path) as file:
            for batch, _, found in frames(file, job, None):  # noqa: B007 - the last one counts
                yield batch
        if found != head:
            raise ProofError(f"{path} changed while it was read")

    iterations, samples, evaluations, resumed = map(partial(Rows, again), _PICKS, counts)
    return Log(iterations, samples, evaluations, resumed, head)


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a plain file of at most `limit` bytes.

    Raises:
        ProofError: there is no such file, or it is larger.
    """
    with _opened(path) as file:
        # No more is asked for than there is: a reader of files allocates what it is asked for.
        content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > limit:
        raise ProofError(f"{path} is larger than {limit} bytes")
    return content


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain file, without following a link.

    What was opened is looked at, not the name: a pipe put in its place meanwhile would keep a reader for ever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        kind = "is missing, or no plain file" if error.errno in _NO_FILE else f"cannot be read: {error.strerror}"
        raise ProofError(f"{path} {kind}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ProofError(f"{path} is missing, or no plain file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise ProofError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def finite(row: Iteration) -> bool:
    """Say whether all numbers of a record are finite."""
    return all(map(math.isfinite, (row.loss, row.rate, row.norm, row.at)))


_PICKS: Final[tuple[Callable[[RecordBatch], Sequence[Any]], ...]] = (
    attrgetter("iterations"),
    attrgetter("samples"),
    attrgetter("evaluations"),
    lambda batch: (batch.first,) if batch.resumed else (),
)
