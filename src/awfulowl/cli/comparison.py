"""The same images in several kinds of arithmetic and sharing, side by side: what each costs, and shows to whom."""

import time
from collections.abc import Sequence
from typing import Final

import msgspec
import torch
from rich.console import Console
from torch import Tensor, nn

from awfulowl.arithmetic.numbers import FLOAT32
from awfulowl.cli import tables
from awfulowl.cli.figures import percent, size
from awfulowl.cli.terminal import Stages
from awfulowl.fleet.fleet import Fleet
from awfulowl.models.data import Labelled
from awfulowl.placement.exposure import Coalition, expose
from awfulowl.placement.request import plan

MODES: Final[Sequence[tuple[str, str | None]]] = (
    (FLOAT32, None),
    ("int8", None),
    ("int8", "inputs:2"),
    ("int8", "replicated"),
)


class Mode(msgspec.Struct, frozen=True):
    """One way to serve the same model: arithmetic and sharing, cost, and what random coalitions of parties get.

    `equal_to_twin` says whether every answer was that of the local twin, bit for bit; None in float32, which has none.
    """

    arithmetic: str
    sharing: str | None
    accuracy: float
    images_per_s: float
    bytes_per_image: float
    equal_to_twin: bool | None
    coalitions: tuple[Coalition, ...]


def compare(fleet: Fleet, model: nn.Module, test: Labelled, batch: int, stages: Stages) -> tuple[Mode, ...]:
    """Serve a test set in every mode, one after the other.

    Args:
        fleet: of devices of which each plays a party of its own.
        model: what is served.
        test: images and labels.
        batch: images in a request.
        stages: where progress is shown.
    """
    parties = {device.name: f"party {device.name}" for device in fleet.devices}
    modes = []
    with stages.stage("serving the test set in float32, in int8, and shared", len(MODES)) as advance:
        for done, (arithmetic, sharing) in enumerate(MODES, start=1):
            modes.append(_serve(fleet, parties, model, test, (arithmetic, sharing, batch)))
            advance(done)
    return tuple(modes)


@torch.inference_mode()
def _serve(
    fleet: Fleet, parties: dict[str, str], model: nn.Module, test: Labelled, how: tuple[str, str | None, int]
) -> Mode:
    arithmetic, sharing, batch = how
    made = plan(model, test.inputs[:1], devices=parties, arithmetic=arithmetic, sharing=sharing)
    scattered = fleet.scatter(model, made)
    scattered(test.inputs[:batch])
    before, started = fleet.statistics, time.perf_counter()
    answers = _ask(scattered, test.inputs, batch)
    seconds, after = time.perf_counter() - started, fleet.statistics
    exposure = expose(fleet.plan_of(scattered))
    fleet.release(scattered)
    images = len(test.labels)
    return Mode(
        arithmetic=arithmetic,
        sharing=sharing,
        accuracy=float((answers.argmax(1) == test.labels).double().mean()),
        images_per_s=images / seconds,
        bytes_per_image=sum(after[name] - before[name] for name in ("bytes_sent", "bytes_received")) / images,
        equal_to_twin=(
            None if arithmetic == FLOAT32 else torch.equal(answers, _ask(made.twin(model), test.inputs, batch))
        ),
        coalitions=exposure.model,
    )


def _ask(model: nn.Module, images: Tensor, batch: int) -> Tensor:
    return torch.cat([model(part) for part in torch.split(images, batch)])


def show(modes: Sequence[Mode], console: Console) -> None:
    """Print the modes side by side."""
    shares = [f"{100 * one.share:.0f} %: {one.members} of {one.of}" for one in modes[0].coalitions]
    table = tables.grid("arithmetic, shared", ("accuracy", "images/s", "an image", "twin", *shares))
    for mode in modes:
        table.add_row(
            f"{mode.arithmetic}, {mode.sharing or 'nothing'}",
            percent(mode.accuracy),
            f"{mode.images_per_s:,.0f}",
            size(mode.bytes_per_image),
            {None: "-", True: "equal", False: "DIFFERS"}[mode.equal_to_twin],
            *(f"{100 * one.seen:.0f} / {100 * one.held:.0f}" for one in mode.coalitions),
        )
    title = "Side by side: each device a party of its own; in the last columns % of inputs seen / weights held"
    tables.show(console, f"{title} by coalitions", table)
    console.print()
