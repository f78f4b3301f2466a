"""The placement rules: how many of a layer's input slices one device, and one domain, may ever see.

For a layer of C columns, over the whole history:

- a device sees at most max(1, floor(share * C)) slices;
- a domain sees at most max(1, floor(domain_share * C)) slices;
- with `separate_neighbours`, no domain serves two layers that follow each other;
- where inputs are shared, no domain sees two shares of one slice.

What was seen already may be seen again: a device that returns gets its old columns back. Rules bound single
devices and domains, never coalitions of them: that is what `exposure` computes.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Final, Literal

import msgspec

from awfulowl.errors import RuleError
from awfulowl.placement.ledger import UNKNOWN, Device, Ledger, unit
from awfulowl.placement.options import Options

STANDARD_SHARE: Final = 0.25
STANDARD_DOMAIN_SHARE: Final = 0.5
ENOUGH_DEVICES: Final = 4
"""With fewer devices a second replica would show (almost) every slice to every device."""

Rule = Literal["device share", "domain share", "separate neighbours", "one share"]


@lru_cache(maxsize=256)
def exactly(share: float) -> Fraction:
    """Return the fraction that a decimal means: 0.29 of 100 slices are 29, which 0.29 * 100 in binary is not."""
    return Fraction(share).limit_denominator(1_000_000)


def slices_within(share: float, columns: int) -> int:
    """Return how many of `columns` slices a share permits: max(1, floor(share * columns))."""
    return max(1, math.floor(exactly(share) * columns))


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one plan: replicas of every cell, shares of a layer's slices in (0, 1]."""

    replicas: int
    share: float
    domain_share: float
    separate_neighbours: bool = False


class Referee:
    """Applies the rules of a plan to the history in its ledger; whatever is placed passes here.

    `layers` are the panels' names and numbers of columns, in the order of the plan.
    """

    def __init__(
        self,
        rules: Rules,
        ledger: Ledger,
        layers: Sequence[tuple[str, int]],
        neighbours: Collection[tuple[int, int]],
    ) -> None:
        self.rules = rules
        self.ledger = ledger
        self._layers = tuple(layers)
        self._adjacent: list[list[int]] = [[] for _ in layers]
        for one, other in neighbours:
            self._adjacent[one].append(other)
            self._adjacent[other].append(one)

    def broken(self, panel: int, device: Device, columns: Collection[int], lane: int = 0) -> Rule | None:
        """Return the rule that `device` would break by seeing these columns (one lane of them) of a panel, or None."""
        total = self._layers[panel][1]
        seen = self.ledger.seen(panel, device.name)
        seen_by_domain = self.ledger.seen_by_domain(panel, device.domain)
        others = (column for other, column in (divmod(counted, total) for counted in seen_by_domain) if other != lane)
        if any(column in columns for column in others):
            return "one share"
        new = self._units(panel, columns, lane)
        if _beyond(seen, new, slices_within(self.rules.share, total)):
            return "device share"
        if _beyond(seen_by_domain, new, slices_within(self.rules.domain_share, total)):
            return "domain share"
        if self.rules.separate_neighbours and self._serves_neighbour(panel, device.domain):
            return "separate neighbours"
        return None

    def record(self, panel: int, device: Device, columns: Collection[int], lane: int = 0) -> None:
        """Write the sighting into the ledger.

        Raises:
            RuleError: it would break a rule; nothing is recorded.
        """
        rule = self.broken(panel, device, columns, lane)
        name, total = self._layers[panel]
        if rule == "one share":
            raise RuleError(
                f"rule 'one share': device {device.name} of domain {device.domain!r} would see two shares of a slice "
                f"of {name}; shares go to different domains, over the whole history"
            )
        if rule is not None:
            raise RuleError(
                f"rule '{rule}': device {device.name} would see too many of the {total} slices of {name}; "
                "allow a larger share, use shape 'columns', or keep the layer at the owner"
            )
        self.ledger.record(panel, device, self._units(panel, columns, lane))

    def _units(self, panel: int, columns: Collection[int], lane: int) -> Collection[int]:
        """Return how the ledger counts a lane of some columns."""
        return [unit(column, lane, self._layers[panel][1]) for column in columns]

    def _serves_neighbour(self, panel: int, domain: str) -> bool:
        return any(self.ledger.seen_by_domain(other, domain) for other in self._adjacent[panel])


