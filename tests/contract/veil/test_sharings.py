"""What every sharing keeps: the product in its ring, the inputs as they were, and the same numbers for one place."""

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.blocks.grid import Grid, make_grid, rectangle, take
from awfulowl.blocks.kernels import Convolution, Dense, Kernel, product
from awfulowl.randomness import Entropy, Seeded, expanded
from awfulowl.veil.base import SharedInputs, SharedWeights, Sharing, Unshared
from awfulowl.veil.shares import MOST_SHARES, SHARINGS, sharing_of

NAMES = (None, *SHARINGS, f"inputs:{MOST_SHARES}")

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

each_sharing = pytest.mark.parametrize("sharing", [sharing_of(name) for name in NAMES], ids=map(str, NAMES))
each_numbers = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)


class Case(NamedTuple):
    """Integers, as 64 bits, and how they are cut."""

    weight: Tensor
    x: Tensor
    grid: Grid
    seed: int

    @property
    def columns(self) -> range:
        return range(len(self.grid.columns))


@st.composite
def dense(draw: st.DrawFn) -> tuple[Kernel, tuple[int, ...], int, tuple[int, ...]]:
    sizes = st.integers(1, 12)
    return Dense(), (draw(sizes), draw(sizes)), 1, ()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Kernel, tuple[int, ...], int, tuple[int, ...]]:
    """Over one or two dimensions; plain, grouped and depthwise."""
    dimensions = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    each = st.lists(st.integers(1, 2), min_size=dimensions, max_size=dimensions).map(tuple)
    size = draw(each)
    padding = tuple(taps - 1 for taps in size)
    shape = (groups * draw(st.integers(1, 3)), draw(st.integers(1, 4)), *size)
    space = tuple(draw(st.integers(taps, 4)) for taps in size)
    return Convolution(draw(each), padding, (1,) * dimensions), shape, groups, space


def numbers_of(shape: Sequence[int], numbers: Integers, kind: str, generator: torch.Generator) -> Tensor:
    """Integers of any size, or all as large as they get."""
    x = torch.randint(-numbers.largest, numbers.largest + 1, tuple(shape), generator=generator)
    if kind == "largest":
        return torch.full_like(x, numbers.largest)
    return x.sign() * numbers.largest if kind == "extremes" else x


@st.composite
def cases(draw: st.DrawFn, numbers: Integers) -> Case:
    kernel, shape, groups, space = draw(st.one_of(dense(), convolutions()))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    kinds = st.sampled_from(["any", "any", "largest", "extremes"])
    weight = numbers_of(shape, numbers, draw(kinds), generator)
    x = numbers_of((draw(st.integers(1, 3)), shape[1] * groups, *space), numbers, draw(kinds), generator)
    block = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    return Case(weight, x, make_grid(shape, kernel, groups, block=block), seed)


def block_of(case: Case, column: int, numbers: Integers) -> Tensor:
    """The blocks of one column, in the type in which the owner holds them."""
    empty = partial(torch.empty, dtype=torch.int64)
    return rectangle([case.weight], case.grid, case.grid.columns[column].rows, [column], empty).to(numbers.dtype)


def numbers_in(pieces: Sequence[Tensor | Seeded]) -> list[Tensor]:
    """What a device gets, as it multiplies it."""
    return [expanded(piece) for piece in pieces]


def lane_product(case: Case, numbers: Integers, vectors: Tensor, matrices: Sequence[Sequence[Tensor]]) -> Tensor:
    """What an honest lane answers modulo 2^64, from vectors side by side and matrices by column: plain products."""
    grid = case.grid
    widths = [column.span.size for column in grid.columns] * len(matrices[0])
    x = torch.split(vectors.long(), widths, dim=1)
    y = torch.zeros_like(product(grid.kernel, case.weight, case.x, grid.groups))
    for index, column in enumerate(grid.columns):
        outputs = [output for row in column.rows for output in range(grid.rows[row].start, grid.rows[row].stop)]
        for part, matrix in enumerate(matrices[index]):
            own = x[part * len(grid.columns) + index]
            y[:, outputs] += product(grid.kernel, matrix.long(), own, column.groups)
    return y


