"""What the commands of `owl job` share: options, keys, and the sandbox with what is shown of it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from awfulowl.cli import settings
from awfulowl.cli.terminal import Advance, Stages, warn
from awfulowl.errors import InputError
from awfulowl.wire.text import plain

if TYPE_CHECKING:
    from awfulowl.jobs.hosting import Host, Source
    from awfulowl.jobs.keys import PrivateKeys
    from awfulowl.jobs.messages import Progress, Stage
    from awfulowl.jobs.package import Opened

ROLES: Final = ("client", "runner", "verifier")
_STAGE_CHARS: Final = 80

Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Your keys, made by owl job keys; by default job-client.key, job-runner.key or job-verifier.key in your "
        "folder of data.",
        show_default=False,
    ),
]
PackageArgument = Annotated[Path, typer.Argument(metavar="PACKAGE", help="What the client packed.")]
Package = Annotated[
    Path, typer.Option("--package", metavar="FILE", help="What the client packed: never take it from the runner.")
]
Proof = Annotated[Path, typer.Argument(metavar="PROOF", help="The folder that owl job run wrote.")]
Client = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="KEY",
        help="The signing key of the client that you expect, 64 hex digits: a package names its client itself, and one "
        "of another client is refused.",
        show_default=False,
    ),
]
Unsafe = Annotated[
    bool,
    typer.Option(
        "--unsafe",
        help="Run the job's code without a sandbox: it can do all that you can. Only for code that you trust.",
    ),
]


def usual_place(role: str) -> Path:
    """Return where the keys of a role are kept, in a folder that is made.

    Raises:
        InputError: it cannot be made.
    """
    folder = settings.secrets_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}; name a file with --output") from error
    return folder / f"job-{role}.key"


def read_keys(role: str, given: Path | None) -> "PrivateKeys":
    """Return somebody's keys: those that were named, or the usual ones.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    from awfulowl.jobs.keys import PrivateKeys

    path = given or settings.secrets_folder() / f"job-{role}.key"
    if given is None and not path.exists():
        raise InputError(f"there are no keys in {path}: make some with owl job keys {role}, or name others with --key")
    return PrivateKeys.load(path)


def read_keys_for(role: str, given: Path | None, client: str | None) -> "PrivateKeys":
    """Return somebody's keys for a package of the client that is expected.

    Raises:
        InputError: `client` is no key; or there are none of one's own, or they cannot be read.
    """
    if client is not None:
        signing_key("--client", client)
    return read_keys(role, given)


def open_for(package: Path, keys: "PrivateKeys", client: str | None) -> "Opened":
    """Open a package, if it is of the client that is expected.

    Raises:
        InputError: it is none, was altered, is sealed to others, or of another client.
    """
    from awfulowl.jobs.package import open_package

    opened = open_package(package, keys)
    if client not in {None, opened.job.keys.client.signing}:
        raise InputError(
            f"{package} is of another client than you expect: it was signed by {opened.job.keys.client.signing}; get "
            "the package from your client, or see whether --client is the [keys.client] signing of the order"
        )
    return opened


def signing_key(option: str, given: str) -> str:
    """Return the key that an option names, in hex.

    Raises:
        InputError: it is none.
    """
    if not re.fullmatch("[0-9a-f]{64}", given):
        raise InputError(f"{option}: a signing key is 64 hex digits in small letters, as in JOB.toml")
    return given


def host(package: "Source", keys: "PrivateKeys", *, unsafe: bool, listen: "Callable[..., None]") -> "Host":
    """Return what runs a job's code, after a warning where that is not confined."""
    from awfulowl.jobs.hosting import Host

    if unsafe:
        warn("--unsafe: the job's code runs without a sandbox and can read, change and send all that you can")
    return Host(package, keys, unsafe, listen)


def listener(stages: Stages, advance: Advance) -> "Callable[[Stage | Progress], None]":
    """Return what shows the events of a sandbox in a stage whose total is 1: behind them may be the client's code."""
    from awfulowl.jobs.messages import Progress

    def listen(event: "Stage | Progress") -> None:
        if isinstance(event, Progress):
            advance(event.done / event.total if event.total else 0.0)
            stages.describe(f"step {event.done} of {event.total}, loss {event.loss:.4g}")
        else:
            stages.describe(plain(event.text, _STAGE_CHARS))

    return listen
