"""Dealing: balance, replicas, chance, and the shapes of parcels."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Dense
from awfulowl.errors import RuleError
from awfulowl.placement.capacity import Capacity
from awfulowl.placement.dealing import Dealer, parcels, prefer
from awfulowl.placement.ledger import Device, Ledger
from awfulowl.placement.options import Shape
from awfulowl.placement.rules import Referee, Rules
from awfulowl.randomness import Entropy
from tests.unit.placement.fleets import CONVOLUTION, fleet, some


def grid_of(rows: int, columns: int) -> Grid:
    return make_grid((4 * rows, 4 * columns), Dense(), 1, block=4)


def deal(grid: Grid, devices: list[Device], rules: Rules, shape: Shape = "columns") -> list[tuple[str, ...]]:
    """The holders of each parcel, or a RuleError."""
    referee = Referee(rules, Ledger.empty(1), [("layer", len(grid.columns))], [])
    lot = parcels(grid, range(len(grid.columns)), shape, devices=len(devices))
    capacity = Capacity(rules, devices)
    homes = capacity.allot(len(lot)) if shape == "columns" else None
    return Dealer(referee, Entropy()).deal(0, lot, homes or capacity.spread(len(lot)), devices)


@some
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))
def test_in_one_domain_devices_hold_and_lead_equally(columns: int, devices: int, replicas: int) -> None:
    replicas = min(replicas, devices)
    hands = deal(grid_of(2, columns), fleet(devices), Rules(replicas, 1.0, 1.0))
    assert all(len(set(hand)) == replicas for hand in hands)
    for counted in (
        Counter(name for hand in hands for name in hand),
        Counter(hand[0] for hand in hands),
    ):
        counts = [counted[device.name] for device in fleet(devices)]
        assert max(counts) - min(counts) <= 1


@some
@given(st.integers(1, 30), st.integers(2, 4), st.integers(2, 4), st.integers(1, 3))
def test_replicas_stay_in_a_domain_that_has_several_devices(
    columns: int, domains: int, members: int, replicas: int
) -> None:
    replicas = min(replicas, members)
    devices = fleet(domains * members, domains)
    domain_of = {device.name: device.domain for device in devices}
    hands = deal(grid_of(1, columns), devices, Rules(replicas, 1.0, 1.0))
    assert all(len({domain_of[name] for name in hand}) == 1 for hand in hands)
    counts = Counter(name for hand in hands for name in hand)
    for domain in set(domain_of.values()):
        own = [counts[name] for name in domain_of if domain_of[name] == domain]
        assert max(own) - min(own) <= 1


def test_replicas_go_elsewhere_when_a_domain_is_too_small() -> None:
    devices = [Device("one", "a"), Device("two", "b"), Device("three", "c")]
    hands = deal(grid_of(1, 6), devices, Rules(2, 1.0, 1.0))
    assert all(len(set(hand)) == 2 for hand in hands)


def test_what_the_rules_forbid_is_not_dealt() -> None:
    with pytest.raises(RuleError, match=r"device share.*of layer"):
        deal(grid_of(1, 8), fleet(4), Rules(2, 0.25, 1.0))


def test_a_domain_is_full_at_its_share() -> None:
    devices = [*(Device(f"many{number}", "a") for number in range(6)), Device("few0", "b"), Device("few1", "b")]
    hands = deal(grid_of(1, 16), devices, Rules(1, 0.25, 0.5))
    led_by_many = sum(hand[0].startswith("many") for hand in hands)
    assert led_by_many == 8


def test_chance_decides_who_gets_what() -> None:
    dealt = {tuple(hand for hand in deal(grid_of(1, 6), fleet(3), Rules(1, 1.0, 1.0))) for _ in range(40)}
    assert len(dealt) > 10


def test_replicas_pair_up_anew_so_that_a_lost_device_burdens_many() -> None:
    hands = deal(grid_of(1, 400), fleet(5), Rules(2, 1.0, 1.0))
    pairs = Counter(frozenset(hand) for hand in hands)
    assert set(pairs) == {frozenset(pair) for pair in itertools.combinations((device.name for device in fleet(5)), 2)}


def test_they_do_so_too_when_devices_hold_unequally_much() -> None:
    referee = Referee(Rules(2, 1.0, 1.0), Ledger.empty(2), [("uneven", 1), ("layer", 60)], [])
    dealer = Dealer(referee, Entropy())
    dealer.deal(0, parcels(grid_of(1, 1), [0], "columns", devices=6), [(0, 0)], fleet(6))
    hands = dealer.deal(1, parcels(grid_of(1, 60), range(60), "columns", devices=6), [(0, 0)] * 60, fleet(6))
    pairs = {frozenset(hand) for hand in hands if {"d0", "d1"} & set(hand)}
    assert len(pairs) > 5


def test_ragged_layers_even_out_over_the_model() -> None:
    """Three columns on two devices, many times: whoever got two in one layer gets one in the next."""
    layers = 10
    referee = Referee(Rules(1, 1.0, 1.0), Ledger.empty(layers), [("layer", 3)] * layers, [])
    dealer = Dealer(referee, Entropy())
    grid = grid_of(1, 3)
    held: Counter[str] = Counter()
    for layer in range(layers):
        hands = dealer.deal(layer, parcels(grid, [0, 1, 2], "columns", devices=2), [(0,)] * 3, fleet(2))
        held.update(hand[0] for hand in hands)
    assert held["d0"] == held["d1"]


@some
@given(
    st.sampled_from(["columns", "rows", "rectangles", "scattered"]),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 12),
)
def test_parcels_are_a_partition_of_the_blocks(shape: Shape, rows: int, columns: int, devices: int) -> None:
    grid = grid_of(rows, columns)
    lot = parcels(grid, Entropy().permutation(columns), shape, devices=devices)
    blocks = sorted((column, row) for parcel in lot for column, reached in parcel.rows.items() for row in reached)
    assert blocks == sorted(itertools.product(range(columns), range(rows)))
    assert sum(parcel.weights for parcel in lot) == 16 * rows * columns


@some
@given(st.sampled_from(["columns", "rows", "rectangles", "scattered"]), st.integers(1, 8), st.integers(1, 6))
def test_parcels_of_grouped_convolutions_hold_only_blocks_that_exist(shape: Shape, groups: int, block: int) -> None:
    grid = make_grid((groups * 4, 3, 3, 3), CONVOLUTION, groups, block=block)
    lot = parcels(grid, range(len(grid.columns)), shape, devices=4)
    blocks = sorted((column, row) for parcel in lot for column, reached in parcel.rows.items() for row in reached)
    assert blocks == sorted((index, row) for index, column in enumerate(grid.columns) for row in column.rows)
    assert sum(parcel.weights for parcel in lot) == groups * 4 * 3 * 9
    assert all(parcel.rows for parcel in lot)


@pytest.mark.parametrize(
    ("shape", "count", "seen"), [("columns", 8, 1), ("rows", 4, 8), ("scattered", 32, 1), ("rectangles", 6, 3)]
)
def test_the_shapes(shape: Shape, count: int, seen: int) -> None:
    lot = parcels(grid_of(4, 8), range(8), shape, devices=6)
    assert len(lot) == count
    assert max(len(parcel.columns) for parcel in lot) == seen


def test_a_shape_that_shows_more_than_the_share_is_refused() -> None:
    with pytest.raises(
        RuleError,
        match=r"'device share': device d\d would see too many of the 8 .*use shape 'columns'",
    ):
        deal(grid_of(4, 8), fleet(4), Rules(1, 0.5, 1.0), "rows")


def most_often_first(hands: list[list[str]]) -> int:
    return max(Counter(hand[0] for hand in hands).values())


@some
@given(st.lists(st.sets(st.sampled_from("abcde"), min_size=1, max_size=3), min_size=1, max_size=7))
def test_no_device_is_first_more_often_than_it_must_be(choices: list[set[str]]) -> None:
    hands = [sorted(choice) for choice in choices]
    prefer(hands, {})
    assert [set(hand) for hand in hands] == choices
    counts = sorted(Counter(hand[0] for hand in hands).values())
    best = min(sum(count**2 for count in Counter(firsts).values()) for firsts in itertools.product(*choices))
    assert sum(count**2 for count in counts) == best


def test_firsts_are_moved_along_a_chain_of_hands() -> None:
    hands = [["a"], ["a", "b"], ["b", "c"], ["a"]]
    prefer(hands, {})
    assert [hand[0] for hand in hands] == ["a", "b", "c", "a"]


def test_ties_for_the_first_place_go_to_the_less_loaded() -> None:
    hands = [["a", "b"]]
    prefer(hands, {"a": 5, "b": 2})
    assert hands == [["b", "a"]]
