"""The plan at run time: whatever comes and goes, in whatever order, no rule is ever broken."""

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from awfulowl.errors import InputError, RuleError
from awfulowl.placement.assignment import Assignment
from awfulowl.placement.ledger import Device
from awfulowl.placement.options import Shape
from awfulowl.placement.plan import Plan
from tests.unit.placement.fleets import chain, dense, fleet, give_to_best, malformations, plan, some, violations


def places(made: Plan) -> list[tuple[int, int]]:
    return [(index, cell) for index, panel in enumerate(made.panels) for cell in range(len(panel.cells))]


def eight_devices(**options: Any) -> tuple[Plan, Assignment, set[str]]:
    """Sixteen columns on eight devices: each cell has two holders, each device sees 4 of 6 allowed columns."""
    made = plan([dense("layer", 32, 128)], fleet(8), block=8, **options)
    return made, Assignment(made), {device.name for device in made.devices}


def test_all_alive_the_plan_is_served_as_it_was_made() -> None:
    made, assignment, alive = eight_devices()
    assert assignment.plan() == made
    for panel, cell in places(made):
        assert assignment.holders(panel, cell, alive) == made.panels[panel].cells[cell].holders
        assert assignment.ever(panel, cell) == made.panels[panel].cells[cell].holders


def test_who_is_demoted_is_asked_after_all_others() -> None:
    _, assignment, alive = eight_devices()
    first, second = assignment.holders(0, 0, alive)
    third = assignment.candidates(0, 0, alive)[0]
    assignment.assign(0, 0, third)
    assignment.demote(0, 0, {first, "nobody"})
    assert assignment.holders(0, 0, alive) == (second, third)
    assert assignment.holders(0, 0, alive - {third}) == (second, first)
    assert assignment.ever(0, 0) == (second, third, first)
    assert (0, 0) not in assignment.duties(first, alive)


def test_duties_are_the_cells_that_a_device_serves() -> None:
    made, assignment, alive = eight_devices()
    duties = {name: assignment.duties(name, alive) for name in alive}
    assert sum(map(len, duties.values())) == 2 * len(places(made))
    for name, cells in duties.items():
        assert all(name in made.panels[panel].cells[cell].holders for panel, cell in cells)
    assert assignment.duties("stranger", alive) == ()


def test_the_other_replica_serves_when_one_is_gone() -> None:
    made, assignment, alive = eight_devices()
    first, second = made.panels[0].cells[0].holders
    assert assignment.holders(0, 0, alive - {first}) == (second,)
    assert assignment.holders(0, 0, alive - {first, second}) == ()
    assert assignment.holders(0, 0, {first, second, "stranger"}) == (first, second)


def test_a_lost_holder_is_replaced_and_steps_back_in_when_it_returns() -> None:
    made, assignment, alive = eight_devices()
    first, second = made.panels[0].cells[0].holders
    stand_in = give_to_best(assignment, 0, 0, alive - {first})
    assert stand_in not in {None, first, second}
    assert assignment.holders(0, 0, alive - {first}) == (second, stand_in)
    assert assignment.holders(0, 0, alive) == (first, second)
    assert assignment.ever(0, 0) == (first, second, stand_in)
    assert (0, 0) in assignment.duties(first, alive)
    assert (0, 0) not in assignment.duties(str(stand_in), alive)


def test_a_returned_device_has_exactly_its_old_duties() -> None:
    _, assignment, alive = eight_devices()
    before = assignment.duties("d3", alive)
    for panel, cell in before:
        give_to_best(assignment, panel, cell, alive - {"d3"})
    assert assignment.duties("d3", alive) == before


def test_what_a_lost_device_held_spreads_over_the_others() -> None:
    _, assignment, alive = eight_devices()
    stand_ins = [
        give_to_best(assignment, panel, cell, alive - {"d3"}) for panel, cell in assignment.duties("d3", alive)
    ]
    assert None not in stand_ins
    assert len(set(stand_ins)) == len(stand_ins) == 4


def test_candidates_have_not_seen_too_much_and_do_not_hold_the_cell() -> None:
    made, assignment, alive = eight_devices()
    holders = set(made.panels[0].cells[0].holders)
    assert set(assignment.candidates(0, 0, alive)) == alive - holders
    assert assignment.candidates(0, 0, holders) == []
    tight = Assignment(plan([dense("layer", 32, 128)], fleet(8), block=8, share=0.25))
    assert tight.candidates(0, 0, alive) == []
    assert give_to_best(tight, 0, 0, alive) is None


def test_who_saw_the_slice_comes_first() -> None:
    """Scattered blocks: holders of another block of the same column learn nothing new from this one."""
    made = plan([dense("layer", 32, 128)], fleet(30), block=8, shape="scattered")
    assignment, alive = Assignment(made), {device.name for device in made.devices}
    column = made.panels[0].cells[0].column
    knowing = {name for cell in made.panels[0].cells if cell.column == column for name in cell.holders} - set(
        made.panels[0].cells[0].holders
    )
    assert set(assignment.candidates(0, 0, alive)[: len(knowing)]) == knowing


