"""How finely a layer is cut, so that the rules can be met with all replicas and with room for failover."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from awfulowl.arithmetic.numbers import FLOAT32
from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Dense, Kernel
from awfulowl.errors import RuleError
from awfulowl.placement.capacity import Capacity, Lanes
from awfulowl.placement.options import Options
from awfulowl.placement.rules import Rules, exactly

AUTO_SIZES: Final = (256, 128, 64, 32, 16)
AUTO_BLOCKS: Final = 64
"""The largest layer gets at least this many blocks."""

_COLUMNS_PER_DEVICE: Final = 8
"""Finer cuts than this are not tried for the sake of room or evenness: they would multiply handles, nothing else."""

_EVEN_ENOUGH: Final = 1.1
"""Work of the busiest device over the mean that is not worth a finer cut."""


class Layer(NamedTuple):
    """A linear map that a caller found in a model; callers list them in order of execution.

    `shape` is that of the weight, (out, in / groups, *size). `input` identifies the tensor that goes in during an
    example pass (None: there was none). `positions` are the output vectors per sample, `input_positions` the
    input vectors (None: as many). `error` is that of the arithmetic on the example.
    """

    product: str
    shape: tuple[int, ...]
    kernel: Kernel = Dense()
    groups: int = 1
    input: int | None = None
    positions: int = 1
    input_positions: int | None = None
    arithmetic: str = FLOAT32
    error: float | None = None

    @property
    def title(self) -> str:
        """The name for people to read; a model that is one layer has none of its own."""
        return self.product or "the model"

    @property
    def inputs(self) -> int:
        """Input features or channels."""
        return self.shape[1] * self.groups


def titles(layers: Iterable[Layer]) -> str:
    """Return the names, for people to read, of layers that share their input."""
    return "+".join(layer.title for layer in layers)


def block_size(layers: Iterable[Layer], options: Options) -> tuple[int, int]:
    """Return the rows and columns of a block, in outputs and inputs."""
    block = options.block
    if isinstance(block, int):
        return block, block
    if isinstance(block, tuple):
        return block
    largest = max(layers, key=lambda layer: math.prod(layer.shape))
    side = next((size for size in AUTO_SIZES if _blocks(largest, size) >= AUTO_BLOCKS), AUTO_SIZES[-1])
    return side, side


def _blocks(layer: Layer, side: int) -> int:
    return math.ceil(layer.shape[0] / side) * math.ceil(layer.inputs / side)


def cut(layers: Sequence[Layer], block: tuple[int, int], capacity: Capacity | Lanes, options: Options) -> Grid:
    """Cut layers that share their input, stacked along the outputs, into blocks of about `block`.

    Columns are made narrower than the block until the rules can be met, with room if possible, and until all devices
    have equally many: narrow columns cost handles only, since a device multiplies all its columns of a layer at once.
    Columns so few that one of them is more than the share are the last resort: for a layer with too few inputs, or
    where no share was asked for. Columns wider than the block are taken if no narrower ones can be dealt.

    Raises:
        RuleError: no width of columns meets the rules.
    """
    inputs = layers[0].inputs
    fewest = _fewest_columns(inputs, capacity.rules, options)
    best = _best(_grids(layers, _narrower(block, inputs)), capacity, fewest)
    best = best or _best(_grids(layers, _wider(block, layers)), capacity, fewest)
    if best is None:
        raise RuleError(_refusal(layers, capacity))
    return best


def _best(grids: Iterable[Grid], capacity: Capacity | Lanes, fewest: int) -> Grid | None:
    """Return the grid of the highest grade, then the most even, then with least on one device; the first of equals."""
    best, score = None, (0, 0.0, 0.0)
    most = _COLUMNS_PER_DEVICE * len(capacity.devices)
    for grid in grids:
        columns = len(grid.columns)
        if (score[0] == 3 and -score[1] <= _EVEN_ENOUGH) or (score[0] >= 2 and columns > most):
            break
        grade = capacity.grade(columns) if columns >= fewest else 0
        found = grade, -capacity.unevenness(columns), -capacity.held(columns) / columns
        if grade > 0 and (best is None or found > score):
            best, score = grid, found
    return best


def _grids(layers: Sequence[Layer], blocks: Iterable[tuple[int, int]]) -> Iterator[Grid]:
    first = layers[0]
    shape = (sum(layer.shape[0] for layer in layers), *first.shape[1:])
    cuts = tuple(accumulate(layer.shape[0] for layer in layers[:-1]))
    return (make_grid(shape, first.kernel, first.groups, block=block, row_cuts=cuts) for block in blocks)


def _narrower(block: tuple[int, int], inputs: int) -> Iterator[tuple[int, int]]:
    """Yield ever narrower blocks, of those with equally many columns the one whose columns are most alike."""
    counts = (math.ceil(inputs / width) for width in range(min(block[1], inputs), 0, -1))
    return ((block[0], math.ceil(inputs / columns)) for columns in dict.fromkeys(counts))


def _wider(block: tuple[int, int], layers: Sequence[Layer]) -> Iterator[tuple[int, int]]:
    """Yield wider blocks, down to one column; taller ones too where groups share a column, since they fit one row."""
    first = layers[0]
    most = max(first.groups, math.ceil(first.inputs / block[1]))
    for columns in range(most - 1, 0, -1):
        width = math.ceil(first.inputs / columns)
        yield (block[0] if first.groups == 1 else math.ceil(first.shape[0] * width / first.inputs)), width


def _fewest_columns(inputs: int, rules: Rules, options: Options) -> int:
    if not options.strict and options.share is None and options.domain_share is None:
        return 1
    fine = math.ceil(1 / min(exactly(rules.share), exactly(rules.domain_share)))
    return max(min(inputs, fine), 2 if options.strict else 1)


def _refusal(layers: Sequence[Layer], capacity: Capacity | Lanes) -> str:
    rules, devices, inputs = capacity.rules, len(capacity.devices), layers[0].inputs
    title, names = titles(layers), tuple(layer.product for layer in layers)
    kept = f"keep it at the owner (keep={names}), " if all(names) else ""
    if inputs == 1:
        return (
            f"rule 'more than one column': {title} has a single input, which every holder sees; "
            f"{kept}unfold it if it is a convolution, or do without strict"
        )
    needed = rules.replicas / devices
    if exactly(rules.share) * devices < rules.replicas:
        return (
            f"rule 'device share': {devices} devices that may each see {rules.share:.3g} of the slices of "
            f"{title} cannot hold {rules.replicas} replicas of it; it takes a share of {needed:.3g}, or "
            f"{math.ceil(rules.replicas / exactly(rules.share))} devices, or fewer replicas"
        )
    return (
        f"rules 'device share' {rules.share:.3g} and 'domain share' {rules.domain_share:.3g}: the {inputs} inputs of "
        f"{title} cannot be dealt to the devices with {rules.replicas} replicas; it takes larger shares, more "
        "devices or domains (name the domains of devices that you know), smaller blocks, or fewer replicas"
    )
