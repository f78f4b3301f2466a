"""Who gets what: parcels of blocks that live together, dealt evenly and at random within the rules."""

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from awfulowl.blocks.grid import Grid
from awfulowl.placement.ledger import Device, by_domain
from awfulowl.placement.options import Shape
from awfulowl.placement.plan import weights
from awfulowl.placement.rules import Referee
from awfulowl.randomness import Entropy


class Parcel(NamedTuple):
    """Blocks that go to the same devices: per column its rows, their weights, and products per sample."""

    rows: dict[int, tuple[int, ...]]
    weights: int
    work: int

    @property
    def columns(self) -> Collection[int]:
        """Columns that whoever holds this sees."""
        return self.rows.keys()


def parcels(grid: Grid, order: Sequence[int], shape: Shape, *, devices: int, positions: int = 1) -> list[Parcel]:
    """Split a grid into the parcels of a shape, in the secret order of its columns, ragged ones last.

    `columns`: a column each. `rows`: a row each. `rectangles`: about as many rectangles as devices, as square as
    they get. `scattered`: a block each.
    """
    rows = range(len(grid.rows))
    bands: Sequence[Sequence[int]]
    runs: Sequence[Sequence[int]]
    if shape == "columns":
        bands, runs = [rows], [[column] for column in order]
    elif shape == "rows":
        bands, runs = [range(row, row + 1) for row in rows], [list(order)]
    elif shape == "scattered":
        bands, runs = [range(row, row + 1) for row in rows], [[column] for column in order]
    else:
        tall = min(math.isqrt(devices), len(rows))
        bands, runs = _split(rows, tall), _split(order, math.ceil(devices / tall))
    made = (_parcel(grid, band, run, positions) for run in runs for band in bands)
    return sorted((parcel for parcel in made if parcel.rows), key=lambda parcel: -parcel.weights)


def _split(items: Sequence[int], parts: int) -> list[Sequence[int]]:
    parts = min(parts, len(items))
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:stop] for start, stop in pairwise(edges)]


def _parcel(grid: Grid, band: Iterable[int], run: Iterable[int], positions: int) -> Parcel:
    wanted = frozenset(band)
    rows = {column: tuple(row for row in grid.columns[column].rows if row in wanted) for column in run}
    rows = {column: reached for column, reached in rows.items() if reached}
    size = sum(weights(grid, column, reached) for column, reached in rows.items())
    return Parcel(rows, size, size * positions)


class Dealer:
    """Deals the parcels of one panel after the other, and evens out what devices hold and multiply."""

    def __init__(self, referee: Referee, entropy: Entropy) -> None:
        self._referee = referee
        self._entropy = entropy
        self._held: Counter[str] = Counter()
        self._first: Counter[str] = Counter()

    def deal(
        self,
        panel: int,
        lot: Sequence[Parcel],
        homes: Sequence[tuple[int, ...]],
        devices: Sequence[Device],
        lane: int = 0,
    ) -> list[tuple[str, ...]]:
        """Choose the holders of each parcel of a panel, preferred first.

        `homes` are the domains of each parcel's replicas, numbered from the largest domain, among equals from the one
        that holds least. Within a domain a parcel goes to the devices with the fewest, so that their numbers differ
        by at most one. Ties are left to chance, so that replicas pair up anew in every round; in the last round they
        go to the devices that hold least.

        Raises:
            RuleError: the devices would see more of the panel than the rules allow.
        """
        domains = self._domains(devices)
        left = Counter(chain.from_iterable(homes))
        count: Counter[str] = Counter()
        hands = []
        for parcel, home in zip(lot, homes, strict=True):
            hand = []
            for domain, replicas in Counter(home).items():
                last_round = left[domain] < len(domains[domain]) + replicas
                hand += self._ranked(domains[domain], count, last_round=last_round)[:replicas]
                left[domain] -= replicas
            for device in hand:
                self._referee.record(panel, device, parcel.columns, lane)
                count[device.name] += 1
                self._held[device.name] += parcel.weights
            hands.append([device.name for device in hand])
        prefer(hands, self._first)
        for parcel, names in zip(lot, hands, strict=True):
            self._first[names[0]] += parcel.work
        return [tuple(names) for names in hands]

    def _domains(self, devices: Sequence[Device]) -> list[list[Device]]:
        members = by_domain(devices).values()
        return sorted(members, key=lambda own: (-len(own), sum(self._held[device.name] for device in own)))

    def _ranked(self, devices: Sequence[Device], count: Mapping[str, int], *, last_round: bool) -> list[Device]:
        chance = iter(self._entropy.uniform(len(devices)).tolist())
        return sorted(
            devices,
            key=lambda device: (count[device.name], self._held[device.name] if last_round else 0, next(chance)),
        )


def prefer(hands: Sequence[list[str]], load: Mapping[str, int]) -> None:
    """Reorder each hand in place so that no device is first more often than it must be.

    Greedy, then improved along cost-reducing paths until there are none, which is optimal: Harvey, Ladner,
    Lovász and Tamir, "Semi-matchings for bipartite graphs and load balancing", 2006, theorem 3.1. Among devices
    that are first equally often, the same paths spare those with the larger `load`.
    """
    cost = {name: (0, load.get(name, 0)) for hand in hands for name in hand}
    for hand in hands:
        hand.sort(key=cost.__getitem__)
        _add(cost, hand[0], 1)
    while path := _cheaper(hands, cost):
        for hand, heir in path:
            _add(cost, hand[0], -1)
            _add(cost, heir, 1)
            hand.remove(heir)
            hand.insert(0, heir)


def _add(cost: dict[str, tuple[int, int]], name: str, count: int) -> None:
    cost[name] = cost[name][0] + count, cost[name][1]


def _cheaper(hands: Sequence[list[str]], cost: Mapping[str, tuple[int, int]]) -> list[tuple[list[str], str]]:
    """Return hands and their new firsts, along a path from a busy device to one that costs less with one more."""
    led: dict[str, list[list[str]]] = {}
    for hand in hands:
        led.setdefault(hand[0], []).append(hand)
    for busy in sorted(led, key=cost.__getitem__, reverse=True):
        came: dict[str, tuple[list[str], str] | None] = {busy: None}
        queue = deque([busy])
        while queue:
            name = queue.popleft()
            if (cost[name][0] + 1, cost[name][1]) < cost[busy]:
                return _trace(came, name)
            for hand in led.get(name, ()):
                for heir in hand[1:]:
                    if heir not in came:
                        came[heir] = (hand, name)
                        queue.append(heir)
    return []


def _trace(came: Mapping[str, tuple[list[str], str] | None], name: str) -> list[tuple[list[str], str]]:
    path = []
    while (step := came[name]) is not None:
        hand, name_before = step
        path.append((hand, name))
        name = name_before
    return path
