"""Where bits cannot be equal, an error is counted relative to the movement, and honest runs say what is allowed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from awfulowl.errors import InputError
from awfulowl.jobs import segments
from awfulowl.jobs.challenge import answer, draw
from awfulowl.jobs.checks.start import W0_TOLERANCE
from awfulowl.jobs.job import MOST_TOLERANCE, Proving
from awfulowl.jobs.loop import Conduct, Row, Trainer, Work, repeatable
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.proof import read
from awfulowl.jobs.segments import (
    LEAST_TOLERANCE,
    LOOKS,
    MARGIN,
    UNITS,
    calibrate,
    describe,
    error,
    errors,
    kernels,
    looks,
    nudged,
)
from awfulowl.jobs.state import MODEL, State
from awfulowl.jobs.task import Batch
from awfulowl.jobs.verify import Verdict, verify
from awfulowl.randomness import Entropy
from tests.unit.jobs.small import Small, made, small_work

OTHER = msgspec.structs.replace(this_machine(1), instructions="another")


def state(weight: float, *, momentum: float = 1.0, count: int = 1, step: int = 1) -> State:
    return State(
        step,
        {
            "model.weight": torch.full((4,), weight),
            "model.count": torch.tensor(count),
            "optimizer.weight.momentum_buffer": torch.full((4,), momentum),
        },
    )


def test_the_error_is_relative_to_the_movement() -> None:
    """Its own, and that which is usual."""
    begun = state(1.0, step=0)
    assert error(begun, state(1.1), state(1.1)) == 0.0
    assert error(begun, state(1.1), state(1.101)) == pytest.approx(0.005, rel=1e-3)
    assert error(begun, state(1.01), state(1.011)) == pytest.approx(0.05, rel=1e-3)
    assert error(begun, state(1.1), state(1.0)) == pytest.approx(0.5, rel=1e-3)


def test_each_kind_of_tensor_is_held_to_its_own_movement() -> None:
    begun = state(1.0, momentum=0.0, step=0)
    assert error(begun, state(2.0, momentum=0.1), state(2.0, momentum=0.2)) == pytest.approx(0.5, rel=1e-3)


def test_what_did_not_move_has_to_stay_within_its_rounding() -> None:
    begun = state(1.0, step=0)
    assert error(begun, begun._replace(step=1), state(1.0 + 2**-23)) == 0.0
    assert error(begun, begun._replace(step=1), state(1.0 + 2**-20)) > 1e4


def many(*tensors: torch.Tensor, step: int = 1) -> State:
    return State(step, {f"model.{place}": tensor for place, tensor in enumerate(tensors)})


def pooled(begun: State, ours: State, theirs: State) -> float:
    """The error as a norm over all numbers: what a huge one hides the others in."""
    one, two, start = (
        torch.cat([tensor.double().flatten() for tensor in x.tensors.values()]) for x in (ours, theirs, begun)
    )
    return float((one - two).norm() / (one - start).norm())


@pytest.mark.parametrize("huge", [1e3, 1e6, 1e12, 1e30])
def test_a_huge_number_hides_nothing_but_itself(huge: float) -> None:
    begun = many(torch.zeros(8), torch.zeros(4), torch.zeros(2), step=0)
    moved = torch.full((8,), 0.1)
    moved[3] = huge
    ours = many(moved, torch.full((4,), 0.1), torch.full((2,), 0.1))
    faked = many(torch.where(moved == huge, moved, 0.2), torch.full((4,), 0.1), torch.full((2,), 0.1))
    assert error(begun, ours, faked) == pytest.approx(0.5 * (7 / 8) ** 0.5, rel=1e-3)
    assert pooled(begun, ours, faked) < 1e-3


def test_a_tensor_that_only_rounding_moves_is_held_to_what_the_others_move() -> None:
    """The gradient of a bias before batch norm is 0, and what is computed of it all rounding."""
    begun = many(torch.zeros(4), torch.zeros(4), torch.zeros(4), step=0)
    noise = torch.full((4,), 1e-9)
    ours, theirs = many(torch.ones(4), torch.ones(4), noise), many(torch.ones(4), torch.ones(4), -noise)
    assert error(begun, ours, theirs) == pytest.approx(2e-9, rel=1e-2)
    assert error(begun, ours, many(torch.ones(4), torch.ones(4), torch.full((4,), 1e-2))) > 5e-3


@pytest.mark.parametrize(
    "theirs",
    [
        state(1.1, count=2),
        state(1.1, step=2),
        state(float("nan")),
        state(float("inf")),
        State(1, {"model.weight": torch.ones(4)}),
    ],
)
def test_what_no_rounding_explains(theirs: State) -> None:
    assert error(state(1.0, step=0), state(1.1), theirs) == float("inf")


def test_kernels_are_put_back() -> None:
    backend: Any = torch.backends.mkldnn
    before = bool(backend.enabled)
    with pytest.raises(KeyError), kernels(fused=not before):
        raise KeyError
    assert backend.enabled is before


def test_the_same_machine_makes_no_error() -> None:
    assert errors(small_work(), (0, 5, 20), ((1, True),)) == [0.0, 0.0, 0.0]
    assert describe([3.0, 1.0, 2.0]) == {"median": 2.0, "largest": 3.0}


def test_tolerance_is_the_median_error_with_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kink, which is rare and large, does not raise it."""
    work = small_work()
    assert calibrate(work, (2,), ((1, True),)) == LEAST_TOLERANCE
    assert LEAST_TOLERANCE <= calibrate(work, (2, 9)) < 1e-2
    monkeypatch.setattr("awfulowl.jobs.segments.errors", lambda *_: [0.0, 0.0, 2e-5, 3e-5, 0.4])
    assert calibrate(work, (2,)) == MARGIN * 3e-5