@each_numbers
@each_sharing
@given(data=st.data())
@some
def test_the_answers_of_all_lanes_add_up_to_the_product(
    sharing: Sharing, numbers: Integers, data: st.DataObject
) -> None:
    case = data.draw(cases(numbers))
    entropy = Entropy(case.seed)
    x = case.x.to(numbers.dtype)
    inputs = SharedInputs(sharing, x, case.grid, numbers.ring, entropy)
    weights = SharedWeights(sharing, numbers.ring, entropy)
    total = torch.zeros((), dtype=torch.int64)
    for lane in range(sharing.lanes):
        vectors = torch.cat(numbers_in(inputs.inputs(lane, case.columns, f"party{lane}")), dim=1)
        matrices = [
            numbers_in(weights.matrices(lane, block_of(case, column, numbers), (3, column))) for column in case.columns
        ]
        assert {len(own) for own in matrices} == {len(sharing.matrices(lane))}
        assert vectors.shape[1] == len(sharing.matrices(lane)) * case.grid.inputs
        total = total + lane_product(case, numbers, vectors, matrices)
    # To the ring's type: what is beyond its bits wraps around.
    true = product(case.grid.kernel, case.weight, case.x, case.grid.groups)
    assert torch.equal(total.to(numbers.ring), true.to(numbers.ring))
    assert torch.equal(x, case.x.to(numbers.dtype))


@each_numbers
@each_sharing
@given(data=st.data())
@some
def test_the_matrices_of_whole_add_up_to_the_weights(sharing: Sharing, numbers: Integers, data: st.DataObject) -> None:
    case = data.draw(cases(numbers))
    weights = SharedWeights(sharing, numbers.ring, Entropy(case.seed))
    for column in case.columns:
        block = block_of(case, column, numbers)
        before = block.clone()
        parts = [expanded(weights.matrices(lane, block, (column,))[part]) for lane, part in sharing.whole]
        total = torch.stack(parts).to(numbers.ring).sum(0, dtype=numbers.ring)
        assert torch.equal(total, block.to(numbers.ring))
        assert torch.equal(block, before)


@each_numbers
@each_sharing
@given(data=st.data())
@some
def test_columns_in_any_order_are_cut_out_of_the_whole(
    sharing: Sharing, numbers: Integers, data: st.DataObject
) -> None:
    """A device with some columns gets their numbers of each share, wherever they come from."""
    case = data.draw(cases(numbers))
    columns = data.draw(st.lists(st.sampled_from(case.columns), min_size=1, unique=True))
    inputs = SharedInputs(sharing, case.x.to(numbers.dtype), case.grid, numbers.ring, Entropy(case.seed))
    for lane in range(sharing.lanes):
        whole = torch.cat(numbers_in(inputs.inputs(lane, case.columns, f"party{lane}")), dim=1)
        shares = torch.split(whole, case.grid.inputs, dim=1)
        own = torch.cat(numbers_in(inputs.inputs(lane, columns, f"party{lane}")), dim=1)
        assert torch.equal(own, torch.cat([take(share, case.grid, columns) for share in shares], dim=1))


def example(numbers: Integers) -> Case:
    generator = torch.Generator().manual_seed(0)
    weight = numbers_of((6, 10), numbers, "any", generator)
    return Case(weight, numbers_of((4, 10), numbers, "any", generator), make_grid((6, 10), Dense(), 1, block=4), 0)


