"""Falsified gradients: what they are in place of the right ones, how often, and where they lead a device."""

from collections.abc import Callable

import msgspec
import pytest
import torch
from torch import Tensor

from awfulowl.device import learning
from awfulowl.device.control import Command, Stray
from awfulowl.device.lies import STEP_KINDS, Misstep, StepKind
from tests.unit.device.pupil import PLAIN, Pupil, some_jobs, summed, taught
from tests.unit.device.test_store import CONV, handles, sheet

R, S = handles("r", 2), handles("s", 2)


def falsified(misstep: Misstep, block: int, gradient: Tensor) -> Tensor:
    """What becomes of a gradient, which is left as it is."""
    found = gradient.clone()
    misstep(block, found)
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("skipped", torch.zeros_like),
        ("doubled", lambda gradient: 2 * gradient),
        ("scaled", lambda gradient: gradient * 1.25),
    ],
)
@pytest.mark.parametrize("shape", [(5, 8), (4, 6, 3, 3)])
def test_each_kind_is_what_it_is_called(
    kind: StepKind, expected: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    misstep = Misstep(kind, size=0.25)
    for told in (1, 2, 3):
        gradient = torch.randn(shape)
        torch.testing.assert_close(falsified(misstep, 7, gradient), expected(gradient))
        assert misstep.told == told


def test_scaled_gradients_are_longer_by_a_tenth_unless_it_is_said_by_how_much() -> None:
    gradient = torch.randn(5, 8)
    torch.testing.assert_close(falsified(Misstep("scaled"), 7, gradient), 1.1 * gradient)
    torch.testing.assert_close(falsified(Misstep("scaled", -0.5), 7, gradient), 0.5 * gradient)


def test_stale_gradients_are_those_of_the_step_before() -> None:
    misstep = Misstep("stale")
    right = [torch.randn(5, 8) for _ in range(4)]
    found = [falsified(misstep, 7, gradient) for gradient in right]
    assert all(map(torch.equal, found, [right[0], *right[:3]]))


def test_every_block_has_stale_gradients_of_its_own() -> None:
    misstep = Misstep("stale")
    first, second = torch.randn(2, 5, 8)
    assert torch.equal(falsified(misstep, 7, first), first)
    assert torch.equal(falsified(misstep, 8, second), second)
    assert torch.equal(falsified(misstep, 7, second), first)
    assert torch.equal(falsified(misstep, 8, first), second)


def test_stale_gradients_are_copies() -> None:
    """The memory of a gradient is used again for the next."""
    misstep, made = Misstep("stale"), torch.ones(3)
    misstep(7, made)
    made.fill_(2)
    misstep(7, made)
    assert torch.equal(made, torch.ones(3))


def test_what_is_right_for_want_of_an_older_one_is_no_lie() -> None:
    misstep = Misstep("stale")
    falsified(misstep, 7, torch.ones(3))
    assert misstep.told == 0
    falsified(misstep, 7, torch.zeros(3))
    assert misstep.told == 1


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_some_gradients_are_left_alone(kind: StepKind) -> None:
    misstep = Misstep(kind, probability=0.25)
    right = [torch.randn(4) for _ in range(400)]
    wrong = sum(not torch.equal(falsified(misstep, 7, gradient), gradient) for gradient in right)
    assert wrong == pytest.approx(misstep.told, abs=1)
    assert 60 < misstep.told < 140  # more than four standard deviations


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_with_no_probability_nothing_is_falsified(kind: StepKind) -> None:
    misstep = Misstep(kind, probability=0.0)
    for _ in range(20):
        gradient = torch.randn(4)
        assert torch.equal(falsified(misstep, 7, gradient), gradient)
    assert misstep.told == 0


def test_lies_are_told_alike_under_one_seed() -> None:
    def told(seed: int) -> list[int]:
        misstep = Misstep("doubled", probability=0.5, seed=seed)
        found = []
        for _ in range(40):
            misstep(7, torch.ones(1))
            found.append(misstep.told)
        return found

    assert told(3) == told(3)
    assert told(3) != told(4)


# At a device


def steps(pupil: Pupil, slices: tuple[bytes, ...], jobs: list[tuple[Tensor, Tensor]]) -> None:
    """One step along each of some jobs, for the first row."""
    for number, (x, dy) in enumerate(jobs, start=1):
        pupil.job(number, R[:1], slices, dy, x)
        pupil.step(number, slices, [number])


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("skipped", (0.0, 0.0, 0.0)),
        ("doubled", (2.0, 2.0, 2.0)),
        ("scaled", (1.5, 1.5, 1.5)),
        ("stale", (2.0, 1.0, 0.0)),
    ],
)
def test_a_device_steps_along_what_it_falsified(kind: StepKind, taken: tuple[float, ...]) -> None:
    pupil, layout, weight = taught(3, 4)
    pupil.learner.tamper = misstep = Misstep(kind, size=0.5)
    jobs = some_jobs(3, 3, 4)
    steps(pupil, layout.slices, jobs)
    along = torch.stack([factor * summed([job]) for factor, job in zip(taken, jobs, strict=True)]).sum(dim=0)
    torch.testing.assert_close(pupil.exactly(layout), weight.double() - 0.125 * along, rtol=1e-5, atol=1e-5)
    assert misstep.told >= 2


