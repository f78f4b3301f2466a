"""`owl audit`: what a stolen share of a model is worth, in a report."""

from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output
from awfulowl.cli.boundary import INTERRUPTED
from awfulowl.cli.lab_options import Blocks, Data, Devices, Layer, Seed, Taking, Threat, Victim, parse_blocks
from awfulowl.cli.options import Json
from awfulowl.cli.terminal import Stages, report
from awfulowl.cli.threads import limit_threads

_Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of report.html, report.json and the figures.")
]
_Attacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        metavar="NAME",
        help="An attack (see owl attack list), or path/to/file.py:Class, which runs that file; may be repeated. By "
        "default all.",
    ),
]
_Shares = Annotated[
    list[float] | None, typer.Option("--share", metavar="F", help="Instead of the threat model's; may be repeated.")
]
_Victims = Annotated[int, typer.Option(min=1, max=100, help="Victims, trained from seeds that follow each other.")]
_Shuffles = Annotated[int, typer.Option(min=1, max=100, help="Draws of the loot for each victim.")]
_Possession = Annotated[bool, typer.Option(help="Measure drop curves, scores of layers and warm starts as well.")]
_Standard = Annotated[
    bool,
    typer.Option(
        "--standard",
        help="The standard set, instead of the options above: one victim, blocks of 64 and 32, shares 1, .3 and .1 of "
        "all blocks, three draws, the cheap attacks. With one victim there is no verdict of an advantage.",
    ),
]
_Workers = Annotated[int | None, typer.Option(min=1, max=256, help="Processes; by default one for each core.")]


def audit(
    model: Victim,
    *,
    data: Data,
    threat: Threat,
    output: _Output,
    attack: _Attacks = None,
    layer: Layer = None,
    block: Blocks = None,
    share: _Shares = None,
    taking: Taking = "columns",
    devices: Devices = 20,
    victims: _Victims = 3,
    shuffles: _Shuffles = 3,
    seed: Seed = 0,
    possession: _Possession = True,
    standard: _Standard = False,
    workers: _Workers = None,
    json: Json = None,
) -> None:
    """Say what pirates with a share of the devices could steal: floors, attacks, controls, and the verdict.

    An audit that was interrupted goes on where it ended: rows that are finished are kept in DIR and not done again.
    The report names what is missing, and why. Exit code 130 if it was interrupted.
    """
    # Neither loads PyTorch: what is wrong with the request is said at once.
    from awfulowl.lab.request import STANDARD, make_request
    from awfulowl.lab.scenes.threat import read_threat

    json_output.check_target(json)
    limit_threads(1)  # several processes, one thread each
    request = make_request(
        {
            "model": model,
            "data": data,
            "attacks": attack or [],
            "layers": layer or [],
            "blocks": parse_blocks(block),
            "shares": share or [],
            "taking": taking,
            "devices": devices,
            "victims": victims,
            "shuffles": shuffles,
            "seed": seed,
            "possession": possession,
            **(STANDARD if standard else {}),
        },
        read_threat(threat),
    )
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import auditing
        found = auditing.run(request, output, workers, stages)
    json_output.write(found, json)
    auditing.show(found, output, report(json))
    if not found.finished:
        raise typer.Exit(INTERRUPTED)
