"""Coalitions: the exact expectation against counting, against drawing, and against the formula for large fleets."""

import itertools
import math
import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.placement.assignment import Assignment
from awfulowl.placement.exposure import Exposure, expose, learnt_by_coalition
from awfulowl.placement.plan import Plan
from awfulowl.randomness import Entropy
from tests.unit.placement.fleets import chain, dense, fleet, give_to_best, plan, small_plan, some


def seen_by_coalition(holders: list[int], units: int, members: int) -> float:
    """Without a sharing: one lane, of which one is enough."""
    return learnt_by_coalition([(held,) for held in holders], units, members, 1)


def seen_by(history: list[set[int]], columns: int, members: tuple[int, ...]) -> float:
    return len(set().union(*(history[member] for member in members))) / columns


HISTORIES = st.integers(1, 7).flatmap(
    lambda columns: st.lists(st.sets(st.integers(0, columns - 1)), min_size=1, max_size=6).map(
        lambda history: (columns, history)
    )
)


@some
@given(HISTORIES, st.integers(1, 6))
def test_the_expectation_is_the_mean_over_all_coalitions(case: tuple[int, list[set[int]]], members: int) -> None:
    columns, history = case
    members = min(members, len(history))
    holders = [sum(column in seen for seen in history) for column in range(columns)]
    every = itertools.combinations(range(len(history)), members)
    exact = statistics.fmean(seen_by(history, columns, coalition) for coalition in every)
    assert seen_by_coalition(holders, len(history), members) == pytest.approx(exact, abs=1e-12)


def history_of(made: Plan, panel: int) -> list[set[int]]:
    return [set(made.ledger.seen(panel, device.name)) for device in made.devices]


def test_random_coalitions_see_what_is_expected() -> None:
    """Monte Carlo over a real plan with a history: within five standard errors of the exact figure."""
    made = plan([dense("layer", 32, 256)], fleet(12), 1, block=8)
    assignment = Assignment(made, Entropy(2))
    alive = {device.name for device in made.devices} - {"d1", "d7"}
    for cell in range(len(made.panels[0].cells)):
        if len(assignment.holders(0, cell, alive)) < 2:
            give_to_best(assignment, 0, cell, alive)
    now = assignment.plan()
    history, columns = history_of(now, 0), len(now.panels[0].grid.columns)
    draw = np.random.default_rng(0)
    for coalition in expose(now).panels[0].coalitions:
        drawn = [
            seen_by(history, columns, tuple(draw.choice(12, coalition.members, replace=False))) for _ in range(4000)
        ]
        error = statistics.stdev(drawn) / math.sqrt(len(drawn))
        assert abs(statistics.fmean(drawn) - coalition.seen) < 5 * error


def test_churn_is_projected_by_the_stated_model() -> None:
    """Every device is replaced twice by new ones that see the same: coalitions are drawn from all three generations."""
    made = plan([dense("layer", 32, 64)], fleet(8), block=8)
    history = history_of(made, 0) * 3
    for coalition in expose(made, churn=2).panels[0].coalitions:
        members = math.ceil(round(coalition.share * 24, 9))
        holders = [sum(column in seen for seen in history) for column in range(8)]
        assert coalition.projected == pytest.approx(seen_by_coalition(holders, 24, members))
        assert coalition.projected > coalition.seen


def test_large_fleets_follow_the_formula_of_the_design() -> None:
    made = plan([dense("layer", 8, 512)], fleet(1000), block=8, replicas=2)
    for coalition in expose(made, churn=1).panels[0].coalitions:
        assert coalition.seen == pytest.approx(1 - (1 - coalition.share) ** 2, abs=0.005)
        assert coalition.projected == pytest.approx(1 - (1 - coalition.share) ** 4, abs=0.005)


def test_without_churn_the_projection_is_today() -> None:
    assert all(one.projected == one.seen for one in expose(small_plan(), churn=0).model)


