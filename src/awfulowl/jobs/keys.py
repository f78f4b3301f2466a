"""Who a client, a runner or a verifier is: an Ed25519 key to sign with, an X25519 key to be written to.

The public half is a `Party` of JOB.toml. The private half is a file of mode 0600 that never leaves the machine that
made it, and is in no repr, log or error.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from msgspec import Meta

from awfulowl.errors import InputError
from awfulowl.fabric.private_files import read_private, write_private
from awfulowl.jobs.job import Party
from awfulowl.randomness import SYSTEM

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class PrivateKeys:
    """The private keys of somebody. They stay out of `repr`."""

    sign_private: bytes = field(repr=False)
    seal_private: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Make fresh keys, from the operating system's generator."""
        return cls(SYSTEM.bytes(KEY_BYTES), SYSTEM.bytes(KEY_BYTES))

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """What signs."""
        return Ed25519PrivateKey.from_private_bytes(self.sign_private)

    @property
    def public(self) -> Party:
        """What others may know."""
        sealing = X25519PrivateKey.from_private_bytes(self.seal_private).public_key()
        return Party(
            signing=self.signing_key.public_key().public_bytes_raw().hex(), sealing=sealing.public_bytes_raw().hex()
        )

    def agree(self, other: bytes) -> bytes:
        """Return the X25519 secret that these keys share with another's public one.

        Raises:
            InputError: that is no key.
        """
        try:
            public = X25519PublicKey.from_public_bytes(other)
            return X25519PrivateKey.from_private_bytes(self.seal_private).exchange(public)
        except ValueError:
            raise InputError("an X25519 key is none: it agrees on the same secret with everybody") from None

    def save(self, path: Path) -> None:
        """Write a file that only this user may read; never over another one, whose keys would be lost.

        Raises:
            InputError: the file exists, or cannot be written.
        """
        if path.exists() or path.is_symlink():
            raise InputError(
                f"{path} exists: keys are not overwritten. They serve for any number of orders: "
                f"owl job keys ROLE --show {path}"
            )
        public = self.public
        stored = _Stored(
            format="awfulowl job keys 1",
            signing=self.sign_private.hex(),
            sealing=self.seal_private.hex(),
            public_signing=public.signing,
            public_sealing=public.sealing,
        )
        write_private(path, msgspec.json.format(msgspec.json.encode(stored)) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            InputError: it is missing, open to others, cut short or altered.
        """
        content = read_private(path, _FILE_BYTES)
        try:
            stored = msgspec.json.decode(content, type=_Stored)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # The text of the decoder is left out: it may quote what it refused, and that may be a key.
            raise InputError(f"{path} is no file of keys, or it was cut short or altered; see owl job keys") from None
        keys = cls(bytes.fromhex(stored.signing), bytes.fromhex(stored.sealing))
        if keys.public != Party(signing=stored.public_signing, sealing=stored.public_sealing):
            raise InputError(f"{path} was altered: its private keys do not belong to its public ones")
        return keys


def is_signed(signer: Party, message: bytes, signature: bytes) -> bool:
    """Whether a signature is of this message, by the holder of a party's keys."""
    try:
        signer.verifying_key().verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["awfulowl job keys 1"]
    signing: _Hex
    sealing: _Hex
    public_signing: _Hex
    public_sealing: _Hex

    def __repr__(self) -> str:
        return "_Stored()"
