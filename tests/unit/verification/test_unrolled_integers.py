"""An exact convolution as the dense product that it is: modulo 2^64, with a bound, and never a false alarm."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.arithmetic.local import Rounded, largest_sum
from awfulowl.arithmetic.numbers import INTEGERS, Integers
from awfulowl.arithmetic.products import fastest
from awfulowl.blocks.grid import make_grid
from awfulowl.blocks.kernels import Convolution, product
from awfulowl.randomness import Entropy
from awfulowl.verification import compiled, unrolled
from awfulowl.verification.exact import MISS_BITS, ExactCheck, ExactExpectation, modular_secrets
from awfulowl.verification.unrolled import IntegerVectors, fits, unroll_integers
from tests.contract.verification.cases import Case, cases, in_numbers
from tests.prepared import prepared
from tests.unit.verification.shapes import convolution, some
from tests.unit.verification.test_exact import Ends, Uneven, check_of, flipped

INT8, INT16 = INTEGERS["int8"], INTEGERS["int16"]
each = pytest.mark.parametrize("numbers", INTEGERS.values(), ids=INTEGERS)
BOUNDS = (
    st.integers(0, 2**62 - 1)
    | st.integers(0, 61).map(lambda power: 2**power)
    | st.integers(1, 62).map(lambda power: 2**power - 1)
)


@pytest.fixture(params=["loops", "PyTorch"], autouse=True)
def _loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test in compiled loops, and without."""
    with prepared(compiled._LOOPS):
        if request.param == "PyTorch":
            compiled._LOOPS.module = None
        yield


def image_case(numbers: Integers, batch: int = 5, side: int = 6) -> Case:
    """3 x 3 on 4 channels, to 8."""
    return in_numbers(convolution((8, 4, 3, 3), (side, side), batch, block=4), numbers)


def secrets_of(case: Case, entropy: Entropy) -> IntegerVectors:
    found = check_of(case, entropy)._unroll(tuple(case.x.shape[2:]))
    assert found is not None
    return found


def in_python(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().astype(object)


def constant(numbers: Integers, signs: tuple[int, int]) -> Case:
    """112 channels to 512, 3 x 3, all of the largest size: the largest sums in int8 for one vector of 40 bits."""
    shape, kernel = (512, 112, 3, 3), Convolution((1, 1), (1, 1), (1, 1))
    weights = torch.full(shape, signs[0] * numbers.largest, dtype=numbers.dtype)
    x = torch.full((1, 112, 3, 3), signs[1] * numbers.largest, dtype=numbers.dtype)
    return Case(weights, make_grid(shape, kernel, 1, block=512), x, numbers)


# How many secrets there are


@given(BOUNDS)
def test_one_secret_number_of_all_that_there_are_hides_an_error(bound: int) -> None:
    """Two differ by d, |d| < 2^b; an error e is at most 2 B: 2^64 does not divide d e, as powers of two show."""
    vectors, bits = modular_secrets(bound)
    most = max(0, (2 * bound).bit_length() - 1)
    assert (bits - 1) + most < 64
    assert vectors * bits >= MISS_BITS
    assert bits <= 62  # that `Entropy.integers` can draw


@given(BOUNDS)
def test_there_are_no_more_vectors_than_needed(bound: int) -> None:
    vectors, bits = modular_secrets(bound)
    room = 65 - (2 * bound).bit_length()  # a secret of one more bit would not see the largest power of two
    assert (vectors - 1) * room < MISS_BITS
    assert vectors * (bits - 1) < MISS_BITS


@pytest.mark.parametrize(
    ("bound", "secrets"),
    [
        (0, (1, 40)),
        (2**24 - 1, (1, 40)),
        (2**24, (2, 20)),
        (2**44 - 1, (2, 20)),
        (2**44, (3, 14)),
        (2**62 - 1, (20, 2)),
    ],
)
def test_vectors_by_the_largest_sum(bound: int, secrets: tuple[int, int]) -> None:
    assert modular_secrets(bound) == secrets


@pytest.mark.parametrize("bits", range(1, 7))
def test_with_a_bit_more_a_power_of_two_would_pass_twice_as_often(bits: int) -> None:
    """All secret numbers of so many bits, held against the largest error that these are for, and against twice that."""
    r = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))[:, None]
    for error, hidden in ((2 ** (64 - bits), 1), (2 ** (65 - bits), 2)):
        if error < 2**63:
            passed = [
                bool(
                    ExactExpectation(one[None], None, torch.zeros(1, 1, dtype=torch.int64), (1, 1), 2**63 - 1).accepts(
                        torch.tensor([[error]])
                    )
                )
                for one in r
            ]
            assert sum(passed) == hidden


