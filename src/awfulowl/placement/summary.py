"""What a plan amounts to, in counts that may be shown: work, traffic and exceptions; never a position."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from awfulowl.arithmetic.numbers import fewest_bytes, integers
from awfulowl.placement.plan import Panel, Plan, weights
from awfulowl.placement.rules import Rules, exactly
from awfulowl.veil.base import Sharing
from awfulowl.veil.shares import sharing_of

FLOAT_BYTES: Final = 4
"""Inputs and partial sums in float32."""


class PanelSummary(msgspec.Struct, frozen=True):
    """One panel: its grid, its work and traffic for one sample while all devices are well.

    `flops` are two per weight and position, whatever a sharing adds. Bytes are those of tensors, without
    headers: each device that serves the panel gets the slices of its cells once, and answers one sum per set of
    rows that it holds. Random shares travel as seeds, which are not counted. Answers in integers are counted
    with the bytes that the layer's size allows; with the weights at hand they may take fewer. `error` is that
    of the arithmetic on the example.
    """

    name: str
    members: tuple[str, ...]
    rows: int
    columns: int
    blocks: int
    parameters: int
    flops: int
    devices: int
    bytes_to_devices: int
    bytes_from_devices: int
    exceptions: tuple[str, ...]
    arithmetic: str
    error: float | None


class DeviceSummary(msgspec.Struct, frozen=True):
    """One device: what was placed with it, replicas included, and the work it is preferred for."""

    name: str
    domain: str
    blocks: int
    parameters: int
    flops: int


class Summary(msgspec.Struct, frozen=True):
    """A plan in numbers."""

    panels: tuple[PanelSummary, ...]
    devices: tuple[DeviceSummary, ...]
    kept: tuple[tuple[str, str], ...]
    rules: Rules
    notes: tuple[str, ...]
    unsafe: bool
    arithmetic: str
    sharing: str | None

    @property
    def blocks(self) -> int:
        """Blocks of all panels, replicas not counted."""
        return sum(panel.blocks for panel in self.panels)

    @property
    def parameters(self) -> int:
        """Weights on devices, replicas not counted."""
        return sum(panel.parameters for panel in self.panels)

    @property
    def flops(self) -> int:
        """Operations per sample on devices."""
        return sum(panel.flops for panel in self.panels)

    @property
    def bytes_per_sample(self) -> int:
        """Tensor bytes per sample, both ways."""
        return sum(panel.bytes_to_devices + panel.bytes_from_devices for panel in self.panels)

    @property
    def exceptions(self) -> tuple[str, ...]:
        """Layers that the rules protect less than their shares say."""
        return tuple(text for panel in self.panels for text in panel.exceptions)


def summarise(plan: Plan) -> Summary:
    """Summarise a plan."""
    return Summary(
        panels=tuple(_panel(panel, plan) for panel in plan.panels),
        devices=_devices(plan),
        kept=plan.kept,
        rules=plan.rules,
        notes=plan.notes,
        unsafe=plan.unsafe,
        arithmetic=plan.arithmetic,
        sharing=plan.sharing,
    )


def _panel(panel: Panel, plan: Plan) -> PanelSummary:
    grid, sharing = panel.grid, sharing_of(plan.sharing)
    served: dict[tuple[str, int], tuple[set[int], set[tuple[int, ...]]]] = {}
    for cell in panel.cells:
        columns, sums = served.setdefault((cell.holders[0], cell.lane), (set(), set()))
        columns.add(cell.column)
        sums.add(cell.rows)
    inputs = sum(
        grid.columns[column].span.size * _whole_shares(sharing, lane)
        for (_, lane), (columns, _) in served.items()
        for column in columns
    )
    outputs = sum(_outputs(panel, rows) for _, sums in served.values() for rows in sums)
    parameters = sum(weights(grid, index, column.rows) for index, column in enumerate(grid.columns))
    input_bytes, output_bytes = _number_bytes(panel, sharing)
    return PanelSummary(
        name=panel.name,
        members=tuple(member.product for member in panel.members),
        rows=len(grid.rows),
        columns=len(grid.columns),
        blocks=grid.blocks,
        parameters=parameters,
        flops=2 * parameters * panel.positions,
        devices=len({holder for cell in panel.cells for holder in cell.holders}),
        bytes_to_devices=input_bytes * inputs * panel.input_positions,
        bytes_from_devices=output_bytes * outputs * panel.positions,
        exceptions=_exceptions(panel, plan.rules),
        arithmetic=panel.arithmetic,
        error=panel.error,
    )


def _whole_shares(sharing: Sharing, lane: int) -> int:
    """Return how many vectors of a lane travel whole: sums with the last share do, random shares go as seeds."""
    return sum(sharing.shares - 1 in wanted for _, wanted in sharing.products(lane))


def _number_bytes(panel: Panel, sharing: Sharing) -> tuple[int, int]:
    """Return the bytes of a number that goes to devices, and of one that comes back."""
    numbers = integers(panel.arithmetic)
    if numbers is None:
        return FLOAT_BYTES, FLOAT_BYTES
    goes = numbers.ring_bytes if sharing.shares > 1 else numbers.dtype.itemsize
    return goes, fewest_bytes(math.prod(panel.grid.shape[1:]) * numbers.largest**2)


def _outputs(panel: Panel, rows: Iterable[int]) -> int:
    return sum(panel.grid.rows[row].size for row in rows)


def _exceptions(panel: Panel, rules: Rules) -> tuple[str, ...]:
    columns = len(panel.grid.columns)
    if columns == 1:
        return (f"{panel.title} is one column: each holder sees its whole input",)
    if exactly(rules.share) * columns < 1:
        return (f"{panel.title} has {columns} columns only: one slice is more than the share {rules.share:.3g}",)
    return ()


def _devices(plan: Plan) -> tuple[DeviceSummary, ...]:
    blocks: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    sharing = sharing_of(plan.sharing)
    for panel in plan.panels:
        for cell in panel.cells:
            size = weights(panel.grid, cell.column, cell.rows)
            flops[cell.holders[0]] += 2 * size * panel.positions * len(sharing.matrices(cell.lane))
            for name in cell.holders:
                blocks[name] += len(cell.rows)
                parameters[name] += size
    return tuple(
        DeviceSummary(device.name, device.domain, blocks[device.name], parameters[device.name], flops[device.name])
        for device in plan.devices
    )
