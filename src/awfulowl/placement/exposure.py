"""What coalitions of devices are expected to have seen: the figure that placement is judged by.

A slice that h of n units ever had is missed by a random coalition of m of them with probability
C(n - h, m) / C(n, m) (hypergeometric: none of the h is drawn). The seen share of a layer is the mean over its
slices of one minus that, exactly. Units are domains; in a fleet of one domain they are its devices, since a
coalition of domains would be nobody or everybody.

Where inputs are shared, a slice is seen by who has as many of its lanes as the sharing's threshold; weights are
held by who has any lane, or, if they are shared too, by who has as many. The lanes of a slice are in different
units, h_l of them each, so the lanes in a set S are all missed with probability q(S) = C(n - Σ h_l, m) / C(n,
m), and by inclusion and exclusion exactly T are missed with Σ (-1)^|S - T| q(S) over the sets S that contain T.

Churn is projected by a stated model: every unit leaves and is replaced `churn` times, each time by a new one that
sees what its predecessor saw. Then h (1 + churn) of n (1 + churn) units have had the slice, and the coalition is
drawn from all there ever were. For large n this is 1 - (1 - f)^(h (1 + churn)).
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from typing import Final, Literal, NamedTuple

import msgspec

from awfulowl.errors import InputError
from awfulowl.placement.ledger import unit
from awfulowl.placement.plan import Plan
from awfulowl.placement.rules import exactly
from awfulowl.veil.base import Sharing
from awfulowl.veil.shares import sharing_of

SHARES: Final = (0.1, 0.3, 0.5)
ALARM: Final = 0.75
"""Seen share that a coalition of 30 % must not reach: above it, least squares takes most of a layer's weights."""
ALARM_COALITION: Final = 0.3


class Coalition(msgspec.Struct, frozen=True):
    """A random coalition of `members` of `of` units, and the shares that it has on average.

    `seen` is of input slices, `held` of weights; both now, and as projected after churn.
    """

    share: float
    members: int
    of: int
    seen: float
    projected: float
    held: float
    held_projected: float


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


def learnt_by_coalition(lanes: Sequence[tuple[int, ...]], units: int, members: int, threshold: int) -> float:
    """Return the expected share of slices of which a random coalition has at least `threshold` lanes.

    Args:
        lanes: for each slice, how many units ever had each of its lanes; nobody had two.
        units: how many there are.
        members: how many of them belong to the coalition.
        threshold: lanes that are needed.
    """
    found = sum(count * _reached(held, units, members, threshold) for held, count in sorted(Counter(lanes).items()))
    return found / len(lanes)


def _reached(held: tuple[int, ...], units: int, members: int, threshold: int) -> float:
    """Return the probability that at least `threshold` lanes are hit, by inclusion and exclusion."""
    count = len(held)
    ways = math.comb(units, members)
    all_missed = [
        Fraction(math.comb(units - sum(held[lane] for lane in range(count) if missed >> lane & 1), members), ways)
        for missed in range(1 << count)
    ]
    total = Fraction(0)
    for missed in range(1 << count):
        if count - missed.bit_count() >= threshold:
            supersets = (more for more in range(1 << count) if more & missed == missed)
            total += sum((-1) ** (more ^ missed).bit_count() * all_missed[more] for more in supersets)
    return float(total)


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
    kind: Literal["devices", "domains"] = "domains" if by_domain else "devices"
    units = len({device.domain if by_domain else device.name for device in plan.devices})
    history = plan.ledger.domains if by_domain else plan.ledger.devices
    sharing = sharing_of(plan.sharing)
    panels = []
    alarms = []
    for index, panel in enumerate(plan.panels):
        lanes = _lanes(history[index].values(), len(panel.grid.columns), sharing.lanes)
        learn = _Learning(lanes, units, churn, sharing)
        coalitions = tuple(learn.coalition(share) for share in shares)
        panels.append(_panel(plan, index, coalitions, sharing))
        reached = learn.coalition(ALARM_COALITION)
        if reached.seen >= alarm:
            seen = f"{reached.members} of {units} {kind} have seen {reached.seen:.0%}"
            alarms.append(f"{panel.title}: {seen} of its input slices")
    return Exposure(
        units=kind,
        churn=churn,
        panels=tuple(panels),
        model=_model(panels, [panel.grid.inputs for panel in plan.panels]),
        alarms=tuple(alarms),
    )


def _lanes(history: Iterable[Collection[int]], columns: int, lanes: int) -> list[tuple[int, ...]]:
    """Return for each slice how many units ever had each of its lanes."""
    had = Counter(counted for seen in history for counted in seen)
    return [tuple(had[unit(column, lane, columns)] for lane in range(lanes)) for column in range(columns)]


def _panel(plan: Plan, index: int, coalitions: tuple[Coalition, ...], sharing: Sharing) -> PanelExposure:
    panel = plan.panels[index]
    columns = len(panel.grid.columns)
    # A device has one lane of a slice at most: below the threshold it sees nothing.
    seen = [
        len(plan.ledger.seen(index, device.name)) / columns if sharing.threshold == 1 else 0.0
        for device in plan.devices
    ]
    return PanelExposure(panel.name, columns, coalitions, min(seen), max(seen))


def _members(share: float, units: int) -> int:
    return math.ceil(exactly(share) * units)


class _Learning(NamedTuple):
    """What is needed to say what a coalition learns of a panel."""

    lanes: Sequence[tuple[int, ...]]
    units: int
    churn: int
    sharing: Sharing

    def coalition(self, share: float) -> Coalition:
        """Return a random coalition of a share of the units, and what it has."""
        members = _members(share, self.units)
        generations = 1 + self.churn
        later = [tuple(generations * held for held in lanes) for lanes in self.lanes]
        units = generations * self.units
        needed = self.sharing.threshold
        for_weights = needed if self.sharing.hides_weights else 1
        return Coalition(
            share=share,
            members=members,
            of=self.units,
            seen=learnt_by_coalition(self.lanes, self.units, members, needed),
            projected=learnt_by_coalition(later, units, _members(share, units), needed),
            held=learnt_by_coalition(self.lanes, self.units, members, for_weights),
            held_projected=learnt_by_coalition(later, units, _members(share, units), for_weights),
        )


def _model(panels: Sequence[PanelExposure], inputs: Sequence[int]) -> tuple[Coalition, ...]:
    def mean(values: Iterable[float]) -> float:
        return sum(size * value for size, value in zip(inputs, values, strict=True)) / sum(inputs)

    same = zip(*(panel.coalitions for panel in panels), strict=True)
    return tuple(
        Coalition(
            coalitions[0].share,
            coalitions[0].members,
            coalitions[0].of,
            mean(one.seen for one in coalitions),
            mean(one.projected for one in coalitions),
            mean(one.held for one in coalitions),
            mean(one.held_projected for one in coalitions),
        )
        for coalitions in same
    )