class Nudged(Conduct):
    """An honest runner whose last bits are others, as on another machine; or worse."""

    def __init__(self, by: float) -> None:
        self._by = by

    def step(self, trainer: Trainer) -> Row:
        row = trainer.advance()
        with torch.no_grad():
            for parameter in trainer.parameters:
                parameter.mul_(1 + self._by * (-1) ** trainer.step)
        return row


class NudgedStart(Nudged):
    """One whose initial weights are others."""

    def start(self, trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.parameters[0].mul_(1 + self._by)

    def step(self, trainer: Trainer) -> Row:
        return trainer.advance()


def judged(
    conduct: Conduct,
    directory: Path,
    tolerance: float | None = 1e-2,
    segment: int = 2,
    task: Small | None = None,
    **changed: Any,
) -> Verdict:
    work: Work = small_work(
        task,
        proving=Proving(checkpoint_every=4, challenges=12, largest=2, epochs=2, tolerance=tolerance, segment=segment),
    )
    made(work, directory, conduct)
    wanted = draw(read(directory, work.job), OTHER)
    assert not wanted.exact
    wanted = msgspec.structs.replace(wanted, **changed)
    answer(work, directory, wanted, conduct=conduct)
    return verify(work, directory, wanted, answered=True)


@pytest.mark.parametrize("segment", [1, 2, 10])
def test_rounding_passes(tmp_path: Path, segment: int) -> None:
    found = judged(Nudged(1e-7), tmp_path / "p", segment=segment)
    assert (found.status, found.reason, found.exact) == ("accepted", None, False)


def test_more_than_rounding_does_not(tmp_path: Path) -> None:
    assert judged(Nudged(1e-2), tmp_path / "p").status == "refused"


def test_without_a_tolerance_bits_have_to_be_equal(tmp_path: Path) -> None:
    found = judged(Nudged(1e-7), tmp_path / "p", tolerance=None)
    assert found.status == "refused"


def test_another_start_is_found_beyond_rounding(tmp_path: Path) -> None:
    assert judged(NudgedStart(W0_TOLERANCE / 10), tmp_path / "a").status == "accepted"
    assert judged(NudgedStart(W0_TOLERANCE * 10), tmp_path / "b").caught_by == "start"


@pytest.mark.parametrize("honest", [0.5, 1.1 * MOST_TOLERANCE / MARGIN])
def test_jobs_that_no_other_machine_can_verify(monkeypatch: pytest.MonkeyPatch, honest: float) -> None:
    monkeypatch.setattr("awfulowl.jobs.segments.errors", lambda *_: [honest])
    with pytest.raises(InputError, match="runner's class"):
        calibrate(small_work(), (1,))


class Blind(Small):
    """The first number of every example is 0: nothing depends on the weights that it is multiplied by."""

    def data(self, files: Mapping[str, bytes]) -> Batch:
        numbers, labels = super().data(files)
        numbers[:, 0] = 0.0
        return numbers, labels


class BlownUp(Conduct):
    """Fakes one step to make weights huge that nothing depends on, and all later ones by leaving the gradient out."""

    def __init__(self, *, faked: bool = True) -> None:
        self._faked = faked

    def step(self, trainer: Trainer) -> Row:
        begun = trainer.state().copy()
        row = trainer.advance()
        if begun.step == 2:
            self._blow_up(trainer)
        elif begun.step > 2 and self._faked:
            tensors = dict(trainer.state().copy().tensors)
            for name in [one for one in tensors if one.endswith(".momentum_buffer")]:
                tensors[name] = 0.9 * begun.tensors[name]
                of = "model." + name.removeprefix("optimizer.").removesuffix(".momentum_buffer")
                tensors[of] = begun.tensors[of] - row.rate * tensors[name]
            trainer.load(State(trainer.step, tensors))
        return row

    @staticmethod
    def _blow_up(trainer: Trainer) -> None:
        weight = trainer.parameters[0]
        with torch.no_grad():
            weight[:, 0] = 1e9
            trainer.optimizer.state[weight]["momentum_buffer"][:, 0] = 1e9


def test_after_a_faked_step_that_makes_a_weight_huge_fakes_are_found_as_before(tmp_path: Path) -> None:
    later: Any = {"drawn": (0, 6, 12, 20), "largest": (), "epochs": ()}
    found = judged(BlownUp(), tmp_path / "faked", task=Blind(), **later)
    assert (found.status, found.caught_by) == ("refused", "replay")
    honest = judged(BlownUp(faked=False), tmp_path / "honest", task=Blind(), **later)
    assert (honest.status, honest.reason) == ("accepted", None)
    work = small_work(Blind(), proving=Proving(tolerance=1e-2))
    with repeatable(1):
        ours, theirs = Trainer(work), Trainer(work)
        for step in range(7):
            begun = theirs.state().copy()
            ours.load(begun)
            ours.advance()
            BlownUp().step(theirs)
            if step == 6:
                assert pooled(begun, ours.state(), theirs.state()) < 1e-6
                assert error(begun, ours.state(), theirs.state()) > 0.1


class Kinked(Small):
    """The first unit's input is 0 but for rounding, at all examples: whether it learns is up to the last bit."""

    def data(self, files: Mapping[str, bytes]) -> Batch:
        numbers, labels = super().data(files)
        self._row = numbers[0]
        return numbers[:1].repeat(len(numbers), 1), labels

    def model(self) -> nn.Module:
        first = nn.Linear(len(self._row), 4)
        with torch.no_grad():
            first.bias[0] = 0.0
            first.bias[0] = -first(self._row)[0]
        return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 3))


