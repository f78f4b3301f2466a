"""The theorems where every case can be counted: all pads, all secrets, and what each lane sees of them."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Dense
from awfulowl.randomness import Entropy, Seeded, expanded
from awfulowl.veil import base
from awfulowl.veil.base import SharedInputs, SharedWeights, Sharing, Sum
from awfulowl.veil.shares import InputShares, Replicated

View = tuple[int, ...]

# On paper: a ring of a few numbers, in Python's integers.


def split(secret: int, pads: Sequence[int], modulus: int) -> list[int]:
    return [*pads, (secret - sum(pads)) % modulus]


def views(sharing: Sharing, lanes: Sequence[int], weight: int, x: int, modulus: int) -> Counter[View]:
    """All that some lanes see together, counted over every choice of pads."""
    counted: Counter[View] = Counter()
    of_x = list(itertools.product(range(modulus), repeat=sharing.shares - 1))
    of_weights: list[tuple[int, ...]] = of_x if sharing.hides_weights else [()]
    held = [product for lane in lanes for product in sharing.products(lane)]
    for pads, others in itertools.product(of_x, of_weights):
        inputs, weights = split(x, pads, modulus), split(weight, others, modulus)
        seen = [sum(inputs[share] for share in wanted) % modulus for _, wanted in held]
        if sharing.hides_weights:
            seen += [sum(weights[share] for share in wanted) % modulus for wanted, _ in held]
        counted[tuple(seen)] += 1
    return counted


def all_views(sharing: Sharing, lanes: Sequence[int], modulus: int) -> Iterator[Counter[View]]:
    """For every secret. Weights that are not hidden are known to everybody, and count as one."""
    weights = range(modulus if sharing.hides_weights else 1)
    return (views(sharing, lanes, *secret, modulus) for secret in itertools.product(weights, range(modulus)))


@pytest.mark.parametrize(
    ("sharing", "modulus"),
    [(InputShares(2), 16), (InputShares(3), 16), (InputShares(4), 4), (InputShares(8), 2), (Replicated(), 4)],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_fewer_lanes_than_the_threshold_see_the_same_whatever_the_secret_is(sharing: Sharing, modulus: int) -> None:
    for lanes in itertools.combinations(range(sharing.lanes), sharing.threshold - 1):
        first, *others = all_views(sharing, lanes, modulus)
        assert all(other == first for other in others)
        # Not only the same: every view that there can be comes equally often.
        assert len(set(first.values())) == 1


@pytest.mark.parametrize(
    ("sharing", "modulus"),
    [(InputShares(2), 16), (InputShares(3), 4), (InputShares(8), 2), (Replicated(), 4)],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_as_many_as_the_threshold_never_see_the_same_of_two_secrets(sharing: Sharing, modulus: int) -> None:
    """The control: the counting above can tell."""
    for lanes in itertools.combinations(range(sharing.lanes), sharing.threshold):
        for one, other in itertools.combinations(all_views(sharing, lanes, modulus), 2):
            assert one.keys().isdisjoint(other.keys())


class Complementary(Replicated):
    """W_i + W_(i+1) beside W_(i+2), whose sum is W."""

    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        after = (lane + 1) % 3
        return (((lane, after), (lane,)), (((lane + 2) % 3,), (after,)))


def test_counting_finds_a_lane_that_holds_too_much() -> None:
    first, *others = all_views(Complementary(), [0], 4)
    assert any(other != first for other in others)


# In the code: a ring of a byte, and a batch in which every choice of pads comes once.


class Enumerated(Seeded):
    """Instead of noise all numbers: of share n the n-th digit of 0, 1, 2, ... to the base 256."""

    def expand(self) -> Tensor:
        counted = torch.arange(self.shape[0], dtype=torch.int64)
        return (counted >> (8 * self.seed[0]) & 255).to(torch.int8).reshape(self.shape)


class Numbered(Entropy):
    """Seeds that say which share they are of."""

    def __init__(self) -> None:
        super().__init__(0)
        self._count = iter(range(256))

    def seed(self) -> bytes:
        return bytes([next(self._count)]) * 32


@pytest.fixture
def enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "Seeded", Enumerated)
    monkeypatch.setattr(base, "derive", lambda key, share, *place: bytes([share]) * 32)


def counted(view: Sequence[Tensor]) -> Tensor:
    """How often each combination of bytes comes in a view of one or two numbers."""
    index = torch.zeros(len(view[0]), dtype=torch.int64)
    for numbers in view:
        index = index << 8 | numbers.reshape(-1).long() & 255
    return torch.bincount(index, minlength=256 ** len(view))


GRID = make_grid((1, 1), Dense(), 1, block=1)


@pytest.mark.usefixtures("enumerated")
@pytest.mark.parametrize("sharing", [InputShares(2), InputShares(3), Replicated()], ids=lambda sharing: sharing.name)
def test_inputs_are_shared_so_that_every_view_comes_once(sharing: Sharing) -> None:
    pads = 256 ** (sharing.shares - 1)
    for true in range(-128, 128, 1 if sharing.shares == 2 else 17):
        x = torch.full((pads, 1), true, dtype=torch.int8)
        inputs = SharedInputs(sharing, x, GRID, torch.int8, Numbered())
        views = []
        for lane in range(sharing.lanes):
            pieces = inputs.inputs(lane, [0], f"party{lane}")
            views.append([expanded(piece) for piece in pieces])
        for lanes in itertools.combinations(range(sharing.lanes), sharing.threshold - 1):
            seen = counted([numbers for lane in lanes for numbers in views[lane]])
            assert bool((seen == pads // len(seen)).all())
        if isinstance(sharing, InputShares):
            assert torch.equal(torch.stack([view[0] for view in views]).sum(0, dtype=torch.int8), x)


@pytest.mark.usefixtures("enumerated")
@pytest.mark.parametrize("lane", [0, 1, 2])
def test_weights_are_shared_so_that_every_view_comes_once(lane: int) -> None:
    weights = SharedWeights(Replicated(), torch.int8, Numbered())
    for true in range(-128, 128, 17):
        block = torch.full((256**2, 1), true, dtype=torch.int8)
        seen = counted([expanded(matrix) for matrix in weights.matrices(lane, block, (0,))])
        assert bool((seen == 256**2 // len(seen)).all())


@pytest.mark.usefixtures("enumerated")
def test_counting_in_the_code_finds_a_lane_that_holds_too_much() -> None:
    weights = SharedWeights(Complementary(), torch.int8, Numbered())
    for true in range(-128, 128, 17):
        block = torch.full((256**2, 1), true, dtype=torch.int8)
        seen = counted([expanded(matrix) for matrix in weights.matrices(0, block, (0,))])
        # One combination for each of 256 numbers: the sum of both is the secret.
        assert int((seen > 0).sum()) == 256
