"""Inputs and gradients that a device keeps until the step: which, how many, and when they are forgotten."""

import pytest
import torch

from awfulowl.blocks.kernels import gradient
from awfulowl.errors import LimitError, RefusedError
from awfulowl.wire.messages import Apply
from awfulowl.wire.parts import Term
from tests.unit.device.pupil import HEAVY, Pupil, some_jobs, summed, taught
from tests.unit.device.test_store import CONV, handles, sheet

R, S = handles("r", 4), handles("s", 4)
NOT_KEPT = "not kept here"


def two_sheets() -> tuple[Pupil, torch.Tensor]:
    """A pupil that holds two slices, of 4 and 2 inputs, in sheets of their own."""
    pupil, weight = Pupil(), torch.randn(3, 6)
    pupil.load(sheet([3], [4]), weight[:, :4])
    pupil.load(sheet([3], [2], slice_offset=1), weight[:, 4:])
    return pupil, weight


# Kept inputs


def test_kept_inputs_are_as_good_as_those_that_are_sent() -> None:
    start, ((x, dy),) = torch.randn(30, 40), some_jobs(1, 30, 40)
    states = []
    for is_kept in (True, False):
        pupil, layout, _ = taught(30, 40)
        pupil.load(layout, start)
        if is_kept:
            pupil.keep(5, layout.slices, x)
            pupil.job(1, layout.rows, layout.slices, dy, kept=5)
        else:
            pupil.job(1, layout.rows, layout.slices, dy, x)
        pupil.step(1, layout.slices, [1], HEAVY)
        states.append(pupil.state(layout))
    assert all(map(torch.equal, *states))


def test_kept_inputs_of_a_convolution() -> None:
    pupil, layout, weight = Pupil(), sheet([2, 4], [2, 3], CONV), torch.randn(6, 5, 3, 3)
    pupil.load(layout, weight)
    x, dy = torch.randn(2, 5, 7, 6), torch.randn(2, 6, 7, 6)
    pupil.keep(5, layout.slices, x)
    pupil.job(1, layout.rows, layout.slices, dy, kept=5)
    pupil.step(1, layout.slices, [1])
    wanted = weight.double() - 0.125 * gradient(CONV, (3, 3), x.double(), dy.double())
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-4, atol=1e-4)


def test_a_job_may_be_for_some_of_what_is_kept_in_another_order() -> None:
    pupil, weight = two_sheets()
    ((x, dy),) = jobs = some_jobs(1, 3, 6)
    pupil.keep(5, S[1::-1], torch.cat([x[:, 4:], x[:, :4]], dim=1))
    pupil.job(1, R[:1], S[1:2], dy, kept=5)
    pupil.job(1, R[:1], S[:1], dy, kept=5)
    pupil.step(1, S[:2], [1])
    (found,) = pupil.store.fetch(R[:1], S[:2])
    torch.testing.assert_close(found.double(), weight.double() - 0.125 * summed(jobs), rtol=1e-5, atol=1e-5)


def test_kept_inputs_serve_several_jobs_and_one_job_comes_either_way() -> None:
    pupil, layout, weight = taught(3, 4)
    ((x, dy),) = jobs = some_jobs(1, 3, 4)
    pupil.keep(5, layout.slices, x)
    pupil.job(1, layout.rows, layout.slices, dy, kept=5)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    pupil.job(2, layout.rows, layout.slices, dy, kept=5)
    pupil.step(1, layout.slices, [1, 2])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.25 * summed(jobs), rtol=1e-6, atol=1e-6)


def test_a_product_is_made_beside_a_job_of_kept_inputs() -> None:
    pupil, layout, weight = taught(3, 4)
    ((x, dy),) = jobs = some_jobs(1, 3, 4)
    pupil.keep(5, layout.slices, x)
    (dx,) = pupil.job(1, layout.rows, layout.slices, dy, kept=5, terms=[Term(layout.rows, layout.slices)])
    torch.testing.assert_close(dx, dy @ weight)
    pupil.step(1, layout.slices, [1])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * summed(jobs), rtol=1e-6, atol=1e-6)


def test_a_number_keeps_the_inputs_that_came_last() -> None:
    pupil, layout, weight = taught(3, 4)
    (first, _), (x, dy) = some_jobs(2, 3, 4)
    pupil.keep(5, layout.slices, first)
    pupil.keep(5, layout.slices, x)
    assert pupil.learner.held_bytes == x.nbytes
    pupil.job(1, layout.rows, layout.slices, dy, kept=5)
    pupil.step(1, layout.slices, [1])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * summed([(x, dy)]))


@pytest.mark.parametrize("kind", ["number", "slices", "batch", "space"])
def test_inputs_that_are_not_kept_are_refused(kind: str) -> None:
    pupil = Pupil()
    pupil.load(sheet([3], [4], CONV), torch.ones(3, 4, 3, 3))
    pupil.load(sheet([3], [2], CONV, slice_offset=1), torch.ones(3, 2, 3, 3))
    pupil.keep(5, S[:1], torch.ones(2, 4, 6, 6))
    number = 6 if kind == "number" else 5
    slices = S[:2] if kind == "slices" else S[:1]
    dy = torch.ones(3 if kind == "batch" else 2, 3, 6, 7 if kind == "space" else 6)
    with pytest.raises(RefusedError, match=None if kind == "space" else NOT_KEPT):
        pupil.job(1, R[:1], slices, dy, kept=number)
    with pytest.raises(RefusedError, match="a job is named that is not here"):
        pupil.step(1, S[:1], [1])


