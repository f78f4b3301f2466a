"""Which domain takes which parcel: against every possible allotment, for small fleets."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.placement.capacity import Capacity, allot
from awfulowl.placement.rules import Rules, slices_within
from tests.unit.placement.fleets import fleet, some

Hands = list[tuple[int, ...]]


def permitted(hands: Hands, sizes: list[int], replicas: int, device_limit: int, domain_limit: int) -> bool:
    slots = Counter(domain for hand in hands for domain in hand)
    parcels = Counter(domain for hand in hands for domain in set(hand))
    return (
        all(len(hand) == replicas for hand in hands)
        and all(hand.count(domain) <= sizes[domain] for hand in hands for domain in hand)
        and all(slots[domain] <= size * device_limit for domain, size in enumerate(sizes))
        and all(parcels[domain] <= domain_limit for domain in range(len(sizes)))
    )


def possible(count: int, sizes: list[int], replicas: int, device_limit: int, domain_limit: int) -> bool:
    one = itertools.combinations_with_replacement(range(len(sizes)), replicas)
    every = itertools.combinations_with_replacement(list(one), count)
    return any(permitted(list(hands), sizes, replicas, device_limit, domain_limit) for hands in every)


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(lambda sizes: sorted(sizes, reverse=True))


@settings(some, max_examples=300)
@given(st.integers(1, 4), SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_what_is_allotted_keeps_the_limits(
    count: int, sizes: list[int], replicas: int, device_limit: int, domain_limit: int
) -> None:
    hands = allot(count, sizes, replicas, device_limit, domain_limit)
    if hands is not None:
        assert len(hands) == count
        assert permitted(hands, sizes, replicas, device_limit, domain_limit)
    elif replicas <= 2:
        assert not possible(count, sizes, replicas, device_limit, domain_limit)


@some
@given(st.integers(1, 30), SIZES, st.integers(1, 4))
def test_without_limits_replicas_stay_at_home_and_everybody_serves(count: int, sizes: list[int], replicas: int) -> None:
    replicas = min(replicas, sum(sizes))
    hands = allot(count, sizes, replicas, count, count)
    assert hands is not None
    loads = [sum(hand.count(domain) for hand in hands) / size for domain, size in enumerate(sizes)]
    if min(sizes) >= replicas:
        assert all(len(set(hand)) == 1 for hand in hands)
        assert max(loads) - min(loads) <= replicas


def test_domains_that_can_take_all_replicas_go_first_where_turns_would_fail() -> None:
    assert sorted(map(sorted, allot(2, [2, 1, 1], 2, 1, 1) or [])) == [[0, 0], [1, 2]]


@pytest.mark.parametrize(
    ("count", "sizes", "replicas", "device_limit", "domain_limit"),
    [(4, [4, 3, 1], 2, 1, 2), (8, [4, 4, 2, 2], 3, 2, 3)],
)
def test_tight_fleets_are_dealt(
    count: int, sizes: list[int], replicas: int, device_limit: int, domain_limit: int
) -> None:
    """Turns alone fail at the first, and at the second so does breaking into a domain that could take all replicas."""
    hands = allot(count, sizes, replicas, device_limit, domain_limit)
    assert hands is not None
    assert permitted(hands, sizes, replicas, device_limit, domain_limit)


def test_what_domains_too_small_leave_over_cannot_be_dealt() -> None:
    """The single device's column would need a second holder in domains that have seen enough."""
    assert allot(5, [2, 2, 1], 2, 3, 2) is None


@some
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.2, 0.25, 0.5, 0.75, 1.0]))
def test_in_one_domain_everything_fits_that_devices_may_see(
    columns: int, devices: int, replicas: int, share: float
) -> None:
    replicas = min(replicas, devices)
    capacity = Capacity(Rules(replicas, share, 1.0), fleet(devices))
    fits = devices * slices_within(share, columns) >= replicas * columns
    assert (capacity.allot(columns) is not None) == fits
    assert (capacity.grade(columns) > 0) == fits


@pytest.mark.parametrize(("columns", "grade"), [(1, 1), (2, 1), (3, 2), (5, 0), (8, 3), (16, 3)])
def test_grades(columns: int, grade: int) -> None:
    assert Capacity(Rules(2, 3 / 8, 1.0), fleet(8)).grade(columns) == grade


@pytest.mark.parametrize(("columns", "unevenness"), [(1, 1.0), (3, 1.0), (4, 1.0), (6, 4 / 3), (8, 1.0), (9, 4 / 3)])
def test_unevenness_is_the_busiest_over_the_mean(columns: int, unevenness: float) -> None:
    assert Capacity(Rules(1, 1.0, 1.0), fleet(4)).unevenness(columns) == pytest.approx(unevenness)


def test_what_the_rules_forbid_can_still_be_spread() -> None:
    capacity = Capacity(Rules(2, 0.25, 0.25), fleet(4))
    assert capacity.allot(8) is None
    assert capacity.spread(8) == [(0, 0)] * 8
