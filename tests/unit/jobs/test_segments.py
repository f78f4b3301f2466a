"""Where bits cannot be equal, an error is counted relative to the movement, and honest runs say what is allowed."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from awfulowl.errors import InputError
from awfulowl.jobs.challenge import answer, draw
from awfulowl.jobs.checks.start import W0_TOLERANCE
from awfulowl.jobs.job import Proving
from awfulowl.jobs.loop import Conduct, Row, Trainer, Work
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.proof import read
from awfulowl.jobs.segments import MARGIN, calibrate, describe, error, errors, kernels
from awfulowl.jobs.state import State
from awfulowl.jobs.verify import Verdict, verify
from tests.unit.jobs.small import made, small_work

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
    begun = state(1.0, step=0)
    assert error(begun, state(1.1), state(1.1)) == 0.0
    assert error(begun, state(1.1), state(1.101)) == pytest.approx(0.01, rel=1e-3)
    assert error(begun, state(1.01), state(1.011)) == pytest.approx(0.1, rel=1e-3)
    assert error(begun, state(1.1), state(1.0)) == pytest.approx(1.0, rel=1e-3)


def test_each_kind_of_tensor_is_held_to_its_own_movement() -> None:
    begun = state(1.0, momentum=0.0, step=0)
    assert error(begun, state(2.0, momentum=0.1), state(2.0, momentum=0.2)) == pytest.approx(1.0, rel=1e-3)


def test_what_did_not_move_has_to_stay_within_its_rounding() -> None:
    begun = state(1.0, step=0)
    assert error(begun, begun._replace(step=1), state(1.0 + 2**-23)) == pytest.approx(2.0, rel=0.1)
    assert error(begun, begun._replace(step=1), state(1.01)) > 1e4


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


def test_tolerance_is_the_largest_error_with_a_margin() -> None:
    work = small_work()
    assert calibrate(work, (2,), ((1, True),)) == MARGIN * 2.0**-24
    found = errors(work, (2, 9))
    assert calibrate(work, (2, 9)) == max(MARGIN * max(found), MARGIN * 2.0**-24)
    assert calibrate(work, (2, 9)) < 1e-1


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


def judged(conduct: Conduct, directory: Path, tolerance: float | None = 1e-2, segment: int = 2) -> Verdict:
    work: Work = small_work(
        proving=Proving(checkpoint_every=4, challenges=12, largest=2, epochs=2, tolerance=tolerance, segment=segment)
    )
    made(work, directory, conduct)
    wanted = draw(read(directory, work.job), OTHER)
    assert not wanted.exact
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


def test_jobs_that_no_other_machine_can_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awfulowl.jobs.segments.errors", lambda *_: [0.5])
    with pytest.raises(InputError, match="runner's class"):
        calibrate(small_work(), (1,))
