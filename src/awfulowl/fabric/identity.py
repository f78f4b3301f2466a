"""Who an owner or a device is: two keys that it makes by itself; their public part is enrolled by the other side.

The NKey (Ed25519) opens the broker, whose rights hang on it. The X25519 key seals frames against whoever runs the
broker, if that is not the owner (`sealed`). Neither ever leaves the machine that made it.
"""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec
import nkeys
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import Meta

from awfulowl.errors import InputError
from awfulowl.fabric.base import check_name
from awfulowl.fabric.private_files import read_private, write_private
from awfulowl.randomness import SYSTEM
from awfulowl.wire.messages import Name

KEY_BYTES: Final = 32
_FILE_BYTES: Final = 4096

NKeyPublic = Annotated[str, Meta(pattern=r"^U[A-Z2-7]{55}\Z")]
SealKey = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The public part of an identity: what the other side must know, and may be known to all."""

    name: Name
    nkey_public: NKeyPublic
    seal_public: SealKey


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["awfulowl identity 1"]
    name: Name
    nkey_seed: Annotated[str, Meta(pattern=r"^SU[A-Z2-7]{56}\Z")]
    seal_private: SealKey


@dataclass(frozen=True, slots=True)
class Identity:
    """The private keys of an owner or a device. They stay out of `repr`."""

    name: str
    nkey_seed: str = field(repr=False)
    seal_private: bytes = field(repr=False)

    @classmethod
    def generate(cls, name: str) -> Self:
        """Make fresh keys.

        Raises:
            InputError: `name` cannot be a name.
        """
        seed = nkeys.encode_seed(SYSTEM.bytes(KEY_BYTES), nkeys.PREFIX_BYTE_USER)
        return cls(check_name(name), seed.decode(), SYSTEM.bytes(KEY_BYTES))

    @property
    def enrolment(self) -> Enrolment:
        """The public part."""
        public = nkeys.from_seed(bytearray(self.nkey_seed.encode())).public_key
        seal = X25519PrivateKey.from_private_bytes(self.seal_private).public_key()
        return Enrolment(self.name, public.decode(), seal.public_bytes_raw())

    def save(self, path: Path) -> None:
        """Write a file that only this user may read; never over another one, whose keys would be lost.

        Raises:
            InputError: the file exists, or cannot be written.
        """
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} exists: an identity is not overwritten; move it away first")
        stored = _Stored("awfulowl identity 1", self.name, self.nkey_seed, self.seal_private)
        write_private(path, msgspec.json.encode(stored))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            InputError: it is missing, open to others, cut short or altered.
        """
        content = read_private(path, _FILE_BYTES)
        try:
            stored = msgspec.json.decode(content, type=_Stored)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # The text of the decoder is left out: it may quote what it refused, and that may be a key.
            raise InputError(f"{path} is no identity of this version, or it was cut short or altered") from None
        if not _check_sum_holds(stored.nkey_seed):
            raise InputError(f"{path} holds an NKey whose check sum is wrong: it was altered")
        return cls(stored.name, stored.nkey_seed, stored.seal_private)


def check_nkey(public: str) -> str:
    """Return `public` if it is the public NKey of a user.

    Raises:
        InputError: it is not.
    """
    try:
        msgspec.convert(public, NKeyPublic)
    except msgspec.ValidationError:
        raise InputError("a public NKey is the letter U and 55 capital letters and digits") from None
    if not _check_sum_holds(public):
        raise InputError(f"the NKey {public} was mistyped: its check sum is wrong")
    return public


def _check_sum_holds(encoded: str) -> bool:
    """Whether this is how the bytes are written, and the last two are the CRC-16 of the others."""
    raw = base64.b32decode(encoded + "=" * (-len(encoded) % 8))
    canonical = base64.b32encode(raw).decode().rstrip("=") == encoded
    return canonical and nkeys.crc16(bytearray(raw[:-2])).to_bytes(2, "little") == raw[-2:]
