"""A trained residual network comes together again from its shuffled layers; every step does what it says."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.lab.shuffled.puzzle import Dropped, Piece, ResidualNet, drop, train_residual
from awfulowl.lab.shuffled.reassembly import (
    _elsewhere,
    _neighbours,
    _rank,
    _ranked,
    _repair,
    _seed,
    _Task,
    _wins,
    dominance,
    pair,
    reassemble,
)
from awfulowl.models.seeding import seeded
from awfulowl.randomness import Entropy

BLOCKS, WIDTH = 8, 32


@pytest.fixture(scope="module")
def trained() -> ResidualNet:
    return train_residual(0, blocks=BLOCKS, width=WIDTH, steps=600)


@pytest.fixture(scope="module")
def known(trained: ResidualNet) -> tuple[Tensor, Tensor]:
    x = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, trained(x)


def task(network: ResidualNet, x: Tensor, y: Tensor) -> _Task:
    dropped = drop(network, Entropy(0))
    pieces = dropped.pieces
    return _Task([(pieces[one], pieces[other]) for one, other in dropped.blocks], pieces[dropped.last], x, y)


def built(dropped: Dropped, blocks: tuple[tuple[int, int], ...], last: int) -> ResidualNet:
    network = ResidualNet(BLOCKS, WIDTH)
    with torch.no_grad():
        for layers, chosen in (
            (network.entering, [one for one, _ in blocks]),
            (network.leaving, [other for _, other in blocks]),
            ([network.last], [last]),
        ):
            for layer, index in zip(layers, chosen, strict=True):
                for parameter, value in zip(layer.parameters(), dropped.pieces[index], strict=True):
                    parameter.copy_(value)
    return network


@pytest.mark.parametrize("seed", range(3))
def test_every_piece_is_in_its_place(trained: ResidualNet, known: tuple[Tensor, Tensor], seed: int) -> None:
    dropped = drop(trained, Entropy(seed))
    found = reassemble(dropped.pieces, *known)
    assert found.blocks == dropped.blocks
    assert found.last == dropped.last
    assert found.error < 1e-10
    assert found.passes > 0
    state = built(dropped, found.blocks, found.last).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.state_dict().items())


def test_the_truth_itself_is_wrong_in_another_order(trained: ResidualNet, known: tuple[Tensor, Tensor]) -> None:
    own = task(trained, *known)
    assert own.error(range(BLOCKS)) < 1e-10
    assert own.error([1, 0, *range(2, BLOCKS)]) > 1e-6


def test_answers_of_another_network_are_not_reached(trained: ResidualNet, known: tuple[Tensor, Tensor]) -> None:
    x, y = known
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    found = reassemble(drop(trained, Entropy(0)).pieces, x, y + 0.1 * noise)
    assert found.error > 0.005
    assert found.errors[0] >= found.errors[1] >= found.errors[2]


def test_partners_stand_out_after_training_and_not_before(trained: ResidualNet) -> None:
    def ratios(network: ResidualNet) -> Tensor:
        state = network.state_dict()
        second, first = (
            [state[f"{side}.{block}.weight"] for block in range(BLOCKS)] for side in ("leaving", "entering")
        )
        return dominance(second, first)

    after = ratios(trained)
    strangers = after[~torch.eye(BLOCKS, dtype=torch.bool)]
    assert float(after.diagonal().mean()) > 3 * float(strangers.mean())
    with seeded(1):
        before = ratios(ResidualNet(BLOCKS, WIDTH))
    assert float(before.diagonal().mean()) < float(after.diagonal().mean()) / 3


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_dominance_is_that_of_the_products(count: int, width: int, inner: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaving = torch.randn(count, width, inner, generator=generator)
    entering = torch.randn(count, inner, width, generator=generator)
    found = dominance([*leaving], [*entering])
    for one, other in itertools.product(range(count), repeat=2):
        product = (leaving[one] @ entering[other]).double()
        assert float(found[one, other]) == pytest.approx(float(product.trace().abs() / product.norm()), rel=1e-3)


def test_pairs_are_an_assignment_and_not_each_ones_best() -> None:
    # Both second layers like the first one best; only one of them can have it.
    first = [torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])]
    second = [first[0].T, (2 * first[0] + first[1]).T]
    assert dominance(second, first).argmax(dim=1).tolist() == [0, 0]
    assert pair(second, first) == [0, 1]


def test_a_tournament_that_somebody_wins_is_ranked() -> None:
    order = [3, 1, 4, 0, 2]
    wins = torch.zeros(5, 5, dtype=torch.float64)
    for place, winner in enumerate(order):
        wins[winner, order[place + 1 :]] = 1.0
    assert _ranked(wins) == order
    # One upset in ten games changes who is strongest by little.
    wins[3, 2], wins[2, 3] = 0.0, 1.0
    assert set(_ranked(wins)[:2]) == {3, 1}


def test_wins_are_exchanges_one_by_one(trained: ResidualNet, known: tuple[Tensor, Tensor]) -> None:
    own = task(trained, known[0][:50], known[1][:50])
    order = [2, 0, 1, 5, 4, 3, 7, 6]
    wins = _wins(own, order)
    for one, other in itertools.combinations(range(BLOCKS), 2):
        swapped = list(order)
        swapped[one], swapped[other] = order[other], order[one]
        better = own.error(order) <= own.error(swapped)
        assert wins[order[one], order[other]] == float(better)
        assert wins[order[other], order[one]] == float(not better)


def test_ranking_keeps_the_better_order(trained: ResidualNet, known: tuple[Tensor, Tensor]) -> None:
    own = task(trained, *known)
    assert _rank(own, [*range(BLOCKS)]) == [*range(BLOCKS)]
    start = [2, 0, 1, 5, 4, 3, 7, 6]
    assert own.error(_rank(own, start)) <= own.error(start)


def test_the_seed_sorts_by_change(trained: ResidualNet, known: tuple[Tensor, Tensor]) -> None:
    own = task(trained, *known)
    changes = [float((own.through(block, known[0]) - known[0]).norm()) for block in range(BLOCKS)]
    along = [changes[block] for block in _seed(own)]
    assert along in (sorted(along), sorted(along, reverse=True))


def test_repair_moves_a_block_that_neighbours_cannot(trained: ResidualNet, known: tuple[Tensor, Tensor]) -> None:
    own = task(trained, *known)
    assert _repair(own, [*range(1, BLOCKS), 0]) == [*range(BLOCKS)]


def test_moves_are_each_made_once() -> None:
    near, far = set(_neighbours(5)), set(_elsewhere(5))
    assert len(near) == 4
    assert len(far) == 5 * 4 - 8
    assert not near & far


def test_passes_count_rows_through_the_whole_network(trained: ResidualNet, known: tuple[Tensor, Tensor]) -> None:
    own = task(trained, *known)
    own.error(range(BLOCKS))
    assert own.passes == pytest.approx(300)
    own.tail(range(BLOCKS // 2), known[0])
    assert own.passes == pytest.approx(450)


def test_other_pieces_are_refused() -> None:
    square = [Piece(torch.randn(4, 4), torch.randn(4)) for _ in range(5)]
    with pytest.raises(InputError, match="residual network"):
        reassemble(square, torch.randn(3, 4), torch.randn(3, 1))
    pieces = drop(ResidualNet(2, 4), Entropy(0)).pieces
    with pytest.raises(InputError, match="residual network"):
        reassemble(pieces[:-1], torch.randn(3, 4), torch.randn(3, 1))
    with pytest.raises(InputError, match="do not fit"):
        reassemble(pieces, torch.randn(3, 5), torch.randn(3, 1))
    with pytest.raises(InputError, match="do not fit"):
        reassemble(pieces, torch.randn(0, 4), torch.randn(0, 1))


def test_training_repeats_and_drops_depend_on_their_entropy() -> None:
    one, two = (train_residual(3, blocks=2, width=4, steps=5) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), two.parameters(), strict=True))
    assert drop(one, Entropy(0)).blocks != drop(one, Entropy(1)).blocks
    with pytest.raises(InputError, match="no network"):
        ResidualNet(0, 4)
