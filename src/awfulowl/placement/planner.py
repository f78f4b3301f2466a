"""From what a model consists of and who is there to a plan."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, cycle, pairwise
from typing import NamedTuple

from awfulowl.arithmetic.numbers import integers
from awfulowl.blocks.grid import Grid, Span
from awfulowl.blocks.kernels import Dense
from awfulowl.errors import InputError, ModelError, RuleError
from awfulowl.placement.capacity import Capacity, Lanes
from awfulowl.placement.cutting import Layer, block_size, cut, titles
from awfulowl.placement.dealing import Dealer, parcels
from awfulowl.placement.ledger import Device, Ledger, by_domain
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Cell, Member, Panel, Plan
from awfulowl.placement.rules import Referee, Rules, choose_rules, domain_sizes
from awfulowl.randomness import SYSTEM, Entropy
from awfulowl.veil.shares import sharing_of
from awfulowl.verification.exact import secret_bits

KEPT_BY_REQUEST = "kept by request"


def make_plan(
    layers: Sequence[Layer],
    devices: Sequence[Device],
    options: Options | None = None,
    entropy: Entropy = SYSTEM,
    *,
    model: bytes = b"",
    kept: Sequence[tuple[str, str]] = (),
) -> Plan:
    """Decide which device gets which blocks of which layer.

    Args:
        layers: what can be scattered, in order of execution (of definition, where no layer names its input).
        devices: who may hold blocks, with their domains.
        options: what the user asks for.
        entropy: where positions and handles come from; a seeded one makes the plan UNSAFE.
        model: digest of the model (`model_digest`), to recognise it again.
        kept: what stays at the owner in any case, and why.

    Raises:
        InputError: devices or layers that are named twice, or a `keep` that names nothing.
        ModelError: nothing is left to scatter, or a layer without weights.
        RuleError: the rules cannot be met; says which, for which layer, and what would satisfy it.
    """
    options = options or Options()
    _check_names("device", [device.name for device in devices])
    _check_names("layer", [layer.product for layer in layers])
    scattered, kept = _keep(layers, options.keep, kept)
    groups = _group(scattered)
    _check_stacks(groups)
    pools = _pools(devices, options, apart=options.separate_neighbours and len(groups) > 1)
    lanes = [_lanes(pool, options) for pool in pools]
    rules, relaxed = choose_rules(options, [lane for pool in lanes for lane in pool])
    drafts = _draft(groups, lanes, rules, options)
    ledger = Ledger.empty(len(drafts))
    neighbours = tuple(pairwise(range(len(drafts))))
    referee = Referee(rules, ledger, [(titles(draft.layers), len(draft.grid.columns)) for draft in drafts], neighbours)
    dealer = Dealer(referee, entropy)
    return Plan(
        model=model,
        devices=tuple(devices),
        panels=tuple(_panel(index, draft, dealer, options, entropy) for index, draft in enumerate(drafts)),
        rules=rules,
        ledger=ledger,
        neighbours=neighbours,
        kept=kept,
        notes=(*_warnings(layers, entropy), *relaxed),
        unsafe=entropy.unsafe,
        arithmetic=options.arithmetic,
        sharing=options.sharing,
    )


class _Draft(NamedTuple):
    """A panel before anything is placed, and who may serve it."""

    name: str
    layers: Sequence[Layer]
    grid: Grid
    lanes: Lanes


def _draft(
    groups: Sequence[Sequence[Layer]], pools: Sequence[Sequence[Sequence[Device]]], rules: Rules, options: Options
) -> list[_Draft]:
    block = block_size([layer for group in groups for layer in group], options)
    turns = cycle(Lanes([Capacity(rules, lane) for lane in pool]) for pool in pools)
    return [
        _Draft("+".join(layer.product for layer in group), group, cut(group, block, lanes, options), lanes)
        for group, lanes in zip(groups, turns, strict=False)
    ]


def _panel(index: int, draft: _Draft, dealer: Dealer, options: Options, entropy: Entropy) -> Panel:
    name, layers, grid, lanes = draft
    first = layers[0]
    order = entropy.permutation(len(grid.columns))
    cells: list[Cell] = []
    for lane, capacity in enumerate(lanes.lanes):
        lot = parcels(grid, order, options.shape, devices=len(capacity.devices), positions=first.positions)
        homes = capacity.allot(len(lot)) if options.shape == "columns" else None
        hands = dealer.deal(index, lot, homes or capacity.spread(len(lot)), capacity.devices, lane)
        cells += (
            Cell(column, rows, holders, lane)
            for parcel, holders in zip(lot, hands, strict=True)
            for column, rows in parcel.rows.items()
        )
    edges = pairwise(accumulate((layer.shape[0] for layer in layers), initial=0))
    matrices = sharing_of(options.sharing).matrices(len(lanes.lanes) - 1).stop
    return Panel(
        name=name,
        members=tuple(Member(layer.product, Span(*edge)) for layer, edge in zip(layers, edges, strict=True)),
        grid=grid,
        row_handles=tuple(entropy.handle() for _ in grid.rows),
        slice_handles=tuple(entropy.handle() for _ in range(matrices * len(grid.columns))),
        order=tuple(order),
        cells=tuple(sorted(cells, key=lambda cell: (cell.lane, cell.column, cell.rows))),
        positions=first.positions,
        input_positions=first.positions if first.input_positions is None else first.input_positions,
        first=index == 0,
        arithmetic=first.arithmetic,
        error=max((layer.error for layer in layers if layer.error is not None), default=None),
    )


def _lanes(devices: Sequence[Device], options: Options) -> list[list[Device]]:
    """Split devices into one set for each lane of the sharing: whole domains, about equally many devices each.

    Raises:
        RuleError: there are fewer domains than lanes.
    """
    wanted = sharing_of(options.sharing).lanes
    domains = by_domain(devices)
    if wanted > len(domains):
        raise RuleError(
            f"rule 'one share': sharing {options.sharing!r} needs {wanted} domains, and the devices are of "
            f"{len(domains)}; say which party controls which device (devices={{'d1': 'alice', 'd2': 'bob'}}, "
            "or --devices d1@alice,d2@bob)"
        )
    lanes: list[list[Device]] = [[] for _ in range(wanted)]
    for members in sorted(domains.values(), key=len, reverse=True):
        min(lanes, key=len).extend(members)
    return lanes


def _check_names(kind: str, names: Sequence[str]) -> None:
    if not names and kind == "device":
        raise RuleError("there are no devices; a plan needs at least one")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{kind} {twice[0]!r} is named twice")


def _keep(
    layers: Sequence[Layer], paths: Sequence[str], kept: Sequence[tuple[str, str]]
) -> tuple[list[Layer], tuple[tuple[str, str], ...]]:
    names = [layer.product for layer in layers] + [name for name, _ in kept]
    for path in paths:
        if not any(below(name, path) for name in names):
            raise InputError(f"keep names {path!r}, which is no layer of this model")
    scattered = [layer for layer in layers if not any(below(layer.product, path) for path in paths)]
    asked = [(layer.product, KEPT_BY_REQUEST) for layer in layers if layer not in scattered]
    if not scattered:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in [*kept, *asked][:8])
        raise ModelError(f"nothing is left to scatter{f' ({reasons})' if reasons else ''}")
    for layer in scattered:
        if min(layer.shape) < 1:
            raise ModelError(f"{layer.title} has a weight of shape {layer.shape}: there is nothing to cut; keep it")
    return scattered, (*kept, *asked)


def below(name: str, path: str) -> bool:
    """Say whether a product is the module at a path, or in it."""
    return name == path or name.startswith((f"{path}.", f"{path}/"))


def _group(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Put dense layers that follow each other and have the same input into one panel."""
    groups: list[list[Layer]] = []
    for layer in layers:
        last = groups[-1][-1] if groups else None
        if last is not None and layer.input is not None and _joinable(last, layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _check_stacks(groups: Sequence[Sequence[Layer]]) -> None:
    """Refuse layers that fit their integers one by one, and are too many outputs together to be checked."""
    for group in groups:
        numbers = integers(group[0].arithmetic)
        if numbers is not None:
            terms = math.prod(group[0].shape[1:])
            try:
                secret_bits(sum(layer.shape[0] for layer in group), numbers, terms * numbers.largest**2)
            except ModelError as error:
                raise ModelError(f"{titles(group)}, which share their input: {error}; keep one of them") from None


def _joinable(one: Layer, other: Layer) -> bool:
    dense = isinstance(one.kernel, Dense) and isinstance(other.kernel, Dense)
    same = (one.input, one.inputs, one.positions, one.arithmetic)
    return dense and same == (other.input, other.inputs, other.positions, other.arithmetic)


def _pools(devices: Sequence[Device], options: Options, *, apart: bool) -> list[list[Device]]:
    """Return the devices, or two sets of whole domains, enough for the lanes of a sharing, that serve layers in turn.

    Raises:
        RuleError: there are too few domains.
    """
    if not apart:
        return [list(devices)]
    lanes = sharing_of(options.sharing).lanes
    domains = by_domain(devices)
    if len(domains) < 2:
        raise RuleError(
            "rule 'separate neighbours': layers that follow each other need two domains, and all devices are of one; "
            "name the domains of the devices, or do without the rule"
        )
    if len(domains) < 2 * lanes:
        raise RuleError(
            f"rules 'one share' and 'separate neighbours': sharing {options.sharing!r} needs {2 * lanes} domains, half "
            f"of them for every other layer, and the devices are of {len(domains)}; name more, or do without one rule"
        )
    pools: list[list[Device]] = [[], []]
    for members in sorted(domains.values(), key=len, reverse=True):
        min(pools, key=lambda pool: (len(domain_sizes(pool)) >= lanes, len(pool))).extend(members)
    return pools


def _warnings(layers: Sequence[Layer], entropy: Entropy) -> list[str]:
    warnings = []
    if entropy.unsafe:
        warnings.append("UNSAFE: made from a seed; whoever knows it knows every position. For experiments only")
    if all(layer.input is None for layer in layers):
        warnings.append(
            "no example was given: which layers are neighbours is taken from the order of definition, none are "
            "grouped, and operations and traffic are of one vector a layer, where images and sequences have many"
        )
    return warnings
