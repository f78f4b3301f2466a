"""Steps at a device: along which gradients its blocks move, how often, and what is refused."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.kernels import Kernel, gradient
from awfulowl.device import learning
from awfulowl.errors import LimitError, PeerError, RefusedError
from tests.unit.device.pupil import HEAVY, KERNELS, PLAIN, Pupil, by_torch, some_jobs, summed, taught
from tests.unit.device.test_store import CONV, DENSE, handles, sheet

R, S = handles("r", 4), handles("s", 4)


# Along which gradients


@pytest.mark.parametrize(("kernel", "size", "space", "groups"), KERNELS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.75, "weight_decay": 2.0**-5},
        {"momentum": 0.75, "nesterov": True},
        {"momentum": 0.75, "dampening": 0.25},
    ],
    ids=str,
)
def test_training_is_that_of_torch(
    kernel: Kernel, size: tuple[int, ...], space: tuple[int, ...], groups: int, options: dict[str, Any]
) -> None:
    """Four steps along two jobs each."""
    pupil, layout, weight = Pupil(), sheet([6], [6], kernel, groups), torch.randn(6, 6 // groups, *size)
    pupil.load(layout, weight)
    steps = [some_jobs(2, 6, 6, kernel, size, space) for _ in range(4)]
    for number, jobs in enumerate(steps, start=1):
        for job, (x, dy) in enumerate(jobs, start=1):
            pupil.job(job, layout.rows, layout.slices, dy, x)
        pupil.step(number, layout.slices, [1, 2], Descent.sgd(0.125, first=number == 1, **options))
    wanted = by_torch(kernel, weight, steps, groups, lr=0.125, **options)
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sheets_move_as_one(data: st.DataObject) -> None:
    """Blocks in several sheets, and jobs for all of them that come in one request or in several."""
    row_sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    slice_sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    row_at, slice_at = [0, *itertools.accumulate(row_sizes)], [0, *itertools.accumulate(slice_sizes)]
    r, s = handles("r", len(row_sizes)), handles("s", len(slice_sizes))
    weight = torch.randn(sum(row_sizes), sum(slice_sizes))
    pupil = Pupil()
    cut, across = data.draw(st.integers(0, len(r))), data.draw(st.integers(0, len(s)))
    strips = list(itertools.pairwise(sorted({0, cut, len(r)})))
    columns = list(itertools.pairwise(sorted({0, across, len(s)})))
    for (low, high), (first, last) in itertools.product(strips, columns):
        layout = sheet(row_sizes[low:high], slice_sizes[first:last], row_offset=low, slice_offset=first)
        pupil.load(layout, weight[row_at[low] : row_at[high], slice_at[first] : slice_at[last]])
    jobs = some_jobs(2, *weight.shape)
    for number, (x, dy) in enumerate(jobs, start=1):
        order = data.draw(st.permutations(range(len(r))))
        for first, last in columns if data.draw(st.booleans()) else [(0, len(s))]:
            sent = torch.cat([dy[:, row_at[row] : row_at[row + 1]] for row in order], dim=1)
            own = x[:, slice_at[first] : slice_at[last]]
            pupil.job(number, [r[row] for row in order], s[first:last], sent, own)
    pupil.step(1, s, [1, 2], HEAVY)
    wanted = HEAVY.moved(weight.double(), torch.zeros_like(weight).double(), summed(jobs))
    held = pupil.store.fetch(r, s, 3)
    torch.testing.assert_close(held[0].double() + held[1].double(), wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(held[2].double(), wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [DENSE, CONV], ids=str)
def test_the_sum_over_jobs_is_in_the_order_of_the_step(kernel: Kernel) -> None:
    """In float32 (2^30 + 1) - 2^30 is 0, and (2^30 - 2^30) + 1 is 1."""
    size, space = ((), ()) if kernel == DENSE else ((3, 3), (1, 1))
    found = []
    for order in ([1, 2, 3], [3, 2, 1], [1, 3, 2], [2, 1, 3]):
        pupil, layout = Pupil(), sheet([1], [1], kernel)
        pupil.load(layout, torch.zeros(1, 1, *size))
        for number, large in ((3, -(2.0**30)), (1, 2.0**30), (2, 1.0)):
            pupil.job(number, layout.rows, layout.slices, torch.full((1, 1, *space), large), torch.ones(1, 1, *space))
        pupil.step(1, layout.slices, order, Descent.sgd(1.0))
        found.append(-float(pupil.exactly(layout).sum()))
    assert found == [0.0, 0.0, 1.0, 0.0]


def test_equal_steps_give_equal_bits() -> None:
    jobs = some_jobs(3, 40, 30)
    start = torch.randn(40, 30)
    states = []
    for order in ([1, 2, 3], [3, 1, 2]):
        pupil, layout = Pupil(), sheet([40], [30])
        pupil.load(layout, start)
        for number in order:
            x, dy = jobs[number - 1]
            pupil.job(number, layout.rows, layout.slices, dy, x)
        pupil.step(1, layout.slices, [1, 2, 3], HEAVY)
        states.append(pupil.state(layout))
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("numbers", [1, 7, 30, 31, 10**6])
def test_a_gradient_is_made_some_rows_at_a_time(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many fit, the steps are the same."""
    monkeypatch.setattr(learning, "_GRADIENT", numbers)
    torch.manual_seed(0)
    pupil, layout, weight = taught(11, 3)
    jobs = some_jobs(2, 11, 3)
    for number, (x, dy) in enumerate(jobs, start=1):
        pupil.job(number, layout.rows, layout.slices, dy, x)
    assert pupil.measure(layout.rows, layout.slices, [1, 2]) == pytest.approx(float(summed(jobs).square().sum()), 1e-5)
    seen: list[tuple[int, ...]] = []
    pupil.learner.tamper = lambda _block, part: seen.append(tuple(part.shape))
    pupil.step(1, layout.slices, [1, 2], HEAVY)
    wanted = HEAVY.moved(weight.double(), torch.zeros(11, 3).double(), summed(jobs))[0]
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-5, atol=1e-5)
    assert sum(rows for rows, _ in seen) == 11
    assert all(rows * columns <= max(numbers, 3) for rows, columns in seen)