@each_numbers
@each_sharing
def test_numbers_that_are_of_the_ring_already_are_not_changed(sharing: Sharing, numbers: Integers) -> None:
    case = example(numbers)
    x, block = case.x.to(numbers.ring), case.weight.to(numbers.ring)
    SharedInputs(sharing, x, case.grid, numbers.ring, Entropy(0))
    weights = SharedWeights(sharing, numbers.ring, Entropy(0))
    for lane in range(sharing.lanes):
        weights.matrices(lane, block, (0,))
    assert torch.equal(x, case.x.to(numbers.ring))
    assert torch.equal(block, case.weight.to(numbers.ring))


@each_numbers
@each_sharing
def test_seeds_and_numbers_are_what_the_wire_is_to_carry(sharing: Sharing, numbers: Integers) -> None:
    """Of random shares one seed for each column; sums with the last share are one contiguous tensor of the ring."""
    case = example(numbers)
    inputs = SharedInputs(sharing, case.x.to(numbers.dtype), case.grid, numbers.ring, Entropy(0))
    for lane in range(sharing.lanes):
        pieces = inputs.inputs(lane, case.columns, f"party{lane}")
        last = [piece for piece in pieces if isinstance(piece, Tensor)]
        seeded = [piece for piece in pieces if isinstance(piece, Seeded)]
        own = [wanted for _, wanted in sharing.products(lane)]
        assert len(last) == sum(sharing.shares - 1 in wanted for wanted in own)
        assert len(seeded) == (len(own) - len(last)) * len(case.columns)
        assert all(piece.is_contiguous() for piece in last)
        assert {piece.dtype for piece in pieces} == {numbers.dtype if sharing.shares == 1 else numbers.ring}
        assert len({piece.seed for piece in seeded}) == len(seeded)


@each_sharing
def test_nobody_has_a_seed_of_somebody_elses_column(sharing: Sharing) -> None:
    case = example(INTEGERS["int8"])
    inputs = SharedInputs(sharing, case.x.to(torch.int8), case.grid, torch.int32, Entropy(0))
    seeds = [
        {piece.seed for piece in inputs.inputs(lane, [column], f"{lane}-{column}") if isinstance(piece, Seeded)}
        for lane, column in itertools.product(range(sharing.lanes), case.columns)
    ]
    counted = Counter(itertools.chain.from_iterable(seeds))
    # Each share goes to as many lanes as have it among their products, and to those for one column only.
    have = Counter(wanted for lane in range(sharing.lanes) for _, wanted in sharing.products(lane))
    assert sorted(counted.values()) == sorted(have[share,] for share in range(sharing.shares - 1) for _ in case.columns)


@each_numbers
@each_sharing
def test_the_same_inputs_are_shared_afresh(sharing: Sharing, numbers: Integers) -> None:
    case, entropy = example(numbers), Entropy(0)
    one, other = (SharedInputs(sharing, case.x.to(numbers.dtype), case.grid, numbers.ring, entropy) for _ in range(2))
    for lane, column in itertools.product(range(sharing.lanes), case.columns):
        first, second = (numbers_in(each.inputs(lane, [column], f"party{lane}")) for each in (one, other))
        for mine, theirs in zip(first, second, strict=True):
            assert torch.equal(mine, theirs) == isinstance(sharing, Unshared)


@each_numbers
@each_sharing
def test_weights_of_one_place_are_shared_alike_again(sharing: Sharing, numbers: Integers) -> None:
    block = example(numbers).weight.to(numbers.dtype)
    entropy = Entropy(0)
    weights, others = (SharedWeights(sharing, numbers.ring, entropy) for _ in range(2))
    for lane in range(sharing.lanes):
        first, again, *changed = (
            numbers_in(key.matrices(lane, block, place))
            for key, place in (
                (weights, (5, 2)),
                (weights, (5, 2)),
                (weights, (5, 3)),
                (weights, (2, 5)),
                (others, (5, 2)),
            )
        )
        assert all(map(torch.equal, first, again))
        assert {matrix.dtype for matrix in first} == {numbers.ring if sharing.hides_weights else numbers.dtype}
        for other in changed:
            equal = [torch.equal(*pair) for pair in zip(first, other, strict=True)]
            assert equal == [not sharing.hides_weights] * len(sharing.matrices(lane))