def test_then_whose_domain_saw_it_then_the_least_loaded() -> None:
    devices = fleet(9, domains=3)
    made = plan([dense("layer", 32, 144)], devices, block=8, replicas=2, share=0.5, domain_share=0.9)
    assignment = Assignment(made)
    alive = {device.name for device in devices}
    home = {device.name for device in devices if device.domain == domain_of(made, made.panels[0].cells[0].holders[0])}
    assert assignment.candidates(0, 0, alive)[0] in home
    assignment.assign(0, 0, next(iter(home - set(made.panels[0].cells[0].holders))))
    others = assignment.candidates(0, 0, alive)
    assert not home & set(others)
    load = {name: len(assignment.duties(name, alive)) for name in others}
    assert [load[name] for name in others] == sorted(load.values())


def domain_of(made: Plan, name: str) -> str:
    return next(device.domain for device in made.devices if device.name == name)


def test_room_in_the_panel_comes_before_load_elsewhere() -> None:
    made = plan([dense("small", 8, 64), dense("large", 64, 512)], fleet(4), block=8, share=1.0)
    assignment = Assignment(made)
    assignment.add(Device("new"))
    for cell in range(len(made.panels[1].cells)):
        assignment.assign(1, cell, "new")
    assert assignment.candidates(0, 0, {"new", *(device.name for device in made.devices)})[0] == "new"


def test_ties_are_left_to_chance() -> None:
    firsts = {eight_devices(seed=1)[1].candidates(0, 0, {f"d{number}" for number in range(8)})[0] for _ in range(60)}
    assert len(firsts) > 2


def test_assigning_twice_changes_nothing() -> None:
    made, assignment, _ = eight_devices()
    assignment.assign(0, 0, made.panels[0].cells[0].holders[1])
    assert assignment.plan() == made


def test_what_would_break_a_rule_is_refused_and_changes_nothing() -> None:
    made = plan([dense("layer", 32, 128)], fleet(8), block=8, share=0.25)
    assignment = Assignment(made)
    other = next(f"d{number}" for number in range(8) if f"d{number}" not in made.panels[0].cells[0].holders)
    with pytest.raises(RuleError, match="'device share'"):
        assignment.assign(0, 0, other)
    assert assignment.plan() == made


def test_strangers_are_refused() -> None:
    _, assignment, _ = eight_devices()
    with pytest.raises(InputError, match="'stranger' is not in the plan"):
        assignment.assign(0, 0, "stranger")


def test_a_new_device_may_take_part() -> None:
    made, assignment, alive = eight_devices()
    assignment.add(Device("new"))
    assert "new" in assignment.candidates(0, 0, alive | {"new"})
    assert assignment.candidates(0, 0, alive | {"new"})[0] == "new"
    assignment.assign(0, 0, "new")
    assert assignment.plan().devices == (*made.devices, Device("new"))
    assert assignment.plan().ledger.seen(0, "new") == {made.panels[0].cells[0].column}


def test_a_known_device_cannot_change_sides() -> None:
    made, assignment, _ = eight_devices()
    assignment.add(made.devices[0])
    with pytest.raises(InputError, match=r"'d0' is of domain 'unknown' in the plan, not of 'mine'"):
        assignment.add(Device("d0", "mine"))
    assert assignment.plan() == made


def test_the_plan_it_came_from_is_untouched() -> None:
    made, assignment, alive = eight_devices()
    before = made.ledger.copy()
    first = made.panels[0].cells[0].holders[0]
    give_to_best(assignment, 0, 0, alive - {first})
    assert made.ledger == before
    later = assignment.plan()
    assert later != made
    kept = later.ledger.copy()
    second = made.panels[0].cells[1].holders[0]
    give_to_best(assignment, 0, 1, alive - {second})
    assert later.ledger == kept


def test_a_restarted_owner_goes_on_where_it_stopped() -> None:
    made, assignment, alive = eight_devices()
    for panel, cell in assignment.duties("d0", alive):
        give_to_best(assignment, panel, cell, alive - {"d0"})
    again = Assignment(assignment.plan())
    for panel, cell in places(made):
        assert again.holders(panel, cell, alive - {"d0"}) == assignment.holders(panel, cell, alive - {"d0"})
    assert again.plan() == assignment.plan()


