"""How much of a layer a set of devices may see, and which domain takes which part of it."""

import math
from collections.abc import Sequence

from awfulowl.placement.ledger import Device
from awfulowl.placement.rules import Rules, domain_sizes, exactly, slices_within


def allot(
    count: int, sizes: Sequence[int], replicas: int, device_limit: int, domain_limit: int
) -> list[tuple[int, ...]] | None:
    """Choose the domains of `count` parcels, each with all its replicas.

    Replicas stay in one domain where that has devices enough, since elsewhere they would count as seen there.
    Domains take turns by their load per device; if the limits do not permit that, those that can take all
    replicas of a parcel go first.

    Args:
        count: parcels.
        sizes: devices of each domain; among equally loaded ones the first is served first.
        replicas: devices for each parcel.
        device_limit: most parcels of a device.
        domain_limit: most parcels of a domain.

    Returns:
        For each parcel one domain per replica, or None if that is impossible.
    """
    for whole_first in (False, True):
        hands = _allot(count, sizes, replicas, (device_limit, domain_limit), whole_first=whole_first)
        if hands is not None:
            return hands
    return None


def _allot(
    count: int, sizes: Sequence[int], replicas: int, limits: tuple[int, int], *, whole_first: bool
) -> list[tuple[int, ...]] | None:
    used = [0] * len(sizes)
    seen = [0] * len(sizes)
    hands = []
    for _ in range(count):
        free = {
            domain: min(size, size * limits[0] - used[domain])
            for domain, size in enumerate(sizes)
            if seen[domain] < limits[1] and used[domain] < size * limits[0]
        }
        hand: list[int] = []
        while len(hand) < replicas:
            if not free:
                return None
            # The rest of a hand comes from domains too small for a whole one: there it spoils nothing.
            best = min(
                free,
                key=lambda domain: (
                    sizes[domain] >= replicas if hand else whole_first and free[domain] < replicas,
                    used[domain] / sizes[domain],
                ),
            )
            taken = min(free.pop(best), replicas - len(hand))
            hand += [best] * taken
            used[best] += taken
            seen[best] += 1
        hands.append(tuple(hand))
    return hands


class Capacity:
    """What a set of devices can see of a layer of so many columns under the rules."""

    def __init__(self, rules: Rules, devices: Sequence[Device]) -> None:
        self.rules = rules
        self.devices = tuple(devices)
        self._sizes = domain_sizes(devices)

    def allot(self, columns: int) -> list[tuple[int, ...]] | None:
        """Return for each column the domains of its replicas, numbered from the largest, or None: the rules forbid."""
        device, domain = self._limits(columns)
        replicas = self.rules.replicas
        if sum(min(size * device, domain * min(size, replicas)) for size in self._sizes) < replicas * columns:
            return None
        return allot(columns, self._sizes, replicas, device, domain)

    def spread(self, parcels: int) -> list[tuple[int, ...]]:
        """Return for each parcel the domains of its replicas, whatever the rules say of it."""
        return allot(parcels, self._sizes, self.rules.replicas, parcels, parcels) or []

    def has_room(self, columns: int) -> bool:
        """Say whether, dealt evenly, every device can take one more column, and all but one can hold everything."""
        allowed, _ = self._limits(columns)
        enough = allowed * (len(self.devices) - 1) >= self.rules.replicas * columns
        return enough and allowed > self.held(columns)

    def held(self, columns: int) -> int:
        """Return how many columns a device holds at most, dealt evenly."""
        return math.ceil(self.rules.replicas * columns / len(self.devices))

    def unevenness(self, columns: int) -> float:
        """Return the work of the busiest device over the mean of those that have work."""
        return math.ceil(columns / len(self.devices)) * min(columns, len(self.devices)) / columns

    def grade(self, columns: int) -> int:
        """Return 3 with room for failover, 2 without, 1 where one slice is more than the share, 0 if nothing fits."""
        if self.allot(columns) is None:
            return 0
        if columns == 1 or exactly(self.rules.share) * columns < 1:
            return 1
        return 3 if self.has_room(columns) else 2

    def _limits(self, columns: int) -> tuple[int, int]:
        return slices_within(self.rules.share, columns), slices_within(self.rules.domain_share, columns)


class Lanes:
    """What sets of devices can see of a layer of which each of them holds all columns, one lane each."""

    def __init__(self, lanes: Sequence[Capacity]) -> None:
        self.lanes = tuple(lanes)
        self.rules = lanes[0].rules
        self.devices = min((lane.devices for lane in lanes), key=len)

    def unevenness(self, columns: int) -> float:
        """Return the work of the busiest device over the mean of its lane."""
        return max(lane.unevenness(columns) for lane in self.lanes)

    def held(self, columns: int) -> int:
        """Return how many columns a device holds at most, dealt evenly."""
        return max(lane.held(columns) for lane in self.lanes)

    def grade(self, columns: int) -> int:
        """Return the grade of the worst lane, as in `Capacity.grade`."""
        return min(lane.grade(columns) for lane in self.lanes)
