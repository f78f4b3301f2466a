"""What came of the commands of `owl job`, in numbers and in words."""

from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.console import Console
from rich.text import Text

from awfulowl.cli import tables
from awfulowl.cli.figures import UNKNOWN, count, counted, percent, size
from awfulowl.cli.job_options import signing_key
from awfulowl.errors import InputError, ProofError
from awfulowl.files import write_whole
from awfulowl.jobs import certificate, challenge, proof, records, state
from awfulowl.jobs.certificate import Certificate
from awfulowl.jobs.challenge import Challenge
from awfulowl.jobs.job import Job
from awfulowl.jobs.records import read_bounded
from awfulowl.jobs.signing import MOST_STATEMENT_BYTES
from awfulowl.jobs.verify import Verdict
from awfulowl.limits import GIB
from awfulowl.wire.text import plain

_MOST_STATE_BYTES: Final = 64 * GIB
_SHORT: Final = 16
_LINE_CHARS: Final = 300
_DEAR: Final = 0.2
"""What verifying costs at most, as a share of a training that is not very short."""


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A package: the job's digest, bytes in all, files of code, bytes of each file of data."""

    name: str
    job: str
    bytes: int
    code: int
    data: dict[str, int]
    steps: int | None
    """None: no preflight was made, which would have found out."""


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """A training that ran to its end; a plain script has no commitment."""

    name: str
    job: str
    steps: int
    commitment: str | None
    model: str | None
    state_bytes: int | None
    proof_bytes: int
    seconds: float


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner has rebuilt."""

    job: str
    commitment: str
    steps: int


def ran(job: Job, directory: Path, seconds: float) -> Ran:
    """Return what a run left in its directory."""
    stored = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    common = {"name": job.name, "job": job.digest.hex(), "proof_bytes": stored, "seconds": seconds}
    if not (directory / proof.COMMITMENT).exists():
        steps = len(records.read_log(directory / proof.LOG, job).iterations)
        return msgspec.convert({**common, "steps": steps, "commitment": None, "model": None, "state_bytes": None}, Ran)
    made = proof.read_commitment(directory, job)
    fixed = {"commitment": made.digest.hex(), "model": made.final, "state_bytes": made.state_bytes, "steps": made.steps}
    return msgspec.convert({**common, **fixed}, Ran)


def read_challenge(path: Path, job: Job) -> Challenge:
    """Read a challenge.

    Raises:
        ProofError: it is damaged, of another job, or not signed by the job's verifier.
    """
    return challenge.read(read_bounded(path, MOST_STATEMENT_BYTES), job)


def steps_of(asked: Challenge) -> int:
    """Return how many steps a challenge wants to run again."""
    return len(challenge.challenged(asked))


def read_certificate(path: Path, *, verifier: str | None, client: str | None, model: Path | None) -> Certificate:
    """Check a certificate.

    Args:
        path: of the certificate.
        verifier: the key in hex that has to have signed it; None: the one that it names.
        client: the key in hex of the client whose order it has to be; None: any.
        model: the state that it has to be about; None: any.

    Raises:
        InputError: `verifier` or `client` is no key, or the file is no certificate.
        ProofError: it is changed, not signed by that verifier, not of that client, or not about that state.
    """
    key = None
    if verifier is not None:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signing_key("--verifier", verifier)))
    wanted = None if client is None else signing_key("--client", client)
    found = certificate.check(read_bounded(path, MOST_STATEMENT_BYTES), key, str(path))
    if wanted not in {None, found.client}:
        raise ProofError(f"{path} is of another client's order: that of {found.client}")
    if model is not None:
        held = state.decode(read_bounded(model, _MOST_STATE_BYTES), found.steps, str(model))
        if not certificate.owns(found, held):
            raise ProofError(f"{model} is not the state that {path} is about")
    return found


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_whole(path, content, 0o644)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def show_packed(found: Packed, output: Path, console: Console) -> None:
    """Print what was packed."""
    rows = [
        ("job", f"{found.name}, digest {found.job}"),
        ("code", counted(found.code, "file")),
        ("data", ", ".join(f"{name} ({size(length)})" for name, length in found.data.items())),
        ("steps", UNKNOWN if found.steps is None else f"{count(found.steps)}; the first ones came out twice alike"),
        ("package", f"{output}, {size(found.bytes)}, signed by the client, sealed to runner and verifier"),
    ]
    tables.show(console, "Packed", tables.pairs(rows))


def show_ran(found: Ran, output: Path, console: Console) -> None:
    """Print what came of a run."""
    rows = [
        ("job", f"{found.name}, digest {found.job}"),
        ("steps", count(found.steps)),
        ("proof", f"{output}, {size(found.proof_bytes)}"),
        ("time", f"{found.seconds:.1f} s"),
    ]
    if found.commitment is None:
        rows.insert(3, ("commitment", "none: a plain script cannot be run again, so nothing of it is proven"))
    else:
        rows.insert(3, ("commitment", f"{found.commitment[:_SHORT]}...: from here on all is fixed"))
        rows.insert(4, ("a state", size(found.state_bytes or 0)))
    tables.show(console, "Ran to the end", tables.pairs(rows))


def show_challenge(drawn: Challenge, output: Path, console: Console) -> None:
    """Print what was drawn."""
    how = "every bit has to be equal" if drawn.exact else "short stretches, within the job's tolerance"
    rows = [
        ("commitment", f"{drawn.commitment[:_SHORT]}..."),
        ("steps to run again", f"{steps_of(drawn)}, of which {len(drawn.drawn)} at random; {how}"),
        ("challenge", f"{output}, for the runner: owl job answer"),
    ]
    tables.show(console, "Drawn", tables.pairs(rows))


def show_answered(found: Answered, directory: Path, console: Console) -> None:
    """Print what was rebuilt."""
    rows = [("steps", count(found.steps)), ("answers", str(directory / challenge.ANSWERS))]
    tables.show(console, "Answered", tables.pairs(rows))


def show_verdict(verdict: Verdict, job: Job, output: Path | None, console: Console) -> None:
    """Print a verdict, and what each check said."""
    table = tables.grid("check", ("verdict", "seconds"))
    for one in verdict.findings:
        table.add_row(Text(one.check), "passed" if one.reason is None else "refused", f"{one.seconds:.3f}")
    tables.show(console, "Checks", table)
    console.print()
    rows = [
        ("job", f"{job.name}, digest {verdict.job}"),
        ("client", job.keys.client.signing),
        ("steps run here", f"{count(verdict.replayed_steps)}, for a proof of {count(verdict.steps)}"),
        ("cost", _cost(verdict)),
    ]
    if verdict.reason is not None:
        rows.append(("reason", plain(verdict.reason, _LINE_CHARS)))
    if output is not None:
        rows.append(("certificate", str(output)))
    caught = f" by the check {verdict.caught_by!r}" if verdict.caught_by else ""
    tables.show(console, f"{verdict.status}{caught}".capitalize(), tables.pairs(rows))


def _cost(verdict: Verdict) -> str:
    if verdict.verification_cost is None:
        return f"{UNKNOWN}: no step was run"
    cost = f"{percent(verdict.verification_cost)} of the processor time of the whole training"
    if verdict.verification_cost < _DEAR:
        return cost
    return f"{cost}, which is short: verifying takes about as long for {count(verdict.steps)} steps as for a million"


def show_refusal(reason: str, console: Console) -> None:
    """Print why a certificate is none, or not the one that was asked for."""
    console.print(Text.assemble(("Refused: ", "bold red"), plain(reason, _LINE_CHARS)), soft_wrap=True)


def show_certificate(found: Certificate, *, trusted: bool, model: Path | None, console: Console) -> None:
    """Print what a certificate says."""
    exact = "bit by bit" if found.exact else "within the job's tolerance"
    rows = [
        ("job", f"{found.name}, digest {found.job}"),
        ("steps", f"{count(found.steps)}, of which {count(found.replayed)} were run again, {exact}"),
        ("a quarter faked", f"would have passed with probability {found.missed:.1e}"),
        ("client", found.client),
        ("runner", found.runner),
        ("verifier", found.verifier + ("" if trusted else "  <- is this the one that you trust?")),
        ("issued", plain(found.at, _SHORT * 2)),
        ("model", f"{found.model[:_SHORT]}..." + ("" if model is None else f": {model} is it")),
    ]
    tables.show(console, "A sound certificate", tables.pairs(rows))
