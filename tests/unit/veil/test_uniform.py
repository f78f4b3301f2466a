"""The theorems, as far as statistics can see: what a lane gets looks like noise, and every broken sharing does not.

Each p-value has to be above 1e-6. There are 4,500 of them or so for right sharings, so with fresh keys one run in 220
would fail without a defect; keys are from fixed seeds, so that runs are equal.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Dense
from awfulowl.randomness import Entropy, Seeded, derive, expanded
from awfulowl.veil import base
from awfulowl.veil.base import SharedInputs, SharedWeights, Sharing, Sum
from awfulowl.veil.shares import InputShares, Replicated
from tests.unit.veil.leaks import NUMBERS, Score, about, alone, leaks, together

SIDE = 1024
GRID = make_grid((SIDE, SIDE), Dense(), 1, block=SIDE // 2)
INT8, INT16 = INTEGERS.values()


class Secret(NamedTuple):
    """Inputs and weights in which everything comes twice: halves of rows and of columns are equal."""

    x: Tensor
    weight: Tensor


def secret(numbers: Integers, seed: int = 0) -> Secret:
    """Inputs as they are behind a ReLU, half of them 0, and weights as they are trained: small, few large."""
    generator = torch.Generator().manual_seed(seed)
    half = SIDE // 2
    x = torch.randn(half, half, generator=generator).relu_().mul_(numbers.largest / 4).clamp_(max=numbers.largest)
    weight = torch.randn(half, half, generator=generator).mul_(numbers.largest / 4)
    weight = weight.clamp_(-numbers.largest, numbers.largest)
    return Secret(*(one.round().to(numbers.dtype).repeat(2, 2) for one in (x, weight)))


def inputs_of(sharing: Sharing, x: Tensor, numbers: Integers, entropy: Entropy) -> list[list[Tensor]]:
    """The shares of inputs that each lane gets."""
    shared = SharedInputs(sharing, x, GRID, numbers.ring, entropy)
    views = []
    for lane in range(sharing.lanes):
        pieces = shared.inputs(lane, range(len(GRID.columns)), f"party{lane}")
        views.append(list(torch.split(torch.cat([expanded(piece) for piece in pieces], dim=1), SIDE, dim=1)))
    return views


def weights_of(sharing: Sharing, weight: Tensor, numbers: Integers, entropy: Entropy) -> list[list[Tensor]]:
    """The matrices that each lane gets, put together from four blocks."""
    shared, half = SharedWeights(sharing, numbers.ring, entropy), SIDE // 2
    views = []
    for lane in range(sharing.lanes):
        blocks = {
            (i, j): [
                expanded(own) for own in shared.matrices(lane, weight[half * i :, half * j :][:half, :half], (i, j))
            ]
            for i, j in itertools.product((0, 1), (0, 1))
        }
        rows = [[torch.cat(pair, dim=1) for pair in zip(blocks[i, 0], blocks[i, 1], strict=True)] for i in (0, 1)]
        views.append([torch.cat(pair) for pair in zip(*rows, strict=True)])
    return views


def lane_view(sharing: Sharing, lane: int, own: Secret, numbers: Integers, entropy: Entropy) -> dict[str, Tensor]:
    """All numbers that a lane gets."""
    view = {f"x[{part}]": x for part, x in enumerate(inputs_of(sharing, own.x, numbers, entropy)[lane])}
    if sharing.hides_weights:
        view |= {f"W[{part}]": w for part, w in enumerate(weights_of(sharing, own.weight, numbers, entropy)[lane])}
    return view


def total(view: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(view.values())).sum(0, dtype=next(iter(view.values())).dtype)


def examined(view: Mapping[str, Tensor], own: Secret) -> list[Score]:
    """Every test of numbers that one party, or some that pool what they have, can make."""
    assert min(numbers.numel() for numbers in view.values()) >= NUMBERS > 10**6
    scores = [score for name, numbers in view.items() for score in alone(name, numbers)]
    scores += together(view)
    scores += about(view, own._asdict())
    if len(view) > 1:
        scores += [*alone("the sum", total(view)), *about({"the sum": total(view)}, own._asdict())]
    return scores


def halves(view: Mapping[str, Tensor]) -> list[Score]:
    """Numbers that hide the same: the two halves of the columns, and those of the rows."""
    half = SIDE // 2
    return [
        score
        for name, numbers in view.items()
        for axis in (0, 1)
        for score in together(
            {f"{name}, half {number}": part for number, part in enumerate(torch.split(numbers, half, dim=axis))}
        )
    ]


def coalitions(sharing: Sharing, own: Secret, numbers: Integers, entropy: Entropy) -> list[dict[str, Tensor]]:
    """What all but one lane have together."""
    views = inputs_of(sharing, own.x, numbers, entropy)
    lanes = range(sharing.lanes)
    return [{f"x of lane {lane}": views[lane][0] for lane in lanes if lane != absent} for absent in lanes]


@pytest.mark.parametrize("numbers", [INT8, INT16], ids=lambda numbers: numbers.name)
def test_one_of_two_shares_is_noise(numbers: Integers) -> None:
    own = secret(numbers)
    for view in coalitions(InputShares(2), own, numbers, Entropy(1)):
        scores = [*examined(view, own), *halves(view)]
        assert leaks(scores) == []
        assert len(scores) == 20 + 9 * numbers.ring_bytes + 2 * (5 + 2 * numbers.ring_bytes)


def test_two_of_three_shares_are_noise() -> None:
    own = secret(INT8)
    for view in coalitions(InputShares(3), own, INT8, Entropy(2)):
        scores = [*examined(view, own), *halves(view)]
        assert leaks(scores) == []
        assert len(scores) == 3 * (20 + 36) + 13 + 2 * 2 * 13


def test_each_of_eight_shares_and_any_seven_in_sum_are_noise() -> None:
    own = secret(INT8)
    views = inputs_of(InputShares(8), own.x, INT8, Entropy(3))
    whole = total({str(lane): view[0] for lane, view in enumerate(views)})
    assert torch.equal(whole, own.x.int())
    for lane, (share,) in enumerate(views):
        view = {f"x of lane {lane}": share, f"the sum without lane {lane}": whole - share}
        scores = [score for name, numbers in view.items() for score in alone(name, numbers)]
        assert leaks([*scores, *about(view, own._asdict())]) == []


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_what_a_replicated_lane_holds_is_noise(lane: int) -> None:
    """Shares of inputs and of weights, or sums of two: each, every pair of them, and the sum of all."""
    own = secret(INT8)
    view = lane_view(Replicated(), lane, own, INT8, Entropy(4))
    count = 2 if lane == 1 else 4
    assert len(view) == count
    scores = [*examined(view, own), *halves(view)]
    assert leaks(scores) == []
    assert len(scores) == (count + 1) * (20 + 36) + math.comb(count, 2) * 13 + 2 * count * 13


def test_what_a_replicated_lane_holds_in_64_bits_is_noise() -> None:
    """The lane with a last share beside a sum with another, both of them made of secrets."""
    own = secret(INT16)
    view = lane_view(Replicated(), 2, own, INT16, Entropy(5))
    assert leaks(examined(view, own)) == []


def sent_twice(sharing: Sharing, first: Secret, second: Secret, entropies: Sequence[Entropy]) -> list[Score]:
    """Relations between what a lane gets of one batch and of another."""
    sent = zip((first, second), entropies, strict=True)
    pairs = zip(*(inputs_of(sharing, own.x, INT8, entropy) for own, entropy in sent), strict=True)
    return [
        score
        for lane, (one, other) in enumerate(pairs)
        for part, (mine, theirs) in enumerate(zip(one, other, strict=True))
        for score in together({f"x[{part}] of lane {lane}": mine, "what it got later": theirs})
    ]


@pytest.mark.parametrize("sharing", [InputShares(2), Replicated()], ids=lambda sharing: sharing.name)
def test_the_same_inputs_sent_twice_are_unrelated_numbers(sharing: Sharing) -> None:
    own, entropy = secret(INT8), Entropy(6)
    assert leaks(sent_twice(sharing, own, own, [entropy, entropy])) == []


def test_weights_shared_under_two_keys_are_unrelated_numbers() -> None:
    own, entropy = secret(INT8), Entropy(7)
    one, other = (weights_of(Replicated(), own.weight, INT8, entropy) for _ in range(2))
    for lane in range(3):
        scores = together({"before": one[lane][0], "after": other[lane][0]})
        assert leaks(list(scores)) == []


# The knowing control: what is said above could be said of anything, if nothing were found here.


@pytest.mark.parametrize("sharing", [InputShares(2), InputShares(3), InputShares(8)], ids=lambda sharing: sharing.name)
def test_all_lanes_together_have_the_inputs(sharing: Sharing) -> None:
    own = secret(INT8)
    views = inputs_of(sharing, own.x, INT8, Entropy(8))
    whole = total({str(lane): view[0] for lane, view in enumerate(views)})
    assert torch.equal(whole, own.x.int())
    found = leaks([*alone("the sum", whole), *about({"the sum": whole}, own._asdict())])
    assert {"byte 0 of the sum", "bit 31 of the sum", "correlation of the sum and the true x"} <= set(found)


@pytest.mark.parametrize(
    ("inputs", "weights"),
    [
        ([(0, 1), (1, 0)], [(0, 0), (1, 0)]),
        ([(1, 0), (2, 0)], [(1, 0), (2, 1)]),
        ([(2, 1), (0, 0)], [(2, 0), (0, 0), (0, 1)]),
    ],
    ids=["0 and 1", "1 and 2", "2 and 0"],
)
def test_any_two_replicated_lanes_have_inputs_and_weights(
    inputs: Sequence[tuple[int, int]], weights: Sequence[tuple[int, int]]
) -> None:
    """What two lanes have to add up, by lane and number."""
    own, entropy = secret(INT8), Entropy(9)
    of_inputs, of_weights = (
        work(Replicated(), true, INT8, entropy) for work, true in zip((inputs_of, weights_of), own, strict=True)
    )
    x = total({str(place): of_inputs[place[0]][place[1]] for place in inputs})
    assert torch.equal(x, own.x.int())
    assert torch.equal(total({str(place): of_weights[place[0]][place[1]] for place in weights}), own.weight.int())
    assert leaks(list(about({"both": x}, own._asdict())))


class ShortPad(Seeded):
    """A random share of one bit less than the ring."""

    def expand(self) -> Tensor:
        return super().expand() & 0x7FFFFFFF


class NarrowPad(Seeded):
    """A random share as large as the inputs: a slip that looks right, since sums are still right."""

    def expand(self) -> Tensor:
        return super().expand().to(torch.int8).to(self.dtype)


class LeaningPad(Seeded):
    """A random share whose highest bit is set in 50.5 % of all numbers: one in a hundred is forced."""

    def expand(self) -> Tensor:
        numbers = super().expand()
        luck = Seeded(bytes(32), torch.int32, self.shape).expand().remainder(100) == 0
        return torch.where(luck, numbers | -(2**31), numbers)


@pytest.mark.parametrize("pad", [ShortPad, NarrowPad, LeaningPad])
@pytest.mark.parametrize("lane", [0, 1])
def test_pads_that_are_not_uniform_are_found(pad: type[Seeded], lane: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "Seeded", pad)
    own = secret(INT8)
    views = inputs_of(InputShares(2), own.x, INT8, Entropy(1))
    assert torch.equal(views[0][0] + views[1][0], own.x.int())
    found = leaks(list(alone("the share", views[lane][0])))
    assert "byte 3 of the share" in found
    assert pad is NarrowPad or "bit 31 of the share" in found


def test_pads_that_are_used_for_two_batches_are_found() -> None:
    """The difference of shares is that of inputs, or none where inputs are equal."""
    sharing, own, other = InputShares(2), secret(INT8), secret(INT8, seed=1)
    for second in (own, other):
        found = leaks(sent_twice(sharing, own, second, [Entropy(6), Entropy(6)]))
        assert "byte 3 of x[0] of lane 1 - what it got later" in found
        assert "correlation of x[0] of lane 1 and what it got later" in found


class Stuck(Entropy):
    """A generator that says the same for ever."""

    def seed(self) -> bytes:
        return bytes(range(32))


def test_pads_that_are_used_for_two_columns_are_found() -> None:
    (_, (share,)) = inputs_of(InputShares(2), secret(INT8).x, INT8, Stuck(0))
    found = leaks(halves({"the share": share}))
    assert "byte 0 of the share, half 0 - the share, half 1" in found


def test_pads_that_are_used_for_two_shares_are_found() -> None:
    own = secret(INT8)
    view = coalitions(InputShares(3), own, INT8, Stuck(0))[2]
    assert "byte 0 of x of lane 0 - x of lane 1" in leaks(list(together(view)))


@pytest.mark.parametrize("axis", [0, 1])
def test_pads_that_are_used_for_two_blocks_of_weights_are_found(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds of shares forget one number of the place."""

    def forgetful(key: bytes, share: int, *place: int) -> bytes:
        return derive(key, share, place[1 - axis])

    monkeypatch.setattr(base, "derive", forgetful)
    view = lane_view(Replicated(), 2, secret(INT8), INT8, Entropy(4))
    assert "byte 0 of W, half 0 - W, half 1" in leaks(halves({"W": view["W[1]"]}))


