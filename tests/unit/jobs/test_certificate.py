"""A certificate is for an accepted proof, and nobody but the verifier can make one."""

import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import signing
from awfulowl.jobs.certificate import Certificate, check, issue, owns
from awfulowl.jobs.loop import Work
from awfulowl.jobs.proof import STATES, read_state
from awfulowl.jobs.state import State
from awfulowl.jobs.verify import Verdict
from tests.unit.jobs.small import OTHERS, SIGNERS, STEPS, made, small_work, verdict

AT = "2026-11-26T09:00:00Z"


@pytest.fixture(scope="module")
def work() -> Work:
    return small_work()


@pytest.fixture(scope="module")
def directory(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(work, tmp_path_factory.mktemp("whole") / "proof")


@pytest.fixture(scope="module")
def accepted(work: Work, directory: Path) -> Verdict:
    return verdict(work, directory)


def test_a_certificate_says_what_was_proven(work: Work, accepted: Verdict, directory: Path) -> None:
    content = issue(accepted, work.job, SIGNERS.verifier, AT)
    found = check(content, SIGNERS.verifier.public_key())
    assert (found.job, found.steps, found.exact, found.at) == (work.job.digest.hex(), STEPS, True, AT)
    assert found.runner == SIGNERS.runner.public_key().public_bytes_raw().hex()
    assert found.missed == 0.75**work.job.proving.challenges
    assert check(content) == found
    final = read_state(directory / STATES, STEPS, 10_000)
    assert owns(found, final)
    assert not owns(found, State(STEPS - 1, final.tensors))


def test_nothing_else_is_certified(work: Work, accepted: Verdict) -> None:
    for status in ("refused", "unverified"):
        with pytest.raises(InputError, match=status):
            issue(msgspec.structs.replace(accepted, status=status), work.job, SIGNERS.verifier, AT)
    with pytest.raises(InputError, match="accepted proof of this job"):
        issue(accepted, small_work(seed=9).job, SIGNERS.verifier, AT)
    with pytest.raises(InputError, match="another verifier"):
        issue(accepted, work.job, SIGNERS.runner, AT)


def test_the_printed_checks_alone_certify_nothing(work: Work, accepted: Verdict, directory: Path) -> None:
    printed = msgspec.structs.replace(verdict(work, directory, which="printed"), status="accepted")
    fewer = msgspec.structs.replace(accepted, findings=accepted.findings[:-1])
    failed = tuple(msgspec.structs.replace(one, reason="why") for one in accepted.findings)
    for one in (printed, fewer, msgspec.structs.replace(accepted, findings=failed)):
        with pytest.raises(InputError, match="sound checks"):
            issue(one, work.job, SIGNERS.verifier, AT)


def test_changed_certificates(work: Work, accepted: Verdict) -> None:
    content = issue(accepted, work.job, SIGNERS.verifier, AT)
    with pytest.raises(ProofError, match="not signed"):
        check(content, OTHERS.verifier.public_key())
    found = json.loads(content)
    for field, value in (("steps", STEPS + 1), ("model", "0" * 64), ("runner", "0" * 64), ("at", "2027")):
        other = {**found, "body": {**found["body"], field: value}}
        with pytest.raises(ProofError, match="not signed"):
            check(json.dumps(other).encode(), SIGNERS.verifier.public_key())


@pytest.mark.parametrize("broken", [b"", b"{}", b"\xff", b'version = 1\nname = "x"\n', b"[" * 100_000])
def test_what_is_no_certificate_is_bad_input_and_no_refusal(broken: bytes) -> None:
    with pytest.raises(InputError, match=r"JOB.toml is no certificate") as caught:
        check(broken, where="JOB.toml")
    assert not isinstance(caught.value, ProofError)


def test_a_key_that_everybody_signs_for_certifies_nothing(work: Work, accepted: Verdict) -> None:
    """The signature R = the neutral point, S = 0 is one of every message for the neutral point as a key."""
    body = check(issue(accepted, work.job, SIGNERS.verifier, AT))
    neutral = (1).to_bytes(32, "little")
    anybody = msgspec.structs.replace(body, verifier=neutral.hex())
    Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), b"any message")
    forged = json.dumps({"body": msgspec.to_builtins(anybody), "signature": (neutral + bytes(32)).hex()}).encode()
    with pytest.raises(ProofError, match="everybody can sign"):
        check(forged)


def test_a_certificate_names_its_signer(work: Work, accepted: Verdict) -> None:
    """Somebody else's key over a body that names the verifier."""
    body = check(issue(accepted, work.job, SIGNERS.verifier, AT))
    forged = signing.sign(body, OTHERS.verifier)
    with pytest.raises(ProofError, match="not signed"):
        check(forged)
    with pytest.raises(ProofError, match="names another verifier"):
        check(forged, OTHERS.verifier.public_key())
    assert isinstance(body, Certificate)