def test_whole_columns_show_less_than_scattered_blocks() -> None:
    """Four rows of blocks: a share f of the devices sees about f of the columns, or 1 - (1 - f)^4 of scattered ones."""
    layers = [dense("layer", 32, 512)]
    columns = expose(plan(layers, fleet(20), 1, block=8, replicas=1)).model[1].seen
    scattered = expose(plan(layers, fleet(20), 1, block=8, replicas=1, shape="scattered")).model[1].seen
    rows = expose(plan(layers, fleet(20), 1, block=8, replicas=1, shape="rows")).model[1].seen
    assert columns == pytest.approx(0.3)
    assert scattered == pytest.approx(1 - 0.7**4, abs=0.05)
    assert rows > 0.6


def test_coalitions_are_rounded_up_to_whole_members() -> None:
    coalitions = expose(plan(chain(64, 64), fleet(8), block=8)).panels[0].coalitions
    assert [(one.share, one.members, one.of) for one in coalitions] == [(0.1, 1, 8), (0.3, 3, 8), (0.5, 4, 8)]
    coalitions = expose(plan(chain(64, 64), fleet(30), block=8)).panels[0].coalitions
    assert [one.members for one in coalitions] == [3, 9, 15]
    assert expose(plan(chain(64, 64), fleet(100), block=8), shares=(0.55,)).model[0].members == 55


def test_everybody_together_sees_everything() -> None:
    assert expose(small_plan(), shares=(1.0,)).model[0].seen == 1.0


def test_units_are_domains_where_there_are_several() -> None:
    exposed = expose(small_plan())
    assert exposed.units == "domains"
    assert {one.of for one in exposed.model} == {3}
    assert expose(plan(chain(64, 64), fleet(6, domains=1), block=8)).units == "devices"


def test_a_replica_in_the_same_domain_costs_nothing() -> None:
    one = plan([dense("layer", 8, 192)], fleet(12, domains=4), block=8, replicas=1)
    two = plan([dense("layer", 8, 192)], fleet(12, domains=4), block=8, replicas=2)
    assert [part.seen for part in expose(one).model] == [part.seen for part in expose(two).model]


def test_the_model_is_weighted_by_inputs() -> None:
    exposed = expose(plan([dense("wide", 8, 300, 1), dense("narrow", 8, 2, 2)], fleet(8), block=8))
    for index, one in enumerate(exposed.model):
        wide, narrow = (panel.coalitions[index].seen for panel in exposed.panels)
        assert one.seen == pytest.approx((300 * wide + 2 * narrow) / 302)


def test_the_least_and_the_most_exposed_device() -> None:
    made = plan([dense("layer", 8, 96)], fleet(8), block=8)
    panel = expose(made).panels[0]
    shares = [len(made.ledger.seen(0, device.name)) / panel.columns for device in made.devices]
    assert (panel.least, panel.most) == (min(shares), max(shares))


def test_the_alarm_names_layers_that_too_many_have_seen() -> None:
    made = plan(chain(64, 64, 64), fleet(8), block=8)
    assert expose(made).alarms == ()
    assert expose(made, alarm=0.6).alarms == (
        "layer0: 3 of 8 devices have seen 64% of its input slices",
        "layer1: 3 of 8 devices have seen 64% of its input slices",
    )


def test_the_alarm_goes_off_as_history_grows() -> None:
    made = plan([dense("layer", 8, 64)], fleet(8), block=8, share=1.0)
    assignment = Assignment(made)
    for cell in range(8):
        for _ in range(2):
            give_to_best(assignment, 0, cell, {device.name for device in made.devices})
    assert expose(made).alarms == ()
    assert len(expose(assignment.plan()).alarms) == 1


@pytest.mark.parametrize("wrong", [{"shares": (0.0,)}, {"shares": (0.5, 1.5)}, {"churn": -1}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        expose(small_plan(), **wrong)  # type: ignore[arg-type]


def test_an_exposure_can_be_written_down() -> None:
    exposed = expose(small_plan())
    assert msgspec.json.decode(msgspec.json.encode(exposed), type=Exposure) == exposed
