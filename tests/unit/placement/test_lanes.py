"""Lanes: of a shared column no domain ever has two, in plans, over any churn, and in what is saved of them."""

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import nn

import awfulowl as owl
from awfulowl.errors import RuleError
from awfulowl.placement.assignment import Assignment
from awfulowl.placement.cutting import Layer
from awfulowl.placement.exposure import expose
from awfulowl.placement.ledger import Device, Ledger
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.plan import Plan
from awfulowl.placement.planner import make_plan
from awfulowl.placement.rules import Referee, Rules
from awfulowl.placement.store import load, save
from awfulowl.randomness import Entropy
from awfulowl.veil.shares import sharing_of
from tests.unit.placement.fleets import allowed, chain, dense, fleet, give_to_best, some, some_devices, some_layers

SHARED = ["inputs:2", "inputs:3", "replicated"]
SHAPES: list[Shape] = ["columns", "rows", "rectangles", "scattered"]

each_sharing = pytest.mark.parametrize("sharing", SHARED)


def exact(layers: Iterable[Layer], arithmetic: str = "int8") -> list[Layer]:
    return [layer._replace(arithmetic=arithmetic) for layer in layers]


def shared(
    layers: Iterable[Layer], devices: list[Device], sharing: str, seed: int | None = None, **options: object
) -> Plan:
    asked = Options(arithmetic="int8", sharing=sharing, **options)  # type: ignore[arg-type]
    return make_plan(exact(layers), devices, asked, Entropy(seed))


def domains_of(plan: Plan) -> dict[str, str]:
    return {device.name: device.domain for device in plan.devices}


def two_lanes(plan: Plan) -> list[str]:
    """Every domain that has two lanes of a column: by what is placed, and by the ledger."""
    found = []
    domain_of = domains_of(plan)
    for index, panel in enumerate(plan.panels):
        columns = len(panel.grid.columns)
        lanes: dict[tuple[str, int], set[int]] = {}
        for cell in panel.cells:
            for name in cell.holders:
                lanes.setdefault((domain_of[name], cell.column), set()).add(cell.lane)
        found += [f"{who[0]} holds lanes {own} of {panel.name}" for who, own in lanes.items() if len(own) > 1]
        for domain, units in plan.ledger.domains[index].items():
            if len({unit % columns for unit in units}) < len(units):
                found.append(f"{domain} saw two lanes of a column of {panel.name}")
    return found


def malformations(plan: Plan) -> list[str]:
    """Every way in which the lanes of a plan are not what its sharing promises."""
    found = []
    sharing = sharing_of(plan.sharing)
    for index, panel in enumerate(plan.panels):
        columns = len(panel.grid.columns)
        blocks = sorted((column, row) for column, cut in enumerate(panel.grid.columns) for row in cut.rows)
        lanes = {lane: [cell for cell in panel.cells if cell.lane == lane] for lane in range(sharing.lanes)}
        found += [
            f"lane {lane} of {panel.name} is not all its blocks once"
            for lane, cells in lanes.items()
            if sorted((cell.column, row) for cell in cells for row in cell.rows) != blocks
        ]
        if sum(map(len, lanes.values())) != len(panel.cells):
            found.append(f"{panel.name} has not {sharing.lanes} lanes")
        if len(panel.slice_handles) != sharing.matrices(sharing.lanes - 1).stop * columns:
            found.append(f"{panel.name} has {len(panel.slice_handles)} handles")
        found += forgotten(plan, index)
        for share, who in (
            (plan.rules.share, plan.ledger.devices[index]),
            (plan.rules.domain_share, plan.ledger.domains[index]),
        ):
            found += [f"{name} sees too much" for name, units in who.items() if len(units) > allowed(share, columns)]
    handles = [handle for panel in plan.panels for handle in (*panel.row_handles, *panel.slice_handles)]
    if len(set(handles)) != len(handles):
        found.append("a handle names two things")
    if plan.rules.separate_neighbours:
        served = [set(domains) for domains in plan.ledger.domains]
        found += [f"{pair} share a domain" for pair in plan.neighbours if served[pair[0]] & served[pair[1]]]
    return found


def forgotten(plan: Plan, index: int) -> list[str]:
    """What is placed of a panel, and is not in the ledger, or not often enough."""
    found = []
    panel, domain_of = plan.panels[index], domains_of(plan)
    for cell in panel.cells:
        unit = cell.lane * len(panel.grid.columns) + cell.column
        if len(set(cell.holders)) != len(cell.holders) or len(cell.holders) < plan.rules.replicas:
            found.append(f"a cell of {panel.name} misses a replica")
        found += [
            f"the ledger does not know what {name} sees of {panel.name}"
            for name in cell.holders
            if unit not in plan.ledger.seen(index, name)
            or unit not in plan.ledger.seen_by_domain(index, domain_of[name])
        ]
    return found


