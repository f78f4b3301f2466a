"""The order of a job: what is trained, how, and who may say what; read from JOB.toml, bound to code and data.

::

    version = 1
    name = "digits"
    task = "digits:Digits"          # module:Class in the folder of code
    code = "code"                   # a folder beside JOB.toml
    data = ["images.bin", "labels.bin"]

    [training]
    seed = 7
    batch = 64
    epochs = 20                     # or steps = 5000
    optimizer = "sgd"               # sgd, adam, adamw
    lr = 0.05
    momentum = 0.9

    [keys.client]                   # likewise keys.runner and keys.verifier
    signing = "64 hex digits"       # Ed25519
    sealing = "64 hex digits"       # X25519
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from msgspec import Meta

from awfulowl.errors import InputError
from awfulowl.jobs.explaining import explained
from awfulowl.jobs.merkle import digest_of
from awfulowl.limits import GIB, KIB, MIB

VERSION: Final = 1
MOST_JOB_FILE_BYTES: Final = 64 * KIB
MOST_STEPS: Final = 1 << 30
MOST_NAME_CHARS: Final = 128
MOST_TOLERANCE: Final = 0.05
"""A stretch whose steps were never made errs by about a half."""

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=MOST_NAME_CHARS)]
RelativeName = Annotated[str, Meta(min_length=1, max_length=1024)]
Key = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""32 bytes of a public key, in hex."""
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Positive = Annotated[int, Meta(ge=1, le=MOST_STEPS)]

_CLASS: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_CONTEXT: Final = "awfulowl job"


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes from a file: no field more, none less, nothing changed afterwards."""


class Training(_Strict, frozen=True, kw_only=True):
    """How the steps are made; a verifier takes all of it from the client, nothing from the runner."""

    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    """Of the initial weights, the order of the examples, and all that is random within a step."""
    batch: Annotated[int, Meta(ge=1, le=1 << 20)]
    epochs: Positive | None = None
    steps: Positive | None = None
    """Exactly one of `epochs` and `steps` is given; an epoch has as many steps as whole batches."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Meta(gt=0, le=1e6)]
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0, le=1e3)] = 0.0
    clip: Annotated[float, Meta(gt=0)] | None = None
    """The largest norm of a step's gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the loss is computed under PyTorch's automatic mixed precision."""
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Threads of PyTorch: they decide the order of sums. On another machine two on one core equal two cores."""


class Proving(_Strict, frozen=True, kw_only=True):
    """What the runner keeps, and what the verifier asks."""

    checkpoint_every: Positive = 50
    """Steps from one stored state to the next; states at the ends of epochs are stored as well."""
    challenges: Annotated[int, Meta(ge=1, le=4096)] = 33
    """Steps drawn at random after the commitment: .75^33 < 10^-4."""
    largest: Annotated[int, Meta(ge=0, le=4096)] = 4
    """Steps of the largest updates that are challenged too (the paper's top-q), over the whole job."""
    epochs: Annotated[int, Meta(ge=0, le=4096)] = 4
    """Epochs whose logged evaluation is recomputed: the last one, and others drawn at random."""
    parts: Annotated[int, Meta(ge=3, le=8)] = 8
    """Of the 8 small batches of an evaluation that are recomputed; fewer are held to a statistical limit."""
    segment: Annotated[int, Meta(ge=1, le=10)] = 2
    """Steps that are run again for each challenge where runner and verifier cannot agree bit by bit."""
    tolerance: Annotated[float, Meta(gt=0, le=MOST_TOLERANCE)] | None = None
    """Largest error of such a segment, relative to how far it moves; measured by `segments.calibrate`. Without it
    only proofs of the verifier's own class are accepted."""


class Logging(_Strict, frozen=True, kw_only=True):
    """What the monitor writes."""

    sample_every_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    """Seconds from one record of utilisation and memory to the next."""


class Bounds(_Strict, frozen=True, kw_only=True):
    """What the client's code may use, at the runner and at the verifier."""

    memory_bytes: Annotated[int, Meta(ge=16 * MIB)] = 8 * GIB
    processes: Annotated[int, Meta(ge=1, le=65536)] = 64
    disk_bytes: Annotated[int, Meta(ge=0)] = 16 * GIB
    time_s: Annotated[float, Meta(gt=0)] = 7 * 86400.0


_PRIME: Final = 2**255 - 19
_EIGHTH: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL: Final = frozenset({0, 1, _PRIME - 1, _EIGHTH, _PRIME - _EIGHTH})
_ANYBODY: Final = X25519PrivateKey.from_private_bytes(bytes(range(32)))


def is_small(signing: str) -> bool:
    """Say whether an Ed25519 key, in hex, is a point whose order divides 8.

    These are the eight points with a y of 0, 1, -1 or one of two others (Chalkias, Garillot, Nikolaenko, "Taming the
    many EdDSAs", 2020, table 1), encoded by numbers below the prime or not.
    """
    return (int.from_bytes(bytes.fromhex(signing), "little") & (1 << 255) - 1) % _PRIME in _SMALL


class Party(_Strict, frozen=True, kw_only=True):
    """The public keys of one who takes part."""

    signing: Key
    """Ed25519."""
    sealing: Key
    """X25519."""

    def __post_init__(self) -> None:
        """Refuse points of small order.

        Raises:
            ValueError: everybody can sign for that key, or knows what is sealed to it.
        """
        if is_small(self.signing):
            raise ValueError("`signing` is no key but a point of small order, for which everybody can sign")
        try:
            _ANYBODY.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(self.sealing)))
        except ValueError:
            raise ValueError("`sealing` is no key but a point of small order: everybody knows its secrets") from None

    def verifying_key(self) -> Ed25519PublicKey:
        """Return the key that checks this party's signatures."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing))


class Parties(_Strict, frozen=True, kw_only=True):
    """Who orders, whose machine runs, who verifies."""

    client: Party
    runner: Party
    verifier: Party


class JobFile(_Strict, frozen=True, kw_only=True):
    """JOB.toml as the client writes it; `code` and `data` are places relative to it."""

    version: Literal[1]
    name: Name
    task: Annotated[str, Meta(max_length=256)]
    code: RelativeName
    data: Annotated[tuple[RelativeName, ...], Meta(min_length=1, max_length=256)]
    training: Training
    proving: Proving = Proving()
    logging: Logging = Logging()
    limits: Bounds = Bounds()
    keys: Parties


class Job(_Strict, frozen=True, kw_only=True):
    """A job as it is packed, signed and proven: instead of places the digests of every file of code and data."""

    version: Literal[1]
    name: Name
    task: Annotated[str, Meta(max_length=256)]
    code: dict[RelativeName, Digest]
    """BLAKE3 of each file of the client's code, by its name within the folder."""
    data: dict[RelativeName, Digest]
    """BLAKE3 of each whole data file, labels included, by its name."""
    training: Training
    proving: Proving
    logging: Logging
    limits: Bounds
    keys: Parties

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the canonical bytes: what commitments, challenges and certificates are bound to."""
        return digest_of(_CONTEXT, canonical(self))

    @property
    def module(self) -> str:
        """The module of the client's class."""
        return self.task.partition(":")[0]

    @property
    def classname(self) -> str:
        """The client's class."""
        return self.task.partition(":")[2]


