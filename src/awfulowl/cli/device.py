"""`owl device`: lend this machine to an owner."""

from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output
from awfulowl.cli.options import Identity, Json
from awfulowl.cli.terminal import report, warn
from awfulowl.cli.threads import limit_threads
from awfulowl.limits import GIB

_Url = Annotated[str, typer.Argument(metavar="URL", help="The broker: tls://host:4222; nats:// on this machine only.")]
_Owner = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The owner's enrolment: every frame is then sealed against the broker.", show_default=False
    ),
]
_Threads = Annotated[int, typer.Option(min=1, max=1024, help="Threads that multiply.")]
_Memory = Annotated[float, typer.Option(min=0.001, metavar="GIB", help="Weights that are accepted, in GiB.")]
_Accelerator = Annotated[
    str, typer.Option(metavar="NAME", help="Where blocks are held and multiplied: cpu, cuda, cuda:1.")
]
_Once = Annotated[bool, typer.Option("--once", help="End when the owner says goodbye, instead of waiting for it.")]


def device(
    url: _Url,
    *,
    identity: Identity,
    owner: _Owner = None,
    threads: _Threads = 1,
    memory: _Memory = 4.0,
    accelerator: _Accelerator = "cpu",
    once: _Once = False,
    json: Json = None,
) -> None:
    """Hold blocks for an owner and multiply, until interrupted. No code that is sent is ever run here."""
    limit_threads(threads)
    from awfulowl.cli.device_service import DeviceReport, serve
    from awfulowl.device.accelerator import check_accelerator
    from awfulowl.device.worker import Offer
    from awfulowl.fabric.identity import Identity as Keys
    from awfulowl.fleet.connect import read_enrolment

    json_output.check_target(json)
    check_accelerator(accelerator)
    keys = Keys.load(identity)
    of = None if owner is None else read_enrolment(owner)
    if of is None:
        warn(f"without --owner nothing is sealed: whoever runs the broker at {url} reads all blocks and activations")
    offer = Offer(memory_bytes=int(memory * GIB), threads=threads, accelerator=accelerator)
    json_output.write(DeviceReport(keys.name, url, of is not None, offer.memory_bytes, threads, accelerator), json)
    serve(url, keys, of, offer, report(json), once=once)