# Plans


@settings(some, max_examples=120)
@given(
    some_layers(), some_devices(), st.sampled_from(SHARED), st.sampled_from(["auto", 5, 16]), st.sampled_from(SHAPES)
)
def test_where_there_are_domains_enough_any_model_is_shared_on_any_fleet(
    layers: list[Layer], devices: list[Device], sharing: str, block: int, shape: Shape
) -> None:
    lanes, domains = sharing_of(sharing).lanes, len({device.domain for device in devices})
    if domains < lanes:
        with pytest.raises(RuleError, match=rf"rule 'one share'.*'{sharing}' needs {lanes} domains.*are of {domains}"):
            shared(layers, devices, sharing, block=block, shape=shape)
        event("refused")
        return
    made = shared(layers, devices, sharing, block=block, shape=shape)
    assert malformations(made) == []
    assert two_lanes(made) == []
    assert (made.sharing, made.arithmetic) == (sharing, "int8")
    assert {panel.arithmetic for panel in made.panels} == {"int8"}


@settings(some, max_examples=120)
@given(
    some_layers(),
    st.integers(2, 14),
    st.integers(2, 7),
    st.sampled_from(SHARED),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([None, 0.25, 0.5, 1.0]),
    st.booleans(),
)
def test_what_is_asked_for_is_kept_or_refused(
    layers: list[Layer],
    devices: int,
    domains: int,
    sharing: str,
    replicas: int | None,
    share: float | None,
    apart: bool,
) -> None:
    try:
        made = shared(
            layers,
            fleet(devices, domains),
            sharing,
            block=16,
            replicas=replicas,
            share=share,
            domain_share=share,
            separate_neighbours=apart,
        )
    except RuleError:
        event("refused")
        return
    event("made, apart" if apart and len(made.panels) > 1 else "made")
    assert malformations(made) == []
    assert two_lanes(made) == []
    assert made.rules.replicas == (replicas or made.rules.replicas)
    assert made.rules.share == (share or made.rules.share)


@each_sharing
def test_a_lane_is_served_by_domains_of_its_own(sharing: str) -> None:
    made = shared(chain(64, 64, 10), fleet(12, domains=6), sharing, block=8)
    lanes: dict[int, set[str]] = {}
    for panel in made.panels:
        for cell in panel.cells:
            lanes.setdefault(cell.lane, set()).update(domains_of(made)[name] for name in cell.holders)
    assert sum(map(len, lanes.values())) == len(set.union(*lanes.values())) == 6


def test_domains_are_split_so_that_lanes_have_about_as_many_devices() -> None:
    sizes = {"a": 5, "b": 1, "c": 2, "d": 2, "e": 1, "f": 1}
    devices = [Device(f"{domain}{number}", domain) for domain, size in sizes.items() for number in range(size)]
    made = shared([dense("layer", 32, 96)], devices, "inputs:2", block=8)
    lanes: list[set[str]] = [set(), set()]
    for cell in made.panels[0].cells:
        lanes[cell.lane].update(cell.holders)
    assert sorted(map(len, lanes)) == [6, 6]


@pytest.mark.parametrize(
    ("sharing", "domains", "wanted"), [("inputs:2", 1, 2), ("inputs:3", 2, 3), ("replicated", 2, 3), ("inputs:8", 7, 8)]
)
def test_too_few_domains_are_refused_with_what_to_say(sharing: str, domains: int, wanted: int) -> None:
    with pytest.raises(
        RuleError, match=rf"rule 'one share': sharing '{sharing}' needs {wanted} domains.*are of {domains};.*--devices"
    ):
        shared([dense("layer", 8, 8)], fleet(16, domains), sharing)


def test_devices_of_unknown_domain_are_one_domain() -> None:
    with pytest.raises(RuleError, match="'one share'"):
        shared([dense("layer", 8, 8)], fleet(8), "inputs:2")
    named = [*fleet(4), Device("own", "mine")]
    assert two_lanes(shared([dense("layer", 8, 8)], named, "inputs:2", replicas=1)) == []


def test_replicas_are_asked_of_every_lane() -> None:
    with pytest.raises(RuleError, match=r"rule 'replicas'.*only 2 may serve it"):
        shared([dense("layer", 8, 8)], fleet(4, 2), "inputs:2", replicas=3)