class TwoShares(InputShares):
    """Each lane is given the share of the next one too."""

    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        return (((), (lane,)), ((), ((lane + 1) % self.lanes,)))


def test_a_lane_with_two_shares_of_two_is_found() -> None:
    own = secret(INT8)
    for lane in (0, 1):
        view = lane_view(TwoShares(2), lane, own, INT8, Entropy(1))
        # Each of them is noise, and both together are not: it takes a test of both.
        assert leaks([score for name, numbers in view.items() for score in alone(name, numbers)]) == []
        found = leaks(examined(view, own))
        assert {"byte 0 of x[0] + x[1]", "correlation of the sum and the true x"} <= set(found)


def test_two_shares_of_three_are_still_noise() -> None:
    own = secret(INT8)
    assert leaks(examined(lane_view(TwoShares(3), 2, own, INT8, Entropy(1)), own)) == []


class TooOpen(Replicated):
    """W_i + W_(i+1) + W_(i+2): all of W."""

    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        return (((0, 1, 2), (lane,)), ((lane,), ((lane + 1) % 3,)))


class Complementary(Replicated):
    """W_i + W_(i+1) beside W_(i+2): each is noise, and their sum is W."""

    def products(self, lane: int) -> Sequence[tuple[Sum, Sum]]:
        after = (lane + 1) % 3
        return (((lane, after), (lane,)), (((lane + 2) % 3,), (after,)))


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_weights_that_show_are_found(lane: int) -> None:
    own = secret(INT8)
    view = lane_view(TooOpen(), lane, own, INT8, Entropy(4))
    assert "correlation of W[0] and the true weight" in leaks(list(about(view, own._asdict())))
    view = lane_view(Complementary(), lane, own, INT8, Entropy(4))
    assert leaks([*about(view, own._asdict()), *alone("W[0]", view["W[0]"]), *alone("W[1]", view["W[1]"])]) == []
    assert "byte 0 of W[0] + W[1]" in leaks(list(together(view)))


def test_statistics_find_what_is_hidden_in_bits_alone() -> None:
    """Uniform numbers whose lowest four bits are those of the input, and others that say its sign in their highest."""
    own = secret(INT8)
    noise = Seeded(bytes(32), torch.int32, (SIDE, SIDE)).expand()
    low = {"low": (noise & ~15) | (own.weight.int() & 15)}
    high = {"high": torch.where(own.x > 0, noise.abs(), noise)}
    assert "bits of low and the true weight: low, low" in leaks(list(about(low, own._asdict())))
    assert "bits of high and the true x: high, low" in leaks(list(about(high, own._asdict())))


def test_numbers_that_are_more_even_than_chance_are_found() -> None:
    counted = torch.arange(SIDE * SIDE, dtype=torch.int32) * 4096
    assert "byte 2 of counted" in leaks(list(alone("counted", counted)))


def test_the_grid_has_halves_to_compare() -> None:
    assert isinstance(GRID, Grid)
    assert [column.span.size for column in GRID.columns] == [SIDE // 2] * 2