@each_numbers
@each_sharing
def test_of_weights_random_shares_alone_are_seeds_and_only_their_lanes_have_them(
    sharing: Sharing, numbers: Integers
) -> None:
    """Every block and share has a seed of its own; two whole copies are sent of hidden weights, whatever the lanes."""
    block = example(numbers).weight.to(numbers.dtype)
    weights = SharedWeights(sharing, numbers.ring, Entropy(0))
    places = [(0, 0), (0, 1), (1, 0)]
    seeds: dict[bytes, set[tuple[object, ...]]] = {}
    for lane, place in itertools.product(range(sharing.lanes), places):
        own = weights.matrices(lane, block, place)
        for (wanted, _), matrix in zip(sharing.products(lane), own, strict=True):
            random = len(wanted) == 1 and wanted[0] < sharing.shares - 1 and sharing.hides_weights
            assert isinstance(matrix, Seeded) == random
            assert tuple(matrix.shape) == tuple(block.shape)
            if isinstance(matrix, Seeded):
                seeds.setdefault(matrix.seed, set()).add((wanted, place))
    assert all(len(meant) == 1 for meant in seeds.values())
    assert len(seeds) == (sharing.shares - 1) * len(places) * sharing.hides_weights
    if sharing.hides_weights:
        assert sum(sharing.shares - 1 in own for lane in range(sharing.lanes) for own, _ in sharing.products(lane)) == 2


@each_sharing
def test_every_share_of_the_weights_meets_every_share_of_the_inputs_once(sharing: Sharing) -> None:
    """Σ W_i Σ x_j, written out: each product belongs to exactly one lane."""
    met = Counter(
        pair
        for lane in range(sharing.lanes)
        for wanted, of_inputs in sharing.products(lane)
        for pair in itertools.product(wanted if sharing.hides_weights else (0,), of_inputs)
    )
    of_weights = sharing.shares if sharing.hides_weights else 1
    assert met == Counter(itertools.product(range(of_weights), range(sharing.shares)))
    numbered = [number for lane in range(sharing.lanes) for number in sharing.matrices(lane)]
    assert numbered == list(range(sum(len(sharing.products(lane)) for lane in range(sharing.lanes))))


def spanned(vectors: Sequence[int]) -> set[int]:
    """All sums of bit vectors without carry: what is not among them is no sum modulo any power of two either."""
    sums = {0}
    for vector in vectors:
        sums |= {vector ^ one for one in sums}
    return sums


@each_sharing
def test_so_many_lanes_learn_everything_and_fewer_nothing(sharing: Sharing) -> None:
    """Shares as bit vectors: a set of lanes has the secret where its sums reach that of all shares."""
    every = (1 << sharing.shares) - 1
    for count in range(1, sharing.lanes + 1):
        for lanes in itertools.combinations(range(sharing.lanes), count):
            held = [pair for lane in lanes for pair in sharing.products(lane)]
            inputs = spanned([sum(1 << share for share in wanted) for _, wanted in held])
            assert (every in inputs) == (count >= sharing.threshold)
            if sharing.hides_weights:
                weights = spanned([sum(1 << share for share in wanted) for wanted, _ in held])
                assert (every in weights) == (count >= sharing.threshold)


@each_sharing
def test_whole_names_matrices_that_there_are(sharing: Sharing) -> None:
    assert all(0 <= lane < sharing.lanes and 0 <= part < len(sharing.matrices(lane)) for lane, part in sharing.whole)
    assert len(set(sharing.whole)) == len(sharing.whole)
    assert 1 <= sharing.threshold <= sharing.lanes
    assert sharing.matrices(sharing.lanes - 1).stop >= sharing.shares


def test_every_sharing_is_tested_here() -> None:
    assert set(SHARINGS) < set(NAMES)
    assert [sharing_of(name).name for name in NAMES] == [name or "none" for name in NAMES]
