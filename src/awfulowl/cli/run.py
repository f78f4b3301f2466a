"""`owl run`: try a model on a fleet that exists."""

from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output, settings
from awfulowl.cli.options import Block, Identity, Json, Key, Model, complete_arithmetic, parse_block
from awfulowl.cli.terminal import Stages, report, warn
from awfulowl.errors import InputError
from awfulowl.placement.options import Options, parse_arithmetic

_Url = Annotated[str, typer.Option(metavar="URL", help="The broker: tls://host:4222; nats:// on this machine only.")]
_Device = Annotated[list[Path], typer.Option(metavar="FILE", help="A device's enrolment; repeated for each.")]
_Plan = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A plan file of this model and these devices; who sees what from now on is written there.",
        show_default=False,
    ),
]
_Arithmetic = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="float32 (the default), int8, int16 or auto. For shares: owl plan --sharing -o FILE, then --plan FILE.",
        autocompletion=complete_arithmetic,
        show_default=False,
    ),
]
_Batches = Annotated[int, typer.Option(min=1, max=100_000, help="How often the model is called.")]
_Batch = Annotated[int, typer.Option(min=1, max=100_000, help="The example is repeated so often in each call.")]
_Plain = Annotated[bool, typer.Option("--plain", help="Seal nothing: for devices that were started without --owner.")]


def run(
    model: Model,
    *,
    url: _Url,
    identity: Identity,
    device: _Device,
    plan: _Plan = None,
    key: Key = None,
    block: Block = "auto",
    arithmetic: _Arithmetic = None,
    batches: _Batches = 10,
    batch: _Batch = 8,
    plain: _Plain = False,
    json: Json = None,
) -> None:
    """Scatter a model over a fleet, call it, and compare answers and times with this machine's own."""
    from awfulowl.cli import trial

    json_output.check_target(json)
    if plain:
        warn(f"nothing is sealed: whoever runs the broker at {url} reads all blocks and activations")
    if plan is not None and arithmetic is not None:
        raise InputError("--arithmetic is of a new plan, and --plan names one: give one of the two")
    kind, budget = parse_arithmetic(arithmetic or "float32")
    request = trial.Request(
        model=model,
        url=url,
        identity=identity,
        devices=tuple(device),
        options=Options(block=parse_block(block), arithmetic=kind, error_budget=budget),
        plan=plan,
        key=settings.key_file(key),
        batches=batches,
        batch=batch,
        sealed=not plain,
    )
    with Stages() as stages:
        found = trial.run(request, stages)
    json_output.write(found, json)
    trial.show(found, report(json))
