"""`owl inspect`: what of a model can be scattered, what that costs, and what devices would see."""

from awfulowl.cli import json_output
from awfulowl.cli.options import (
    Arithmetic,
    Block,
    Devices,
    Json,
    Keep,
    Model,
    PlanSeed,
    Sharing,
    names,
    parse_block,
    parse_devices,
)
from awfulowl.cli.terminal import Stages, report


def inspect(
    model: Model,
    *,
    devices: Devices = "8",
    block: Block = "auto",
    keep: Keep = None,
    arithmetic: Arithmetic = "float32",
    sharing: Sharing = None,
    seed: PlanSeed = None,
    json: Json = None,
) -> None:
    """Show what of a model can be scattered: layers, blocks, shares, traffic, what is kept, and what devices see."""
    from awfulowl.cli.plan_report import show
    from awfulowl.cli.planning import make
    from awfulowl.placement.options import Options, parse_arithmetic

    json_output.check_target(json)
    kind, budget = parse_arithmetic(arithmetic)
    options = Options(
        block=parse_block(block),
        keep=names(keep),
        arithmetic=kind,
        error_budget=budget,
        sharing=sharing,
    )
    with Stages() as stages:
        made = make(model, parse_devices(devices), options, stages, seed=seed)
    json_output.write(made.report, json)
    show(made.report, report(json))
