"""Layers, devices and plans to test with, and the placement rules written once more, the slow and obvious way."""

from collections.abc import Collection, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import floor

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from awfulowl.blocks.kernels import Convolution
from awfulowl.placement.assignment import Assignment
from awfulowl.placement.cutting import Layer
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.planner import make_plan
from awfulowl.randomness import Entropy

some = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Cases of a property, however long one takes."""

CONVOLUTION = Convolution((1, 1), (1, 1), (1, 1))


def fleet(count: int, domains: int = 0) -> list[Device]:
    """Devices d0, d1, ...; with `domains`, dealt to that many named ones in turn."""
    if domains:
        return [Device(f"d{number}", f"party{number % domains}") for number in range(count)]
    return [Device(f"d{number}") for number in range(count)]


def dense(name: str, outputs: int, inputs: int, source: int | None = None, positions: int = 1) -> Layer:
    return Layer(name, (outputs, inputs), input=source, positions=positions)


def convolution(name: str, outputs: int, inputs: int, groups: int = 1, positions: int = 64) -> Layer:
    return Layer(name, (outputs, inputs // groups, 3, 3), CONVOLUTION, groups, positions=positions)


def chain(*widths: int) -> list[Layer]:
    """A multilayer perceptron whose example pass is known."""
    return [
        dense(f"layer{number}", outputs, inputs, source=number)
        for number, (inputs, outputs) in enumerate(pairwise(widths))
    ]


def plan(layers: Sequence[Layer], devices: Sequence[Device], seed: int | None = None, **options: object) -> Plan:
    return make_plan(layers, devices, Options(**options), Entropy(seed))  # type: ignore[arg-type]


def give_to_best(assignment: Assignment, panel: int, cell: int, alive: Collection[str]) -> str | None:
    """Give a cell that misses a holder to the best candidate, as owners do; None where the rules allow nobody."""
    best = next(iter(assignment.candidates(panel, cell, alive)), None)
    if best is not None:
        assignment.assign(panel, cell, best)
    return best


@cache
def small_plan() -> Plan:
    """A plan with all that a plan can have: several domains, a group, kept layers, notes, a seed."""
    layers = [
        convolution("conv", 16, 3),
        dense("block/q", 24, 32, source=1),
        dense("block/k", 16, 32, source=1),
        dense("head", 10, 24, source=2),
    ]
    return make_plan(
        layers,
        fleet(6, domains=3),
        Options(block=8),
        Entropy(7),
        model=b"m" * 32,
        kept=[("norm", "has no product")],
    )


def allowed(share: float, columns: int) -> int:
    return max(1, floor(Fraction(str(round(share, 6))) * columns + Fraction(1, 10_000)))


def violations(plan: Plan) -> list[str]:
    """Every way in which a plan breaks its own rules or forgets what was seen."""
    found = []
    domain_of = {device.name: device.domain for device in plan.devices}
    served: list[set[str]] = []
    for index, panel in enumerate(plan.panels):
        columns = len(panel.grid.columns)
        devices: dict[str, set[int]] = {}
        domains: dict[str, set[int]] = {}
        for cell in panel.cells:
            for name in cell.holders:
                devices.setdefault(name, set()).add(cell.column)
                domains.setdefault(domain_of[name], set()).add(cell.column)
        served.append(set(domains))
        for name, seen in devices.items():
            if len(seen) > allowed(plan.rules.share, columns):
                found.append(f"{name} sees {len(seen)} of {columns} columns of {panel.name}")
            if not seen <= plan.ledger.seen(index, name):
                found.append(f"the ledger does not know what {name} sees of {panel.name}")
        for domain, seen in domains.items():
            if len(seen) > allowed(plan.rules.domain_share, columns):
                found.append(f"domain {domain} sees {len(seen)} of {columns} columns of {panel.name}")
            if not seen <= plan.ledger.seen_by_domain(index, domain):
                found.append(f"the ledger does not know what domain {domain} sees of {panel.name}")
    if plan.rules.separate_neighbours:
        found += [f"neighbours {pair} share a domain" for pair in plan.neighbours if served[pair[0]] & served[pair[1]]]
    return found


def malformations(plan: Plan) -> list[str]:
    """Every way in which a plan's cells are not a partition of its blocks with the promised replicas."""
    found = []
    for panel in plan.panels:
        blocks = sorted((column, row) for column, cut in enumerate(panel.grid.columns) for row in cut.rows)
        if sorted((cell.column, row) for cell in panel.cells for row in cell.rows) != blocks:
            found.append(f"the cells of {panel.name} are not its blocks")
        if any(len(set(cell.holders)) != len(cell.holders) for cell in panel.cells):
            found.append(f"a cell of {panel.name} has a holder twice")
        if any(len(cell.holders) < plan.rules.replicas for cell in panel.cells):
            found.append(f"a cell of {panel.name} misses a replica")
        if sorted(panel.order) != list(range(len(panel.grid.columns))):
            found.append(f"the order of {panel.name} is no permutation")
        if (len(panel.row_handles), len(panel.slice_handles)) != (len(panel.grid.rows), len(panel.grid.columns)):
            found.append(f"{panel.name} has not one handle for each row and slice")
        if panel.members[-1].rows.stop != panel.grid.outputs:
            found.append(f"the members of {panel.name} do not fill its outputs")
    handles = [handle for panel in plan.panels for handle in (*panel.row_handles, *panel.slice_handles)]
    if len(set(handles)) != len(handles):
        found.append("a handle names two things")
    return found


@st.composite
def some_layers(draw: st.DrawFn) -> list[Layer]:
    """One to four layers: dense, grouped with the one before, convolutions plain, grouped and depthwise."""
    layers: list[Layer] = []
    source = 0
    for number in range(draw(st.integers(1, 4))):
        source += draw(st.integers(0, 1))
        kind = draw(st.sampled_from(["dense", "convolution", "groups", "depthwise"]))
        outputs, inputs = draw(st.integers(1, 70)), draw(st.integers(1, 70))
        if kind == "dense":
            layers.append(dense(f"layer{number}", outputs, inputs, source))
        elif kind == "convolution":
            layers.append(convolution(f"layer{number}", outputs, inputs))
        elif kind == "groups":
            layers.append(convolution(f"layer{number}", 4 * (1 + outputs // 4), 4 * (1 + inputs // 4), groups=4))
        else:
            layers.append(convolution(f"layer{number}", inputs, inputs, groups=inputs))
    return layers


@st.composite
def some_devices(draw: st.DrawFn) -> list[Device]:
    """One to fourteen devices of one unknown domain, or of up to five that are named."""
    names = draw(st.sampled_from([("unknown",), ("a", "b"), ("a", "b", "c", "d", "e"), ("a", "a", "a", "b")]))
    count = draw(st.integers(1, 14))
    return [Device(f"d{number}", draw(st.sampled_from(names))) for number in range(count)]
