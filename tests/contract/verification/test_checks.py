"""What all checks promise: right answers pass, wrong ones do not, sample by sample and part by part."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.blocks.grid import make_grid, take
from awfulowl.blocks.kernels import Dense
from awfulowl.errors import InputError
from awfulowl.randomness import Entropy
from awfulowl.verification import sums
from awfulowl.verification.exact import ExactCheck
from awfulowl.verification.freivalds import Check
from awfulowl.verification.training import TrainingCheck
from tests.contract.verification.cases import KINDS, MOVING, Case, Numbers, cases, in_numbers, parts
from tests.unit.verification.shapes import Layer, convolution, dense

some = settings(max_examples=40, deadline=None)
kinds = pytest.mark.parametrize("numbers", KINDS.values(), ids=KINDS)
STILL = {name: numbers for name, numbers in KINDS.items() if numbers is not MOVING}
kinds_that_stay = pytest.mark.parametrize("numbers", STILL.values(), ids=STILL)
shapes = pytest.mark.parametrize(
    "layer",
    [
        dense(30, 20, 6),
        convolution((6, 4, 3), (7,), 6),
        convolution((6, 2, 2, 3), (5, 4), 6, groups=2, stride=2, block=3),
    ],
    ids=["dense", "convolution", "groups"],
)


def grossly_wrong(y: Tensor, samples: list[int], position: int = 0) -> Tensor:
    """Be wrong in one number of some samples, by as much as the largest."""
    wrong = y.clone()
    for sample in samples:
        wrong[sample].view(-1)[position] += y.abs().max() + 1
    return wrong


@kinds
@some
@given(data=st.data())
def test_right_answers_pass(numbers: Numbers, data: st.DataObject) -> None:
    case = data.draw(cases(numbers))
    accepted = case.check().accepts(case.x, case.y)
    assert accepted.shape == (len(case.x),)
    assert accepted.dtype == torch.bool
    assert bool(accepted.all())


@kinds
@some
@given(data=st.data())
def test_one_wrong_number_is_a_wrong_sample(numbers: Numbers, data: st.DataObject) -> None:
    """Whichever number it is, and the other samples pass."""
    case = data.draw(cases(numbers, least_batch=1))
    y = case.y
    sample, position = data.draw(st.integers(0, len(y) - 1)), data.draw(st.integers(0, y[0].numel() - 1))
    accepted = case.check().accepts(case.x, grossly_wrong(y, [sample], position))
    assert accepted.tolist() == [index != sample for index in range(len(y))]


@kinds
@some
@given(data=st.data())
def test_parts_are_checked_alone(numbers: Numbers, data: st.DataObject) -> None:
    """Columns in any order, and of the rows that they reach some in any order."""
    case = data.draw(cases(numbers, least_batch=1))
    rows, columns, groups = data.draw(parts(case.grid))
    check, piece, x = case.check(), case.rectangle(rows, columns), take(case.x, case.grid, columns)
    y = case.answer(piece, x, groups)
    assert bool(check.accepts(x, y, columns=columns, rows=rows).all())
    wrong = check.accepts(x, grossly_wrong(y, list(range(len(x)))), columns=columns, rows=rows)
    assert not bool(wrong.any())
    assert case.matches(check, piece, rows=rows, columns=columns)
    reached = list(case.grid.columns[columns[0]].rows)
    whole = case.rectangle(reached, columns)
    assert bool(check.accepts(x, case.answer(whole, x, groups), columns=columns).all())
    assert case.matches(check, whole, columns=columns)


@kinds
@some
@given(data=st.data())
def test_rows_are_checked_alone(numbers: Numbers, data: st.DataObject) -> None:
    case = data.draw(cases(numbers, least_batch=1))
    rows = data.draw(st.lists(st.sampled_from(range(len(case.grid.rows))), min_size=1, unique=True))
    y = torch.cat([case.y[:, span.start : span.stop] for span in map(case.grid.rows.__getitem__, rows)], dim=1)
    check = case.check()
    assert bool(check.accepts(case.x, y, rows=rows).all())
    assert not bool(check.accepts(case.x, grossly_wrong(y, list(range(len(y)))), rows=rows).any())


@kinds
@shapes
def test_every_sample_has_its_own_verdict(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    for wrong in ([], [0], [5], [1, 4], list(range(6))):
        accepted = case.check().accepts(case.x, grossly_wrong(case.y, wrong, position=-1))
        assert accepted.tolist() == [sample not in wrong for sample in range(6)]


@kinds
@shapes
def test_answers_of_other_samples_are_wrong(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    assert not bool(case.check().accepts(case.x, case.y.roll(1, dims=0)).any())
    assert not bool(case.check().accepts(case.x, torch.zeros_like(case.y)).any())
    assert not bool(case.check().accepts(case.x, -case.y).any())


@kinds
@shapes
def test_answers_are_held_to_what_was_expected(layer: Layer, numbers: Numbers) -> None:
    """As often as one likes."""
    case = in_numbers(layer, numbers)
    expectation = case.check().expect(case.x)
    wrong = grossly_wrong(case.y, [2])
    for _ in range(2):
        assert bool(expectation.accepts(case.y).all())
        assert expectation.accepts(wrong).tolist() == [True, True, False, True, True, True]


@kinds
@shapes
@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 6), slice(2, 3), slice(0, 6), slice(4, 4), slice(None)])
def test_samples_are_held_to_what_is_expected_of_them(layer: Layer, part: slice, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    wrong = grossly_wrong(case.y, [0, 2, 5])
    expectation = case.check().expect(case.x)
    accepted = expectation.samples(part).accepts(wrong[part])
    assert accepted.tolist() == expectation.accepts(wrong)[part].tolist()


@kinds
@shapes
def test_samples_of_samples(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    some_samples = case.check().expect(case.x).samples(slice(1, 5)).samples(slice(2, 4))
    assert bool(some_samples.accepts(case.y[3:5]).all())
    assert not bool(some_samples.accepts(case.y[1:3]).any())
    with pytest.raises(InputError, match="answer of shape"):
        some_samples.accepts(case.y)


@kinds
@pytest.mark.parametrize("layer", [dense(3, 4, 0), convolution((3, 4, 2), (5,), 0)], ids=["dense", "convolution"])
def test_no_samples(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    assert case.check().accepts(case.x, case.y).tolist() == []


@kinds
@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ((6, 19), (6, 30), r"20 inputs got inputs of shape \(6, 19\)"),
        ((6, 20), (6, 29), r"answer of shape \(6, 29\), not \(6, 30\)"),
        ((6, 20), (5, 30), r"answer of shape \(5, 30\), not \(6, 30\)"),
        ((6, 20, 1), (6, 30, 1), r"20 inputs got inputs of shape \(6, 20, 1\)"),
        ((6, 20), (6, 30, 1), r"answer of shape \(6, 30, 1\), not \(6, 30\)"),
        ((20,), (30,), r"20 inputs got inputs of shape \(20,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(x: tuple[int, ...], y: tuple[int, ...], words: str, numbers: Numbers) -> None:
    case = in_numbers(dense(30, 20, 6), numbers)
    with pytest.raises(InputError, match=words):
        case.check().accepts(torch.ones(x, dtype=case.x.dtype), torch.ones(y, dtype=case.y.dtype))


@kinds
def test_shapes_of_convolutions_that_do_not_fit_are_named(numbers: Numbers) -> None:
    case = in_numbers(convolution((6, 4, 3, 3), (7, 5)), numbers)
    with pytest.raises(InputError, match=r"answer of shape \(4, 6, 7, 4\), not \(4, 6, 7, 5\)"):
        case.check().accepts(case.x, case.y[..., 1:])
    with pytest.raises(InputError, match=r"4 inputs got inputs of shape \(4, 3, 7, 5\)"):
        case.check().expect(case.x[:, 1:])


@kinds
def test_inputs_of_other_columns_do_not_fit(numbers: Numbers) -> None:
    case = in_numbers(dense(30, 20, 6), numbers)
    with pytest.raises(InputError, match=r"4 inputs got inputs of shape \(6, 20\)"):
        case.check().expect(case.x, columns=[1])


@kinds
@pytest.mark.parametrize("rows", [[0], [0, 0], [1, 2, 3, 4], [9], [0, 1, 2, 3, 4, 4], []])
def test_rows_that_were_not_named_cannot_be_checked(rows: list[int], numbers: Numbers) -> None:
    case = in_numbers(dense(80, 8, 2), numbers)
    check = case.check(apart=[(0, 1), (3, 4)])
    with pytest.raises(InputError, match="apart"):
        check.expect(case.x, rows=rows)
    with pytest.raises(InputError, match="apart"):
        check.accepts(case.x, case.y, rows=rows)
    with pytest.raises(InputError, match="apart"):
        case.matches(check, case.weights, rows=rows)


@kinds
@pytest.mark.parametrize("rows", [[0, 1], [1, 0], [3, 4], [2], [0, 1, 3, 4], [4, 2, 0, 1, 3]])
def test_unions_of_named_rows_can_be_checked(rows: list[int], numbers: Numbers) -> None:
    case = in_numbers(dense(80, 8, 2), numbers)
    check = case.check(apart=[(0, 1), (3, 4)])
    y = torch.cat([case.y[:, 16 * row : 16 * (row + 1)] for row in rows], dim=1)
    assert bool(check.accepts(case.x, y, rows=rows).all())
    assert not bool(check.accepts(case.x, y.roll(1, dims=1), rows=rows).any())
    piece = torch.cat([case.weights[16 * row : 16 * (row + 1)] for row in rows])
    assert case.matches(check, piece, rows=rows)
    assert not case.matches(check, piece.roll(1, dims=0), rows=rows)


@kinds
def test_rows_in_another_order_are_wrong(numbers: Numbers) -> None:
    case = in_numbers(dense(32, 8, 3), numbers)
    check = case.check()
    swapped = torch.cat([case.y[:, 16:], case.y[:, :16]], dim=1)
    assert bool(check.accepts(case.x, swapped, rows=[1, 0]).all())
    assert not bool(check.accepts(case.x, swapped, rows=[0, 1]).any())


@kinds
@shapes
def test_one_weight_that_changed_shows(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    check = case.check()
    assert case.matches(check, case.weights)
    for position in (0, case.weights.numel() // 2, -1):
        changed = case.weights.clone()
        changed.view(-1)[position] += 1
        assert not case.matches(check, changed)


@kinds
@pytest.mark.parametrize("shape", [(30, 19), (20, 30), (600,), (30, 20, 1), (), (0, 20)])
def test_weights_of_another_shape_match_nothing(shape: tuple[int, ...], numbers: Numbers) -> None:
    case = in_numbers(dense(30, 20), numbers)
    assert not case.matches(case.check(), torch.ones(shape, dtype=case.weights.dtype))


@kinds
def test_columns_of_several_groups_match_as_they_are_cut(numbers: Numbers) -> None:
    case = in_numbers(convolution((12, 2, 3), (9,), groups=6, block=4), numbers)
    check, columns = case.check(), case.grid.columns
    assert [column.groups for column in columns] == [2, 2, 2]
    pieces = [case.rectangle(column.rows, [at]) for at, column in enumerate(columns)]
    assert [case.matches(check, piece, columns=[at]) for at, piece in enumerate(pieces)] == [True] * 3
    assert not case.matches(check, pieces[0], columns=[1])
    assert case.matches(check, case.weights)


@kinds
def test_panels_of_several_layers(numbers: Numbers) -> None:
    layer = dense(52, 20)
    grid = make_grid((52, 20), Dense(), 1, block=16, row_cuts=(5, 45))
    case = in_numbers(layer._replace(grid=grid), numbers)
    check = case.check(apart=[(0,), (1, 2, 3), (4,)])
    assert bool(check.accepts(case.x, case.y).all())
    assert bool(check.accepts(case.x, case.y[:, 5:45], rows=[1, 2, 3]).all())
    assert not bool(check.accepts(case.x, case.y[:, 4:44], rows=[1, 2, 3]).any())


@kinds_that_stay
@shapes
def test_a_stack_of_weights_is_checked_as_one(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    whole, make = case.check(seed=7), type(case.check())
    options: dict[str, Any] = {"numbers": numbers, "bound": case.bound} if numbers else {}
    stacked = make([case.weights[:2], case.weights[2:]], case.grid, Entropy(7), **options)
    wrong = grossly_wrong(case.y, [1])
    assert stacked.accepts(case.x, wrong).tolist() == whole.accepts(case.x, wrong).tolist()
    assert case.matches(stacked, case.weights)


@kinds_that_stay
@shapes
@pytest.mark.parametrize("apart", [None, [(0, 1)], []])
def test_one_of_all_weights_that_changed_shows(layer: Layer, numbers: Numbers, apart: Any) -> None:
    """In whichever of several tensors it is; weights that change places do, too."""
    case = in_numbers(layer, numbers)
    check = case.check(apart=apart)
    assert isinstance(check, Check | ExactCheck)
    for stack in ([case.weights], [case.weights[:1], case.weights[1:5], case.weights[5:]]):
        assert check.matches_whole(stack)
        for member, position in product(range(len(stack)), (0, -1)):
            changed = [weight.clone() for weight in stack]
            changed[member].view(-1)[position] += 1
            assert not check.matches_whole(changed)
    assert not check.matches_whole([case.weights.roll(1, dims=0)])
    assert not check.matches_whole([case.weights.roll(1, dims=1)])


@kinds_that_stay
@some
@given(data=st.data())
def test_all_weights_match_as_they_do_at_once(numbers: Numbers, data: st.DataObject) -> None:
    case = data.draw(cases(numbers))
    check, position = case.check(), data.draw(st.integers(0, case.weights.numel() - 1))
    assert isinstance(check, Check | ExactCheck)
    assert check.matches_whole([case.weights])
    changed = case.weights.clone()
    changed.view(-1)[position] += 1
    assert check.matches_whole([changed]) == check.matches(changed)


@kinds_that_stay
def test_all_weights_are_looked_at_a_row_at_a_time(numbers: Numbers) -> None:
    case = in_numbers(dense(64, 20, block=16), numbers)
    seen: list[tuple[int, int]] = []

    class Looked:
        def __len__(self) -> int:
            return 64

        def __getitem__(self, rows: slice) -> Tensor:
            seen.append((rows.start, rows.stop))
            return case.weights[rows]

    check = case.check(apart=[])
    assert isinstance(check, Check | ExactCheck)
    assert check.matches_whole([Looked()])
    assert sorted(seen) == [(0, 16), (16, 32), (32, 48), (48, 64)]


@kinds
@shapes
def test_layouts_and_chunks_make_no_difference(layer: Layer, numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    case = in_numbers(layer, numbers)
    check, wrong = case.check(), grossly_wrong(case.y, [1, 3])
    x, y = (tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in (case.x, wrong))
    expected = [True, False, True, False, True, True]
    assert check.accepts(x, y).tolist() == expected
    for chunk in (1, 70):
        monkeypatch.setattr(sums, "_CHUNK", chunk)
        assert check.accepts(case.x, wrong).tolist() == expected
        assert check.expect(case.x).samples(slice(1, 5)).accepts(wrong[1:5]).tolist() == expected[1:5]


@kinds
@shapes
def test_nothing_is_written_to(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    check, y = case.check(), case.y
    before = case.weights.clone(), case.x.clone(), y.clone()
    check.accepts(case.x, y)
    case.matches(check, case.weights)
    for tensor, old in zip((case.weights, case.x, y), before, strict=True):
        assert torch.equal(tensor, old)


@kinds
@shapes
def test_inference_mode_makes_no_difference(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    with torch.inference_mode():
        check = case.check()
        inside = check.accepts(case.x, grossly_wrong(case.y, [2]))
    assert torch.equal(check.accepts(case.x, grossly_wrong(case.y, [2])), inside)


@kinds_that_stay
def test_weights_are_not_kept(numbers: Numbers) -> None:
    case = in_numbers(dense(512, 512, 1, block=256), numbers)
    together, apart = case.check(apart=()), case.check(apart=None)
    y = case.y
    case.weights.zero_()
    assert bool(together.accepts(case.x, y).all())
    assert together.memory_bytes < 0.05 * 4 * case.weights.numel()
    assert together.memory_bytes < apart.memory_bytes


@kinds
@shapes
def test_a_check_does_not_print_its_secrets(layer: Layer, numbers: Numbers) -> None:
    case = in_numbers(layer, numbers)
    check = case.check()
    expectation = check.expect(case.x)
    for shown in (repr(check), str(check), repr(expectation), str(expectation), f"{check} {expectation}"):
        assert "tensor" not in shown
        assert "[" not in shown


@kinds
def test_secrets_differ_from_check_to_check(numbers: Numbers) -> None:
    """An answer that one check would miss is not one that another misses: each draws its own."""
    case = in_numbers(dense(30, 20), numbers)
    first, second = (secrets_of(case) for _ in range(2))
    assert not torch.equal(first, second)


def secrets_of(case: Case) -> Tensor:
    check = case.check(seed=None)
    if isinstance(check, TrainingCheck):
        return check._left.secret_of([0])
    return check._sums.r if isinstance(check, ExactCheck) else check._keeping.select(None, None).r