class Fleet(RuleBasedStateMachine):
    """Devices die, return and join, cells get new holders, the owner restarts: the rules hold over all history."""

    @initialize(
        devices=st.integers(2, 9),
        domains=st.integers(0, 4),
        widths=st.lists(st.sampled_from([8, 24, 40]), min_size=2, max_size=4),
        shape=st.sampled_from(["columns", "columns", "rectangles", "scattered"]),
        apart=st.booleans(),
    )
    def scatter(self, devices: int, domains: int, widths: list[int], shape: Shape, apart: bool) -> None:
        apart = apart and domains >= 2 and devices >= 4
        self.made = plan(chain(*widths), fleet(devices, domains), block=8, shape=shape, separate_neighbours=apart)
        self.assignment = Assignment(self.made)
        self.alive = {device.name for device in self.made.devices}
        self.dead: set[str] = set()
        self.ever = {place: set(self.holders_of(place)) for place in places(self.made)}

    def holders_of(self, place: tuple[int, int]) -> tuple[str, ...]:
        return self.made.panels[place[0]].cells[place[1]].holders

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if self.alive:
            name = data.draw(st.sampled_from(sorted(self.alive)))
            self.alive.remove(name)
            self.dead.add(name)

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        if self.dead:
            name = data.draw(st.sampled_from(sorted(self.dead)))
            self.dead.remove(name)
            self.alive.add(name)
            for place in self.ever:
                if name in self.holders_of(place):
                    assert name in self.assignment.holders(*place, self.alive)

    @rule(domain=st.sampled_from(["unknown", "party0", "party1", "fresh"]))
    def join(self, domain: str) -> None:
        name = f"d{len(self.alive) + len(self.dead)}"
        if len(name) < 4:
            self.assignment.add(Device(name, domain))
            self.alive.add(name)

    @rule()
    def repair(self) -> None:
        """What an owner does: every cell that misses a holder gets the best candidate, if the rules allow one."""
        for place in self.ever:
            before = self.assignment.holders(*place, self.alive)
            if len(before) < self.made.rules.replicas:
                candidates = set(self.assignment.candidates(*place, self.alive))
                taken = give_to_best(self.assignment, *place, self.alive)
                assert (taken is None) == (not candidates)
                assert taken is None or taken in candidates
                after = self.assignment.holders(*place, self.alive)
                assert after == (before if taken is None else (*before, taken))

    @rule(data=st.data())
    def assign(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.ever)))
        names = sorted(self.alive | self.dead)
        name = data.draw(st.sampled_from(names))
        allowed = {*self.assignment.candidates(*place, names), *self.assignment.ever(*place)}
        if name in allowed:
            self.assignment.assign(*place, name)
        else:
            with pytest.raises(RuleError):
                self.assignment.assign(*place, name)

    @rule()
    def restart(self) -> None:
        self.assignment = Assignment(self.assignment.plan())

    @invariant()
    def rules_hold_over_the_history(self) -> None:
        if hasattr(self, "assignment"):
            now = self.assignment.plan()
            assert malformations(now) == []
            assert violations(now) == []

    @invariant()
    def nothing_is_forgotten(self) -> None:
        if hasattr(self, "assignment"):
            for place, ever in self.ever.items():
                holders = self.assignment.ever(*place)
                assert len(set(holders)) == len(holders)
                assert ever <= set(holders)
                ever.update(holders)

    @invariant()
    def who_serves_is_alive_and_as_many_as_can_be(self) -> None:
        if hasattr(self, "assignment"):
            for place, ever in self.ever.items():
                serving = self.assignment.holders(*place, self.alive)
                assert set(serving) <= self.alive
                assert len(serving) == min(self.made.rules.replicas, len(ever & self.alive))
            duties = itertools.chain.from_iterable(self.assignment.duties(name, self.alive) for name in self.alive)
            assert sorted(duties) == sorted(
                place for place in self.ever for _ in self.assignment.holders(*place, self.alive)
            )


TestFleet = Fleet.TestCase
TestFleet.settings = settings(some, max_examples=100, stateful_step_count=25)


def test_many_deaths_and_returns_exhaust_the_rules_but_never_break_them() -> None:
    """Every pair of devices stays away once while the others stand in."""
    made, assignment, names = eight_devices()
    refused = 0
    for lost in itertools.combinations(sorted(names), 2):
        alive = names - set(lost)
        for place in places(made):
            while len(assignment.holders(*place, alive)) < 2 and give_to_best(assignment, *place, alive):
                pass
            refused += len(assignment.holders(*place, alive)) < 2
        assert violations(assignment.plan()) == []
    assert refused > 0
    assert max(len(assignment.plan().ledger.seen(0, name)) for name in names) == 6
    assert max(len(assignment.ever(*place)) for place in places(made)) > 2


def test_one_lost_device_at_a_time_needs_one_stand_in_for_each_cell() -> None:
    made, assignment, alive = eight_devices(share=0.5)
    for lost in sorted(alive) * 2:
        for place in assignment.duties(lost, alive):
            if len(assignment.holders(*place, alive - {lost})) < 2:
                assert give_to_best(assignment, *place, alive - {lost}) is not None
    assert all(len(assignment.ever(*place)) == 3 for place in places(made))