# What they are


@each
@some
@given(data=st.data())
def test_secrets_are_of_the_matrix_written_out(numbers: Integers, data: st.DataObject) -> None:
    """As Python adds them up, whatever was drawn."""
    case = data.draw(cases(numbers))
    assume(case.x.dim() > 2)
    entropy = data.draw(st.sampled_from([Entropy(1), Ends(largest=False), Ends(largest=True), Uneven(0)]))
    found, shape = secrets_of(case, entropy), case.x.shape[1:]
    basis = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    matrix = product(case.grid.kernel, case.weights.double(), basis, case.grid.groups).flatten(1).long()
    vectors, bits = modular_secrets(case.bound)
    assert found.r.shape == (vectors, matrix.shape[1])
    assert -(2 ** (bits - 1)) <= int(found.r.min()) <= int(found.r.max()) < 2 ** (bits - 1)
    wanted = in_python(found.r) @ in_python(matrix).T
    assert bool(np.all((in_python(found.s) - wanted) % 2**64 == 0))


@each
def test_secrets_are_uniform_at_all_positions(numbers: Integers) -> None:
    case = in_numbers(convolution((16, 2, 3), (256,), 1), numbers)
    r = secrets_of(case, Entropy(1)).r
    bits = modular_secrets(case.bound)[1]
    counts = torch.bincount((r + 2 ** (bits - 1)).flatten() >> (bits - 4), minlength=16).double()
    mean = r.numel() / 16
    assert len(counts) == 16
    assert float(((counts - mean) ** 2 / mean).sum()) < 60  # chi square with 15 degrees of freedom: below at 1 - 1e-6
    assert len(set(r.flatten().tolist())) > 0.95 * r.numel()


@each
@pytest.mark.parametrize("signs", [(-1, -1), (-1, 1), (1, -1), (1, 1)])
@pytest.mark.parametrize("entropy", [Ends(largest=False), Ends(largest=True), Uneven(0), Entropy(1)])
def test_the_largest_numbers_do_not_overflow(numbers: Integers, signs: tuple[int, int], entropy: Entropy) -> None:
    """Neither in int64 nor in float64, which could not hold the sums of 4,608 products in one piece."""
    case = constant(numbers, signs)
    check, found = check_of(case, entropy), secrets_of(case, entropy)
    middle = int(in_python(found.r).sum(axis=1)[0]) * signs[0] * numbers.largest
    assert (int(found.s.view(-1, 112, 3, 3)[0, 7, 1, 1]) - middle) % 2**64 == 0
    y = fastest().multiply(case.grid.kernel, fastest().prepare(case.weights), case.x, 1, numbers.ring_bytes)
    assert int(y.long().abs().max()) == case.bound
    assert bool(check.accepts(case.x, y).all())
    y[0, 3, 1, 1] -= signs[0] * signs[1]
    hidden = not bool(found.r.view(-1, 512, 3, 3)[:, 3, 1, 1].any())
    assert check.accepts(case.x, y).tolist() == [hidden]


