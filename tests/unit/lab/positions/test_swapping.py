"""Searches by exchanges of two blocks."""

from itertools import islice, pairwise, repeat
from typing import Any

import pytest
import torch

from awfulowl.costs import Ledger
from awfulowl.errors import InputError
from awfulowl.lab.positions.incremental import EMPTY, Incremental
from awfulowl.lab.positions.swapping import cooling, random_filling, random_swaps, search, some_images
from awfulowl.randomness import Entropy
from tests.sites import hidden, inner


def shapes(site: Any) -> Any:
    return [(down.stop - down.start, across.stop - across.start) for down, across in site.places.slices]


@pytest.mark.parametrize("held", [None, [0, 5, 7, 8]])
def test_random_places_fit(held: Any) -> None:
    site = hidden((6, 7), held).site
    filled = random_filling(site, Entropy(0))
    room = shapes(site)
    assert sorted(block for block in filled if block != EMPTY) == list(range(len(site.spoils)))
    assert all(
        tuple(site.spoils.blocks[block].shape) == room[place] for place, block in enumerate(filled) if block >= 0
    )
    assert filled != random_filling(site, Entropy(1))


def test_swaps_are_of_places_of_one_shape_that_exchange_something() -> None:
    site = hidden((6, 7), [0, 1, 5, 7, 8]).site
    filled, room = random_filling(site, Entropy(0)), shapes(site)
    drawn = [*islice(random_swaps(site, filled, Entropy(1)), 3000)]
    assert all(room[swap.one] == room[swap.other] and filled[swap.one] != filled[swap.other] for swap in drawn)
    assert {place for swap in drawn for place in swap} >= {place for place, block in enumerate(filled) if block >= 0}


def test_where_nothing_can_be_exchanged_there_are_no_swaps() -> None:
    site = inner(4, [0, 1]).site
    assert not [*random_swaps(site, random_filling(site, Entropy(0)), Entropy(0))]


def begin(ledger: Any, seed: int = 0) -> Any:
    site = hidden().site
    state = Incremental(site, random_filling(site, Entropy(seed)), torch.arange(40), ledger)
    return site, state


def test_climbing_only_goes_down_in_loss() -> None:
    ledger = Ledger()
    site, state = begin(ledger)
    losses = [state.loss]
    swaps = random_swaps(site, state.filled, Entropy(1))
    for _ in range(60):
        search(state, swaps, repeat(0.0, 5), ledger, Entropy(2))
        losses.append(state.loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert ledger.evaluations == 1 + 300


def test_heat_lets_it_go_up_too() -> None:
    ledger = Ledger()
    site, state = begin(ledger)
    swaps, losses = random_swaps(site, state.filled, Entropy(1)), []
    for _ in range(40):
        search(state, swaps, repeat(1e9, 1), ledger, Entropy(2))
        losses.append(state.loss)
    assert any(later > earlier for earlier, later in pairwise(losses))


def test_a_budget_ends_it_in_time() -> None:
    ledger = Ledger(evaluations=10)
    site, state = begin(ledger)
    search(state, random_swaps(site, state.filled, Entropy(1)), repeat(0.0, 100), ledger, Entropy(2))
    assert 8 <= ledger.evaluations <= 10


def test_temperatures_fall_geometrically() -> None:
    assert [*cooling(1.0, 0.01, 3)] == pytest.approx([1.0, 0.1, 0.01])
    assert [*cooling(1.0, 0.5, 1)] == [1.0]


def test_images_are_drawn_once_each_and_need_labels() -> None:
    site = hidden().site
    images = some_images(site, 15, Entropy(0))
    assert len(set(images.tolist())) == 15
    assert len(some_images(site, 10**6, Entropy(0))) == 40
    site.labels[3] = -1
    with pytest.raises(InputError, match="judges by labels"):
        some_images(site, 5, Entropy(0))
