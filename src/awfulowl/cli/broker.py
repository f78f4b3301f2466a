"""`owl broker`: run the embedded broker by itself."""

from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output
from awfulowl.cli.options import Json

_Owner = Annotated[Path, typer.Option(metavar="FILE", help="The owner's enrolment: the line of owl identity owner.")]
_Device = Annotated[list[Path], typer.Option(metavar="FILE", help="A device's enrolment; repeated for each.")]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="On this machine's loopback interface; 0: any free one.")]


def broker(owner: _Owner, device: _Device, port: _Port = 4222, json: Json = None) -> None:
    """Run the broker through which an owner and its devices meet, until it is interrupted.

    It listens on this machine only: devices come by tunnels (ssh -L, at the device). Or use a NATS server of
    your own with TLS.
    """
    from awfulowl.cli.broker_service import serve
    from awfulowl.cli.terminal import report
    from awfulowl.fleet.connect import read_enrolment

    json_output.check_target(json)
    serve(read_enrolment(owner), [read_enrolment(path) for path in device], port, json, report(json))