def test_inputs_of_slices_that_are_not_held_are_not_kept() -> None:
    pupil, _, _ = taught(3, 4)
    with pytest.raises(RefusedError, match="not held"):
        pupil.keep(5, (S[0], S[3]), torch.ones(2, 8))
    assert pupil.learner.held_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_count_as_the_product_took_them(dtype: torch.dtype) -> None:
    """Products are of float32, whatever the inputs came as."""
    pupil, layout, weight = taught(3, 4)
    x, dy = torch.randn(5, 4).to(dtype), torch.randn(5, 3)
    request = Apply(layout.slices, (Term(layout.rows, layout.slices),), keep=5)
    (y,) = pupil.store.apply(request, x)
    assert y.dtype is torch.float32
    pupil.learner.keep(request, x)
    pupil.job(1, layout.rows, layout.slices, dy, kept=5)
    pupil.step(1, layout.slices, [1])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * summed([(x, dy)]), rtol=1e-6, atol=1e-6)


def test_a_product_is_the_same_whether_its_inputs_are_kept() -> None:
    pupil, layout, _ = taught(3, 4)
    x = torch.randn(5, 4)
    answers = [
        pupil.store.apply(Apply(layout.slices, (Term(layout.rows, layout.slices),), keep=number), x)[0]
        for number in (0, 5, 6)
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


# As far as there is room


def test_the_inputs_that_came_first_make_room_for_others() -> None:
    """Room for two of three batches of 5 x 4 numbers, and for the gradients of one."""
    pupil, layout, _ = taught(3, 4, activation_bytes=2 * 80 + 60)
    for number in (5, 6, 7):
        pupil.keep(number, layout.slices, torch.ones(5, 4))
        assert pupil.learner.held_bytes == min(number - 4, 2) * 80
    with pytest.raises(RefusedError, match=NOT_KEPT):
        pupil.job(1, layout.rows, layout.slices, torch.ones(5, 3), kept=5)
    pupil.job(1, layout.rows, layout.slices, torch.ones(5, 3), kept=6)
    pupil.step(1, layout.slices, [1])


@pytest.mark.parametrize(("room", "is_kept"), [(80, True), (79, False)])
def test_inputs_larger_than_all_room_are_not_kept(room: int, is_kept: bool) -> None:
    pupil, layout, _ = taught(3, 4, activation_bytes=room)
    pupil.keep(5, layout.slices, torch.ones(5, 4))
    assert pupil.learner.held_bytes == (80 if is_kept else 0)


def test_inputs_that_are_too_large_leave_others_where_they_are() -> None:
    pupil, layout, _ = taught(3, 4, activation_bytes=100)
    pupil.keep(5, layout.slices, torch.ones(5, 4))
    pupil.keep(6, layout.slices, torch.ones(7, 4))
    assert pupil.learner.held_bytes == 80


def test_kept_inputs_and_their_job_are_counted_once() -> None:
    pupil, layout, _ = taught(3, 4)
    x, dy = torch.ones(5, 4), torch.ones(5, 3)
    pupil.keep(5, layout.slices, x)
    pupil.job(1, layout.rows, layout.slices, dy, kept=5)
    assert pupil.learner.held_bytes == x.nbytes + dy.nbytes
    pupil.job(2, layout.rows, layout.slices, dy.clone(), x.clone())
    assert pupil.learner.held_bytes == 2 * (x.nbytes + dy.nbytes)


def test_jobs_beyond_the_room_are_refused_and_the_others_stay() -> None:
    pupil, layout, weight = taught(3, 4, activation_bytes=2 * (80 + 60))
    jobs = [(torch.randn(5, 4), torch.randn(5, 3)) for _ in range(3)]
    for number, (x, dy) in enumerate(jobs[:2], start=1):
        pupil.job(number, layout.rows, layout.slices, dy, x)
    x, dy = jobs[2]
    for _ in range(2):
        with pytest.raises(LimitError, match="no room"):
            pupil.job(3, layout.rows, layout.slices, dy, x)
    assert pupil.learner.held_bytes == 2 * (80 + 60)
    with pytest.raises(RefusedError, match="not here"):
        pupil.step(1, layout.slices, [1, 2, 3])
    pupil.job(2, layout.rows, layout.slices, *reversed(jobs[1]))
    pupil.step(1, layout.slices, [1, 2])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * summed(jobs[:2]), rtol=1e-5, atol=1e-5)
    pupil.job(3, layout.rows, layout.slices, dy, x)
    pupil.step(2, layout.slices, [3])


