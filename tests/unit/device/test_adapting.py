"""Steps of Adam at a device: what its blocks become, the four parts that they have then, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.adaptation import Adaptation
from awfulowl.arithmetic.descent import Descent
from awfulowl.blocks.kernels import Kernel
from awfulowl.device.lies import STEP_KINDS, Misstep, StepKind
from awfulowl.device.sheets import Held
from awfulowl.errors import LimitError, RefusedError
from awfulowl.wire.digest import digest
from awfulowl.wire.messages import Load
from awfulowl.wire.parts import Sheet
from tests.unit.device.pupil import HEAVY, KERNELS, PLAIN, Pupil, by_torch, some_jobs, taught
from tests.unit.device.test_states import equal
from tests.unit.device.test_store import handles, sheet

R, S = handles("r", 3), handles("s", 3)
LR = 2.0**-7


def adam(step: int, **options: Any) -> Adaptation:
    return Adaptation.adam(LR, step, **options)


def adapted(steps: int = 3) -> tuple[Pupil, Sheet, list[Tensor]]:
    """A pupil after some steps, its sheet of several blocks, and what it holds."""
    pupil, layout = Pupil(), sheet([2, 3], [4, 2])
    pupil.load(layout, torch.randn(5, 6))
    for number in range(1, steps + 1):
        go_on(pupil, layout, number)
    return pupil, layout, pupil.state(layout, 4)


def go_on(pupil: Pupil, layout: Sheet, number: int) -> None:
    torch.manual_seed(number)
    ((x, dy),) = some_jobs(1, 5, 6)
    pupil.job(number, layout.rows, layout.slices, dy, x)
    pupil.step(number, layout.slices, [number], adam(number))


@pytest.mark.parametrize(("kernel", "size", "space", "groups"), KERNELS, ids=str)
@pytest.mark.parametrize("decay", [{}, {"weight_decay": 0.25}, {"weight_decay": 0.25, "decoupled": True}], ids=str)
def test_training_is_that_of_torch(
    kernel: Kernel, size: tuple[int, ...], space: tuple[int, ...], groups: int, decay: dict[str, Any]
) -> None:
    """Six steps along two jobs each."""
    pupil, layout, weight = Pupil(), sheet([6], [6], kernel, groups), torch.randn(6, 6 // groups, *size)
    pupil.load(layout, weight)
    steps = [some_jobs(2, 6, 6, kernel, size, space) for _ in range(6)]
    for number, jobs in enumerate(steps, start=1):
        for job, (x, dy) in enumerate(jobs, start=1):
            pupil.job(job, layout.rows, layout.slices, dy, x)
        pupil.step(number, layout.slices, [1, 2], adam(number, **decay))
    kind = torch.optim.AdamW if decay.get("decoupled") else torch.optim.Adam
    wanted = by_torch(kernel, weight, steps, groups, kind, lr=LR, weight_decay=decay.get("weight_decay", 0.0))
    torch.testing.assert_close(pupil.exactly(layout), wanted, rtol=1e-4, atol=1e-5)


def test_the_four_parts() -> None:
    pupil, layout, weight = taught(3, 4)
    assert equal(pupil.state(layout, 4), [weight, *[torch.zeros(3, 4)] * 3])
    assert pupil.store.held_bytes == weight.nbytes
    ((x, dy),) = some_jobs(1, 3, 4)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    pupil.step(1, layout.slices, [1], adam(1))
    along = dy.double().T @ x.double()
    now, lost, momentum, square = pupil.state(layout, 4)
    torch.testing.assert_close(momentum.double(), 0.1 * along, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(square.double(), 0.001 * along.square(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(now.double() + lost.double(), weight - LR * along.sign(), rtol=0.0, atol=1e-4)
    assert pupil.store.held_bytes == 4 * weight.nbytes


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_as_many_parts_as_are_asked_for(parts: int) -> None:
    pupil, layout, state = adapted()
    assert equal(pupil.state(layout, parts), state[:parts])
    assert equal(pupil.store.fetch(R[1:2], S[:1], parts), [part[2:, :4] for part in state[:parts]])
    assert all(bool(part.any()) for part in state)


def test_a_digest_is_of_all_four() -> None:
    _, _, state = adapted()
    assert not torch.equal(digest(state), digest(state[:3]))


@pytest.mark.parametrize(("room", "fits"), [(4 * 64, True), (4 * 64 - 1, False)])
def test_what_is_kept_beside_the_weights_needs_room(room: int, fits: bool) -> None:
    layout, weight = sheet([4], [4]), torch.ones(4, 4)
    pupil = Pupil(memory_bytes=room)
    pupil.load(layout, weight)
    if fits:
        pupil.step(1, layout.slices, [], adam(1))
        assert pupil.store.held_bytes == room
        pupil.step(2, layout.slices, [], adam(2))
        return
    with pytest.raises(LimitError, match="offered"):
        pupil.step(1, layout.slices, [], adam(1))
    assert pupil.store.held_bytes == 64
    assert equal(pupil.state(layout, 4), [weight, *[torch.zeros(4, 4)] * 3])


def test_only_what_is_missing_needs_room() -> None:
    """A momentum that SGD left is there already."""
    layout, weight = sheet([4], [4]), torch.ones(4, 4)
    for room, fits in ((4 * 64, True), (4 * 64 - 1, False)):
        pupil = Pupil(memory_bytes=room)
        pupil.load(layout, weight)
        pupil.step(1, layout.slices, [], HEAVY)
        before = pupil.state(layout, 4)
        if fits:
            pupil.step(2, layout.slices, [], adam(1))
            continue
        with pytest.raises(LimitError, match="offered"):
            pupil.step(2, layout.slices, [], adam(1))
        assert equal(pupil.state(layout, 4), before)


@pytest.mark.parametrize(("kernel", "size", "space", "groups"), KERNELS[:3] + KERNELS[5:], ids=str)
@pytest.mark.parametrize("parts", [1, 4])
def test_who_loads_a_state_goes_on_from_there(
    kernel: Kernel, size: tuple[int, ...], space: tuple[int, ...], groups: int, parts: int
) -> None:
    """To the last bit. A state of one part is that before the first step."""
    layout, weight = sheet([6], [6], kernel, groups), torch.randn(6, 6 // groups, *size)
    pupil, other = Pupil(), Pupil()
    pupil.load(layout, weight)
    since = 3 if parts == 4 else 0
    for number in range(1, 6):
        if number == since + 1:
            other.load(layout, *pupil.state(layout, parts), step=since)
        for one in (pupil, other) if number > since else (pupil,):
            torch.manual_seed(number)
            ((x, dy),) = some_jobs(1, 6, 6, kernel, size, space)
            one.job(number, layout.rows, layout.slices, dy, x)
            one.step(number, layout.slices, [number], adam(number))
    assert equal(other.state(layout, 4), pupil.state(layout, 4))


def test_a_state_may_be_cut_into_other_sheets() -> None:
    pupil, layout, state = adapted()
    other = Pupil()
    first, second = sheet([2, 3], [4]), sheet([2, 3], [2], slice_offset=1)
    tensors = [*(part[:, :4] for part in state), *(part[:, 4:] for part in state)]
    other.store.load(Load((first, second), 4, 3), tensors)
    for one in (pupil, other):
        go_on(one, layout, 4)
    for found, wanted in zip(other.state(layout, 4), pupil.state(layout, 4), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_frozen_copy_is_of_all_four() -> None:
    pupil, layout, state = adapted()
    held = pupil.store.held_bytes
    pupil.freeze(layout.slices, 7)
    assert pupil.store.held_bytes == 2 * held == 8 * state[0].nbytes
    go_on(pupil, layout, 4)
    assert equal(pupil.store.fetch(layout.rows, layout.slices, 4, 7), state)
    assert not torch.equal(pupil.state(layout, 4)[3], state[3])
    pupil.freeze(layout.slices, 0)
    assert pupil.store.held_bytes == held


def test_equal_steps_give_equal_bits() -> None:
    start, states = torch.randn(5, 6), []
    for _ in range(2):
        pupil, layout = Pupil(), sheet([2, 3], [4, 2])
        pupil.load(layout, start)
        for number in range(1, 5):
            go_on(pupil, layout, number)
        states.append(pupil.state(layout, 4))
    assert equal(*states)


def test_a_repeated_step_is_done_once() -> None:
    pupil, layout, state = adapted(3)
    for jobs in ([3], [], [99]):
        pupil.step(3, layout.slices, jobs, adam(3))
    assert equal(pupil.state(layout, 4), state)


@pytest.mark.parametrize("number", [0, 2, 5])
def test_a_step_out_of_turn_is_refused(number: int) -> None:
    pupil, layout, state = adapted(3)
    with pytest.raises(RefusedError, match="another step"):
        pupil.step(number, layout.slices, [], adam(number + 1))
    assert equal(pupil.state(layout, 4), state)


def test_a_job_that_is_missing_is_named_and_nothing_moves() -> None:
    pupil, layout, state = adapted(3)
    with pytest.raises(RefusedError, match="a job is named that is not here"):
        pupil.step(4, layout.slices, [9], adam(4))
    assert equal(pupil.state(layout, 4), state)


def test_blocks_of_integers_are_not_trained() -> None:
    pupil, layout = Pupil(), sheet([3], [4])
    pupil.load(layout, torch.ones(3, 4, dtype=torch.int8))
    with pytest.raises(RefusedError, match="integers are not trained"):
        pupil.step(1, layout.slices, [], adam(1))


@pytest.mark.parametrize("rule", [PLAIN, HEAVY], ids=["plain", "momentum"])
def test_other_rules_leave_the_mean_square_alone(rule: Descent) -> None:
    pupil, layout, state = adapted(3)
    before = [part.clone() for part in state]
    pupil.step(4, layout.slices, [], rule)
    after = pupil.state(layout, 4)
    assert torch.equal(after[3], before[3])
    assert torch.equal(after[2], before[2]) == (rule is PLAIN)


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_missteps_change_what_it_becomes(kind: StepKind) -> None:
    honest, _, _ = adapted(1)
    layout = sheet([2, 3], [4, 2])
    start = honest.state(layout, 4)
    strayed = Pupil()
    strayed.load(layout, *start, step=1)
    misstep = strayed.learner.tamper = Misstep(kind)
    for number in (2, 3):
        for one in (honest, strayed):
            go_on(one, layout, number)
    assert misstep.told > 0
    for found, wanted in zip(strayed.state(layout, 4)[2:], honest.state(layout, 4)[2:], strict=True):
        assert not torch.allclose(found, wanted, rtol=1e-3)


def test_a_sheet_knows_its_parts() -> None:
    pupil, _, state = adapted()
    (held,) = pupil.store._sheets
    assert isinstance(held, Held)
    assert len(held.state.parts) == 3
    assert held.nbytes == 4 * state[0].nbytes
