"""The check over the integers: the arithmetic is exact, its bounds are those that were proved, and errors say what."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.arithmetic.pieces import digit_sizes
from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, Dense
from awfulowl.errors import InputError, ModelError
from awfulowl.randomness import Entropy
from awfulowl.verification.exact import MISS_BITS, ExactCheck, ExactExpectation, modular_secrets, secret_bits
from tests.contract.verification.cases import Case, cases, in_numbers
from tests.unit.verification.shapes import convolution, dense, some

INT8, INT16 = INTEGERS["int8"], INTEGERS["int16"]
each = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)
OUTPUTS = st.integers(1, 2**22) | st.integers(0, 22).map(lambda power: 2**power)
BOUNDS = (
    st.integers(0, 2**62) | st.integers(0, 62).map(lambda power: 2**power) | st.integers(1, 62).map(lambda b: 2**b - 1)
)


class Ends(Entropy):
    """Secrets that are all as small, or all as large, as they get."""

    def __init__(self, *, largest: bool) -> None:
        super().__init__(0)
        self._largest = largest

    def integers(self, bound: int, *shape: int) -> Tensor:
        return torch.full(shape, bound - 1 if self._largest else 0)


class Uneven(Entropy):
    """Secrets as large as they get, but for one, so that sums of them are odd."""

    def integers(self, bound: int, *shape: int) -> Tensor:
        r = torch.full(shape, bound - 1)
        r[:, 0] -= 1
        return r


def check_of(case: Case, entropy: Entropy) -> ExactCheck:
    assert isinstance(case.numbers, Integers)
    return ExactCheck([case.weights], case.grid, entropy, numbers=case.numbers, bound=case.bound)


def wrapped_sum(y: Tensor, lanes: int) -> Tensor:
    """An answer put together from shares, of which all but one are uniform in the ring."""
    ends = torch.iinfo(y.dtype)
    generator = torch.Generator().manual_seed(4)
    shares = [torch.randint(ends.min, ends.max, y.shape, dtype=y.dtype, generator=generator) for _ in range(lanes - 1)]
    total = y.clone()
    for share in shares:
        total -= share
    for share in shares:
        total += share
    return total


# How many bits the secrets have


@given(OUTPUTS)
def test_answers_of_4_bytes_are_weighed_in_one_piece(outputs: int) -> None:
    bits = secret_bits(outputs, INT8, 0)
    assert bits + 32 + math.ceil(math.log2(outputs)) == 55
    assert digit_sizes(32, bits, outputs) == (32, bits)
    assert Fraction(2) ** (bits - 1) * outputs * 2**32 < 2**63


@given(OUTPUTS, BOUNDS)
def test_no_error_of_longer_answers_wraps_around(outputs: int, bound: int) -> None:
    """2^(b-1) m E < 2^63 with E = 2 B, for which b is the largest: up to 16, and with m and E as powers of two."""
    outputs_bits, error_bits = (outputs - 1).bit_length(), (2 * bound).bit_length()
    if outputs_bits + error_bits > 63:
        with pytest.raises(ModelError, match=f"{outputs} outputs up to {bound} are too many to be checked in int16"):
            secret_bits(outputs, INT16, bound)
        return
    bits = secret_bits(outputs, INT16, bound)
    assert 1 <= bits <= 16
    assert Fraction(2) ** (bits - 1) * outputs * 2 * bound < 2**63
    assert bits == 16 or bits + outputs_bits + error_bits == 64


def test_layers_that_are_too_large_cannot_be_checked() -> None:
    assert secret_bits(2**22, INT8, 0) == 1
    with pytest.raises(ModelError, match=r"4194305 outputs up to 7 are too many to be checked in int8"):
        secret_bits(2**22 + 1, INT8, 7)
    assert secret_bits(1, INT16, 2**62 - 1) == 1
    with pytest.raises(ModelError, match="too many"):
        secret_bits(2, INT16, 2**62 - 1)
    grid = make_grid((2, 1), Dense(), 1, block=1)
    with pytest.raises(ModelError, match="too many"):
        ExactCheck([torch.ones(2, 1, dtype=torch.int16)], grid, Entropy(0), numbers=INT16, bound=2**62 - 1)


@each
@some
@given(data=st.data())
def test_vectors_are_enough_for_the_miss_rate(numbers: Integers, data: st.DataObject) -> None:
    case = data.draw(cases(numbers))
    check = case.exact_check()
    bits = secret_bits(case.grid.outputs, numbers, case.bound)
    if isinstance(case.grid.kernel, Dense):
        bits = modular_secrets(case.bound)[1]
    assert (check.vectors - 1) * bits < MISS_BITS <= check.vectors * bits
    r = check._sums.r
    assert r.shape == (check.vectors, case.grid.outputs)
    assert -(2 ** (bits - 1)) <= int(r.min()) <= int(r.max()) < 2 ** (bits - 1)
    assert torch.equal(r, r.double().round().to(r.dtype))


def test_secrets_are_uniform() -> None:
    layer = in_numbers(dense(4096, 1, 1, block=4096), INT16)
    r = check_of(layer, Entropy(1))._sums.r
    vectors, bits = modular_secrets(layer.bound)
    assert r.shape == (vectors, 4096)
    counts = torch.bincount((r + 2 ** (bits - 1)).flatten() >> (bits - 4), minlength=16).double()
    mean = r.numel() / 16
    assert len(counts) == 16
    assert float(((counts - mean) ** 2 / mean).sum()) < 60  # chi square with 15 degrees of freedom: below at 1 - 1e-6
    assert len(set(r.flatten().tolist())) > 0.8 * r.numel()


# What is computed


@each
@some
@given(data=st.data())
def test_both_sides_are_the_same_integer(numbers: Integers, data: st.DataObject) -> None:
    """r W x as Python has it, with any secrets, a convolution by channels and over all positions."""
    case = data.draw(cases(numbers, least_batch=1))
    entropy = data.draw(st.sampled_from([Entropy(1), Ends(largest=False), Ends(largest=True)]))
    check, y = check_of(case, entropy), case.y
    expectation = check.expect(case.x, rows=data.draw(st.sampled_from([None, range(len(case.grid.rows))])))
    r = expectation._r.long().numpy().astype(object)
    whole = y.flatten(1) if expectation._product.dim() == 2 else y
    answers = whole.movedim(1, -1).numpy().astype(object)
    expected = np.moveaxis(answers @ r.T, -1, 0)
    found = expectation._product.numpy().astype(object)
    assert found.shape == expected.shape
    assert bool(np.all((found - expected) % 2**64 == 0))
    assert bool(expectation.accepts(y).all())


@each
@pytest.mark.parametrize("entropy", [Entropy(1), Ends(largest=False), Ends(largest=True)])
@pytest.mark.parametrize("signs", ["same", "other", "mixed"])
def test_the_largest_numbers_are_no_exception(numbers: Integers, signs: str, entropy: Entropy) -> None:
    """All of them of the largest size, in the longest sums that there can be in int8."""
    outputs, inputs = 3, 133_144 if numbers is INT8 else 20_000
    weights = torch.full((outputs, inputs), numbers.largest, dtype=numbers.dtype)
    x = torch.full((3, inputs), numbers.largest, dtype=numbers.dtype)
    if signs == "other":
        x.neg_()
    elif signs == "mixed":
        x[1, ::2].neg_()
        weights[1].neg_()
    case = Case(weights, make_grid((outputs, inputs), Dense(), 1, block=50_000), x, numbers)
    check, y = check_of(case, entropy), case.y
    assert int(y.long().abs().max()) == case.bound == inputs * numbers.largest**2
    assert bool(check.accepts(x, y).all())
    inwards = y.clone()
    inwards[:, 1] += torch.where(y[:, 1] > 0, -1, 1)
    r = check._sums.r[:, 1]
    assert check.accepts(x, inwards).tolist() == [not bool(r.any())] * 3


@each
@pytest.mark.parametrize("outputs", [1, 2, 8, 33])
def test_sums_at_the_edge_of_what_a_piece_holds(numbers: Integers, outputs: int) -> None:
    """Odd ones, which a float64 beyond 2^53 would round."""
    for inputs in (1, 3, 9, 17, 33, 65, 129, 257, 513, 1025, 4097):
        weights = torch.full((outputs, inputs), numbers.largest, dtype=numbers.dtype)
        x = torch.full((1, inputs), numbers.largest, dtype=numbers.dtype)
        case = Case(weights, make_grid((outputs, inputs), Dense(), 1, block=10_000), x, numbers)
        assert bool(check_of(case, Uneven(0)).accepts(x, case.y).all())
        if inputs > 257:
            continue
        kernel = Convolution((1,), (0,), (1,))
        taps = Case(weights[:, None], make_grid((outputs, 1, inputs), kernel, 1, block=10_000), x[:, None], numbers)
        for rows in (None, [0]):
            assert bool(check_of(taps, Uneven(0)).accepts(taps.x, taps.y, rows=rows).all())


@each
def test_many_outputs_of_the_largest_size(numbers: Integers) -> None:
    weights = torch.full((5000, 9), -numbers.largest, dtype=numbers.dtype)
    x = torch.full((2, 9), numbers.largest, dtype=numbers.dtype)
    case = Case(weights, make_grid((5000, 9), Dense(), 1, block=5000), x, numbers)
    for entropy in (Entropy(2), Ends(largest=False), Ends(largest=True)):
        assert bool(check_of(case, entropy).accepts(x, case.y).all())


@each
@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize(
    "layer", [dense(30, 20), convolution((6, 4, 3, 3), (7, 5)), convolution((6, 2, 3), (9,), groups=3)]
)
def test_sums_of_shares_wrap_around_to_the_right_answer(numbers: Integers, lanes: int, layer: object) -> None:
    case = in_numbers(layer, numbers, extreme=True)  # type: ignore[arg-type]
    y = wrapped_sum(case.y, lanes)
    assert bool(case.exact_check().accepts(case.x, y).all())
    y[0].view(-1)[0] += 1
    assert case.exact_check().accepts(case.x, y).tolist() == [False] + [True] * (len(y) - 1)


@each
def test_answers_in_fewer_bytes_are_checked_as_they_are(numbers: Integers) -> None:
    """Those of int16 that fit 4 bytes travel in 4, and those of int8 may come in 8."""
    layer = dense(7, 5)
    small = layer._replace(weights=layer.weights.sign() / numbers.largest)
    case = Case(small.weights.sign().to(numbers.dtype), small.grid, in_numbers(small, numbers).x, numbers)
    check = case.exact_check()
    for dtype in (torch.int32, torch.int64):
        y = case.y.to(dtype)
        assert bool(check.accepts(case.x, y).all())
        y[:, 3] += 1
        assert not bool(check.accepts(case.x, y).any())


# What is not right


def flipped(y: Tensor, bits: int) -> Tensor:
    """One sample for each bit of each number of the only sample in y: the answer with that bit flipped."""
    numbers = y.numel()
    lies = y.repeat(numbers * bits, *[1] * (y.dim() - 1)).view(numbers, bits, numbers)
    masks = torch.tensor([1 << bit if bit < bits - 1 else -(1 << bit) for bit in range(bits)], dtype=y.dtype)
    lies[torch.arange(numbers), :, torch.arange(numbers)] ^= masks
    return lies.view(numbers * bits, *y.shape[1:])


@pytest.mark.parametrize(("numbers", "dtype"), [(INT8, torch.int32), (INT16, torch.int64), (INT16, torch.int32)])
@pytest.mark.parametrize(
    "layer",
    [dense(1, 3, 1), dense(20, 9, 1), convolution((6, 2, 3), (7,), 1), convolution((4, 1, 2, 2), (3, 3), 1, groups=2)],
)
def test_every_bit_of_every_number_counts(layer: object, numbers: Integers, dtype: torch.dtype) -> None:
    """Of a convolution over all positions, and by channels where rows are named."""
    case = in_numbers(layer, numbers)  # type: ignore[arg-type]
    if dtype.itemsize < numbers.ring_bytes:
        case = case._replace(weights=case.weights.clamp(-5, 5), x=case.x)
    bits = 8 * dtype.itemsize
    lies = flipped(case.y.to(dtype), bits)
    assert len(lies) == bits * case.y.numel()
    x = case.x.expand(len(lies), *case.x.shape[1:])
    check = case.exact_check()
    for rows in (None, range(len(case.grid.rows))):
        assert bool(check.accepts(case.x, case.y.to(dtype), rows=rows).all())
        assert not bool(check.accepts(x, lies, rows=rows).any())


def test_answers_beyond_the_bound_are_wrong_even_if_they_weigh_the_same() -> None:
    """A lie of 2^63 is a multiple of 2^64 for a secret that is even."""
    y = torch.arange(-6, 6).view(3, 4)
    r = torch.tensor([[2.0, -4.0, 6.0, 0.0], [-2.0, 8.0, 2.0, 4.0]], dtype=torch.float64)
    product = (r @ y.double().T).long()
    lies = y.clone()
    lies[2, 2] -= 2**63
    unbounded = ExactExpectation(r, 5, product, y.shape, 2**63 - 1)
    assert unbounded.accepts(lies).tolist() == [True] * 3
    bounded = ExactExpectation(r, 5, product, y.shape, 6)
    assert bounded.accepts(lies).tolist() == [True, True, False]
    assert bounded.accepts(y).tolist() == [True] * 3


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_bound_itself_may_be_answered(sign: int) -> None:
    r = torch.zeros(1, 2, dtype=torch.float64)  # a secret that sees nothing
    expectation = ExactExpectation(r, 1, torch.zeros(1, 3, dtype=torch.int64), (3, 2), 100)
    assert expectation.accepts(sign * torch.tensor([[0, 100], [101, 0], [0, 2**62]])).tolist() == [True, False, False]


def test_int8_answers_that_came_in_8_bytes_are_held_to_4() -> None:
    case = in_numbers(dense(64, 4, 1), INT8)
    lies = case.y.long() + torch.eye(64, dtype=torch.long) * -(2**63)
    check = case.exact_check()
    assert bool((check._sums.r % 2 == 0).all(dim=0).any())  # some output has even secrets only
    assert not bool(check.accepts(case.x.expand(64, 4), lies).any())


@each
def test_no_sample_spoils_another(numbers: Integers) -> None:
    """Not even one that is far beyond every bound."""
    case = in_numbers(dense(9, 5, 6), numbers)
    y, ends = case.y, torch.iinfo(numbers.ring)
    y[1], y[4] = ends.min, ends.max
    assert case.exact_check().accepts(case.x, y).tolist() == [True, False, True, True, False, True]


@each
def test_zeros_have_to_be_answered_by_zeros(numbers: Integers) -> None:
    case = in_numbers(dense(5, 6), numbers)
    x, y = torch.zeros(2, 6, dtype=numbers.dtype), torch.zeros(2, 5, dtype=numbers.ring)
    y[1, 2] = 1
    assert case.exact_check().accepts(x, y).tolist() == [True, False]
    nothing = case._replace(weights=torch.zeros_like(case.weights))
    assert bool(nothing.exact_check().accepts(case.x, nothing.y).all())
    assert not bool(nothing.exact_check().accepts(case.x, nothing.y + 1).any())


# What is kept


@each
def test_memory_counts_each_tensor_once(numbers: Integers) -> None:
    """An int64 for each number."""
    case = in_numbers(dense(32, 64, 1), numbers)
    together, apart = case.exact_check(apart=[]), case.exact_check(apart=None)
    assert together.vectors == apart.vectors == (1 if numbers.name == "int8" else 2)
    assert together.memory_bytes == together.vectors * 8 * (32 + 64)
    assert apart.memory_bytes == apart.vectors * 8 * (32 + 64 + 2 * 64)


@each
def test_memory_is_a_small_part_of_the_weights(numbers: Integers) -> None:
    case = in_numbers(dense(2048, 2048, 1, block=256), numbers)
    assert case.exact_check(apart=[]).memory_bytes < 0.07 * case.weights.nbytes


@each
def test_weights_match_in_whatever_type_they_come(numbers: Integers) -> None:
    case = in_numbers(dense(9, 5), numbers)
    for dtype in (torch.int16, torch.int32, torch.int64, torch.float32):
        assert case.exact_check().matches(case.weights.to(dtype))


@each
@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0**40, -(2.0**62)])
def test_weights_that_are_no_such_integers_match_nothing(numbers: Integers, value: float) -> None:
    case = in_numbers(dense(9, 5), numbers)
    changed = case.weights.float()
    changed[4, 2] = value
    assert not case.exact_check().matches(changed)


@each
def test_rows_are_asked_for_by_their_numbers(numbers: Integers) -> None:
    case = in_numbers(dense(64, 32), numbers)
    check = case.exact_check(apart=[(0, 1), (2, 3)])
    assert check.matches(case.weights[32:], rows=(2, 3))
    with pytest.raises(InputError, match=r"rows \[1\] .*apart"):
        check.matches(case.weights[16:32], rows=(1,))
