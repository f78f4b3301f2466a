"""`owl identity`: make the keys of an owner or a device."""

from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output, settings
from awfulowl.cli.options import Json
from awfulowl.errors import InputError

_Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help="The device's name, or owner for an owner.", show_default=False)
]
_Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where the keys go: mode 0600, never over another file; by default NAME.key in your folder of data.",
        show_default=False,
    ),
]
_Show = Annotated[
    Path | None,
    typer.Option("--show", metavar="FILE", help="Print the enrolment of keys that exist.", show_default=False),
]


def identity(name: _Name = None, output: _Output = None, show: _Show = None, json: Json = None) -> None:
    """Make the keys of an owner or a device, and print the line by which the other side enrols it.

    The line is public; the file is not, and never leaves the machine.
    """
    import msgspec

    from awfulowl.fabric.identity import Identity

    json_output.check_target(json)
    if show is not None:
        if name is not None or output is not None:
            raise InputError("--show reads keys that exist: give no NAME and no --output beside it")
        keys = Identity.load(show)
    else:
        if name is None:
            raise InputError("whose keys? Give NAME to make them, or --show FILE to read some")
        keys = Identity.generate(name)
        keys.save(output or _usual_place(keys.name))
    json_output.write(keys.enrolment, json)
    if json is None or not json_output.is_standard_output(json):
        typer.echo(msgspec.json.encode(keys.enrolment).decode())


def _usual_place(name: str) -> Path:
    folder = settings.secrets_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}; name a file with --output") from error
    return folder / f"{name}.key"
