"""`owl plan`: decide which device gets which blocks, and keep it in an encrypted file."""

from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output, settings
from awfulowl.cli.options import (
    Arithmetic,
    Block,
    Devices,
    Json,
    Keep,
    Key,
    OptionalModel,
    PlanSeed,
    Replicas,
    Sharing,
    names,
    parse_block,
    parse_devices,
)
from awfulowl.cli.terminal import Stages, report
from awfulowl.errors import InputError
from awfulowl.placement.options import Options, Shape, parse_arithmetic

_Share = Annotated[float | None, typer.Option(help="Largest share of a layer's input slices that a device may see.")]
_DomainShare = Annotated[float | None, typer.Option(help="The same for a domain.")]
_Shape = Annotated[
    Shape, typer.Option(help="What lives together; anything but columns shows more, and is for comparison.")
]
_Strict = Annotated[bool, typer.Option("--strict", help="Refuse what cannot keep the standard rules.")]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan file, encrypted: mode 0600.")
]
_Show = Annotated[Path | None, typer.Option("--show", metavar="FILE", help="Read a plan file instead of making one.")]


def plan(
    model: OptionalModel = None,
    *,
    devices: Devices = "8",
    replicas: Replicas = None,
    share: _Share = None,
    domain_share: _DomainShare = None,
    block: Block = "auto",
    shape: _Shape = "columns",
    keep: Keep = None,
    strict: _Strict = False,
    arithmetic: Arithmetic = "float32",
    sharing: Sharing = None,
    seed: PlanSeed = None,
    output: _Output = None,
    show: _Show = None,
    key: Key = None,
    json: Json = None,
) -> None:
    """Decide which device gets which blocks of a model; positions are never shown."""
    from awfulowl.cli import plan_report, planning

    json_output.check_target(json)
    if show is not None:
        if output is not None:
            raise InputError("--show reads a plan and --output writes one: give one of the two")
        shown = planning.read(show, settings.key_file(key), model)
        json_output.write(shown, json)
        plan_report.show(shown, report(json))
        return
    if model is None:
        raise InputError("which model? Give MODEL to make a plan, or --show FILE to read one")
    kind, budget = parse_arithmetic(arithmetic)
    options = Options(
        block=parse_block(block),
        replicas=replicas,
        share=share,
        domain_share=domain_share,
        shape=shape,
        strict=strict,
        keep=names(keep),
        arithmetic=kind,
        error_budget=budget,
        sharing=sharing,
    )
    with Stages() as stages:
        made = planning.make(model, parse_devices(devices), options, stages, seed=seed)
    if output is not None:
        planning.save(made.plan, output, settings.key_file(key))
    json_output.write(made.report, json)
    plan_report.show(made.report, report(json))
