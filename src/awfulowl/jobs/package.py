"""The package `job.pkg`: a job with its code and data, signed by the client, for the eyes of those it is addressed to.

Attacks: whoever carries the package reads it, alters it, cuts it short, swaps or repeats parts of it, splices two
packages, re-addresses one, or signs one as their own.

Construction::

    magic | header length | header | signature of the header | body

The header (msgpack) names the client's keys, a fresh X25519 key E, a random serial, the sizes of the body's sections,
the SHA-256 of the sealed body, and a slot for each recipient R that holds the content key K under

    HKDF-SHA256(X25519(E, R), salt = serial, info = label | E | R | client's keys), ChaCha20-Poly1305

(RFC 7748, 5869, 8439). A section is cut in chunks of `CHUNK_BYTES`, sealed one by one under a key of that section,
HKDF(K, serial, label | number | size), with the nonce counter | final (STREAM: Hoang, Reyhanitabar, Rogaway, Vizár,
"Online authenticated-encryption and its nonce-reuse misuse-resistance", 2015): a chunk opens in its place only, and
the last one only at the end. The first section holds the job and the code, the others the files of data. The job
inside names client and recipients once more, and readers compare: a signature cannot be replaced by another's.

Not hidden: who wrote to whom, and sizes. Not stopped: a recipient who passes on what it has read; the same package
given twice (a job done twice is the same job: its proof is bound to the job's digest). There is no forward secrecy:
who steals a recipient's key file opens what was recorded for it.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta

from awfulowl.errors import InputError
from awfulowl.jobs import archive
from awfulowl.jobs.job import Job, Key, Party, canonical, decode_job, digests
from awfulowl.jobs.keys import KEY_BYTES, SIGNATURE_BYTES, PrivateKeys, is_signed
from awfulowl.limits import GIB, KIB, MIB
from awfulowl.randomness import SYSTEM

CHUNK_BYTES: Final = 256 * KIB
MAX_DATA_BYTES: Final = 64 * GIB
"""One file of data."""
MAX_FILES: Final = 256
"""Files of data."""

_MAGIC: Final = b"AWFULOWL JOB PACKAGE 1\n"
_LENGTH: Final = struct.Struct(">I")
_MAX_HEADER_BYTES: Final = 16 * KIB
_MAX_JOB_BYTES: Final = 1 * MIB
_MAX_LETTER_BYTES: Final = 2 * archive.CODE.total_bytes + _MAX_JOB_BYTES
_TAG_BYTES: Final = 16
_SERIAL_BYTES: Final = 16
_NONCE: Final = struct.Struct(">3xQB")
_MORE, _FINAL = 0, 1
_PLACE: Final = struct.Struct(">IQ")
_LABEL: Final = b"awfulowl job package 1"


class _Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recipient: Key
    key: Annotated[bytes, Meta(min_length=KEY_BYTES + _TAG_BYTES, max_length=KEY_BYTES + _TAG_BYTES)]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    client: Party
    ephemeral: Key
    serial: Annotated[bytes, Meta(min_length=_SERIAL_BYTES, max_length=_SERIAL_BYTES)]
    slots: Annotated[tuple[_Slot, ...], Meta(min_length=1, max_length=2)]
    sizes: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=MAX_DATA_BYTES)], ...], Meta(min_length=1, max_length=MAX_FILES + 1)
    ]
    body: Annotated[bytes, Meta(min_length=32, max_length=32)]


class _Letter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    job: Annotated[bytes, Meta(max_length=_MAX_JOB_BYTES)]
    code: bytes
    files: Annotated[tuple[str, ...], Meta(max_length=MAX_FILES)]


@dataclass(frozen=True, slots=True)
class Opened:
    """A package of the job's client: job and code in memory, the data where it was, still sealed."""

    job: Job = field(repr=False)
    code: Mapping[str, bytes] = field(repr=False)
    sizes: Mapping[str, int]
    """Bytes of each file of data."""
    _path: Path = field(repr=False)
    _sections: Mapping[str, tuple[int, bytes]] = field(repr=False)
    """Where each file of data begins, and its key."""

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file of data in parts; it is opened in memory and nowhere else.

        Raises:
            InputError: the package changed since it was opened.
        """
        place, key = self._sections[name]
        with _opened(self._path) as file:
            file.seek(place)
            yield from _unsealed(file, key, self.sizes[name], self._path)


def seal(target: Path, job: Job, code: Mapping[str, bytes], data: Mapping[str, bytes], sender: PrivateKeys) -> None:
    """Write a package for the job's runner and verifier beside `target` and rename it there.

    Raises:
        InputError: `sender` is not the job's client; code or data are not the job's, or are over a limit; `target`
            cannot be written.
    """
    if sender.public != job.keys.client:
        raise InputError(f"job {job.name}: these keys are not those of [keys.client]; the client packs and signs")
    if digests(code) != job.code or digests(data) != job.data:
        raise InputError(f"job {job.name}: code and data are not those that the job was bound to")
    side = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with side.open("xb") as file:
            _write(file, job, code, data, sender)
            file.flush()
            os.fsync(file.fileno())
        side.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        side.unlink(missing_ok=True)


def open_package(path: Path, keys: PrivateKeys) -> Opened:
    """Check a package and open what it says to the holder of `keys`.

    Raises:
        InputError: it is none, was altered or cut short, or is sealed to others.
    """
    with _opened(path) as file:
        header, start = _read_header(file, path)
        _check_body(file, header, path)
        content_key = _content_key(header, keys, path)
        file.seek(start)
        letter = _read_letter(file, header, content_key, path)
    job, code = decode_job(letter.job), archive.unpack(letter.code)
    _check_job(job, code, header, letter, path)
    sections, place = {}, start + _sealed_bytes(header.sizes[0])
    for number, name in enumerate(letter.files, 1):
        sections[name] = place, _section_key(content_key, header, number)
        place += _sealed_bytes(header.sizes[number])
    return Opened(job, code, dict(zip(letter.files, header.sizes[1:], strict=True)), path, sections)


def _check_job(job: Job, code: Mapping[str, bytes], header: _Header, letter: _Letter, path: Path) -> None:
    """Refuse a package whose outside is not what the job inside says.

    Raises:
        InputError: another signed it, it is sealed to others, or code and data are others than the job is bound to.
    """
    if header.client != job.keys.client:
        raise InputError(f"{path} was signed by somebody else than the client of the job inside: do not run it")
    if {slot.recipient for slot in header.slots} != {job.keys.runner.sealing, job.keys.verifier.sealing}:
        raise InputError(f"{path} is sealed to others than the runner and the verifier of the job inside")
    if digests(code) != job.code:
        raise InputError(f"{path} holds other code than the job inside is bound to; ask the client for a sound package")
    if sorted(letter.files) != sorted(job.data) or len(letter.files) != len(header.sizes) - 1:
        raise InputError(f"{path} holds other data than the job inside is bound to; ask the client for a sound package")


def _write(
    file: IO[bytes], job: Job, code: Mapping[str, bytes], data: Mapping[str, bytes], sender: PrivateKeys
) -> None:
    letter = msgspec.msgpack.encode(_Letter(job=canonical(job), code=archive.pack(code), files=tuple(data)))
    _check_letter(letter)
    sizes = (len(letter), *map(len, data.values()))
    content_key, ephemeral = SYSTEM.bytes(KEY_BYTES), PrivateKeys.generate()
    unsigned = _Header(
        client=sender.public,
        ephemeral=ephemeral.public.sealing,
        serial=SYSTEM.bytes(_SERIAL_BYTES),
        slots=(),
        sizes=sizes,
        body=bytes(32),
    )
    seals = dict.fromkeys(party.sealing for party in (job.keys.runner, job.keys.verifier))
    slots = tuple(
        _Slot(seal, _slot_cipher(unsigned, ephemeral, seal).encrypt(bytes(12), content_key, b"")) for seal in seals
    )
    header = msgspec.structs.replace(unsigned, slots=slots)
    # The header's length does not depend on the digest, so the body can go before it is known.
    blank = _framed(header, bytes(SIGNATURE_BYTES))
    file.write(blank)
    body = _Hashing(file)
    for number, content in enumerate((letter, *data.values())):
        body.write_section(content, _section_key(content_key, header, number))
    header = msgspec.structs.replace(header, body=body.digest.digest())
    _decoded_header(msgspec.msgpack.encode(header), "the package")
    file.seek(0)
    file.write(_framed(header, sender.signing_key.sign(_signed(msgspec.msgpack.encode(header)))))


class _Hashing:
    """Writes sealed sections, and hashes what it writes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest: Final = hashlib.sha256()
        self._file = file

    def write_section(self, content: bytes, key: bytes) -> None:
        """Seal and write a section; an empty one is one chunk, too."""
        cipher, view = ChaCha20Poly1305(key), memoryview(content)
        for number, start in enumerate(range(0, len(view) or 1, CHUNK_BYTES)):
            final = start + CHUNK_BYTES >= len(view)
            nonce = _NONCE.pack(number, _FINAL if final else _MORE)
            self._write(cipher.encrypt(nonce, view[start : start + CHUNK_BYTES], b""))

    def _write(self, sealed: bytes) -> None:
        self.digest.update(sealed)
        self._file.write(sealed)


