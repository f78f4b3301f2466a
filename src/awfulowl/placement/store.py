"""The plan file: encrypted and authenticated under the fleet's key file, and never half-written.

Layout: magic, version (2 bytes, big-endian), nonce (12 bytes), then ChaCha20-Poly1305 (RFC 8439) of the plan in
msgpack, with magic and version as associated data. The key is HKDF-SHA256 (RFC 5869) of the fleet's key, with this
use as its context. Nonces are random: under one key, 2^32 files share a nonce with probability below 2^-32.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from awfulowl.errors import PlanError
from awfulowl.files import flush_directory
from awfulowl.limits import MIB
from awfulowl.placement.plan import PLAN_VERSION, Plan

MAGIC: Final = b"AWFULOWL PLAN\n"
KEY_BYTES: Final = 32
MAX_PLAN_BYTES: Final = 256 * MIB
"""A plan file, whole; a cell takes about 100 bytes, so this is millions of blocks."""

_HEADER: Final = MAGIC + PLAN_VERSION.to_bytes(2, "big")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_CONTEXT: Final = b"awfulowl plan file, ChaCha20-Poly1305"
_DECODER: Final = msgspec.msgpack.Decoder(Plan)


def fleet_key(path: Path) -> bytes:
    """Return the key of a fleet, which is made on first use: a file of mode 0600 in a directory of mode 0700.

    Raises:
        PlanError: file or directory are open to others, are none, or cannot be read or made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_open(path.parent.absolute(), path.parent.stat(), "0700")
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                _write(path, os.urandom(KEY_BYTES), replace=False)
        key = _read(path, "key file", KEY_BYTES + 1, private=True)
    except OSError as error:
        raise PlanError(f"the key file {path} cannot be read or made: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise PlanError(f"the key file {path} does not hold {KEY_BYTES} bytes; restore it from a backup")
    return key


def save(plan: Plan, path: Path, key: bytes) -> None:
    """Write a plan file of mode 0600: beside the old one, flushed to the disk, then in its place.

    Raises:
        PlanError: the plan is too large or the file cannot be written; an older file is as it was.
    """
    nonce = os.urandom(_NONCE_BYTES)
    sealed = _cipher(key).encrypt(nonce, msgspec.msgpack.encode(plan), _HEADER)
    content = _HEADER + nonce + sealed
    if len(content) > MAX_PLAN_BYTES:
        raise PlanError(
            f"the plan takes {len(content)} bytes, more than MAX_PLAN_BYTES ({MAX_PLAN_BYTES}); use larger blocks"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, content, replace=True)
    except OSError as error:
        raise PlanError(f"the plan file {path} cannot be written: {error.strerror}") from error


def load(path: Path, key: bytes, model_digest: bytes | None = None) -> Plan:
    """Read a plan file.

    Args:
        path: the file.
        key: the fleet's key.
        model_digest: digest of the model that the plan has to be of; None: of any.

    Raises:
        PlanError: it is no plan file, of another version, tampered with or under another key, larger than
            `MAX_PLAN_BYTES`, or of another model.
    """
    try:
        content = _read(path, "plan file", MAX_PLAN_BYTES + 1, private=False)
    except OSError as error:
        raise PlanError(f"the plan file {path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_PLAN_BYTES:
        raise PlanError(f"the plan file {path} is larger than MAX_PLAN_BYTES ({MAX_PLAN_BYTES}); it is not one of ours")
    plan = _open(content, path, key)
    if model_digest is not None and plan.model != model_digest:
        raise PlanError(
            f"the plan in {path} is of another model: names, shapes or types of its parameters differ "
            f"(digest {plan.model.hex()[:8]}, this model's is {model_digest.hex()[:8]}); make a plan for this model"
        )
    return plan


def _open(content: bytes, path: Path, key: bytes) -> Plan:
    if not content.startswith(MAGIC) or len(content) < len(_HEADER) + _NONCE_BYTES + _TAG_BYTES:
        raise PlanError(f"{path} is not a plan file, or it is truncated; restore it, or make a new plan")
    header, nonce = content[: len(_HEADER)], content[len(_HEADER) :][:_NONCE_BYTES]
    if header != _HEADER:
        version = int.from_bytes(header[len(MAGIC) :], "big")
        raise PlanError(f"the plan file {path} has version {version}; this release reads version {PLAN_VERSION}")
    try:
        plain = _cipher(key).decrypt(nonce, memoryview(content)[len(_HEADER) + _NONCE_BYTES :], header)
        return _DECODER.decode(plain)
    except InvalidTag:
        raise PlanError(
            f"the plan file {path} was tampered with, is truncated, or belongs to a fleet with another key; "
            "restore it, or name the right key file"
        ) from None
    except (msgspec.MsgspecError, RecursionError):
        # The decoder's own text may quote what it could not read.
        raise PlanError(f"the plan file {path} is authentic but does not hold a plan; make a new one") from None


def _cipher(key: bytes) -> ChaCha20Poly1305:
    if len(key) != KEY_BYTES:
        raise PlanError(f"a fleet's key has {KEY_BYTES} bytes, this one {len(key)}")
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_CONTEXT).derive(key)
    return ChaCha20Poly1305(derived)


def _read(path: Path, what: str, limit: int, *, private: bool) -> bytes:
    """Read at most `limit` bytes of a regular file, without waiting on pipes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PlanError(f"the {what} {path} is not a file")
        if private:
            _refuse_open(path, status, "0600")
        return file.read(limit)


def _refuse_open(path: Path, status: os.stat_result, mode: str) -> None:
    if status.st_mode & 0o077:
        raise PlanError(f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod {mode} {path}")


def _write(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file of mode 0600 in one step; without `replace` an existing one stays.

    Raises:
        FileExistsError: it exists, and `replace` is false.
    """
    aside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if replace:
            aside.replace(path)
        else:
            os.link(aside, path)
        flush_directory(path.parent)
    finally:
        aside.unlink(missing_ok=True)
