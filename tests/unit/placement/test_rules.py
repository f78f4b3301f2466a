"""The rules: what they allow, what is chosen where nobody asked, and what a refusal says."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import InputError, RuleError
from awfulowl.placement.ledger import Device, Ledger
from awfulowl.placement.options import Options
from awfulowl.placement.rules import (
    STANDARD_DOMAIN_SHARE,
    STANDARD_SHARE,
    Referee,
    Rules,
    choose_rules,
    domain_sizes,
    slices_within,
)
from tests.unit.placement.fleets import fleet, some


@pytest.mark.parametrize(
    ("share", "columns", "slices"),
    [
        (0.25, 16, 4),
        (0.25, 15, 3),
        (0.25, 3, 1),
        (0.1, 30, 3),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (3 / 8, 8, 3),
        (1, 7, 7),
    ],
)
def test_a_share_permits_its_floor_but_at_least_one(share: float, columns: int, slices: int) -> None:
    assert slices_within(share, columns) == slices


@some
@given(st.integers(1, 99), st.integers(1, 300))
def test_a_share_in_hundredths_is_exact(hundredths: int, columns: int) -> None:
    assert slices_within(hundredths / 100, columns) == max(1, hundredths * columns // 100)


@some
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 400))
def test_a_share_of_so_many_devices_is_exact(part: int, whole: int, columns: int) -> None:
    assert slices_within(part / whole, columns) == max(1, part * columns // whole)


def referee(rules: Rules, *columns: int) -> Referee:
    layers = [(f"layer{number}", count) for number, count in enumerate(columns)]
    return Referee(rules, Ledger.empty(len(columns)), layers, list(pairwise(range(len(columns)))))


def test_a_device_sees_up_to_its_share_over_all_time() -> None:
    judge = referee(Rules(1, 0.25, 1.0), 8)
    device = Device("d")
    judge.record(0, device, {3})
    judge.record(0, device, {3, 5})
    assert judge.broken(0, device, {3}) is None
    assert judge.broken(0, device, {5, 3}) is None
    assert judge.broken(0, device, {6}) == "device share"
    with pytest.raises(RuleError, match="rule 'device share': device d would see too many of the 8 slices of layer0"):
        judge.record(0, device, {6})
    assert judge.ledger.seen(0, "d") == {3, 5}


def test_a_domain_sees_up_to_its_share_through_all_its_devices() -> None:
    judge = referee(Rules(1, 0.5, 0.5), 8)
    one, two, other = Device("one", "a"), Device("two", "a"), Device("three", "b")
    judge.record(0, one, {0, 1, 2})
    judge.record(0, two, {3})
    assert judge.broken(0, two, {4}) == "domain share"
    assert judge.broken(0, two, {0, 1, 2}) is None
    assert judge.broken(0, other, {4}) is None


def test_a_slice_counts_once_however_often_it_is_placed() -> None:
    judge = referee(Rules(2, 0.25, 0.25), 4)
    judge.record(0, Device("one", "a"), {0})
    judge.record(0, Device("two", "a"), {0})
    assert judge.broken(0, Device("two", "a"), {1}) == "device share"
    assert judge.broken(0, Device("three", "a"), {1}) == "domain share"


def test_layers_are_judged_apart() -> None:
    judge = referee(Rules(1, 0.5, 1.0), 2, 2)
    judge.record(0, Device("d"), {0})
    assert judge.broken(0, Device("d"), {1}) == "device share"
    assert judge.broken(1, Device("d"), {1}) is None


def test_no_domain_serves_neighbours_if_that_is_asked_for() -> None:
    judge = referee(Rules(1, 1.0, 1.0, separate_neighbours=True), 4, 4, 4)
    judge.record(0, Device("one", "a"), {0})
    assert judge.broken(1, Device("two", "a"), {0}) == "separate neighbours"
    assert judge.broken(2, Device("two", "a"), {0}) is None
    assert judge.broken(1, Device("other", "b"), {0}) is None
    judge.record(1, Device("other", "b"), {0})
    assert judge.broken(0, Device("other", "b"), {0}) == "separate neighbours"
    assert judge.broken(2, Device("other", "b"), {0}) == "separate neighbours"
    assert judge.broken(0, Device("one", "a"), {1}) is None


def chosen(count: int, domains: int = 0, **options: object) -> tuple[Rules, tuple[str, ...]]:
    return choose_rules(Options(**options), [fleet(count, domains)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "replicas", "share"),
    [
        (1, 1, 1.0),
        (2, 1, 1.0),
        (3, 1, 2 / 3),
        (4, 2, 3 / 4),
        (6, 2, 1 / 2),
        (8, 2, 3 / 8),
        (9, 2, 1 / 4),
        (50, 2, 1 / 4),
    ],
)
def test_small_fleets_relax_the_device_share_and_say_so(devices: int, replicas: int, share: float) -> None:
    rules, notes = chosen(devices)
    assert (rules.replicas, rules.share) == (replicas, share)
    assert any(note.startswith("device share relaxed") for note in notes) == (share > STANDARD_SHARE)


@some
@given(st.integers(1, 60), st.integers(1, 5))
def test_what_is_relaxed_leaves_room_for_one_more_holder_or_is_everything(devices: int, replicas: int) -> None:
    if replicas > devices:
        return
    share = chosen(devices, replicas=replicas)[0].share
    assert share == 1.0 or share * devices > replicas


def test_devices_of_unknown_domain_may_see_everything_together_and_the_plan_says_so() -> None:
    rules, notes = chosen(20)
    assert rules.domain_share == 1.0
    assert notes == ("domain share relaxed from 0.5 to 1: 20 devices in 1 domain, 2 replicas, of unknown domain",)


@pytest.mark.parametrize(
    ("devices", "domains", "share"),
    [(12, 4, 0.5), (12, 3, 0.5), (12, 2, 7 / 12), (8, 2, 5 / 8), (3, 3, 0.5), (2, 2, 1.0)],
)
def test_domains_are_held_to_half_where_they_can_be(devices: int, domains: int, share: float) -> None:
    rules, notes = chosen(devices, domains)
    assert rules.domain_share == share
    assert any(note.startswith("domain share relaxed") for note in notes) == (share > STANDARD_DOMAIN_SHARE)


def test_what_is_asked_for_is_kept_and_needs_no_note() -> None:
    rules, notes = chosen(3, share=0.9, domain_share=0.95, replicas=3)
    assert rules == Rules(3, 0.9, 0.95)
    assert notes == ()


def test_strict_relaxes_nothing() -> None:
    rules, notes = chosen(3, strict=True)
    assert (rules.share, rules.domain_share, notes) == (STANDARD_SHARE, STANDARD_DOMAIN_SHARE, ())


def test_other_shapes_show_everything_and_the_plan_says_so() -> None:
    rules, notes = chosen(20, 4, shape="scattered")
    assert (rules.share, rules.domain_share) == (1.0, 1.0)
    assert len(notes) == 2
    assert all("with shape 'scattered'" in note for note in notes)


def test_more_replicas_than_devices_are_refused_with_a_remedy() -> None:
    with pytest.raises(RuleError, match=r"rule 'replicas'.*only 2 may serve it.*replicas=2"):
        chosen(2, replicas=3)


def test_the_rules_hold_in_every_pool() -> None:
    pools = [[Device("one", "a"), Device("two", "a")], fleet(10, 5)]
    rules, _ = choose_rules(Options(replicas=2), pools)
    assert rules.domain_share == 1.0
    assert rules.share == 1.0


def test_domains_are_counted() -> None:
    assert (domain_sizes([Device("a", "x"), Device("b", "y"), Device("c", "x")])) == (2, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"block": 0},
        {"block": (4, 0)},
        {"replicas": 0},
        {"share": 0.0},
        {"share": 1.01},
        {"domain_share": -0.5},
        {"domain_share": float("nan")},
        {"shape": "circles"},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Options(**wrong)  # type: ignore[arg-type]
