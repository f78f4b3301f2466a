"""`owl job keys`, `pack`, `run`, `answer`: what clients and runners do."""

import time
from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output
from awfulowl.cli.job_options import (
    ROLES,
    Client,
    Key,
    Package,
    PackageArgument,
    Proof,
    Unsafe,
    host,
    listener,
    open_for,
    read_keys,
    read_keys_for,
    usual_place,
)
from awfulowl.cli.options import Json
from awfulowl.cli.terminal import Stages, report
from awfulowl.errors import InputError

_Role = Annotated[
    str,
    typer.Argument(
        metavar="ROLE",
        help="client, runner or verifier.",
        autocompletion=lambda incomplete: [role for role in ROLES if role.startswith(incomplete)],
    ),
]
_KeysOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where the keys go: mode 0600, never over another file; by default job-ROLE.key in your folder of data.",
        show_default=False,
    ),
]
_Show = Annotated[
    Path | None,
    typer.Option("--show", metavar="FILE", help="Print the public half of keys that exist.", show_default=False),
]
_Order = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The order; its paths are relative to its folder.")]
_PackageOutput = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The package.")]
_Preflight = Annotated[
    bool,
    typer.Option(help="Run the first steps twice in the sandbox: a job that is not repeatable cannot be proven."),
]
_ProofOutput = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="The proof; an unfinished one is gone on with.")
]
_Challenge = Annotated[Path, typer.Argument(metavar="CHALLENGE", help="What owl job challenge wrote.")]


def keys(role: _Role, *, output: _KeysOutput = None, show: _Show = None, json: Json = None) -> None:
    """Make the keys of a client, a runner or a verifier, and print the lines that go into JOB.toml.

    The lines are public; the file is not, and never leaves the machine.
    """
    from awfulowl.jobs.keys import PrivateKeys

    json_output.check_target(json)
    if role not in ROLES:
        raise InputError(f"{role!r} is no role; there are {', '.join(ROLES)}")
    if show is not None:
        if output is not None:
            raise InputError("--show reads keys that exist: give no --output beside it")
        found = PrivateKeys.load(show)
    else:
        found = PrivateKeys.generate()
        found.save(output or usual_place(role))
    public = found.public
    json_output.write(public, json)
    if json is None or not json_output.is_standard_output(json):
        typer.echo(f'\n[keys.{role}]\nsigning = "{public.signing}"\nsealing = "{public.sealing}"')


def pack(
    order: _Order,
    *,
    output: _PackageOutput = Path("job.pkg"),
    key: Key = None,
    preflight: _Preflight = True,
    unsafe: Unsafe = False,
    json: Json = None,
) -> None:
    """Pack a job with its code and data: signed by you, sealed to the runner and the verifier that JOB.toml names.

    They open code and data in memory only. Who owns a machine can read its memory, though: docs/jobs.md says what a
    runner can still do.
    """
    json_output.check_target(json)
    mine, steps = read_keys("client", key), None
    with Stages() as stages:
        with stages.stage("reading code and data"):
            from awfulowl.cli import job_report
            from awfulowl.jobs.ordering import read_order
            from awfulowl.jobs.package import seal

            own = read_order(order)
        if preflight:
            with stages.stage("preflight", total=1) as advance:
                steps = host(own, mine, unsafe=unsafe, listen=listener(stages, advance)).preflight()
        with stages.stage("packing"):
            seal(output, own.job, own.code, own.data, mine)
    found = job_report.Packed(
        name=own.job.name,
        job=own.job.digest.hex(),
        bytes=output.stat().st_size,
        code=len(own.code),
        data=dict(own.sizes),
        steps=steps,
    )
    json_output.write(found, json)
    job_report.show_packed(found, output, report(json))


def run(
    package: PackageArgument,
    *,
    output: _ProofOutput = Path("proof"),
    client: Client = None,
    key: Key = None,
    unsafe: Unsafe = False,
    json: Json = None,
) -> None:
    """Run a job in a sandbox, and commit to every state of its training.

    Whoever ends it loses the time since the last stored state: the same command goes on from there.
    """
    json_output.check_target(json)
    mine = read_keys_for("runner", key, client)
    started = time.perf_counter()
    with Stages() as stages:
        with stages.stage("opening the package"):
            from awfulowl.cli import job_report

            opened = open_for(package, mine, client)
        with stages.stage("running the job", total=1) as advance:
            host(opened, mine, unsafe=unsafe, listen=listener(stages, advance)).run(output)
    found = job_report.ran(opened.job, output, time.perf_counter() - started)
    json_output.write(found, json)
    job_report.show_ran(found, output, report(json))


def answer(
    proof: Proof,
    challenge: _Challenge,
    *,
    package: Package = Path("job.pkg"),
    client: Client = None,
    key: Key = None,
    unsafe: Unsafe = False,
    json: Json = None,
) -> None:
    """Answer a challenge: rebuild the states that it asks for, into the proof's folder `answers`."""
    json_output.check_target(json)
    mine = read_keys_for("runner", key, client)
    with Stages() as stages:
        with stages.stage("opening the package"):
            from awfulowl.cli import job_report

            opened = open_for(package, mine, client)
            asked = job_report.read_challenge(challenge, opened.job)
        with stages.stage("rebuilding states", total=1) as advance:
            host(opened, mine, unsafe=unsafe, listen=listener(stages, advance)).answer(proof, asked)
    found = job_report.Answered(job=asked.job, commitment=asked.commitment, steps=job_report.steps_of(asked))
    json_output.write(found, json)
    job_report.show_answered(found, proof, report(json))
