"""What runners who fake steps cannot hide below a tolerance, and what honest ones of unusual jobs may do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import InputError
from awfulowl.jobs.challenge import draw
from awfulowl.jobs.checks.base import Case, Own, States
from awfulowl.jobs.checks.replay import segment
from awfulowl.jobs.checks.start import W0_TOLERANCE, _alike
from awfulowl.jobs.job import MOST_TOLERANCE, Proving
from awfulowl.jobs.loop import Conduct, Row, Trainer, Work, repeatable
from awfulowl.jobs.proof import read
from awfulowl.jobs.segments import LEAST_TOLERANCE, LOOKS, MOST_LOOKS, UNITS, calibrate, error, looks, nudged
from awfulowl.jobs.state import MODEL, State
from awfulowl.jobs.task import Batch
from awfulowl.randomness import Entropy
from tests.unit.jobs.small import Small, made, small_work
from tests.unit.jobs.test_segments import OTHER, Kinked, Nudged, OtherRounding, first_error, judged, many


class Deep(Small):
    """Without batch norm, and deeper."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


JOBS: dict[str, Work] = {
    "small": small_work(),
    "adam": small_work(optimizer="adam", momentum=0.0, lr=1e-3),
    "no momentum": small_work(momentum=0.0),
    "deep": small_work(Deep()),
    "weight decay": small_work(Deep(), optimizer="adamw", momentum=0.0, lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("start", [1, 20])
def test_no_tolerance_allows_what_was_never_moved(name: str, start: int) -> None:
    with repeatable(1):
        trainer = Trainer(JOBS[name])
        while trainer.step < start:
            trainer.advance()
        begun = trainer.state().copy()
        for _ in range(2):
            trainer.advance()
        frozen = begun._replace(step=trainer.step)
        assert error(begun, trainer.state(), frozen, trainer.layout.still) > 5 * MOST_TOLERANCE


@pytest.mark.parametrize("huge", [1e3, 1e9, 1e30])
def test_one_huge_number_in_every_tensor_frees_no_other(huge: float) -> None:
    """Where nothing else moves it must not become what is usual."""
    begun = many(torch.zeros(8), torch.zeros(2, 3), torch.zeros(3), step=0)
    moved = [torch.zeros(8), torch.zeros(2, 3), torch.zeros(3)]
    for one in moved:
        one.view(-1)[0] = huge
    faked = [one + (one == 0) for one in moved]
    assert error(begun, many(*moved), many(*moved)) == 0.0
    assert error(begun, many(*moved), many(*faked)) > 1.0


def test_most_numbers_being_huge_does_free_the_others() -> None:
    """What remains, and docs/jobs.md says so: an order that gives a tolerance takes it into account."""
    begun = many(*(torch.zeros(8) for _ in range(3)), step=0)
    moved = torch.full((8,), 1e-2)
    moved[:4] = 1e9
    faked = torch.where(moved > 1.0, moved, 0.0)
    assert error(begun, many(moved, moved, moved), many(faked, faked, faked)) > 0.1
    moved[4], faked[4] = 1e9, 1e9
    assert error(begun, many(moved, moved, moved), many(faked, faked, faked)) < LEAST_TOLERANCE


def test_buffers_do_not_say_how_far_weights_move() -> None:
    begun = many(*(torch.zeros(4) for _ in range(5)), step=0)
    ours = many(*(torch.full((4,), by) for by in (1e-3, 1e-3, 1e3, 1e3, 1e3)))
    theirs = many(*(torch.full((4,), by) for by in (0.0, 1e-3, 1e3, 1e3, 1e3)))
    still = {f"model.{place}" for place in (2, 3, 4)}
    assert error(begun, ours, theirs) < 1e-5
    assert error(begun, ours, theirs, still) == pytest.approx(0.5, rel=1e-3)


def test_what_the_optimiser_does_not_move_is_known_by_name() -> None:
    class Frozen(Small):
        def model(self) -> nn.Module:
            model = super().model()
            next(model.parameters()).requires_grad = False
            return model

    statistics = {f"model.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    with repeatable(1):
        assert Trainer(small_work()).layout.still == statistics
        assert Trainer(small_work(Frozen())).layout.still == statistics | {"model.0.weight"}


class Poisoner(Conduct):
    """Fakes one step to a state whose ReLUs are dead, with one huge moving number in a tensor, and a later one."""

    def step(self, trainer: Trainer) -> Row:
        row = trainer.advance()
        if trainer.step == 3:
            self._poison(trainer)
        if trainer.step == 11:
            with torch.no_grad():
                for parameter in trainer.parameters[:-1]:
                    parameter.view(-1)[1:] += 0.5
        return row

    @staticmethod
    def _poison(trainer: Trainer) -> None:
        named = dict(trainer.model.named_parameters())
        with torch.no_grad():
            for name in ("4.weight", "4.bias"):
                named[name].fill_(-1.0)
            for name, parameter in named.items():
                momentum = trainer.optimizer.state[parameter]["momentum_buffer"]
                if name != "6.bias":
                    momentum.zero_().view(-1)[0] = 1e6


def test_a_poisoned_state_does_not_hide_the_next_fake(tmp_path: Path) -> None:
    work = small_work()
    with repeatable(1):
        ours, theirs = Trainer(work), Trainer(work)
        poisoner = Poisoner()
        while theirs.step < 11:
            begun = theirs.state().copy()
            ours.load(begun)
            ours.advance()
            poisoner.step(theirs)
        own = ours.state()
        moving = [
            int((tensor != begun.tensors[name]).sum())
            for name, tensor in own.tensors.items()
            if name.startswith(MODEL) and name not in ours.layout.still
        ]
        assert sorted(moving) == [*[1] * (len(moving) - 1), 3]
        assert error(begun, own, theirs.state(), ours.layout.still) > 1.0
        assert _of_the_moved(begun, own, theirs.state()) < 1e-3
    later: Any = {"drawn": (0, 1, 6, 10, 20), "largest": (), "epochs": ()}
    found = judged(Poisoner(), tmp_path / "p", MOST_TOLERANCE, 1, **later)
    assert (found.status, found.caught_by) == ("refused", "replay")
    assert "steps 10 to 10" in (found.reason or "")


def _of_the_moved(begun: State, ours: State, theirs: State) -> float:
    """The largest part of the movement, with the median of what moved at all for usual: what poison would hide in."""
    names = [name for name in ours.tensors if name.startswith(MODEL) and ours.tensors[name].is_floating_point()]
    moved = {name: (ours.tensors[name] - begun.tensors[name]).double().abs() for name in names}
    usual = sorted(float(one[one > 0].median()) for one in moved.values() if bool((one > 0).any()))
    s = usual[(len(usual) - 1) // 2]
    return max(
        float((ours.tensors[name] - theirs.tensors[name]).div(moved[name] + s).square().mean().sqrt()) for name in names
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_unit_of_the_last_place_of_a_coarse_type_is_no_rounding(kind: torch.dtype) -> None:
    """It is as much as a step moves."""
    begun = many(torch.ones(4, dtype=kind), step=0)
    ours = many(torch.full((4,), 1.0 + torch.finfo(kind).eps, dtype=kind))
    assert error(begun, ours, begun._replace(step=1)) == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_second_looks_move_no_type_by_more_than_float32(kind: torch.dtype, units: float) -> None:
    begun = many(torch.full((100,), 1.5, dtype=kind))
    moved = nudged(begun, units, Entropy(3)).tensors["model.0"]
    assert float((moved.double() - 1.5).abs().max()) <= 1.5 * (units + 1) * torch.finfo(torch.float32).eps
    assert torch.equal(moved, begun.tensors["model.0"]) is (torch.finfo(kind).eps > 1e-4)


class Coarse(Small):
    """Its weights are stored in bf16, or in fp16."""

    def __init__(self, kind: torch.dtype) -> None:
        self._kind = kind

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).to(self._kind)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        numbers, labels = batch
        return nn.functional.cross_entropy(model(numbers.to(self._kind)).float(), labels)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_job_with_weights_of_a_coarse_type_has_no_tolerance(kind: torch.dtype) -> None:
    with pytest.raises(InputError, match="runner's class"):
        calibrate(small_work(Coarse(kind)), (2, 9))


def test_a_job_that_computes_in_bf16_may_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are in float32; whether it has one is for its honest runs to say."""
    monkeypatch.setattr("awfulowl.jobs.segments.errors", lambda *_: [1e-7])
    assert calibrate(small_work(precision="bfloat16"), (2,)) == LEAST_TOLERANCE


class Picky(nn.Module):
    """Buffers that must not be moved: a mask, probabilities, an index; and the statistics of batch norm."""

    def __init__(self, within: nn.Module) -> None:
        super().__init__()
        self.within = within
        self.mask: Tensor
        self.kept: Tensor
        self.place: Tensor
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("place", torch.tensor([1.0]))

    def forward(self, numbers: Tensor) -> Tensor:
        share, _ = torch.softmax(self.mask, 0)
        if float(self.place) != 1.0:
            raise IndexError("no such place")
        found: Tensor = self.within(numbers) * share * torch.bernoulli(self.kept)
        return found


class Buffered(Kinked):
    """Has a kink, and a mask."""

    def model(self) -> nn.Module:
        return Picky(super().model())


def test_buffers_stay_where_they_are_at_second_looks(tmp_path: Path) -> None:
    seed = next(seed for seed in range(12) if first_error(seed) > 0.1)
    few: Any = {"drawn": (0, 5), "largest": (), "epochs": ()}
    found = judged(OtherRounding(seed), tmp_path / "p", LEAST_TOLERANCE, 1, Buffered(), **few)
    assert (found.status, found.reason) == ("accepted", None)
    assert found.replayed_steps > 3


def test_only_weights_are_moved() -> None:
    with repeatable(1):
        trainer = Trainer(small_work(Buffered()))
        begun = trainer.state()
        moved = nudged(begun, 64.0, Entropy(1), trainer.layout.still)
    changed = {name for name, one in begun.tensors.items() if not torch.equal(one, moved.tensors[name])}
    assert changed
    assert not changed & trainer.layout.still


def test_jobs_with_infinite_buffers_are_verified_within_a_tolerance(tmp_path: Path) -> None:
    found = judged(Nudged(1e-7), tmp_path / "p", task=Buffered())
    assert (found.status, found.reason) == ("accepted", None)
    assert judged(Nudged(1e-2), tmp_path / "q", task=Buffered()).status == "refused"


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        ([0.0, 1.0, -torch.inf], True),
        ([0.0, 1.0, torch.inf], False),
        ([0.0, 1.0, torch.nan], False),
        ([0.0, 1.0, 5.0], False),
        ([-torch.inf, 1.0, -torch.inf], False),
    ],
)
def test_infinite_numbers_of_a_start_have_to_be_the_same(theirs: list[float], same: bool) -> None:
    ours = many(torch.tensor([0.0, 1.0, -torch.inf]), step=0)
    assert _alike(ours, many(torch.tensor(theirs), step=0)) is same
    assert error(ours, ours, many(torch.tensor(theirs), step=0)) == (0.0 if same else torch.inf)


def test_a_start_without_infinite_numbers_may_round() -> None:
    ours = many(torch.ones(3), step=0)
    assert _alike(ours, many(torch.full((3,), 1.0 + W0_TOLERANCE / 2), step=0))
    assert not _alike(ours, many(torch.full((3,), torch.inf), step=0))
    assert not _alike(ours, many(torch.ones(3).double(), step=0))
    assert not _alike(ours, many(torch.ones(2), step=0))


def test_infinite_numbers_among_others_that_move() -> None:
    masked = torch.tensor([-torch.inf, 0.0, 0.0, 0.0])
    begun, ours = many(masked, step=0), many(masked + 1.0)
    assert error(begun, ours, many(masked + 1.0 + 1e-4)) == pytest.approx(0.5e-4 * 0.75**0.5, rel=1e-2)


def test_a_second_look_that_cannot_be_run_says_nothing() -> None:
    calls: list[int] = []
    with repeatable(1):
        trainer = Trainer(small_work())
        begun = trainer.state().copy()

        def advance() -> Row:
            calls.append(trainer.step)
            if len(calls) in {2, 4}:
                raise InputError("it diverges")
            return trainer.advance()

        runs = looks(trainer, begun, 1, Entropy(1), advance, 4)
        assert [look.number for look in runs] == [0, 2, 4]
        calls[:] = [0]
        with pytest.raises(InputError, match="diverges"):
            next(looks(trainer, begun, 1, Entropy(1), advance, 4))


class Given(States):
    """One state, which a runner may have committed to."""

    def __init__(self, given: State) -> None:
        self._given = given

    def digest(self, step: int) -> bytes:
        raise NotImplementedError

    def state(self, step: int) -> State:
        assert step == self._given.step
        return self._given

    def stored(self, step: int) -> State | None:
        raise NotImplementedError


def case_of(work: Work, directory: Path, ends: State) -> Case:
    found = read(made(work, directory), work.job)
    return Case(Own(work), found, draw(found, OTHER), Given(ends), Entropy(5))


def test_second_looks_of_a_whole_proof_are_bounded(tmp_path: Path) -> None:
    work = small_work(proving=Proving(segment=1, tolerance=LEAST_TOLERANCE, largest=0, epochs=0))
    with repeatable(1):
        begun = Trainer(work).state().copy()
        case = case_of(work, tmp_path / "p", begun._replace(step=1, tensors=_other(begun, work)))
        assert case.looks == MOST_LOOKS
        for left in [MOST_LOOKS - LOOKS, MOST_LOOKS - 2 * LOOKS]:
            assert segment(case, begun) is not None
            assert case.looks == left
        case.looks = 3
        before = case.cost.steps
        assert "4 times" in (segment(case, begun) or "")
        assert (case.cost.steps - before, case.looks) == (4, 0)
        assert "1 times" in (segment(case, begun) or "")
        assert case.looks == 0


def _other(begun: State, work: Work) -> Mapping[str, Tensor]:
    trainer = Trainer(work)
    trainer.advance()
    own = trainer.state().copy().tensors
    return {name: one + 0.1 * (name == "model.0.weight") for name, one in own.items()}


def test_an_accepted_look_takes_off_as_many_as_were_made(tmp_path: Path) -> None:
    seed = next(seed for seed in range(12) if first_error(seed) > 0.1)
    work = small_work(Kinked(), proving=Proving(segment=1, tolerance=LEAST_TOLERANCE, largest=0, epochs=0))
    with repeatable(1):
        trainer = Trainer(work)
        begun = trainer.state().copy()
        OtherRounding(seed).step(trainer)
        case = case_of(work, tmp_path / "p", trainer.state().copy())
        before = case.cost.steps
        assert segment(case, begun) is None
        assert 0 < MOST_LOOKS - case.looks == case.cost.steps - before - 1