class OtherRounding(Conduct):
    """An honest runner whose first step is rounded otherwise."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def step(self, trainer: Trainer) -> Row:
        if trainer.step:
            return trainer.advance()
        begun = trainer.state().copy()
        moved = nudged(begun, 2.0, Entropy(self._seed), trainer.layout.still)
        trainer.load(moved)
        row = trainer.advance()
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                parameter.sub_(moved.tensors[MODEL + name] - begun.tensors[MODEL + name])
        return row


def first_error(seed: int) -> float:
    work = small_work(Kinked())
    with repeatable(1):
        ours, theirs = Trainer(work), Trainer(work)
        begun = ours.state().copy()
        ours.advance()
        OtherRounding(seed).step(theirs)
        return error(begun, ours.state(), theirs.state())


def test_honest_runners_on_the_other_side_of_a_kink_pass_at_a_second_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {first_error(seed) > 0.1: seed for seed in range(12)}
    assert sorted(sides) == [False, True]
    for seed in sides.values():
        found = judged(OtherRounding(seed), tmp_path / f"{seed}", LEAST_TOLERANCE, 1, Kinked())
        assert (found.status, found.reason) == ("accepted", None)
    monkeypatch.setattr(segments, "LOOKS", 0)
    found = judged(OtherRounding(sides[True]), tmp_path / "once", LEAST_TOLERANCE, 1, Kinked())
    assert (found.status, found.caught_by) == ("refused", "start")


def test_second_looks_end_and_are_counted() -> None:
    work = small_work()
    taken: list[int] = []
    with repeatable(1):
        trainer = Trainer(work)
        begun = trainer.state().copy()

        def advance() -> Row:
            taken.append(trainer.step)
            return trainer.advance()

        found = [
            error(begun, begun._replace(step=2), look.end._replace(tensors=begun.tensors))
            for look in looks(trainer, begun, 2, Entropy(1), advance)
        ]
    assert len(found) == LOOKS + 1
    assert taken == [0, 1] * (LOOKS + 1)


def test_second_looks_move_as_the_first_one_does() -> None:
    """What the weights were moved by is no movement of the stretch."""
    work = small_work()
    with repeatable(1):
        trainer = Trainer(work)
        begun = trainer.state().copy()
        runs = looks(trainer, begun, 2, Entropy(2), trainer.advance)
        first = next(runs).end.copy()
        found = [error(begun, first, look.end) for look in runs]
    assert 0.0 < sorted(found)[len(found) // 2] < LEAST_TOLERANCE


@pytest.mark.parametrize("units", UNITS)
def test_weights_are_moved_by_units_of_their_last_place(units: float) -> None:
    begun = state(1.5, momentum=2.0)
    begun = begun._replace(tensors={**begun.tensors, "model.weight": torch.full((500,), 1.5)})
    one, two = nudged(begun, units, Entropy(0)), nudged(begun, units, Entropy(1))
    by = (one.tensors["model.weight"] - 1.5).abs() / torch.finfo(torch.float32).eps / 1.5
    assert 0.5 * units < float(by.max()) <= units + 0.5
    assert not torch.equal(one.tensors["model.weight"], two.tensors["model.weight"])
    for name in ("model.count", "optimizer.weight.momentum_buffer"):
        assert one.tensors[name] is begun.tensors[name]