@each_sharing
def test_neighbours_are_served_by_other_domains_whatever_their_lanes(sharing: str) -> None:
    made = shared(chain(64, 64, 64, 10), fleet(12, domains=6), sharing, block=8, separate_neighbours=True)
    assert malformations(made) == []
    assert two_lanes(made) == []
    served = [set(domains) for domains in made.ledger.domains]
    assert not served[0] & served[1]
    assert not served[1] & served[2]


def test_neighbours_and_lanes_need_domains_for_both() -> None:
    with pytest.raises(
        RuleError, match=r"rules 'one share' and 'separate neighbours': .*'inputs:2' needs 4 domains.*are of 3"
    ):
        shared(chain(64, 64, 10), fleet(9, domains=3), "inputs:2", separate_neighbours=True)
    assert len(shared(chain(64, 10), fleet(9, domains=3), "inputs:2", separate_neighbours=True).panels) == 1


def test_neighbours_that_are_of_uneven_domains_are_shared_where_they_can_be() -> None:
    """One domain has most of the devices: each half of the domains still has two."""
    devices = [*fleet(9, domains=1), Device("b", "b"), Device("c", "c"), Device("d", "d")]
    made = shared(chain(16, 16, 10), devices, "inputs:2", replicas=1, separate_neighbours=True)
    assert malformations(made) == []
    assert two_lanes(made) == []


# The rule


def referee(*columns: int) -> Referee:
    layers = [(f"layer{number}", count) for number, count in enumerate(columns)]
    return Referee(Rules(1, 1.0, 1.0), Ledger.empty(len(columns)), layers, [])


ALICE, ANNA, BOB = Device("a", "alice"), Device("a2", "alice"), Device("b", "bob")


@pytest.mark.parametrize("device", [ALICE, ANNA])
def test_a_domain_that_held_a_lane_may_never_hold_another_of_that_column(device: Device) -> None:
    judge = referee(4, 4)
    judge.record(0, ALICE, {0, 1}, 0)
    for lane in (1, 2):
        assert judge.broken(0, device, {1}, lane) == "one share"
        assert judge.broken(0, device, {3, 1}, lane) == "one share"
        with pytest.raises(RuleError, match=rf"'one share': device {device.name} of domain 'alice'.*of layer0"):
            judge.record(0, device, {3, 1}, lane)
    assert judge.ledger.seen_by_domain(0, "alice") == {0, 1}
    assert judge.ledger.seen(0, "a2") == set()
    assert judge.broken(0, device, {0, 1}, 0) is None
    assert judge.broken(0, device, {2, 3}, 1) is None
    assert judge.broken(1, device, {1}, 1) is None
    assert judge.broken(0, BOB, {1}, 1) is None


def test_the_rule_is_that_of_the_whole_history() -> None:
    """A ledger from a file: who held it then is long gone."""
    ledger = Ledger(({"gone": {4 + 2}},), ({"alice": {4 + 2}},))
    judge = Referee(Rules(1, 1.0, 1.0), ledger, [("layer", 4)], [])
    assert judge.broken(0, ALICE, {2}, 0) == "one share"
    assert judge.broken(0, ALICE, {2}, 2) == "one share"
    assert judge.broken(0, ALICE, {2}, 1) is None
    assert judge.broken(0, ALICE, {1}, 0) is None


def test_lanes_of_other_columns_count_for_the_shares_of_a_device() -> None:
    judge = Referee(Rules(1, 0.5, 1.0), Ledger.empty(1), [("layer", 4)], [])
    judge.record(0, ALICE, {0}, 0)
    judge.record(0, ALICE, {1}, 1)
    assert judge.broken(0, ALICE, {2}, 1) == "device share"
    assert judge.broken(0, ALICE, {1}, 1) is None


# At run time


def places(made: Plan) -> list[tuple[int, int]]:
    return [(index, cell) for index, panel in enumerate(made.panels) for cell in range(len(panel.cells))]


@each_sharing
def test_candidates_are_of_no_domain_with_another_lane(sharing: str) -> None:
    made = shared([dense("layer", 16, 96)], fleet(12, 6), sharing, block=8, replicas=1, share=1.0, domain_share=1.0)
    assignment, alive = Assignment(made), {device.name for device in made.devices}
    (panel,) = made.panels
    for index, cell in enumerate(panel.cells):
        others = {
            domains_of(made)[name]
            for other in panel.cells
            if other.column == cell.column and other.lane != cell.lane
            for name in other.holders
        }
        offered = set(assignment.candidates(0, index, alive))
        fit = {device.name for device in made.devices if device.domain not in others}
        assert offered == fit - set(cell.holders)