@pytest.mark.parametrize("is_kept", [True, False])
def test_inputs_that_are_only_kept_make_room_for_a_job(is_kept: bool) -> None:
    """They may be sent again, and passes that never come back would leave no room for ever."""
    pupil, layout, weight = taught(3, 4, activation_bytes=3 * 80)
    xs = [torch.randn(5, 4) for _ in range(4)]
    for number, x in enumerate(xs, start=5):
        pupil.keep(number, layout.slices, x)
    dy = torch.randn(5, 3)
    if is_kept:
        pupil.job(1, layout.rows, layout.slices, dy, kept=8)
    else:
        pupil.job(1, layout.rows, layout.slices, dy, xs[3].clone())
    assert pupil.learner.held_bytes <= 3 * 80
    pupil.step(1, layout.slices, [1])
    wanted = weight.double() - 0.125 * summed([(xs[3], dy)])
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-5, atol=1e-5)


# Until when


def test_a_step_forgets_its_jobs_and_what_was_kept() -> None:
    pupil, layout, _ = taught(3, 4)
    x, dy = torch.ones(5, 4), torch.ones(5, 3)
    pupil.keep(5, layout.slices, x)
    pupil.job(1, layout.rows, layout.slices, dy, kept=5)
    pupil.job(2, layout.rows, layout.slices, dy, x.clone())
    pupil.step(1, layout.slices, [1])
    assert pupil.learner.held_bytes == 0
    for number in (1, 2):
        with pytest.raises(RefusedError, match="not here"):
            pupil.step(2, layout.slices, [number])
    with pytest.raises(RefusedError, match=NOT_KEPT):
        pupil.job(3, layout.rows, layout.slices, dy, kept=5)


def test_a_refused_step_forgets_nothing() -> None:
    pupil, layout, weight = taught(3, 4)
    ((x, dy),) = jobs = some_jobs(1, 3, 4)
    pupil.keep(5, layout.slices, x)
    pupil.job(1, layout.rows, layout.slices, dy, kept=5)
    for number, wanted in ((3, [1]), (1, [1, 2])):
        with pytest.raises(RefusedError):
            pupil.step(number, layout.slices, wanted)
    pupil.step(1, layout.slices, [1])
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * summed(jobs), rtol=1e-6, atol=1e-6)


def test_a_step_leaves_what_belongs_to_other_slices() -> None:
    pupil, weight = two_sheets()
    (first, second) = some_jobs(1, 3, 4)[0], some_jobs(1, 3, 2)[0]
    pupil.keep(5, S[:1], first[0])
    pupil.keep(6, S[1:2], second[0])
    pupil.job(1, R[:1], S[:1], first[1], kept=5)
    pupil.job(1, R[:1], S[1:2], second[1], kept=6)
    pupil.step(1, S[:1], [1])
    assert pupil.learner.held_bytes == second[0].nbytes + second[1].nbytes
    pupil.step(1, S[1:2], [1])
    assert pupil.learner.held_bytes == 0
    wanted = weight.double() - 0.125 * torch.cat([summed([first]), summed([second])], dim=1)
    (found,) = pupil.store.fetch(R[:1], S[:2])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_clear_forgets_everything() -> None:
    pupil, layout, weight = taught(3, 4)
    x, dy = torch.ones(5, 4), torch.ones(5, 3)
    pupil.keep(5, layout.slices, x)
    pupil.job(1, layout.rows, layout.slices, dy, x.clone())
    pupil.learner.clear()
    assert pupil.learner.held_bytes == 0
    with pytest.raises(RefusedError, match="not here"):
        pupil.step(1, layout.slices, [1])
    with pytest.raises(RefusedError, match=NOT_KEPT):
        pupil.job(2, layout.rows, layout.slices, dy, kept=5)
    assert torch.equal(pupil.weights(layout), weight)


def test_what_was_released_does_not_move() -> None:
    pupil, layout, _ = taught(3, 4)
    x, dy = torch.ones(5, 4), torch.ones(5, 3)
    pupil.keep(5, layout.slices, x)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    pupil.store.release(layout.slices)
    assert pupil.store.held_bytes == 0
    for ask in (
        lambda: pupil.step(1, layout.slices, [1]),
        lambda: pupil.job(2, layout.rows, layout.slices, dy, x),
        lambda: pupil.keep(6, layout.slices, x),
    ):
        with pytest.raises(RefusedError, match="not held"):
            ask()


def test_blocks_that_are_loaded_anew_take_jobs_again() -> None:
    """As when a device is brought to the present: the state of a snapshot, then all jobs and steps since."""
    pupil, layout, weight = taught(3, 4)
    first, second = some_jobs(2, 3, 4)
    pupil.job(1, layout.rows, layout.slices, first[1], first[0])
    pupil.step(1, layout.slices, [1])
    pupil.job(2, layout.rows, layout.slices, second[1], second[0])
    pupil.store.release(layout.slices)
    pupil.load(layout, weight)
    pupil.job(1, layout.rows, layout.slices, first[1], first[0])
    pupil.step(1, layout.slices, [1])
    pupil.job(2, layout.rows, layout.slices, second[1], second[0])
    pupil.step(2, layout.slices, [2])
    wanted = weight.double() - 0.125 * summed([first, second])
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-5, atol=1e-5)
