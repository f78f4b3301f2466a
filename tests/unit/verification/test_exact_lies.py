"""Lies in integers: none passes the check as it is, and of a weakened one the miss rate is what was proved."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.blocks.kernels import Dense, product
from awfulowl.randomness import Entropy
from awfulowl.results import wilson
from awfulowl.verification import exact
from awfulowl.verification.exact import ExactCheck
from tests.contract.verification.cases import Case, in_numbers
from tests.unit.verification.shapes import Layer, convolution, dense

SURE = 1 - 1e-6
"""Confidence of an interval that contradicts a claim."""

INT8, INT16 = INTEGERS["int8"], INTEGERS["int16"]
each = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)
Lie = Callable[[Case, torch.Generator], Tensor]

LAYERS = [
    dense(64, 32, 16),
    dense(5, 32, 16),
    convolution((12, 4, 3, 3), (6, 5), 16),
    convolution((8, 2, 3), (7,), 16, groups=4, block=2),
]


def one_off(case: Case, generator: torch.Generator) -> Tensor:
    """One more in one number of each sample."""
    lie = torch.zeros_like(case.y)
    for sample in lie:
        sample.view(-1)[int(torch.randint(sample.numel(), (), generator=generator))] = 1
    return lie


def one_row(case: Case, generator: torch.Generator) -> Tensor:
    lie = torch.zeros_like(case.y)
    lie[:, 0] = 1
    return lie


def two_rows(case: Case, generator: torch.Generator) -> Tensor:
    """What cancels if secrets are equal."""
    lie = one_row(case, generator)
    lie[:, -1] = -1
    return lie


def highest_bit(case: Case, generator: torch.Generator) -> Tensor:
    """2^31 or 2^63, which is its own negative."""
    lie = torch.zeros_like(case.y)
    lie[:, 1] = torch.iinfo(lie.dtype).min
    return lie


def highest_bits(case: Case, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(2, case.y.shape, generator=generator).to(case.y.dtype)
    chosen[:, 0] = 1
    return chosen * torch.iinfo(case.y.dtype).min


def power_of_two(case: Case, generator: torch.Generator) -> Tensor:
    """Half of the bound, rounded down to what secrets are multiples of most easily."""
    return one_off(case, generator) << (case.bound.bit_length() - 2)


def low_rank(case: Case, generator: torch.Generator) -> Tensor:
    """What weights of rank 1 would have added."""
    outputs, rest = case.weights.shape[0], case.weights[0].numel()
    column = torch.randint(1, 3, (outputs, 1), generator=generator)
    row = torch.randint(1, 3, (1, rest), generator=generator)
    weights = (column @ row).view_as(case.weights).double()
    return product(case.grid.kernel, weights, case.x.double(), case.grid.groups).to(case.y.dtype)


def smallest(case: Case, generator: torch.Generator) -> Tensor:
    return torch.randint(2, case.y.shape, generator=generator).to(case.y.dtype).index_fill_(1, torch.tensor([0]), 1)


def stale(case: Case, generator: torch.Generator) -> Tensor:
    return case.y.roll(1, dims=0) - case.y


def zeros(case: Case, generator: torch.Generator) -> Tensor:
    return -case.y


def sign(case: Case, generator: torch.Generator) -> Tensor:
    return -2 * case.y


def uniform(case: Case, generator: torch.Generator) -> Tensor:
    ends = torch.iinfo(case.y.dtype)
    return torch.randint(ends.min, ends.max, case.y.shape, dtype=case.y.dtype, generator=generator)


LIES: list[Lie] = [
    one_off,
    one_row,
    two_rows,
    highest_bit,
    highest_bits,
    power_of_two,
    low_rank,
    smallest,
    stale,
    zeros,
    sign,
    uniform,
]


@each
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("layer", LAYERS, ids=["dense", "few", "convolution", "groups"])
def test_no_lie_passes(layer: Layer, lie: Lie, numbers: Integers) -> None:
    case = in_numbers(layer, numbers)
    generator = torch.Generator().manual_seed(1)
    for seed in range(2):
        check = case.exact_check(seed)
        assert not bool(check.accepts(case.x, case.y + lie(case, generator)).any())


@each
@pytest.mark.parametrize("part", [1, 2])
def test_no_lie_passes_in_one_position_of_a_convolution(numbers: Integers, part: int) -> None:
    case = in_numbers(convolution((6, 3, 3, 3), (5, 4), 1), numbers)
    y = case.y
    places = list(itertools.product(*map(range, y.shape[1:])))
    lies = y.repeat(len(places), 1, 1, 1)
    for sample, place in zip(lies, places, strict=True):
        sample[place] += part
    for rows in (None, [0]):
        accepted = case.exact_check().accepts(case.x.expand(len(places), *case.x.shape[1:]), lies, rows=rows)
        assert not bool(accepted.any())


# The miss rate, of a check that has few bits


def weaken(case: Case, bits: int, vectors: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], ExactCheck]:
    """Return what makes checks of so few bits: with a bound that leaves no more room, or fewer bits of a float64."""
    assert isinstance(case.numbers, Integers)
    outputs_bits = (case.grid.outputs - 1).bit_length()
    monkeypatch.setattr(exact, "MISS_BITS", bits * vectors)
    if isinstance(case.grid.kernel, Dense):
        monkeypatch.setattr(exact, "modular_secrets", lambda bound: (vectors, bits))
    bound = 2 ** (63 - outputs_bits - bits) - 1
    if case.numbers.ring_bytes == 4:
        monkeypatch.setattr(exact, "EXACT_BITS", bits + 30 + outputs_bits)
        bound = 2**31 - 1
    assert bound >= case.bound
    numbers = case.numbers

    def make(seed: int) -> ExactCheck:
        check = ExactCheck([case.weights], case.grid, Entropy(seed), numbers=numbers, bound=bound)
        assert (check._bits, check.vectors) == (bits, vectors)
        return check

    return make


def passed(
    case: Case, lies: Tensor, make: Callable[[int], ExactCheck], rows: list[int] | None = None, draws: int = 60
) -> tuple[int, int]:
    """How many lies passed, one told in each sample and to each of many checks, and how many there were."""
    x, y = case.x.expand(len(lies), *case.x.shape[1:]), case.y + lies
    return sum(int(make(seed).accepts(x, y, rows=rows).sum()) for seed in range(draws)), draws * len(lies)


@each
@pytest.mark.parametrize(("bits", "vectors"), [(1, 1), (1, 3), (2, 2), (3, 1), (4, 1)])
@pytest.mark.parametrize("size", [1, 2, 2**20, "largest"])
def test_a_lie_in_one_output_passes_as_often_as_its_secrets_are_zero(
    size: int | str, bits: int, vectors: int, numbers: Integers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst that there is: exactly 2^-(b k)."""
    case = in_numbers(dense(64, 8, 1), numbers)
    make = weaken(case, bits, vectors, monkeypatch)
    error = size if isinstance(size, int) else 2 ** (30 if numbers is INT8 else 56 - bits)  # still within the bound
    lies = torch.eye(64, dtype=torch.int64) * error
    count, told = passed(case, lies.to(numbers.ring), make)
    interval = wilson(count, told, SURE)
    assert interval.low <= 2.0 ** -(bits * vectors) <= interval.high