def _framed(header: _Header, signature: bytes) -> bytes:
    content = msgspec.msgpack.encode(header)
    return b"".join([_MAGIC, _LENGTH.pack(len(content)), content, signature])


def _signed(header: bytes) -> bytes:
    """What the client signs: a signature of a package is none of a proof, whatever the bytes."""
    return _LABEL + b" header\0" + header


def _check_letter(letter: bytes) -> None:
    if len(letter) > _MAX_LETTER_BYTES:
        raise InputError(f"job and code have more than {_MAX_LETTER_BYTES} bytes together")


def _opened(path: Path) -> IO[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no plain file")
    return os.fdopen(descriptor, "rb")


def _read_header(file: IO[bytes], path: Path) -> tuple[_Header, int]:
    """Return the header, which the client it names has signed, and where the body begins."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise InputError(f"{path} is no job package of this version")
    length = file.read(_LENGTH.size)
    size = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else 0
    if not 0 < size <= _MAX_HEADER_BYTES:
        raise InputError(f"{path}: the header was altered or cut short; get the package again")
    content, signature = file.read(size), file.read(SIGNATURE_BYTES)
    header = _decoded_header(content, str(path))
    if not is_signed(header.client, _signed(content), signature):
        raise InputError(f"{path}: the client's signature is wrong: the package was altered; get it again")
    return header, file.tell()


def _decoded_header(content: bytes, where: str) -> _Header:
    try:
        return msgspec.msgpack.decode(content, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{where}: the header is none, or over a limit: it was altered or cut short") from None


def _check_body(file: IO[bytes], header: _Header, path: Path) -> None:
    digest, left = hashlib.sha256(), sum(map(_sealed_bytes, header.sizes))
    if file.tell() + left != os.fstat(file.fileno()).st_size:
        raise InputError(f"{path} has not the length that it was signed with: it was cut short or added to")
    while part := file.read(CHUNK_BYTES):
        digest.update(part)
    if digest.digest() != header.body:
        raise InputError(f"{path} is not what the client signed: it was altered; get it again")


def _content_key(header: _Header, keys: PrivateKeys, path: Path) -> bytes:
    mine = keys.public.sealing
    for slot in header.slots:
        if slot.recipient == mine:
            try:
                return _slot_cipher(header, keys, mine).decrypt(bytes(12), slot.key, b"")
            except InvalidTag:
                raise InputError(f"{path}: the client sealed nothing that these keys open; ask for another") from None
    raise InputError(f"{path} is sealed to others: these keys are of none of its recipients")


def _slot_cipher(header: _Header, keys: PrivateKeys, recipient: str) -> ChaCha20Poly1305:
    """Return what seals or opens a slot; keys are those of the ephemeral side or of the recipient."""
    other = header.ephemeral if keys.public.sealing == recipient else recipient
    names = [header.ephemeral, recipient, header.client.signing, header.client.sealing]
    info = _LABEL + b" slot" + b"".join(map(bytes.fromhex, names))
    return ChaCha20Poly1305(HKDF(SHA256(), KEY_BYTES, header.serial, info).derive(keys.agree(bytes.fromhex(other))))


def _section_key(content_key: bytes, header: _Header, number: int) -> bytes:
    info = _LABEL + b" section" + _PLACE.pack(number, header.sizes[number])
    return HKDF(SHA256(), KEY_BYTES, header.serial, info).derive(content_key)


def _sealed_bytes(size: int) -> int:
    return size + _TAG_BYTES * max(1, -(-size // CHUNK_BYTES))


def _unsealed(file: IO[bytes], key: bytes, size: int, path: Path) -> Iterator[bytes]:
    """Yield the plain chunks of a section."""
    cipher, number, left = ChaCha20Poly1305(key), 0, size
    while True:
        plain = min(left, CHUNK_BYTES)
        left -= plain
        try:
            yield cipher.decrypt(_NONCE.pack(number, _MORE if left else _FINAL), file.read(plain + _TAG_BYTES), b"")
        except InvalidTag:
            raise InputError(f"{path}: a chunk does not open in its place: the package was altered") from None
        if left == 0:
            return
        number += 1


def _read_letter(file: IO[bytes], header: _Header, content_key: bytes, path: Path) -> _Letter:
    if header.sizes[0] > _MAX_LETTER_BYTES:
        raise InputError(f"{path}: job and code have more than {_MAX_LETTER_BYTES} bytes together")
    letter = b"".join(_unsealed(file, _section_key(content_key, header, 0), header.sizes[0], path))
    try:
        return msgspec.msgpack.decode(letter, type=_Letter)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{path} is signed, but holds no job; ask the client for a sound package") from None