@each_sharing
def test_a_second_lane_is_not_assigned_and_nothing_changes(sharing: str) -> None:
    made = shared([dense("layer", 16, 96)], fleet(12, 6), sharing, block=8, replicas=1, share=1.0, domain_share=1.0)
    assignment = Assignment(made)
    (panel,) = made.panels
    first = panel.cells[0]
    second = next(i for i, cell in enumerate(panel.cells) if cell.column == first.column and cell.lane != first.lane)
    domain = domains_of(made)[first.holders[0]]
    for device in (device.name for device in made.devices if device.domain == domain):
        with pytest.raises(RuleError, match=rf"'one share': device {device} of domain '{domain}'"):
            assignment.assign(0, second, device)
    assert assignment.plan() == made
    assignment.add(Device("late", domain))
    with pytest.raises(RuleError, match="'one share'"):
        assignment.assign(0, second, "late")


def test_a_plan_that_is_loaded_again_remembers_who_had_which_lane(tmp_path: Path) -> None:
    made = shared([dense("layer", 16, 32)], fleet(6, 3), "inputs:2", block=8, replicas=1, share=1.0, domain_share=1.0)
    assignment = Assignment(made)
    alive = {device.name for device in made.devices}
    lost = made.panels[0].cells[0].holders[0]
    stand_in = give_to_best(assignment, 0, 0, alive - {lost})
    assert stand_in is not None
    save(assignment.plan(), tmp_path / "model.plan", bytes(32))
    again = Assignment(load(tmp_path / "model.plan", bytes(32)))
    (panel,) = made.panels
    second = next(i for i, cell in enumerate(panel.cells) if cell.column == panel.cells[0].column and cell.lane == 1)
    for name in (lost, stand_in):
        with pytest.raises(RuleError, match="'one share'"):
            again.assign(0, second, name)


