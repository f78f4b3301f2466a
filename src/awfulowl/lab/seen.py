"""What is seen: the share of a plan's input slices that passed through the hands of a coalition, ever.

A device sees the whole input slice of every block that it holds, and one block of a column is enough. So with
scattered blocks a share f of the devices sees 1 - (1 - f)^R of a layer of R block rows, and with whole columns f.
`placement.exposure` gives the exact expectation over coalitions; here are the slices of one coalition, the closed
form, and plans of all shapes side by side.
"""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, get_args

import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.placement.cutting import Layer
from awfulowl.placement.exposure import expose
from awfulowl.placement.ledger import Device, unit
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.plan import Plan
from awfulowl.placement.planner import make_plan
from awfulowl.randomness import Entropy
from awfulowl.veil.shares import sharing_of

SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)


class Sight(NamedTuple):
    """How much of a model's input slices a random coalition sees: now, and after all devices were replaced once.

    Means over layers weighted by their inputs, and of the most exposed layer.
    """

    shape: Shape
    replicas: int
    coalition: float
    seen: float
    projected: float
    most: float


def seen_columns(plan: Plan, devices: Collection[str]) -> tuple[frozenset[int], ...]:
    """Return the columns of every panel that some devices together have learnt, over the history of a plan.

    Where inputs are shared, a column is learnt by who had as many of its lanes as the sharing's threshold.

    Raises:
        InputError: a device is not in the plan.
    """
    unknown = set(devices) - {device.name for device in plan.devices}
    if unknown:
        raise InputError(f"no device {min(unknown)!r} in the plan of {len(plan.devices)} devices")
    sharing = sharing_of(plan.sharing)
    found = []
    for index, panel in enumerate(plan.panels):
        count = len(panel.grid.columns)
        had = {one for name in devices for one in plan.ledger.seen(index, name)}
        lanes = [sum(unit(column, lane, count) in had for lane in range(sharing.lanes)) for column in range(count)]
        found.append(frozenset(column for column, number in enumerate(lanes) if number >= sharing.threshold))
    return tuple(found)


def seen_inputs(plan: Plan, devices: Collection[str]) -> dict[str, Tensor]:
    """Return which inputs (inputs,) of every scattered product some devices have seen, over the history of a plan.

    Raises:
        InputError: a device is not in the plan.
    """
    found = {}
    for panel, columns in zip(plan.panels, seen_columns(plan, devices), strict=True):
        mask = torch.zeros(panel.grid.inputs, dtype=torch.bool)
        for column in columns:
            mask[panel.grid.columns[column].span.start : panel.grid.columns[column].span.stop] = True
        found.update({member.product: mask for member in panel.members})
    return found


def seen_share(plan: Plan, devices: Collection[str]) -> float:
    """Return the share of all input slices that some devices have seen, layers weighted by their inputs.

    Raises:
        InputError: a device is not in the plan.
    """
    seen = seen_columns(plan, devices)
    shares = [len(columns) / len(panel.grid.columns) for panel, columns in zip(plan.panels, seen, strict=True)]
    inputs = [panel.grid.inputs for panel in plan.panels]
    return sum(share * size for share, size in zip(shares, inputs, strict=True)) / sum(inputs)


def expected_share(held: float, *, rows: int = 1, replicas: int = 1, shares: int = 1, churn: int = 0) -> float:
    """Return the seen share 1 - (1 - f^k)^n for large fleets, n = rows x replicas x (1 + churn).

    Args:
        held: f, the share of the devices that are the pirate's.
        rows: block rows that are placed apart: those of the layer for scattered blocks, 1 for whole columns.
        replicas: devices that hold each block.
        shares: k, parts that an input is split into, all of which are needed.
        churn: how often every device was replaced by a new one that sees what its predecessor saw.

    Raises:
        InputError: a number is out of range.
    """
    if not 0.0 <= held <= 1.0 or min(rows, replicas, shares) < 1 or churn < 0:
        raise InputError(
            f"a share of {held}, {rows} rows, {replicas} replicas, {shares} shares, {churn} replacements: no placement"
        )
    return float(1.0 - (1.0 - held**shares) ** (rows * replicas * (1 + churn)))


def compare_shapes(
    layers: Sequence[Layer],
    devices: Sequence[Device],
    *,
    block: int,
    seed: int,
    replicas: Sequence[int] = (1, 2),
    coalitions: Sequence[float] = (0.1, 0.3, 0.5),
) -> list[Sight]:
    """Plan a model in every shape and return what coalitions would see of it.

    Args:
        layers: of the model (`placement.survey`).
        devices: who holds blocks.
        block: rows and columns of a block.
        seed: of the plans.
        replicas: numbers of them.
        coalitions: shares of the devices.

    Raises:
        InputError: an option is out of range.
        RuleError: a plan cannot be made for these devices.
    """
    found = []
    for shape in SHAPES:
        for count in replicas:
            made = make_plan(layers, devices, Options(block=block, shape=shape, replicas=count), Entropy(seed))
            exposure = expose(made, shares=coalitions, churn=1)
            for place, whole in enumerate(exposure.model):
                most = max(panel.coalitions[place].seen for panel in exposure.panels)
                found.append(Sight(shape, count, whole.share, whole.seen, whole.projected, most))
    return found
