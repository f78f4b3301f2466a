"""The form of report.json. A field is added with a new version, and none changes its meaning."""

from pathlib import Path
from typing import Final

import msgspec

from awfulowl.errors import InputError
from awfulowl.lab.request import Request
from awfulowl.lab.yardsticks.verdict import Word
from awfulowl.limits import MIB
from awfulowl.results import Interval

VERSION: Final = 3
JSON: Final = "report.json"
_MOST_BYTES: Final = 64 * MIB


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the report."""


class Measured(Strict, frozen=True, kw_only=True):
    """A mean with its 95 % interval."""

    value: float
    interval: Interval


class Line(Strict, frozen=True, kw_only=True):
    """A standard line, a floor or a control: accuracy on test images, and beside it what accuracy does not show.

    `counts` says whether a floor is one for this pirate: one that starts from a base model that it has not is shown
    for comparison. `public` and `queries` are what a floor used.
    """

    name: str
    setting: str
    share: float | None = None
    block: str | int | None = None
    accuracy: float
    interval: Interval
    agreement: float
    cosine: float
    positions_right: float | None = None
    positions_interval: Interval | None = None
    flops: float
    seconds: float
    gpu_hours: float
    seeds: tuple[int, ...]
    counts: bool = True
    public: int | None = None
    queries: int | None = None


class Row(Strict, frozen=True, kw_only=True):
    """An attack on one share of blocks of one size.

    `accuracy` is that of the network as the attack leaves it, with zeros where nothing is held, and `completed` that of
    the one that the pirate ends with: holes filled from floor F1, and tuned. `advantage` is what the completed network
    has over the best floor, paired. Shares of positions are of held blocks, None for attacks that place none,
    and their intervals None for a single draw. `block` is what was asked for, `block_size` the rows and columns of the
    largest block that came of it.
    """

    attack: str
    rung: str
    setting: str
    layers: tuple[str, ...]
    share: float
    block: str | int
    block_size: tuple[int, int]
    held: float
    seen: float
    positions_right: float | None
    rows_right: float | None
    columns_right: float | None
    positions_interval: Interval | None
    rows_interval: Interval | None
    columns_interval: Interval | None
    accuracy: float
    interval: Interval
    completed: Measured
    ways: tuple[str, ...]
    advantage: float
    advantage_interval: Interval
    agreement: float
    cosine: float
    validation: float | None
    flops: float
    share_of_training: float
    completion_flops: float
    evaluations: float
    queries: float
    seconds: float
    gpu_hours: float
    seeds: tuple[int, ...]


class Control(Strict, frozen=True, kw_only=True):
    """Blocks of no worth, through the pipeline of the chosen attack, and the verdict that they get.

    Agreement and cosine are with the victim, of the completed network; positions are those that the blocks came from.
    """

    name: str
    positions_right: float | None
    accuracy: float
    interval: Interval
    completed: Measured
    agreement: float
    cosine: float
    difference: Measured
    """What the victim's blocks have over them."""
    verdict: Word | None = None
    """Of the foreign network's, judged as the victim's are: against the floor, and against yet another network's."""


class Judgement(Strict, frozen=True, kw_only=True):
    """Design section 5a: the attack chosen on validation images, minus the floor."""

    setting: str
    share: float
    block: str | int
    block_size: tuple[int, int]
    attack: str
    floor: str
    verdict: Word
    reason: str
    over_floor: Measured
    over_foreign: Measured | None
    controls: tuple[Control, ...]


class Missing(Strict, frozen=True, kw_only=True):
    """A row that is not there, and why."""

    what: str
    why: str


class Dropped(Strict, frozen=True, kw_only=True):
    """Accuracy with a share of the blocks of some layers missing, the others in place."""

    layers: tuple[str, ...]
    dropped: float
    accuracy: float
    interval: Interval
    images: int


class Score(Strict, frozen=True, kw_only=True):
    """What hiding a layer is worth: the victim's accuracy minus that of floor F1 for this layer alone."""

    layer: str
    weights: int
    floor: float
    floor_interval: Interval
    score: float
    interval: Interval


class Warm(Strict, frozen=True, kw_only=True):
    """Training from a share of the blocks, against the same training from scratch (`share` 0)."""

    order: str
    share: float
    accuracy: float
    interval: Interval
    gain: float
    gain_interval: Interval


class Possession(Strict, frozen=True, kw_only=True):
    """Rung P1: drop curves, scores of layers, warm starts."""

    dropped: tuple[Dropped, ...] = ()
    scores: tuple[Score, ...] = ()
    warm: tuple[Warm, ...] = ()


class Network(Strict, frozen=True, kw_only=True):
    """A network of the audit: a victim, one foreign to it, or one from public images only."""

    name: str
    seed: int
    accuracy: float
    training_flops: float


class Report(Strict, frozen=True, kw_only=True):
    """All that an audit found."""

    version: int
    request: Request
    layers: dict[str, tuple[str, ...]]
    test_images: int
    networks: tuple[Network, ...]
    floors: tuple[Line, ...]
    lines: tuple[Line, ...]
    rows: tuple[Row, ...]
    judgements: tuple[Judgement, ...]
    possession: Possession
    missing: tuple[Missing, ...]
    conversion: str
    """How operations become GPU-hours."""
    seconds: float
    """Of the last run; cells that were done before cost nothing again."""
    versions: dict[str, str]
    finished: bool


def read_report(path: Path) -> Report:
    """Read a report.json, or that of a folder.

    Raises:
        InputError: it cannot be read, is none, or is of another version.
    """
    file = path / JSON if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: no readable report: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"{file}: more than the {_MOST_BYTES // MIB} MiB that a report has at most")
    try:
        found = msgspec.json.decode(content, type=Report)
    except msgspec.DecodeError as error:
        raise InputError(f"{file}: no report of this version of awfulowl: {error}") from error
    if found.version != VERSION:
        raise InputError(f"{file}: a report of version {found.version}, this is version {VERSION}")
    return found
