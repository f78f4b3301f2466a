"""The state of blocks under training: how it is fetched, loaded, frozen, and how it goes on from there."""

from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.errors import LimitError, RefusedError
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Load
from tests.unit.device.pupil import HEAVY, KERNELS, PLAIN, Pupil, some_jobs, summed, taught
from tests.unit.device.test_store import CONV, handles, sheet

R, S = handles("r", 3), handles("s", 3)


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def trained(steps: int = 2, rule: Descent = HEAVY) -> tuple[Pupil, Any, list[Tensor]]:
    """A pupil after some steps, its sheet of several blocks, and what it holds."""
    pupil, layout = Pupil(), sheet([2, 3], [4, 2])
    pupil.load(layout, torch.randn(5, 6))
    for number in range(1, steps + 1):
        ((x, dy),) = some_jobs(1, 5, 6)
        pupil.job(number, layout.rows, layout.slices, dy, x)
        pupil.step(number, layout.slices, [number], rule)
    return pupil, layout, pupil.state(layout)


# Parts


def test_before_the_first_step_the_parts_are_zero_and_take_no_room() -> None:
    pupil, layout, weight = taught(3, 4)
    assert equal(pupil.state(layout), [weight, torch.zeros(3, 4), torch.zeros(3, 4)])
    assert pupil.store.held_bytes == weight.nbytes


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_as_many_parts_as_are_asked_for(parts: int) -> None:
    pupil, layout, state = trained()
    assert equal(pupil.store.fetch(layout.rows, layout.slices, parts), state[:parts])
    assert all(bool(part.any()) for part in state)


def test_the_second_part_is_what_was_lost_in_rounding() -> None:
    pupil, layout, weight = taught(3, 4)
    pupil.step(1, layout.slices, [], Descent.sgd(0.5, weight_decay=2.0**-25))
    now, lost, momentum = pupil.state(layout)
    assert torch.equal(now, weight)
    assert torch.equal(lost, -(2.0**-26) * weight)
    assert not momentum.any()


def test_a_part_of_the_parts_is_fetched() -> None:
    pupil, _, state = trained()
    assert equal(pupil.store.fetch(R[1:2], S[:1], 3), [part[2:, :4] for part in state])
    assert equal(pupil.store.fetch(R[1::-1], S[1:2], 3), [part[[2, 3, 4, 0, 1], 4:] for part in state])


def test_parts_of_several_sheets_are_put_together() -> None:
    """Also where one of them has taken a step with momentum, and the other none."""
    pupil = Pupil()
    pupil.load(sheet([2], [4]), torch.ones(2, 4))
    pupil.load(sheet([2], [3], slice_offset=1), torch.ones(2, 3))
    ((x, dy),) = some_jobs(1, 2, 4)
    pupil.job(1, R[:1], S[:1], dy, x)
    pupil.step(1, S[:1], [1], HEAVY)
    weight, lost, momentum = pupil.store.fetch(R[:1], S[:2], 3)
    assert bool(momentum[:, :4].all())
    assert torch.equal(weight[:, 4:], torch.ones(2, 3))
    assert not lost[:, 4:].any()
    assert not momentum[:, 4:].any()


def test_what_was_fetched_does_not_move_with_the_next_step() -> None:
    pupil, layout, state = trained()
    before = [part.clone() for part in state]
    pupil.step(3, layout.slices, [], HEAVY)
    assert equal(state, before)
    assert not torch.equal(pupil.weights(layout), before[0])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
def test_blocks_of_integers_have_no_other_parts(dtype: torch.dtype) -> None:
    """Zeros, as for all parts that are not there, or a refusal: but not the weights again."""
    pupil, layout = Pupil(), sheet([2], [3])
    pupil.load(layout, torch.ones(2, 3, dtype=dtype))
    try:
        first, *others = pupil.state(layout)
    except RefusedError:
        return
    assert torch.equal(first, torch.ones(2, 3, dtype=dtype))
    assert not any(bool(part.any()) for part in others)


