"""`owl demo`: the whole system on real images, with devices killed, devices that lie, and runners that cheat."""

import time
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console
from rich.text import Text

from awfulowl.cli import json_output
from awfulowl.cli.boundary import FAILED
from awfulowl.cli.options import Json
from awfulowl.cli.terminal import Stages, report
from awfulowl.cli.threads import limit_threads
from awfulowl.errors import InputError

What = Literal["serve", "train", "jobs"]

_HIDDEN: Final = (
    "Only positions are secret, and positions alone protect nothing: blocks go back in place by one linear "
    "assignment, in seconds. "
)
_NOT_PROTECTED: Final[dict[What, str]] = {
    "serve": "The model is NOT hidden here, and neither are the images. Every device holds its blocks in the clear and "
    "sees the slices of activations that enter them, in the first layer slices of the images. "
    + _HIDDEN
    + "What is protected: every answer is right within rounding, and requests survive devices that fail or lie.",
    "train": "The model is NOT hidden here, and neither is what it learns from. Every device holds its blocks in the "
    "clear and sees the slices of activations that enter them and the gradients of its rows. "
    + _HIDDEN
    + "What is protected: every product and every step is right within rounding, and training survives devices that "
    "fail or lie.",
    "jobs": "Nothing is hidden from a runner: whoever owns its machine reads code, data and model there. "
    "What is proven: every step was made as it was ordered, but for a share that the number of challenges makes as "
    "small as you like.",
}
_LEAST_DEVICES: Final = 6

_What = Annotated[
    What,
    typer.Argument(
        metavar="[serve|train|jobs]",
        help="serve: a network is trained here and served from devices. train: one is trained on them. jobs: whole "
        "trainings by runners of which most cheat.",
        show_default=True,
    ),
]
_Devices = Annotated[
    int, typer.Option(min=3, max=64, help="Device processes; one is corrupted, another is killed. For train 6 or more.")
]
_Seed = Annotated[
    int, typer.Option(help="Of the training and of which images are held back; positions never follow a seed.")
]
_Curve = Annotated[
    Path | None,
    typer.Option(
        "--curve", metavar="FILE", help="Of train: draw both loss curves there, as a PNG.", show_default=False
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FILE", help="Of jobs: CIFAR-10, for a second job on it.", show_default=False),
]


def demo(
    what: _What = "serve",
    *,
    devices: _Devices = 8,
    seed: _Seed = 0,
    curve: _Curve = None,
    data: _Data = None,
    json: Json = None,
) -> None:
    """Serve or train a small network on real images, with devices of which some lie and some are killed.

    All its layers are cut into blocks and scattered.

    serve: a request is a batch of images; lies told are the false answers that the owner added into a sum, those in
    cover traffic are counted apart. Exit code 1 if a request was lost or wrong, or a lie was not caught.

    train: one device lies, one skips its steps, two die and come back, beside the same training here alone. Exit code
    1 if a liar was not caught, or the accuracies differ by more than half a point.

    jobs: one honest runner and eight that cheat prove their training of digits, and with --data of CIFAR-10. Exit code
    1 if a cheat was accepted or the honest runner refused.
    """
    started = time.perf_counter()
    json_output.check_target(json)
    if what != "train" and curve is not None:
        raise InputError("--curve draws what owl demo train learned; without train there is no curve")
    if what != "jobs" and data is not None:
        raise InputError("--data is for owl demo jobs; the other demonstrations bring their images along")
    if what == "train" and devices < _LEAST_DEVICES:
        raise InputError(f"--devices {devices}: two lie, two die, and others must be left: {_LEAST_DEVICES} or more")
    console = report(json)
    limit_threads(1)  # the products are small, and the devices need the other cores
    _introduce(what, console)
    if what == "serve":
        failed = _serve(devices, seed, json, started)
    elif what == "train":
        failed = _train(devices, seed, curve, json, started)
    else:
        failed = _jobs(seed, data, json)
    if failed:
        raise typer.Exit(FAILED)


def _serve(devices: int, seed: int, json: Path | None, started: float) -> bool:
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import demo_report
            from awfulowl.cli.demonstration import demonstrate
        found = demonstrate(devices, seed, stages, started)
    json_output.write(found, json)
    demo_report.show(found, report(json))
    return bool(found.failures)


def _train(devices: int, seed: int, curve: Path | None, json: Path | None, started: float) -> bool:
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import training_demo, training_demo_report
        training_demo.check_curve(curve)
        found = training_demo.demonstrate(devices, seed, stages, started)
    training_demo.draw(found, curve)
    json_output.write(found, json)
    training_demo_report.show(found, report(json))
    return bool(found.failures)


def _jobs(seed: int, data: Path | None, json: Path | None) -> bool:
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import job_demo
        found = job_demo.demonstrate(seed, data, stages)
    json_output.write(found, json)
    job_demo.show(found, report(json))
    return bool(job_demo.failures(found))


def _introduce(what: What, console: Console) -> None:
    console.print(Text.assemble(("What this does not protect. ", "bold"), _NOT_PROTECTED[what]))
    console.print()