class Fleet(RuleBasedStateMachine):
    """Devices die, come back, join and are given cells at random; restarts keep the history only."""

    @initialize(
        sharing=st.sampled_from(["inputs:2", "replicated"]),
        devices=st.integers(3, 9),
        domains=st.integers(3, 5),
        shape=st.sampled_from(SHAPES),
    )
    def start(self, sharing: str, devices: int, domains: int, shape: Shape) -> None:
        layers = [dense("one", 16, 40, source=0), dense("two", 16, 16, source=1)]
        devices = max(devices, domains)
        made = shared(
            layers, fleet(devices, domains), sharing, block=8, shape=shape, replicas=1, share=1.0, domain_share=1.0
        )
        self.made = made
        self.assignment = Assignment(made)
        self.alive = {device.name for device in made.devices}
        self.names = sorted(self.alive)

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.alive -= set(data.draw(st.lists(st.sampled_from(self.names), max_size=4)))

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        self.alive |= set(data.draw(st.lists(st.sampled_from(self.names), max_size=4)))

    @rule(domain=st.sampled_from(["party0", "party1", "party2", "fresh"]))
    def join(self, domain: str) -> None:
        name = f"new{len(self.names)}"
        self.assignment.add(Device(name, domain))
        self.alive.add(name)
        self.names.append(name)

    @rule()
    def repair(self) -> None:
        for place in places(self.made):
            if not self.assignment.holders(*place, self.alive):
                give_to_best(self.assignment, *place, self.alive)

    @rule(data=st.data())
    def assign(self, data: st.DataObject) -> None:
        """Whatever is not offered is refused, and what is offered is not."""
        place = data.draw(st.sampled_from(places(self.made)))
        name = data.draw(st.sampled_from(self.names))
        offered = {*self.assignment.candidates(*place, self.names), *self.assignment.ever(*place)}
        before = self.assignment.plan()
        if name in offered:
            self.assignment.assign(*place, name)
        else:
            with pytest.raises(RuleError, match="'one share'"):
                self.assignment.assign(*place, name)
            assert self.assignment.plan() == before

    @rule()
    def restart(self) -> None:
        saved = msgspec.msgpack.encode(self.assignment.plan())
        self.assignment = Assignment(msgspec.msgpack.decode(saved, type=Plan))

    @invariant()
    def no_domain_ever_has_two_lanes_of_a_column(self) -> None:
        if hasattr(self, "assignment"):
            now = self.assignment.plan()
            assert two_lanes(now) == []
            assert malformations(now) == []

    @invariant()
    def nobody_else_is_offered(self) -> None:
        if hasattr(self, "assignment"):
            now = self.assignment.plan()
            for panel, cell in places(self.made)[:4]:
                placed = now.panels[panel].cells[cell]
                columns = len(now.panels[panel].grid.columns)
                for name in self.assignment.candidates(panel, cell, self.alive):
                    units = now.ledger.seen_by_domain(panel, domains_of(now)[name])
                    lanes = {unit // columns for unit in units if unit % columns == placed.column}
                    assert lanes <= {placed.lane}


TestFleet = Fleet.TestCase
TestFleet.settings = settings(some, max_examples=20, stateful_step_count=15)


# Files, and what is shown


@each_sharing
@pytest.mark.parametrize("arithmetic", ["int8", "int16"])
def test_what_is_saved_comes_back(sharing: str, arithmetic: str, tmp_path: Path) -> None:
    layers = [layer._replace(error=0.0123) for layer in exact(chain(32, 16, 8), arithmetic)]
    made = make_plan(layers, fleet(6, 3), Options(block=8, arithmetic=arithmetic, sharing=sharing))
    save(made, tmp_path / "model.plan", bytes(32))
    found = load(tmp_path / "model.plan", bytes(32))
    assert found == made
    assert (found.sharing, found.arithmetic) == (sharing, arithmetic)
    assert {(panel.arithmetic, panel.error) for panel in found.panels} == {(arithmetic, 0.0123)}
    assert {cell.lane for panel in found.panels for cell in panel.cells} == set(range(sharing_of(sharing).lanes))


def test_a_handle_is_found_by_column_and_matrix() -> None:
    made = shared([dense("layer", 16, 32)], fleet(6, 3), "replicated", block=8)
    (panel,) = made.panels
    columns = range(len(panel.grid.columns))
    found = [panel.slice_handle(column, matrix) for matrix in range(5) for column in columns]
    assert found == list(panel.slice_handles)
    assert panel.slice_handle(1) == panel.slice_handle(1, 0)


@each_sharing
def test_no_repr_shows_who_has_which_lane(sharing: str) -> None:
    made = shared([dense("layer", 16, 32)], fleet(6, 3), sharing, block=8)
    for value in (made, *made.panels, *made.panels[0].cells, made.ledger, Assignment(made).plan()):
        text = repr(value)
        assert not any(device.name in text or device.domain in text for device in made.devices)
        assert "lane" not in text
        assert "holders" not in text
        handles = [handle for panel in made.panels for handle in panel.slice_handles]
        assert not any(repr(handle)[2:-1] in text or handle.hex() in text for handle in handles)
    assert f"arithmetic='int8', sharing='{sharing}'" in repr(made)


def test_layers_of_other_arithmetic_are_no_panel() -> None:
    layers = [
        dense("q", 8, 32, source=1)._replace(arithmetic="int8"),
        dense("k", 8, 32, source=1)._replace(arithmetic="int16", error=0.5),
        dense("v", 8, 32, source=1)._replace(arithmetic="int16", error=0.25),
    ]
    made = make_plan(layers, fleet(4, 2), Options(arithmetic="auto", sharing="inputs:2"))
    assert [(panel.name, panel.arithmetic, panel.error) for panel in made.panels] == [
        ("q", "int8", None),
        ("k+v", "int16", 0.5),
    ]


@pytest.mark.parametrize(("sharing", "domains"), [("inputs:2", 8), ("inputs:3", 9), ("replicated", 12)])
def test_coalitions_have_what_the_documents_say(sharing: str, domains: int) -> None:
    """f^k, 1 - (1 - f)^k and 3 f^2 - 2 f^3 are for many domains with one holder a lane, which is the default."""
    parties = {f"d{number}": f"party{number}" for number in range(domains)}
    made = owl.plan(nn.Linear(64, 8), devices=parties, block=4, arithmetic="int8", sharing=sharing)
    assert made.rules.replicas == 1
    for one in expose(made, churn=0).panels[0].coalitions:
        f, n, m = one.members / domains, domains, one.members
        if sharing == "replicated":
            seen = 3 * f**2 - 2 * f**3
            held = seen
        else:
            k = int(sharing[-1])
            seen, held = f**k, 1 - (1 - f) ** k
        # Drawn without replacement from n domains: exact in the limit, off by at most k^2 / n here.
        assert abs(one.seen - seen) <= 9 / n * max(f, 0.1)
        assert abs(one.held - held) <= 9 / n * max(f, 0.1)
        exact = math.comb(n - 2, m - 2) / math.comb(n, m) if sharing == "inputs:2" and m >= 2 else None
        if exact is not None:
            assert one.seen == pytest.approx(exact)
