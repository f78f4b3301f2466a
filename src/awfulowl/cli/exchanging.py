"""Figures 6 and 7 of the founding paper, from the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text
from torch import nn

from awfulowl.cli import tables
from awfulowl.cli.json_output import write
from awfulowl.cli.terminal import Advance, Stages
from awfulowl.errors import InputError
from awfulowl.lab.report.curves import draw_curves
from awfulowl.lab.report.figures import write_figures
from awfulowl.lab.report.words import interval, percent
from awfulowl.lab.scenes.drawing import largest_layer
from awfulowl.lab.victims.copies import train_copied
from awfulowl.lab.victims.data import Split, cache_folder, read_split, some
from awfulowl.lab.victims.fitting import OnEpoch
from awfulowl.lab.victims.kinds import KINDS, find_kind, train_victim
from awfulowl.lab.yardsticks.exchange import Curves, Point, curves, read_published, set_up

JSON: Final = "exchange.json"
_COPIES: Final = "copies"
_COPIES_LAYER: Final = "fc1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is drawn, from what, and where it goes."""

    model: str
    data: str
    output: Path
    published: list[Path] | None
    draws: int
    images: int
    seed: int


def run(request: Request, stages: Stages) -> Curves:
    """Train the network if it is not kept, measure, and write figures and numbers.

    Raises:
        InputError: data, files or folder are not usable.
        ModelError: the model cannot be cut.
    """
    published = read_published(request.published or [])
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{request.output} cannot be made: {error.strerror}") from error
    with stages.stage("reading the data"):
        data = read_split(request.data, cache_folder())
    model, layer = _network(request, data, stages)
    test = some(data.test, request.images, request.seed)
    with stages.stage("measuring", 1.0) as advance:
        setup = set_up(model, layer, test)
        found = curves(
            request.model,
            setup,
            layer=layer,
            draws=request.draws,
            seed=request.seed,
            on_point=lambda done, total: advance(done / total),
        )
    write_figures(draw_curves(found, published), request.output)
    write(found, request.output / JSON)
    return found


def _network(request: Request, data: Split, stages: Stages) -> tuple[nn.Module, str]:
    """Return the trained network and the name of its layer."""
    if request.model == _COPIES:
        with stages.stage("training the convolutions", 1.0) as advance:
            trunk = train_victim(KINDS["cifar"], 0, data, cache=cache_folder(), on_epoch=_told(advance))
        with stages.stage("training the paper's layer over them", 1.0) as advance:
            return train_copied(trunk, 5, data, cache=cache_folder(), on_epoch=_told(advance)).model, _COPIES_LAYER
    kind = find_kind(request.model)
    with stages.stage(f"training {kind.name}", 1.0) as advance:
        victim = train_victim(kind, request.seed, data, cache=cache_folder(), on_epoch=_told(advance))
    return victim.model, kind.layer or largest_layer(victim.model)


def _told(advance: Advance) -> OnEpoch:
    return lambda done, total: advance(done / total)


def show(found: Curves, output: Path, console: Console) -> None:
    """Print the points."""
    table = tables.grid("blocks missing", ("pairs exchanged", "held blocks displaced", "accuracy"))
    for point in (*found.dropped, *found.exchanged):
        table.add_row(*_cells(point))
    title = (
        f"{found.model}, {found.layer}, {found.blocks} blocks: {percent(found.whole)}, zeroed {percent(found.zeroed)}"
    )
    tables.show(console, title, table)
    console.print(Text(f"Figures and numbers: {output}"), soft_wrap=True)


def _cells(point: Point) -> tuple[str, ...]:
    accuracy = f"{percent(point.accuracy)} {interval(point.interval)}"
    return percent(point.dropped), str(point.pairs), percent(point.displaced), accuracy
