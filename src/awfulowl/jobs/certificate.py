"""The certificate of an accepted proof, signed by the verifier: who holds it can show whose training made a model.

It is checked offline, from the file alone and the verifier's public key.
"""

from typing import Annotated, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import signing
from awfulowl.jobs.checks.catalogue import SOUND
from awfulowl.jobs.job import VERSION, Digest, Job, Key, Name, Positive, is_small
from awfulowl.jobs.state import State, digest
from awfulowl.jobs.verify import Verdict

_Share = Annotated[float, Meta(ge=0, le=1)]

CERTIFICATE: Final = "certificate.json"


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a verifier says of a training."""

    version: Literal[1]
    name: Name
    job: Digest
    commitment: Digest
    model: Digest
    """Of the last state: model and optimiser."""
    steps: Positive
    replayed: int
    """Steps that were run again."""
    exact: bool
    missed: _Share
    """How likely a runner that fakes a quarter of its steps would have passed."""
    client: Key
    runner: Key
    verifier: Key
    at: str
    """When it was issued, in UTC."""


def issue(verdict: Verdict, job: Job, key: Ed25519PrivateKey, at: str) -> bytes:
    """Return the certificate of an accepted proof, as JSON.

    Args:
        verdict: of `verify`.
        job: that was proven.
        key: of the job's verifier.
        at: date and time, UTC.

    Raises:
        InputError: the proof was not accepted, not by all checks that decide, or the key is not the verifier's.
    """
    if verdict.status != "accepted" or verdict.job != job.digest.hex():
        raise InputError(f"a certificate is for an accepted proof of this job; this one is {verdict.status}")
    passed = {one.check for one in verdict.findings if one.reason is None}
    if not passed.issuperset(check.name for check in SOUND):
        raise InputError("a certificate is for a proof that passed the sound checks; this one was not held to them")
    if key.public_key() != job.keys.verifier.verifying_key():
        raise InputError(f"job {job.name} names another verifier: this key may not certify it")
    body = Certificate(
        version=VERSION,
        name=job.name,
        job=verdict.job,
        commitment=verdict.commitment,
        model=verdict.model,
        steps=verdict.steps,
        replayed=verdict.replayed_steps,
        exact=verdict.exact,
        missed=0.75**job.proving.challenges,
        client=job.keys.client.signing,
        runner=job.keys.runner.signing,
        verifier=job.keys.verifier.signing,
        at=at,
    )
    return signing.sign(body, key)


def check(content: bytes, verifier: Ed25519PublicKey | None = None, where: str = "this") -> Certificate:
    """Check a certificate.

    Args:
        content: of its file.
        verifier: the key that has to have signed it; None: the one that it names, which says only that it is whole.
        where: it comes from, for messages.

    Raises:
        InputError: it is no certificate.
        ProofError: it was changed, or signed by another key than that.
    """
    try:
        named = msgspec.json.decode(content, type=signing.Signed[Certificate]).body.verifier
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is no certificate, or not whole: {error}") from error
    if is_small(named):
        raise ProofError(f"{where} names a verifier whose key is none: everybody can sign for it")
    key = verifier or Ed25519PublicKey.from_public_bytes(bytes.fromhex(named))
    found = signing.check(content, Certificate, key, "the certificate")
    if bytes.fromhex(found.verifier) != key.public_bytes_raw():
        raise ProofError("the certificate names another verifier than the one that signed it")
    return found


def owns(certificate: Certificate, state: State) -> bool:
    """Say whether a state is the trained one that a certificate is about."""
    return digest(state).hex() == certificate.model