def test_a_step_along_no_jobs_and_one_of_no_samples() -> None:
    pupil, layout, weight = taught(3, 4)
    pupil.step(1, layout.slices, [], Descent.sgd(0.5, weight_decay=0.5))
    assert torch.equal(pupil.weights(layout), 0.75 * weight)
    pupil.job(1, layout.rows, layout.slices, torch.empty(0, 3), torch.empty(0, 4))
    pupil.step(2, layout.slices, [1], PLAIN)
    assert torch.equal(pupil.weights(layout), 0.75 * weight)


# How often


def test_a_job_that_is_given_twice_counts_once() -> None:
    pupil, layout, weight = taught(3, 4)
    ((x, dy),) = jobs = some_jobs(1, 3, 4)
    for _ in range(3):
        pupil.job(1, layout.rows, layout.slices, dy, x)
    held = pupil.learner.held_bytes
    assert held == x.nbytes + dy.nbytes
    pupil.step(1, layout.slices, [1])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * summed(jobs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_a_job_for_other_slices_counts_once_for_each_block(order: tuple[int, ...]) -> None:
    """Two sheets, and a job that is given for one, for the other, and for both."""
    pupil, weight = Pupil(), torch.randn(3, 6)
    pupil.load(sheet([3], [4]), weight[:, :4])
    pupil.load(sheet([3], [2], slice_offset=1), weight[:, 4:])
    ((x, dy),) = jobs = some_jobs(1, 3, 6)
    given_for = [(S[:1], x[:, :4]), (S[1:2], x[:, 4:]), (S[:2], x)]
    for index in order:
        slices, own = given_for[index]
        pupil.job(1, R[:1], slices, dy, own)
    pupil.step(1, S[:2], [1])
    (found,) = pupil.store.fetch(R[:1], S[:2])
    torch.testing.assert_close(found.double(), weight.double() - 0.125 * summed(jobs), rtol=1e-5, atol=1e-5)


def test_a_repeated_step_is_done_once() -> None:
    pupil, layout, _ = taught(3, 4)
    ((x, dy),) = some_jobs(1, 3, 4)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    pupil.step(1, layout.slices, [1], HEAVY)
    before = pupil.state(layout)
    for jobs in ([1], [], [99]):
        pupil.step(1, layout.slices, jobs, HEAVY)
    assert all(map(torch.equal, pupil.state(layout), before))


def test_a_repeated_step_takes_no_job_of_the_next() -> None:
    pupil, layout, _ = taught(3, 4)
    first, second = some_jobs(2, 3, 4)
    pupil.job(1, layout.rows, layout.slices, first[1], first[0])
    pupil.step(1, layout.slices, [1])
    pupil.job(2, layout.rows, layout.slices, second[1], second[0])
    pupil.step(1, layout.slices, [1])
    before = pupil.exactly(layout)
    pupil.step(2, layout.slices, [2])
    torch.testing.assert_close(pupil.exactly(layout), before - 0.125 * summed([second]), rtol=1e-6, atol=1e-6)


def test_a_step_that_was_done_in_part_is_finished() -> None:
    """A device that took a step with some of its blocks takes it with the others."""
    pupil, weight = Pupil(), torch.randn(3, 6)
    first, second = sheet([3], [4]), sheet([3], [2], slice_offset=1)
    pupil.load(first, weight[:, :4])
    pupil.load(second, weight[:, 4:])
    (one, other) = some_jobs(1, 3, 4), some_jobs(1, 3, 2)
    for layout, ((x, dy),) in ((first, one), (second, other)):
        pupil.job(1, layout.rows, layout.slices, dy, x)
    pupil.step(1, first.slices, [1])
    moved = pupil.weights(first)
    pupil.step(1, (*first.slices, *second.slices), [1])
    assert torch.equal(pupil.weights(first), moved)
    torch.testing.assert_close(pupil.exactly(second), weight[:, 4:].double() - 0.125 * summed(other))


@pytest.mark.parametrize("number", [0, 1, 2, 5, 6, 2**63 - 1])
def test_a_step_that_is_not_the_next_is_refused_and_nothing_moves(number: int) -> None:
    pupil, layout, weight = taught(3, 4)
    pupil.load(layout, weight, step=3)
    ((x, dy),) = some_jobs(1, 3, 4)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    with pytest.raises(RefusedError, match="another step"):
        pupil.step(number, layout.slices, [1])
    assert torch.equal(pupil.weights(layout), weight)
    pupil.step(4, layout.slices, [1])
    assert not torch.equal(pupil.weights(layout), weight)


def test_blocks_at_different_steps_do_not_move() -> None:
    pupil, ahead, behind = Pupil(), sheet([3], [4]), sheet([3], [2], slice_offset=1)
    pupil.load(ahead, torch.ones(3, 4), step=4)
    pupil.load(behind, torch.ones(3, 2), step=2)
    for number in (3, 4, 5):
        with pytest.raises(RefusedError, match="another step"):
            pupil.step(number, (*ahead.slices, *behind.slices), [])
    assert torch.equal(torch.cat([pupil.weights(ahead), pupil.weights(behind)], dim=1), torch.ones(3, 6))


# What is refused


@pytest.mark.parametrize("jobs", [[2], [1, 2], [2, 1], [0]], ids=str)
def test_a_job_that_is_missing_is_named_and_nothing_moves(jobs: list[int]) -> None:
    pupil, layout, weight = taught(3, 4)
    ((x, dy),) = some_jobs(1, 3, 4)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    for ask in (lambda: pupil.step(1, layout.slices, jobs), lambda: pupil.measure(layout.rows, layout.slices, jobs)):
        with pytest.raises(RefusedError, match="a job is named that is not here"):
            ask()
    assert torch.equal(pupil.weights(layout), weight)
    pupil.step(1, layout.slices, [1])
    assert not torch.equal(pupil.weights(layout), weight)


@pytest.mark.parametrize(
    ("rows", "slices"), [(R[:1], S[:1]), (R[:2], S[:1]), (R[:1], S[:2]), (R[1:2], S[:2]), (R[:2], S[1:2])]
)
def test_a_job_for_a_part_of_a_sheet_does_not_move_it(rows: tuple[bytes, ...], slices: tuple[bytes, ...]) -> None:
    pupil, layout = Pupil(), sheet([2, 2], [2, 2])
    pupil.load(layout, torch.ones(4, 4))
    pupil.job(1, rows, slices, torch.ones(3, 2 * len(rows)), torch.ones(3, 2 * len(slices)))
    with pytest.raises(RefusedError, match="a job is named that is not here"):
        pupil.step(1, layout.slices, [1])
    assert torch.equal(pupil.weights(layout), torch.ones(4, 4))


def test_one_sheet_without_its_job_and_none_moves() -> None:
    pupil, first, second = Pupil(), sheet([3], [4]), sheet([3], [2], slice_offset=1)
    pupil.load(first, torch.ones(3, 4))
    pupil.load(second, torch.ones(3, 2))
    pupil.job(1, R[:1], S[:1], torch.ones(5, 3), torch.ones(5, 4))
    with pytest.raises(RefusedError, match="not here"):
        pupil.step(1, S[:2], [1])
    assert torch.equal(pupil.weights(first), torch.ones(3, 4))
    pupil.step(1, S[:1], [1])
    assert torch.equal(pupil.weights(first), torch.full((3, 4), 1 - 5 / 8))


def test_slices_that_are_not_held_do_not_move() -> None:
    pupil, layout, weight = taught(3, 4)
    for ask in (lambda: pupil.step(1, (*layout.slices, S[3]), []), lambda: pupil.measure(R[:1], (S[0], S[3]), [])):
        with pytest.raises(RefusedError, match="not held"):
            ask()
    assert torch.equal(pupil.weights(layout), weight)


def test_blocks_of_integers_are_not_trained() -> None:
    pupil, layout = Pupil(), sheet([3], [4])
    pupil.load(layout, torch.ones(3, 4, dtype=torch.int8))
    for ask in (lambda: pupil.step(1, layout.slices, []), lambda: pupil.measure(layout.rows, layout.slices, [])):
        with pytest.raises(RefusedError, match="integers are not trained"):
            ask()
    (whole,) = pupil.store.fetch(layout.rows, layout.slices)
    assert torch.equal(whole, torch.ones(3, 4, dtype=torch.int8))


@pytest.mark.parametrize(("rule", "parts"), [(PLAIN, 2), (HEAVY, 3)])
def test_what_is_kept_beside_the_weights_needs_room(rule: Descent, parts: int) -> None:
    layout, weight = sheet([4], [4]), torch.ones(4, 4)
    for room, fits in ((parts * 64, True), (parts * 64 - 1, False)):
        pupil = Pupil(memory_bytes=room)
        pupil.load(layout, weight)
        if fits:
            pupil.step(1, layout.slices, [], rule)
            assert pupil.store.held_bytes == room
            pupil.step(2, layout.slices, [], rule)
            continue
        with pytest.raises(LimitError, match="offered"):
            pupil.step(1, layout.slices, [], rule)
        assert pupil.store.held_bytes == 64
        assert torch.equal(pupil.weights(layout), weight)


def test_what_does_not_fit_is_refused_when_it_comes_not_in_the_step() -> None:
    """A step that fails half way leaves blocks that are at no step at all."""
    pupil, dense, convolution = Pupil(), sheet([3], [4]), sheet([2], [2], CONV, row_offset=1, slice_offset=1)
    pupil.load(dense, torch.ones(3, 4))
    pupil.load(convolution, torch.ones(2, 2, 3, 3))
    pupil.job(1, R[:1], S[:1], torch.ones(5, 3), torch.ones(5, 4))
    for x, dy in [
        (torch.ones(5, 2, 6, 6), torch.ones(5, 2, 5, 5)),
        (torch.ones(5, 2, 6, 6), torch.ones(5, 2, 7, 7)),
        (torch.ones(5, 2, 6), torch.ones(5, 2, 6)),
        (torch.ones(5, 2), torch.ones(5, 2)),
    ]:
        with pytest.raises(PeerError):
            pupil.job(1, R[1:2], S[1:2], dy, x)
    with pytest.raises(PeerError):
        pupil.job(2, R[:1], S[:1], torch.ones(5, 3, 2), torch.ones(5, 4, 2))
    assert torch.equal(pupil.weights(dense), torch.ones(3, 4))


def test_a_refused_job_is_not_taken_for_the_right_one_later() -> None:
    pupil, layout = Pupil(), sheet([2], [2], CONV)
    weight = torch.randn(2, 2, 3, 3)
    pupil.load(layout, weight)
    x, dy = torch.randn(5, 2, 6, 6), torch.randn(5, 2, 6, 6)
    with pytest.raises(PeerError):
        pupil.transposed_with_job(1, layout, dy[..., :5], x)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    pupil.step(1, layout.slices, [1])
    wanted = weight.double() - 0.125 * gradient(CONV, (3, 3), x.double(), dy.double())
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-4, atol=1e-4)
