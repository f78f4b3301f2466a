"""What the demonstration of training found, in numbers and in words."""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from awfulowl.cli import tables
from awfulowl.cli.demo_report import WANTED_ACCURACY, Happening, sentence
from awfulowl.cli.figures import count, counted, percent, size
from awfulowl.cli.training_report import curve_text

TroubleKind = Literal["lied", "skipped its steps", "died"]

LARGEST_DIFFERENCE: Final = 0.005
"""Of accuracies: half a point."""

DEFINITIONS: Final = {
    "plain": "the same recipe, seed and order of images here alone, with torch.optim.SGD",
    "troubles": "what was done to devices; noticed_after_steps counts steps until the owner had quarantined it, or for "
    "a death had given it up, and returned_after_steps until one that was started again was back",
    "max_weight_difference": "largest absolute difference of a weight or bias between the two trained networks",
    "max_loss_difference": "largest absolute difference of the losses of one step",
    "drift": "for each layer how far devices may have moved its weights unseen, relative to their length",
}


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to a device, and how long it took until the owner noticed; None: never."""

    kind: TroubleKind
    device: str
    step: int
    noticed_after_steps: int | None = None
    noticed_after_s: float | None = None
    returned_after_steps: int | None = None


class TrainingDemonstration(msgspec.Struct, frozen=True, kw_only=True):
    """What the demonstration found; `definitions` say what the figures mean."""

    accuracy_plain: float
    accuracy_scattered: float
    losses_plain: tuple[float, ...]
    losses_scattered: tuple[float, ...]
    max_loss_difference: float
    max_weight_difference: float
    largest_weight: float
    devices: int
    steps: int
    batch: int
    troubles: tuple[Trouble, ...]
    quarantined: tuple[str, ...]
    drift: dict[str, float]
    seconds: float
    seconds_plain: float
    seconds_scattered: float
    happenings: tuple[Happening, ...]
    statistics: dict[str, int]
    notes: tuple[str, ...]
    seed: int
    versions: dict[str, str]
    definitions: dict[str, str] = msgspec.field(default_factory=DEFINITIONS.copy)

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not go as it should, in words."""
        bad = [one for one in self.troubles if one.kind != "died"]
        uncaught = [one for one in bad if one.device not in self.quarantined]
        honest = sorted(set(self.quarantined) - {one.device for one in bad})
        apart = abs(self.accuracy_plain - self.accuracy_scattered)
        checks = (
            (self.accuracy_plain < WANTED_ACCURACY, f"the network learned too little: {percent(self.accuracy_plain)}"),
            (
                apart > LARGEST_DIFFERENCE,
                f"accuracies differ: {percent(self.accuracy_plain)} here, {percent(self.accuracy_scattered)} there",
            ),
            (bool(honest), f"honest, and quarantined: {', '.join(honest)}"),
            *((True, f"{one.device} {one.kind} and was not caught") for one in uncaught),
        )
        return tuple(text for failed, text in checks if failed)


def show(found: TrainingDemonstration, console: Console) -> None:
    """Print what was found."""
    tables.show(console, "What came out", tables.pairs(_results(found)))
    console.print()
    tables.show(console, "What was done to devices", _troubles(found.troubles))
    console.print()
    tables.bullets(console, "What the owner noticed", [sentence(one) for one in found.happenings])
    tables.bullets(console, "Notes of the plan", found.notes)
    if found.failures:
        console.print(Text.assemble(("FAILED: ", "bold red"), "; ".join(found.failures)), soft_wrap=True)
    else:
        console.print(
            Text("Every liar was caught, and the network is the one that was trained here.", style="bold"),
            soft_wrap=True,
        )


def _results(found: TrainingDemonstration) -> list[tuple[str, str]]:
    counts = found.statistics
    weights = f"{found.max_weight_difference:.1e} (weights up to {found.largest_weight:.2f})"
    checks = f"{count(counts['checks'])} samples, of which failed {count(counts['checks_failed'])}"
    training = f"training {found.seconds_plain:.1f} s here, {found.seconds_scattered:.1f} s on devices"
    return [
        ("accuracy, trained here", percent(found.accuracy_plain)),
        ("accuracy, trained on devices", percent(found.accuracy_scattered)),
        ("loss here", curve_text(found.losses_plain)),
        ("loss on devices", curve_text(found.losses_scattered)),
        ("largest difference of losses", f"{found.max_loss_difference:.1e}"),
        ("largest difference of weights", weights),
        ("moved unseen", f"at most {max(found.drift.values(), default=0.0):.1e} of a layer's weights"),
        ("steps", f"{count(found.steps)} of {count(found.batch)} images, on {count(found.devices)} devices"),
        ("steps taken again", f"{count(counts['replayed'])}, to rebuild blocks"),
        ("checked products", checks),
        ("traffic a step", size((counts["bytes_sent"] + counts["bytes_received"]) / max(1, found.steps))),
        ("time", f"{found.seconds:.1f} s; {training}"),
    ]


def _troubles(troubles: Sequence[Trouble]) -> Table:
    table = tables.grid("device", ("what it did", "from step", "noticed after", "", "back after"))
    for one in troubles:
        table.add_row(
            one.device,
            one.kind,
            count(one.step),
            "never" if one.noticed_after_steps is None else counted(one.noticed_after_steps, "step"),
            "" if one.noticed_after_s is None else f"{one.noticed_after_s:.1f} s",
            "" if one.returned_after_steps is None else counted(one.returned_after_steps, "step"),
        )
    return table
