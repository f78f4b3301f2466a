"""Signatures for what the sandbox wrote: read, judged, and only then signed.

Attack: a job's code that makes the runner's key sign something else: the proof of another job, a certificate, a
challenge. The key never enters the sandbox. What was left blank there is decoded here by the reader that others will
use, and is signed if it is this job's log, batch after batch in one chain, or this job's commitment to that log.
Code that shares a process with the log can still lie in it: about its own job, to its own client.

Files are opened without following links: the code inside may have put some there.
"""

import os
import stat
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from awfulowl.errors import ProofError
from awfulowl.files import write_whole
from awfulowl.jobs import signing
from awfulowl.jobs.job import Job
from awfulowl.jobs.keys import SIGNATURE_BYTES
from awfulowl.jobs.proof import COMMITMENT, LOG, Commitment
from awfulowl.jobs.records import MOST_FRAME_BYTES, MOST_LOG_BYTES, RecordBatch, encode_frame, genesis

BLANK: Final = bytes(SIGNATURE_BYTES)
"""What stands in the place of a signature that is still to be made."""

_LENGTH_BYTES: Final = 4
_FOR_ALL: Final = 0o644
_HEAD_BYTES: Final = _LENGTH_BYTES + SIGNATURE_BYTES


def countersign(job: Job, directory: Path, key: Ed25519PrivateKey) -> None:
    """Sign what was written of a job's proof: the log as far as it is whole, and the commitment, if that is there.

    Args:
        job: whose proof it is.
        directory: of the proof.
        key: of the runner.

    Raises:
        ProofError: the log is not the one that the commitment names, or a file cannot be read or written.
    """
    try:
        head = _sign_log(job, directory / LOG, key)
        _sign_commitment(job, head, directory / COMMITMENT, key)
    except OSError as error:
        raise ProofError(f"{directory} cannot be signed: {error.strerror}") from error


def _sign_log(job: Job, path: Path, key: Ed25519PrivateKey) -> bytes | None:
    """Sign the batches of a log, and return the digest of the last one; None where more stands behind it."""
    descriptor = _open(path, os.O_RDWR)
    head = genesis(job)
    if descriptor is None:
        return head
    with os.fdopen(descriptor, "r+b") as file:
        size, place = os.fstat(descriptor).st_size, 0
        while place < min(size, MOST_LOG_BYTES):
            file.seek(place)
            found = file.read(_HEAD_BYTES)
            length = int.from_bytes(found[:_LENGTH_BYTES], "big")
            content = file.read(length) if length <= MOST_FRAME_BYTES else b""
            signed = _signed_batch(content, head, key) if len(content) == length else None
            if signed is None or found[_LENGTH_BYTES:] not in {BLANK, signed[0][_LENGTH_BYTES:_HEAD_BYTES]}:
                return None
            file.seek(place)
            file.write(signed[0][:_HEAD_BYTES])
            place, head = place + len(signed[0]), signed[1]
    return head


def _signed_batch(content: bytes, head: bytes, key: Ed25519PrivateKey) -> tuple[bytes, bytes] | None:
    """Return the signed frame of a batch that follows `head`, and its digest; None if these bytes are no such batch."""
    try:
        batch = msgspec.msgpack.decode(content, type=RecordBatch)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if batch.before != head:
        return None
    frame, named = encode_frame(batch, key)
    return (frame, named) if frame[_HEAD_BYTES:] == content else None


def _sign_commitment(job: Job, head: bytes | None, path: Path, key: Ed25519PrivateKey) -> None:
    descriptor = _open(path, os.O_RDONLY)
    if descriptor is None:
        return
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(signing.MOST_STATEMENT_BYTES + 1)
    try:
        found = msgspec.json.decode(content, type=signing.Signed[Commitment])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProofError(f"{path} is no commitment: it was altered or cut short") from None
    if found.body.job != job.digest.hex() or head is None or found.body.log != head.hex():
        raise ProofError(f"{path} closes another job or another log than the one beside it")
    if found.signature == BLANK.hex():
        write_whole(path, signing.sign(found.body, key), _FOR_ALL)


def _open(path: Path, flags: int) -> int | None:
    """Open a plain file without following a link; None where there is none.

    Raises:
        ProofError: it is something else than a plain file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ProofError(f"{path} is no plain file")
    return descriptor
