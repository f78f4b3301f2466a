"""`owl job challenge`, `verify`, `certificate`: what verifiers do, and those who rely on them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from awfulowl.cli import json_output
from awfulowl.cli.boundary import FAILED
from awfulowl.cli.job_options import Client, Key, Package, Proof, Unsafe, host, listener, open_for, read_keys_for
from awfulowl.cli.options import Json
from awfulowl.cli.terminal import Stages, report
from awfulowl.errors import InputError

Checks = Literal["sound", "printed", "all"]

_ChallengeOutput = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The challenge.")]
_Challenge = Annotated[
    Path | None,
    typer.Option(
        "--challenge",
        metavar="FILE",
        help="What you drew before, and the runner answered; without it states are rebuilt here from those that the "
        "runner stored.",
        show_default=False,
    ),
]
_Checks = Annotated[
    Checks,
    typer.Option(
        metavar="sound|printed|all",
        help="sound decides; printed are those of the paper, alone; all makes both, to the end: the sound ones decide.",
        autocompletion=lambda incomplete: [one for one in ("sound", "printed", "all") if one.startswith(incomplete)],
    ),
]
_CertificateOutput = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where the certificate of an accepted proof goes.", show_default=False
    ),
]
_Certificate = Annotated[Path, typer.Argument(metavar="FILE", help="What owl job verify -o wrote.")]
_Verifier = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        metavar="KEY",
        help="The signing key of the verifier that you trust, 64 hex digits; without it look at the one that is shown.",
        show_default=False,
    ),
]
_CertificateClient = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="KEY",
        help="The signing key of the client whose order it has to be, 64 hex digits.",
        show_default=False,
    ),
]
_Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="FILE",
        help="A state, the last one of a proof: is it the model that the certificate is about?",
        show_default=False,
    ),
]


def challenge(
    proof: Proof,
    *,
    output: _ChallengeOutput = Path("challenge.json"),
    package: Package = Path("job.pkg"),
    client: Client = None,
    key: Key = None,
    json: Json = None,
) -> None:
    """Draw steps at random, now that the runner is bound by its commitment; for owl job answer at the runner."""
    json_output.check_target(json)
    mine = read_keys_for("verifier", key, client)
    with Stages() as stages, stages.stage("reading the proof"):
        from awfulowl.cli import job_report
        from awfulowl.jobs import challenge as challenges
        from awfulowl.jobs.hosting import Host

        drawn = Host(open_for(package, mine, client), mine).draw(proof)
        job_report.write_file(output, challenges.sign(drawn, mine.signing_key))
    json_output.write(drawn, json)
    job_report.show_challenge(drawn, output, report(json))


def verify(
    proof: Proof,
    *,
    package: Package = Path("job.pkg"),
    client: Client = None,
    challenge: _Challenge = None,
    checks: _Checks = "sound",
    output: _CertificateOutput = None,
    key: Key = None,
    unsafe: Unsafe = False,
    json: Json = None,
) -> None:
    """Verify a proof: run steps again that are drawn at random after the runner was bound; exit code 0 if accepted.

    The job's code runs here as well, in the same sandbox; what you sign is as true as that code is honest.
    """
    json_output.check_target(json)
    if output is not None and checks == "printed":
        raise InputError("--checks printed prove nothing, so there is no certificate of them: leave --output out")
    mine = read_keys_for("verifier", key, client)
    with Stages() as stages:
        with stages.stage("opening the package"):
            from awfulowl.cli import job_report

            opened = open_for(package, mine, client)
            asked = None if challenge is None else job_report.read_challenge(challenge, opened.job)
        with stages.stage("verifying", total=1) as advance:
            here = host(opened, mine, unsafe=unsafe, listen=listener(stages, advance))
            verdict = here.verify(proof, asked, which=checks, thorough=checks == "all")
    accepted = verdict.status == "accepted"
    if accepted and output is not None:
        job_report.write_file(output, here.certify(verdict))
    json_output.write(verdict, json)
    job_report.show_verdict(verdict, opened.job, output if accepted else None, report(json))
    if not accepted:
        raise typer.Exit(FAILED)


def certificate(
    file: _Certificate,
    *,
    verifier: _Verifier = None,
    client: _CertificateClient = None,
    model: _Model = None,
    json: Json = None,
) -> None:
    """Check a certificate, offline; with --model also whether a model is the one that it is about. Exit code 0: yes.

    Whoever holds the certificate and the last state can show whose training made the model.
    """
    json_output.check_target(json)
    with Stages() as stages, stages.stage("loading PyTorch"):
        from awfulowl.cli import job_report
        from awfulowl.errors import ProofError

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        found = job_report.read_certificate(file, verifier=verifier, client=client, model=model)
    except ProofError as error:
        job_report.show_refusal(str(error), report(json))
        raise typer.Exit(FAILED) from None
    json_output.write(found, json)
    job_report.show_certificate(found, trusted=verifier is not None, model=model, console=report(json))
