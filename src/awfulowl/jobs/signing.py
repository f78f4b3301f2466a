"""Signed statements as JSON: a body, and an Ed25519 signature over its canonical bytes and its kind."""

from typing import Final, Generic, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from awfulowl.errors import ProofError
from awfulowl.jobs.job import canonical
from awfulowl.jobs.merkle import digest_of
from awfulowl.limits import MIB

MOST_STATEMENT_BYTES: Final = 16 * MIB

Body = TypeVar("Body", bound=msgspec.Struct)


class Signed(msgspec.Struct, Generic[Body], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A statement of somebody; `signature` is in hex."""

    body: Body
    signature: str


def sign(body: msgspec.Struct, key: Ed25519PrivateKey) -> bytes:
    """Return a statement signed by `key`, as JSON."""
    signed = Signed(body=body, signature=key.sign(_message(body)).hex())
    return msgspec.json.format(msgspec.json.encode(signed), indent=1) + b"\n"


def check(content: bytes, kind: type[Body], key: Ed25519PublicKey, where: str) -> Body:
    """Return the body of a statement.

    Raises:
        ProofError: it is too large, of another kind, or not signed by `key`.
    """
    if len(content) > MOST_STATEMENT_BYTES:
        raise ProofError(f"{where} is larger than {MOST_STATEMENT_BYTES} bytes")
    try:
        found: Signed[Body] = msgspec.json.decode(content, type=Signed[kind])  # type: ignore[valid-type]
        key.verify(bytes.fromhex(found.signature), _message(found.body))
    except InvalidSignature:
        raise ProofError(f"{where} is not signed by the key that the job names, or was changed") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProofError(f"{where} is no {kind.__name__.lower()}: {error}") from error
    return found.body


def _message(body: msgspec.Struct) -> bytes:
    return digest_of(f"awfulowl {type(body).__name__}", canonical(body))
