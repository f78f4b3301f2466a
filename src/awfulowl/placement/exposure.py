"""What coalitions of devices are expected to have seen: the figure that placement is judged by.

A slice that h of n units ever had is missed by a random coalition of m of them with probability
C(n - h, m) / C(n, m) (hypergeometric: none of the h is drawn). The seen share of a layer is the mean over its
slices of one minus that, exactly. Units are domains; in a fleet of one domain they are its devices, since a
coalition of domains would be nobody or everybody.

Churn is projected by a stated model: every unit leaves and is replaced `churn` times, each time by a new one that
sees what its predecessor saw. Then h (1 + churn) of n (1 + churn) units have had the slice, and the coalition is
drawn from all there ever were. For large n this is 1 - (1 - f)^(h (1 + churn)).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from awfulowl.errors import InputError
from awfulowl.placement.plan import Plan
from awfulowl.placement.rules import exactly

SHARES: Final = (0.1, 0.3, 0.5)
ALARM: Final = 0.75
"""Seen share that a coalition of 30 % must not reach: above it, least squares takes most of a layer's weights."""
ALARM_COALITION: Final = 0.3


class Coalition(msgspec.Struct, frozen=True):
    """A random coalition of `members` of `of` units, and the share of input slices it has seen on average."""

    share: float
    members: int
    of: int
    seen: float
    projected: float


class PanelExposure(msgspec.Struct, frozen=True):
    """One panel: coalitions, and the seen shares of its least and most exposed device."""

    name: str
    columns: int
    coalitions: tuple[Coalition, ...]
    least: float
    most: float


class Exposure(msgspec.Struct, frozen=True):
    """The whole plan; `model` is the mean over panels weighted by their inputs."""

    units: Literal["devices", "domains"]
    churn: int
    panels: tuple[PanelExposure, ...]
    model: tuple[Coalition, ...]
    alarms: tuple[str, ...]


def seen_by_coalition(holders: Sequence[int], units: int, members: int) -> float:
    """Return the expected share of slices that a random coalition has seen.

    Args:
        holders: for each slice, how many units ever had it.
        units: how many there are.
        members: how many of them belong to the coalition.
    """
    ways = math.comb(units, members)
    missed = sum(count * (math.comb(units - held, members) / ways) for held, count in sorted(Counter(holders).items()))
    return 1.0 - missed / len(holders)


def expose(plan: Plan, *, shares: Sequence[float] = SHARES, churn: int = 1, alarm: float = ALARM) -> Exposure:
    """Compute what coalitions have seen by the plan's ledger, and would have seen after churn.

    Args:
        plan: the plan with its history.
        shares: shares of the units that join forces, rounded up to whole units.
        churn: how often every unit is replaced.
        alarm: seen share of a coalition of 30 % from which on a panel is reported.

    Raises:
        InputError: a share is not in (0, 1], or churn is negative.
    """
    if churn < 0 or not all(0.0 < share <= 1.0 for share in shares):
        raise InputError(f"coalitions {tuple(shares)} are not all in (0, 1], or churn {churn} is below 0")
    by_domain = len({device.domain for device in plan.devices}) > 1
    units = len({device.domain if by_domain else device.name for device in plan.devices})
    history = plan.ledger.domains if by_domain else plan.ledger.devices
    panels = []
    alarms = []
    for index, panel in enumerate(plan.panels):
        columns = len(panel.grid.columns)
        had = Counter(column for seen in history[index].values() for column in seen)
        holders = [had[column] for column in range(columns)]
        coalitions = tuple(_coalition(share, holders, units, churn) for share in shares)
        seen = [len(plan.ledger.seen(index, device.name)) / columns for device in plan.devices]
        panels.append(PanelExposure(panel.name, columns, coalitions, min(seen), max(seen)))
        members = _members(ALARM_COALITION, units)
        reached = seen_by_coalition(holders, units, members)
        if reached >= alarm:
            kind = "domains" if by_domain else "devices"
            alarms.append(f"{panel.name}: {members} of {units} {kind} have seen {reached:.0%} of its input slices")
    return Exposure(
        units="domains" if by_domain else "devices",
        churn=churn,
        panels=tuple(panels),
        model=_model(panels, [panel.grid.inputs for panel in plan.panels]),
        alarms=tuple(alarms),
    )


def _members(share: float, units: int) -> int:
    return math.ceil(exactly(share) * units)


def _coalition(share: float, holders: Sequence[int], units: int, churn: int) -> Coalition:
    members = _members(share, units)
    later = units * (1 + churn)
    projected = seen_by_coalition([held * (1 + churn) for held in holders], later, _members(share, later))
    return Coalition(share, members, units, seen_by_coalition(holders, units, members), projected)


def _model(panels: Sequence[PanelExposure], inputs: Sequence[int]) -> tuple[Coalition, ...]:
    total = sum(inputs)
    same = zip(*(panel.coalitions for panel in panels), strict=True)
    return tuple(
        Coalition(
            coalitions[0].share,
            coalitions[0].members,
            coalitions[0].of,
            sum(size * one.seen for size, one in zip(inputs, coalitions, strict=True)) / total,
            sum(size * one.projected for size, one in zip(inputs, coalitions, strict=True)) / total,
        )
        for coalitions in same
    )
