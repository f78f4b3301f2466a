"""`owl demo`: the whole system on real images, with one device killed and one that lies."""

import time
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from awfulowl.cli import json_output
from awfulowl.cli.boundary import FAILED
from awfulowl.cli.options import Json
from awfulowl.cli.terminal import Stages, report
from awfulowl.cli.threads import limit_threads

_NOT_PROTECTED: Final = (
    "The model is NOT hidden here, and neither are the images. Every device holds its blocks in the clear and sees "
    "the slices of activations that enter them, in the first layer slices of the images. Only positions are secret, "
    "and positions alone protect nothing: blocks go back in place by one linear assignment, in seconds. "
    "What is protected: every answer is right within rounding, and requests survive devices that fail or lie."
)

_Devices = Annotated[int, typer.Option(min=3, max=64, help="Device processes; one is corrupted, another is killed.")]
_Seed = Annotated[
    int, typer.Option(help="Of the training and of which images are held back; positions never follow a seed.")
]


def demo(devices: _Devices = 8, seed: _Seed = 0, json: Json = None) -> None:
    """Train a small network on real images, and serve it from devices of which one lies and one is killed.

    All its layers are cut into blocks and scattered. A request is a batch of images; lies told are the false answers
    that the owner added into a sum, those in cover traffic are counted apart. Exit code 1 if a request was lost or
    wrong, or a lie was not caught.
    """
    started = time.perf_counter()
    json_output.check_target(json)
    console = report(json)
    limit_threads(1)  # the products are small, and the devices need the other cores
    _introduce(console)
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import demo_report
            from awfulowl.cli.demonstration import demonstrate
        found = demonstrate(devices, seed, stages, started)
    json_output.write(found, json)
    demo_report.show(found, console)
    if found.failures:
        raise typer.Exit(FAILED)


def _introduce(console: Console) -> None:
    console.print(Text.assemble(("What this does not protect. ", "bold"), _NOT_PROTECTED))
    console.print()