@pytest.mark.parametrize("streamed", [1, 40])
def test_a_few_weights_at_a_time_make_no_difference(streamed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for groups in (1, 2):
        case = in_numbers(convolution((8, 4, 3, 3), (6, 5), groups=groups), INT16)
        whole = unroll_integers(case.weights, case.grid, (6, 5), Entropy(1), 2, 20)
        monkeypatch.setattr(unrolled, "STREAMED", streamed)
        again = unroll_integers(case.weights, case.grid, (6, 5), Entropy(1), 2, 20)
        monkeypatch.undo()
        assert torch.equal(whole.s, again.s)
        assert torch.equal(whole.r, again.r)


# What passes, and what does not


@each
@some
@given(data=st.data())
def test_right_answers_pass_and_one_number_off_does_not(numbers: Integers, data: st.DataObject) -> None:
    case = data.draw(cases(numbers, least_batch=1))
    assume(case.x.dim() > 2)
    y, check = case.y, case.exact_check(data.draw(st.integers(0, 2**32)))
    expectation = check.expect(case.x)
    assert expectation._product.shape == (modular_secrets(case.bound)[0], len(y))
    assert bool(expectation.accepts(y).all())
    sample, place = data.draw(st.integers(0, len(y) - 1)), data.draw(st.integers(0, y[0].numel() - 1))
    lie = y.clone()
    lie[sample].view(-1)[place] += data.draw(st.sampled_from([-1, 1, 2**20, -(2**30)]))
    assert expectation.accepts(lie).tolist() == [index != sample for index in range(len(y))]


@each
def test_every_bit_of_every_number_counts(numbers: Integers) -> None:
    case = in_numbers(convolution((12, 3, 3, 3), (4, 3), 1), numbers)
    lies = flipped(case.y, 8 * numbers.ring_bytes)
    x = case.x.expand(len(lies), *case.x.shape[1:])
    for seed in range(3):
        assert not bool(case.exact_check(seed).accepts(x, lies).any())


@each
def test_answers_beyond_the_bound_are_wrong_even_if_they_weigh_the_same(numbers: Integers) -> None:
    """In each place, by a multiple of 2^64 for secrets that are multiples of 2^20."""
    r = torch.arange(-3, 3)[None] << 20
    y = torch.arange(6).view(1, 6).expand(7, 6).clone()
    expected = r @ y.T
    y[torch.arange(6), torch.arange(6)] -= 2**44
    assert ExactExpectation(r, None, expected, y.shape, 2**45).accepts(y).tolist() == [True] * 7
    assert ExactExpectation(r, None, expected, y.shape, 2**43).accepts(y).tolist() == [False] * 6 + [True]
    case = image_case(numbers, batch=2)
    lies = case.y.long()
    lies[1, 2, 3, 4] -= 2**63
    assert case.exact_check().accepts(case.x, lies).tolist() == [True, False]


def test_lies_that_are_equal_and_opposite_at_two_positions_are_found() -> None:
    case = image_case(INT8, batch=1)
    lie = case.y
    lie[0, :, 1, 1] += 1
    lie[0, :, 4, 4] -= 1
    assert not any(bool(case.exact_check(seed).accepts(case.x, lie)) for seed in range(50))


@each
def test_some_samples_of_a_batch(numbers: Integers) -> None:
    case = image_case(numbers, batch=7)
    expectation = case.exact_check().expect(case.x)
    for part in (slice(1, 3), slice(0, 6), slice(6, 7), slice(3, 3)):
        assert bool(expectation.samples(part).accepts(case.y[part]).all())
    assert not bool(expectation.samples(slice(1, 3)).accepts(case.y[2:4]).any())


@each
def test_numbers_that_lie_otherwise_in_memory_are_the_same(numbers: Integers, monkeypatch: pytest.MonkeyPatch) -> None:
    case = image_case(numbers)
    check = case.exact_check()
    x, y = (one.to(memory_format=torch.channels_last) for one in (case.x, case.y))
    assert bool(check.accepts(x, y).all())
    y[3, 2, 1, 4] += 1
    monkeypatch.setattr("awfulowl.verification.sums._CHUNK", 300)
    assert check.accepts(x, y).tolist() == [True, True, True, False, True]


# When


@each
def test_the_first_positions_are_unrolled_and_others_checked_by_channels(numbers: Integers) -> None:
    check = image_case(numbers).exact_check()
    for side, dimensions in ((6, 2), (5, 4), (6, 2)):
        case = image_case(numbers, side=side)
        case = case._replace(weights=image_case(numbers).weights)
        expectation = check.expect(case.x)
        assert expectation._product.dim() == dimensions
        assert bool(expectation.accepts(case.y).all())
        lie = case.y
        lie[3, 2, 1, 4] += 1
        assert expectation.accepts(lie).tolist() == [True, True, True, False, True]


@each
def test_parts_are_checked_by_channels(numbers: Integers) -> None:
    case = image_case(numbers)
    check = case.exact_check()
    assert check.expect(case.x, rows=[0, 1])._product.dim() == 4
    assert check.expect(case.x, columns=[0])._product.dim() == 4
    assert check._unrolled.kept is None
    assert check.expect(case.x)._product.dim() == 2


@each
def test_too_many_numbers_are_checked_by_channels(numbers: Integers, monkeypatch: pytest.MonkeyPatch) -> None:
    case = image_case(numbers)
    count = modular_secrets(case.bound)[0] * (4 + 8) * 36
    for most, dimensions in ((count, 2), (count - 1, 4)):
        monkeypatch.setattr(unrolled, "_MOST_NUMBERS", most)
        check = case.exact_check()
        assert check.expect(case.x)._product.dim() == dimensions
        assert bool(check.accepts(case.x, case.y).all())
        assert (check._unrolled.kept is None) is (dimensions == 4)


@pytest.mark.parametrize("space", [(0, 6), (0, 0)])
def test_nothing_is_drawn_for_no_positions(space: tuple[int, int]) -> None:
    case = image_case(INT8)
    assert not fits(case.grid, space, 1)
    assert case.exact_check()._unroll(space) is None


@each
def test_weights_that_change_later_are_not_those_of_the_devices(numbers: Integers) -> None:
    """As a fleet has them: floats, rounded whenever they are looked at."""
    layer = convolution((8, 4, 3, 3), (6, 6))
    floats, x = layer.weights.clone(), in_numbers(layer, numbers).x
    rounded = [Rounded(floats[:3], numbers), Rounded(floats[3:], numbers)]

    def answer() -> Tensor:
        weights = torch.cat([one[:] for one in rounded])
        return Case(weights, layer.grid, x, numbers).y

    bound, before = largest_sum(rounded, numbers), answer()
    kept, changed = (ExactCheck(rounded, layer.grid, Entropy(1), numbers=numbers, bound=bound) for _ in range(2))
    assert kept.expect(x)._product.dim() == 2
    floats[5, 1, 2, 0] *= -1
    assert changed.expect(x)._product.dim() == 4
    assert changed._unrolled.kept is None
    for check in (kept, changed):
        assert bool(check.accepts(x, before).all())
        assert not bool(check.accepts(x, answer()).any())


def test_weights_are_looked_at_once_for_all_that_is_drawn() -> None:
    """So that what is compared is what is unrolled, even if somebody writes to them meanwhile."""
    case = image_case(INT8)
    looked = []

    class Looked:
        def __len__(self) -> int:
            return len(case.weights)

        def __getitem__(self, rows: slice) -> Tensor:
            looked.append(rows)
            return case.weights[rows] + (len(looked) > 1 + len(case.grid.rows))

    check = ExactCheck([Looked()], case.grid, Entropy(1), numbers=INT8, bound=case.bound)
    before = len(looked)
    assert bool(check.accepts(case.x, case.y).all())
    assert len(looked) == before + 1


def test_secrets_are_drawn_once_whoever_asks_first() -> None:
    case = image_case(INT8)
    check = case.exact_check()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: check._unroll((6, 6)), range(8)))
    assert found[0] is not None
    assert all(one is found[0] for one in found)


def test_secrets_differ_from_check_to_check() -> None:
    case = image_case(INT8)
    first, second = (case.exact_check(seed=None)._unroll((6, 6)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert not torch.equal(first.r, second.r)


@each
def test_memory_is_counted(numbers: Integers) -> None:
    """Eight bytes a number."""
    case = image_case(numbers)
    check = case.exact_check()
    before = check.memory_bytes
    check.expect(case.x)
    assert check.memory_bytes - before == 8 * modular_secrets(case.bound)[0] * (4 + 8) * 36


def test_secrets_do_not_print() -> None:
    assert "tensor" not in repr(secrets_of(image_case(INT8), Entropy(1)))