def test_every_sheet_and_every_part_of_a_gradient_is_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or stale gradients of one would be put in place of those of another, of another shape even."""
    monkeypatch.setattr(learning, "_GRADIENT", 8)
    pupil = Pupil()
    weight = torch.randn(5, 6)
    pupil.load(sheet([5], [4]), weight[:, :4])
    pupil.load(sheet([5], [2], slice_offset=1), weight[:, 4:])
    pupil.learner.tamper = Misstep("stale")
    jobs = some_jobs(2, 5, 6)
    steps(pupil, S, jobs)
    (found,) = pupil.store.fetch(R[:1], S)
    torch.testing.assert_close(found.double(), weight.double() - 0.25 * summed(jobs[:1]), rtol=1e-5, atol=1e-5)


def test_gradients_of_convolutions_are_falsified_too() -> None:
    pupil, layout, weight = Pupil(), sheet([3], [2], CONV), torch.randn(3, 2, 3, 3)
    pupil.load(layout, weight)
    pupil.learner.tamper = Misstep("skipped")
    pupil.job(1, R[:1], S[:1], torch.randn(2, 3, 5, 5), torch.randn(2, 2, 5, 5))
    pupil.step(1, S[:1], [1], PLAIN)
    assert torch.equal(pupil.weights(layout), weight)


def test_a_length_is_said_truly() -> None:
    pupil, layout, _ = taught(3, 4)
    ((x, dy),) = jobs = some_jobs(1, 3, 4)
    pupil.job(1, layout.rows, layout.slices, dy, x)
    pupil.learner.tamper = misstep = Misstep("doubled")
    found = pupil.measure(layout.rows, layout.slices, [1])
    assert found == pytest.approx(float(summed(jobs).square().sum()), rel=1e-5)
    assert misstep.told == 0


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_a_device_process_is_told_how_to_stray(kind: StepKind) -> None:
    line = msgspec.json.encode(Stray(kind, 0.25, 0.5))
    assert msgspec.json.decode(line, type=Command) == Stray(kind, 0.25, 0.5)
    assert msgspec.json.decode(msgspec.json.encode({"type": "stray", "kind": kind}), type=Command) == Stray(
        kind, 0.1, 1.0
    )


@pytest.mark.parametrize("changed", [{"kind": "sign"}, {"size": None}, {"probability": "1"}, {"more": 1}], ids=str)
def test_a_device_process_is_told_nothing_else(changed: dict[str, object]) -> None:
    line = msgspec.json.encode({"type": "stray", "kind": "stale", **changed})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line, type=Command)