def canonical(value: msgspec.Struct) -> bytes:
    """Return the one form in which a value is signed: msgpack, fields in their order, keys of maps sorted."""
    return _ENCODER.encode(value)


_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")


def read_job_file(path: Path) -> JobFile:
    """Read JOB.toml.

    Raises:
        InputError: missing, too large, not TOML, or a field is missing, unknown or out of its range.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JOB_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MOST_JOB_FILE_BYTES:
        raise InputError(f"{path} is larger than {MOST_JOB_FILE_BYTES} bytes: it is no JOB.toml")
    try:
        found = msgspec.toml.decode(content, type=JobFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: {explained(error, JobFile)}") from error
    _check(found.task, found.training, str(path))
    return found


def bind(order: JobFile, code: Mapping[str, bytes], data: Mapping[str, bytes]) -> Job:
    """Return the job that an order becomes with the contents of its code and data files.

    Raises:
        InputError: there is no code, or no data.
    """
    if not code or not data:
        raise InputError(f"job {order.name}: it has no {'data' if code else 'code'}")
    _check(order.task, order.training, f"job {order.name}")
    return Job(
        version=order.version,
        name=order.name,
        task=order.task,
        code=digests(code),
        data=digests(data),
        training=order.training,
        proving=order.proving,
        logging=order.logging,
        limits=order.limits,
        keys=order.keys,
    )


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the BLAKE3 digest, in hex, of each file."""
    return {name: digest_of("awfulowl file", content).hex() for name, content in sorted(files.items())}


def decode_job(content: bytes) -> Job:
    """Read a job from its canonical bytes.

    Raises:
        InputError: they are too many, or no job.
    """
    if len(content) > MIB:
        raise InputError(f"a job takes at most {MIB} bytes, not {len(content)}")
    try:
        found = msgspec.msgpack.decode(content, type=Job)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise InputError(f"these bytes are no job: {error}") from error
    _check(found.task, found.training, f"job {found.name}")
    return found


def _check(task: str, training: Training, where: str) -> None:
    if not _CLASS.fullmatch(task):
        raise InputError(f'{where}: task = "{task}" is not of the form module:Class')
    if (training.epochs is None) == (training.steps is None):
        raise InputError(f"{where}: give either training.epochs or training.steps")
    if not all(map(math.isfinite, (training.lr, training.weight_decay, training.clip or 0.0))):
        raise InputError(f"{where}: a number of [training] is not finite")
    if training.momentum and training.optimizer != "sgd":
        raise InputError(f"{where}: momentum is for sgd; {training.optimizer} has its own")