# A rule without momentum after one with


def test_a_step_without_momentum_leaves_it_as_it_is() -> None:
    pupil, layout, state = trained()
    before = state[2].clone()
    assert before.any()
    pupil.step(3, layout.slices, [], PLAIN)
    assert torch.equal(pupil.state(layout)[2], before)


def test_momentum_goes_on_where_it_was_when_it_is_used_again() -> None:
    pupil, layout, state = trained()
    rules = [Descent.sgd(0.125, weight_decay=0.5), Descent.sgd(0.125, momentum=0.75, weight_decay=0.5)]
    weight, momentum = state[0].double() + state[1].double(), state[2].double()
    for number, rule in enumerate(rules, start=3):
        ((x, dy),) = some_jobs(1, 5, 6)
        pupil.job(number, layout.rows, layout.slices, dy, x)
        pupil.step(number, layout.slices, [number], rule)
        weight, momentum = rule.moved(weight, momentum, summed([(x, dy)]))
    torch.testing.assert_close(pupil.exactly(layout), weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pupil.state(layout)[2].double(), momentum, rtol=1e-5, atol=1e-5)


# Going on


@pytest.mark.parametrize(("kernel", "size", "space", "groups"), KERNELS[:4] + KERNELS[5:], ids=str)
@pytest.mark.parametrize("rule", [PLAIN, HEAVY, Descent.sgd(0.1, momentum=0.9, nesterov=True)], ids=str)
def test_who_loads_a_state_goes_on_from_there(
    kernel: Any, size: tuple[int, ...], space: tuple[int, ...], groups: int, rule: Descent
) -> None:
    """To the last bit: replicas stay equal."""
    layout, weight = sheet([6], [6], kernel, groups), torch.randn(6, 6 // groups, *size)
    pupil, other = Pupil(), Pupil()
    pupil.load(layout, weight)
    for number in range(1, 6):
        if number == 4:
            other.load(layout, *pupil.state(layout), step=3)
        for one in (pupil, other) if number >= 4 else (pupil,):
            torch.manual_seed(number)
            ((x, dy),) = some_jobs(1, 6, 6, kernel, size, space)
            one.job(number, layout.rows, layout.slices, dy, x)
            one.step(number, layout.slices, [number], rule)
    assert equal(other.state(layout), pupil.state(layout))


def test_a_state_may_be_cut_into_other_sheets() -> None:
    pupil, layout, state = trained()
    other = Pupil()
    first, second = sheet([2, 3], [4]), sheet([2, 3], [2], slice_offset=1)
    tensors = [*(part[:, :4] for part in state), *(part[:, 4:] for part in state)]
    other.store.load(Load((first, second), 3, 2), tensors)
    ((x, dy),) = some_jobs(1, 5, 6)
    for one in (pupil, other):
        one.job(9, layout.rows, layout.slices, dy, x)
        one.step(3, layout.slices, [9], HEAVY)
    for found, wanted in zip(other.state(layout), pupil.state(layout), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_parts_that_are_not_loaded_are_zero() -> None:
    pupil, layout, state = trained()
    for parts in (1, 2):
        other = Pupil()
        other.load(layout, *state[:parts], step=2)
        assert equal(other.state(layout), [*state[:parts], *[torch.zeros(5, 6)] * (3 - parts)])
        assert other.store.held_bytes == parts * state[0].nbytes
    assert pupil.store.held_bytes == 3 * state[0].nbytes


def test_a_repeated_load_goes_back() -> None:
    pupil, layout, state = trained()
    pupil.load(layout, *state, step=2)
    pupil.step(3, layout.slices, [], HEAVY)
    after = pupil.state(layout)
    pupil.load(layout, *state, step=2)
    assert equal(pupil.state(layout), state)
    with pytest.raises(RefusedError, match="another step"):
        pupil.step(4, layout.slices, [], HEAVY)
    pupil.step(3, layout.slices, [], HEAVY)
    assert equal(pupil.state(layout), after)


def test_a_load_keeps_copies_of_all_parts() -> None:
    pupil, layout = Pupil(), sheet([2], [3])
    parts = [torch.randn(2, 3) for _ in range(3)]
    before = [part.clone() for part in parts]
    pupil.load(layout, *parts)
    for part in parts:
        part.zero_()
    assert equal(pupil.state(layout), before)


def test_a_step_leaves_the_tensors_alone_that_were_loaded() -> None:
    pupil, layout, weight = taught(3, 4)
    before = weight.clone()
    pupil.step(1, layout.slices, [], HEAVY)
    assert torch.equal(weight, before)


def test_parts_of_half_precision_are_raised() -> None:
    pupil, layout = Pupil(), sheet([2], [3])
    parts = [torch.randn(2, 3).bfloat16(), torch.randn(2, 3).half(), torch.randn(2, 3)]
    pupil.load(layout, *parts)
    assert equal(pupil.state(layout), [part.float() for part in parts])


@pytest.mark.parametrize(
    "parts",
    [
        [torch.zeros(2, 3), torch.zeros(3, 2)],
        [torch.zeros(2, 3), torch.zeros(2, 3, 1)],
        [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8)],
        [torch.zeros(2, 3, dtype=torch.int8), torch.zeros(2, 3, dtype=torch.int16)],
        [torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.uint8)],
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: list[Tensor]) -> None:
    pupil, layout = Pupil(), sheet([2], [3])
    with pytest.raises(RefusedError, match="load"):
        pupil.load(layout, *parts)
    assert pupil.store.held_bytes == 0


def test_parts_of_kernels_of_other_sizes_are_refused() -> None:
    pupil, layout = Pupil(), sheet([2], [3], CONV)
    with pytest.raises(RefusedError, match="different types or shapes"):
        pupil.load(layout, torch.zeros(2, 3, 3, 3), torch.zeros(2, 3, 3, 2))


@pytest.mark.parametrize(("sheets", "parts", "tensors"), [(1, 2, 1), (1, 1, 2), (2, 2, 3), (2, 3, 2), (1, 3, 0)])
def test_tensors_are_as_many_as_all_parts_of_all_sheets(sheets: int, parts: int, tensors: int) -> None:
    layouts = tuple(sheet([2], [3], slice_offset=index) for index in range(sheets))
    pupil = Pupil()
    with pytest.raises(RefusedError, match=f"takes {sheets * parts} tensors, got {tensors}"):
        pupil.store.load(Load(layouts, parts), [torch.zeros(2, 3)] * tensors)


def test_all_parts_take_room() -> None:
    layout, parts = sheet([2], [3]), [torch.ones(2, 3)] * 3
    Pupil(memory_bytes=72).load(layout, *parts)
    pupil = Pupil(memory_bytes=71)
    with pytest.raises(LimitError, match="72 bytes"):
        pupil.load(layout, *parts)
    assert len(pupil.store) == 0


def test_the_digest_of_a_state_is_that_of_its_parts() -> None:
    pupil, layout, state = trained()
    assert torch.equal(digest(pupil.store.fetch(layout.rows, layout.slices, 3)), digest(state))
    assert not torch.equal(digest(state), digest(state[:2]))
    before = digest(state)
    pupil.step(3, layout.slices, [], HEAVY)
    assert not torch.equal(digest(pupil.state(layout)), before)


# Frozen copies


def frozen(pupil: Pupil, layout: Any, number: int) -> list[Tensor]:
    return pupil.store.fetch(layout.rows, layout.slices, 3, number)


def test_a_frozen_copy_stays_as_it_was() -> None:
    pupil, layout, state = trained()
    before = [part.clone() for part in state]
    pupil.freeze(layout.slices, 7)
    pupil.step(3, layout.slices, [], HEAVY)
    assert equal(frozen(pupil, layout, 7), before)
    assert not torch.equal(pupil.weights(layout), before[0])
    assert equal(pupil.store.fetch(R[1:2], S[:1], 2, 7), [part[2:, :4] for part in before[:2]])


def test_a_copy_of_what_has_taken_no_step() -> None:
    pupil, layout, weight = taught(3, 4)
    pupil.freeze(layout.slices, 7)
    pupil.step(1, layout.slices, [], HEAVY)
    assert equal(frozen(pupil, layout, 7), [weight, torch.zeros(3, 4), torch.zeros(3, 4)])


def test_a_newer_copy_replaces_the_older() -> None:
    pupil, layout, _ = trained()
    pupil.freeze(layout.slices, 7)
    pupil.step(3, layout.slices, [], HEAVY)
    now = pupil.state(layout)
    pupil.freeze(layout.slices, 8)
    pupil.step(4, layout.slices, [], HEAVY)
    assert equal(frozen(pupil, layout, 8), now)
    with pytest.raises(RefusedError, match="frozen copy"):
        frozen(pupil, layout, 7)


def test_a_copy_that_was_forgotten_is_not_fetched_and_takes_no_room() -> None:
    pupil, layout, state = trained()
    held = pupil.store.held_bytes
    pupil.freeze(layout.slices, 7)
    assert pupil.store.held_bytes == 2 * held
    pupil.freeze(layout.slices, 0)
    assert pupil.store.held_bytes == held
    with pytest.raises(RefusedError, match="frozen copy"):
        frozen(pupil, layout, 7)
    assert equal(pupil.state(layout), state)


def test_a_copy_of_some_sheets_is_no_copy_of_the_others() -> None:
    pupil = Pupil()
    pupil.load(sheet([2], [3]), torch.ones(2, 3))
    pupil.load(sheet([2], [3], slice_offset=1), torch.ones(2, 3))
    pupil.freeze(S[:1], 7)
    assert torch.equal(pupil.store.fetch(R[:1], S[:1], 1, 7)[0], torch.ones(2, 3))
    with pytest.raises(RefusedError, match="frozen copy"):
        pupil.store.fetch(R[:1], S[:2], 1, 7)


def test_a_load_or_a_release_ends_a_copy() -> None:
    pupil, layout, weight = taught(3, 4)
    pupil.freeze(layout.slices, 7)
    pupil.load(layout, weight)
    with pytest.raises(RefusedError, match="frozen copy"):
        frozen(pupil, layout, 7)
    pupil.freeze(layout.slices, 8)
    pupil.store.release(layout.slices)
    assert pupil.store.held_bytes == 0


@pytest.mark.parametrize(("room", "fits"), [(96, True), (95, False)])
def test_a_copy_needs_room(room: int, fits: bool) -> None:
    pupil, layout, weight = taught(3, 4, memory_bytes=room)
    if fits:
        pupil.freeze(layout.slices, 7)
        pupil.freeze(layout.slices, 8)
        return
    with pytest.raises(LimitError, match="offered"):
        pupil.freeze(layout.slices, 7)
    assert equal(pupil.store.fetch(layout.rows, layout.slices), [weight])


def test_copies_in_place_of_smaller_ones_need_room() -> None:
    """The first was taken before there was a momentum."""
    pupil, layout, _ = taught(3, 4, memory_bytes=5 * 48)
    pupil.freeze(layout.slices, 7)
    pupil.step(1, layout.slices, [], HEAVY)
    with pytest.raises(LimitError, match="offered"):
        pupil.freeze(layout.slices, 8)
    assert pupil.store.held_bytes <= 5 * 48


def test_what_cannot_be_frozen() -> None:
    pupil, layout = Pupil(), sheet([2], [3])
    pupil.load(layout, torch.ones(2, 3, dtype=torch.int8))
    with pytest.raises(RefusedError, match="integers"):
        pupil.freeze(layout.slices, 7)
    with pytest.raises(RefusedError, match="not held"):
        pupil.freeze(S[2:], 7)