@each
@pytest.mark.parametrize(("bits", "vectors"), [(1, 1), (1, 3), (2, 2)])
def test_lies_in_two_outputs_pass_no_more_often(
    bits: int, vectors: int, numbers: Integers, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = in_numbers(dense(64, 8, 1), numbers)
    make = weaken(case, bits, vectors, monkeypatch)
    pairs = torch.eye(64, dtype=numbers.ring)
    for factor in (-1, 1, 2, -3):
        count, told = passed(case, pairs[::2] + factor * pairs[1::2], make)
        assert wilson(count, told, SURE).low <= 2.0 ** -(bits * vectors)


@each
def test_lies_in_all_outputs_pass_no_more_often(numbers: Integers, monkeypatch: pytest.MonkeyPatch) -> None:
    case = in_numbers(dense(64, 8, 1), numbers)
    make = weaken(case, 1, 2, monkeypatch)
    generator = torch.Generator().manual_seed(2)
    lies = torch.randint(-1, 2, (32, 64), generator=generator)
    lies[:, 5] = 1
    count, told = passed(case, lies.to(numbers.ring), make)
    assert wilson(count, told, SURE).low <= 1 / 4


@each
def test_lies_at_one_position_pass_as_often_as_in_a_dense_product(
    numbers: Integers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By channels those at several positions of one channel are no better: one secret sees them all."""
    case = in_numbers(convolution((32, 2, 3), (5,), 1, block=32), numbers)
    make = weaken(case, 1, 2, monkeypatch)
    for positions, rows in ((slice(1, 2), None), (slice(1, 2), [0]), (slice(None), [0])):
        lies = torch.zeros(32, *case.y.shape[1:], dtype=numbers.ring)
        lies[torch.arange(32), torch.arange(32), positions] = 1
        count, told = passed(case, lies, make, rows)
        interval = wilson(count, told, SURE)
        assert interval.low <= 1 / 4 <= interval.high


@each
@pytest.mark.parametrize(("bits", "vectors"), [(1, 1), (1, 3), (2, 2)])
def test_lies_at_several_positions_pass_no_more_often(
    bits: int, vectors: int, numbers: Integers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even those that cancel by channels, where secrets are the same at all positions."""
    case = in_numbers(convolution((32, 2, 3), (5,), 1, block=32), numbers)
    make = weaken(case, bits, vectors, monkeypatch)
    for other in (-1, 1, 2):
        lies = torch.zeros(32, *case.y.shape[1:], dtype=numbers.ring)
        lies[torch.arange(32), torch.arange(32), 1] = 1
        lies[torch.arange(32), torch.arange(32), 3] = other
        count, told = passed(case, lies, make)
        assert wilson(count, told, SURE).low <= 2.0 ** -(bits * vectors)


@each
def test_changed_weights_match_as_rarely_as_wrong_answers_pass(
    numbers: Integers, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = in_numbers(dense(64, 8, 1), numbers)
    make = weaken(case, 1, 2, monkeypatch)
    matched = told = 0
    for seed in range(100):
        check = make(seed)
        for row in range(0, 64, 4):
            changed = case.weights.int()
            changed[row, 3] += 1
            matched += check.matches(changed)
            told += 1
    interval = wilson(matched, told, SURE)
    assert interval.low <= 1 / 4 <= interval.high
