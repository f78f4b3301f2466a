"""What came of a training, in numbers and in words."""

import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from awfulowl.cli import tables
from awfulowl.cli.curve import sparkline
from awfulowl.cli.figures import UNKNOWN, count, percent, size
from awfulowl.recipes.run import Trained
from awfulowl.recipes.task import Metric


def figure_text(metric: Metric, figure: float | None) -> str:
    """Return a figure on held-back data in words."""
    if figure is None:
        return UNKNOWN
    return f"accuracy {percent(figure)}" if metric == "accuracy" else f"{figure:.3f} nats a character"


def show(found: Trained, output: Path | None, console: Console) -> None:
    """Print what came of a training."""
    where = "here alone" if found.plain else "on devices"
    tables.show(console, f"{found.recipe.name} {where}", tables.pairs(_rows(found)))
    if output is not None and found.finished:
        console.print(Text(f"The trained weights, the loss curve and the checkpoints are in {output}."), soft_wrap=True)
    if not found.finished:
        keeps = output is not None and not found.plain
        kept = "--resume goes on from the newest checkpoint" if keeps else "nothing was kept"
        console.print(Text(f"Ended after {count(found.steps)} steps; {kept}.", style="bold"), soft_wrap=True)


def _rows(found: Trained) -> list[tuple[str, str]]:
    taken = max(1, found.steps - found.resumed_at)
    recipe = found.recipe
    return [
        ("model and data", f"{recipe.model} on {recipe.data}, seed {recipe.seed}"),
        ("steps", f"{count(found.steps)} of {count(recipe.batch)} examples{_resumed(found)}"),
        ("on held-back data", figure_text(found.metric, found.figure)),
        ("loss", curve_text(found.losses)),
        ("time", f"{found.seconds:.1f} s, {1000 * found.seconds / taken:.0f} ms a step with all that belongs to it"),
        *([] if found.plain else _fleet_rows(found, taken)),
    ]


def _resumed(found: Trained) -> str:
    return f", of which {count(found.steps - found.resumed_at)} since it was resumed" if found.resumed_at else ""


def curve_text(losses: tuple[float, ...]) -> str:
    """Return a loss curve in a line: where it began, how it went, where it is."""
    return f"{losses[0]:.3g} {sparkline(losses)} {losses[-1]:.3g}" if losses else UNKNOWN


def _fleet_rows(found: Trained, taken: int) -> list[tuple[str, str]]:
    counted = found.statistics
    return [
        ("traffic a step", size((counted["bytes_sent"] + counted["bytes_received"]) / taken)),
        ("checked products", f"{count(counted['checks'])} samples, of which failed {count(counted['checks_failed'])}"),
        ("lies caught", count(counted["lies_caught"])),
        ("steps taken again", f"{count(counted['replayed'])}, to rebuild blocks"),
        ("moved unseen", drift_text(found.drift)),
        *([("blocks rebuilt here", count(counted["reworked"]))] if counted["reworked"] else []),
    ]


def drift_text(drift: Mapping[str, float]) -> str:
    """Say how far devices may have moved weights unseen."""
    most = max(drift.values(), default=0.0)
    return f"at most {most:.1e} of a layer's weights" if math.isfinite(most) else "no bound: Adam's steps are sampled"