def _beyond(seen: Collection[int], columns: Collection[int], allowed: int) -> bool:
    new = sum(column not in seen for column in columns)
    return new > 0 and len(seen) + new > allowed


def domain_sizes(devices: Sequence[Device]) -> tuple[int, ...]:
    """Return how many of the devices each domain has, the largest first."""
    return tuple(sorted(Counter(device.domain for device in devices).values(), reverse=True))


def choose_rules(options: Options, pools: Sequence[Sequence[Device]]) -> tuple[Rules, tuple[str, ...]]:
    """Fill in the rules that the options leave open.

    Args:
        options: what the user asked for.
        pools: the sets of devices that serve a layer each; the rules are to be met in every one.

    Returns:
        The rules, and a note for each that is weaker than the standard.

    Raises:
        RuleError: there are fewer devices than replicas.
    """
    smallest = min(map(len, pools))
    # With shares a replica in another domain would be one more that may complete a coalition.
    enough = smallest >= ENOUGH_DEVICES and options.sharing is None
    replicas = options.replicas or (2 if enough else 1)
    if replicas > smallest:
        raise RuleError(
            f"rule 'replicas': {replicas} replicas of a layer need {replicas} devices, but only {smallest} may "
            f"serve it; add devices or ask for replicas={smallest}"
        )
    share = options.share or _device_share(options, pools, replicas)
    domain_share = options.domain_share or _domain_share(options, pools, replicas)
    rules = Rules(replicas, share, domain_share, options.separate_neighbours)
    return rules, _notes(options, rules, pools)


def _device_share(options: Options, pools: Sequence[Sequence[Device]], replicas: int) -> float:
    if options.strict:
        return STANDARD_SHARE
    if options.shape != "columns":
        return 1.0
    return max(_feasible_share(1, len(pool), replicas, STANDARD_SHARE) for pool in pools)


def _domain_share(options: Options, pools: Sequence[Sequence[Device]], replicas: int) -> float:
    if options.strict:
        return STANDARD_DOMAIN_SHARE
    if options.shape != "columns":
        return 1.0
    return max(_feasible_share(domain_sizes(pool)[0], len(pool), replicas, STANDARD_DOMAIN_SHARE) for pool in pools)


def _feasible_share(members: int, devices: int, replicas: int, standard: float) -> float:
    """Return the standard share, or what `members` of all devices need with one device's worth of headroom.

    Dealt evenly with replicas side by side, `members` devices see max(members, replicas) / devices of the slices.
    """
    needed = max(members, replicas)
    if exactly(standard) * devices > needed:
        return standard
    return min(1.0, (needed + 1) / devices)


def _notes(options: Options, rules: Rules, pools: Sequence[Sequence[Device]]) -> tuple[str, ...]:
    if options.strict or options.sharing is not None:
        return ()  # of shares everybody may see many: less than a coalition's worth shows nothing
    devices = min(map(len, pools))
    domains = min(len(domain_sizes(pool)) for pool in pools)
    why = f"{_count(devices, 'device')} in {_count(domains, 'domain')}, {_count(rules.replicas, 'replica')}"
    if options.shape != "columns":
        why = f"with shape '{options.shape}' a device sees far more slices than it holds blocks"
    elif domains == 1:
        why += ", of unknown domain" if all(device.domain == UNKNOWN for device in pools[0]) else ""
    chosen = (
        ("device share", options.share, rules.share, STANDARD_SHARE),
        ("domain share", options.domain_share, rules.domain_share, STANDARD_DOMAIN_SHARE),
    )
    return tuple(
        f"{rule} relaxed from {standard:g} to {share:.3g}: {why}"
        for rule, asked, share, standard in chosen
        if asked is None and share > standard
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
