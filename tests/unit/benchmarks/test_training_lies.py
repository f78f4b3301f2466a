"""Blocks trained over a whole period at the benchmark's rates: honest ones pass all along, and no lie at its end."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from awfulowl.arithmetic.descent import Descent
from awfulowl.owner.policy import Policy
from awfulowl.owner.snapshots import worn
from awfulowl.randomness import Entropy
from awfulowl.verification.freivalds import Expectation
from awfulowl.verification.training import TrainingCheck
from benchmarks import training_lies
from benchmarks.training_lies import CONVOLUTION, DENSE, LIES, REQUIRED, Device, Moment, Shape, restore, rule

Step = tuple[Descent, Tensor, Tensor]


class Period:
    """1,000 steps at rate 1.0, all checked; secrets are drawn anew as a fleet would, or never."""

    def __init__(self, shape: Shape, policy: Policy | None) -> None:
        self.device, entropy = Device(shape, 2), Entropy(3)
        self.check, age, self.renewed, self.refused = self.device.check(entropy), 0, 0, 0
        self.largest = 0.0
        self.steps: list[Step] = []
        for number in range(999):
            asked = self.ask()
            for expected, answer in self.answers(asked):
                self.refused += int((~expected.accepts(answer)).sum())
                self.largest = max(self.largest, float(expected.residue(answer).max()) if number % 10 == 0 else 0)
            self.before = [part.clone() for part in self.device.state]
            move = rule(1.0, 0.9, first=number == 0)
            self.check.move(move, [self.check.see(*asked)])
            self.device.step(move, *asked)
            self.steps = [*self.steps[-1:], (move, *asked)]
            age += 1
            if policy is not None and worn(self.check, age, policy):
                self.refused += int(not self.check.matches_whole(self.device.state))
                self.check, age, self.renewed = self.device.check(entropy), 0, self.renewed + 1

    def ask(self) -> tuple[Tensor, Tensor]:
        """The next batch."""
        x = self.device.draw()
        return x, self.device.gradient_of(x, self.device.multiply(x))

    def answers(self, asked: tuple[Tensor, Tensor]) -> Iterator[tuple[Expectation, Tensor]]:
        """What y and dx are held to, and what the device answers."""
        x, dy = asked
        yield self.check.expect(x), self.device.answer(0, asked)
        yield self.check.expect_transposed(dy, x.shape[2:]), self.device.answer(1, asked)

    def passed(self, kind: tuple[str, float | None], trials: int) -> int:
        """How many lies of a kind, told now, nobody notices."""
        generator, passed = torch.Generator().manual_seed(4), 0
        true = [part.clone() for part in self.device.state]
        for _ in range(trials):
            asked = self.ask()
            for way, (expected, _) in enumerate(list(self.answers(asked))):
                moment = Moment(asked, self.before, self.steps[1], self.steps[0])
                LIES[kind](self.device, moment, way, generator)
                passed += int(bool(expected.accepts(self.device.answer(way, asked)).all()))
                restore(self.device, true)
        return passed


@pytest.fixture(scope="module", params=[DENSE, CONVOLUTION], ids=["dense", "convolution"])
def period(request: pytest.FixtureRequest) -> Period:
    return Period(request.param, Policy())


def test_honest_devices_are_not_suspected_over_a_period(period: Period) -> None:
    assert period.refused == 0
    assert period.largest < 5
    assert period.check.matches_whole(period.device.state)
    assert period.renewed < 20
    assert period.check.drift <= Policy().snapshot_drift


@pytest.mark.parametrize("kind", [kind for kind in LIES if kind[1] in (REQUIRED, None)], ids=str)
def test_lies_are_caught_late_in_a_period(period: Period, kind: tuple[str, float | None]) -> None:
    assert period.passed(kind, 20) == 0


@pytest.mark.parametrize("shape", [DENSE, CONVOLUTION], ids=["dense", "convolution"])
def test_they_are_even_where_secrets_are_as_old_as_can_be(shape: Shape) -> None:
    """With weight decay errors fade, and what is allowed for them does: 1e-3 is still beyond it after 999 steps."""
    period = Period(shape, None)
    assert period.refused == 0
    assert period.largest < 5
    assert period.check.drift < 1e-4
    assert sum(period.passed((f"weights: {kind}", REQUIRED), 10) for kind in ("random", "one row", "low rank")) <= 1


def test_where_drift_grows_secrets_are_drawn_anew() -> None:
    """No sooner than ten steps after they were: what few steps round is there after any secrets."""
    policy = Policy()
    check = Device(DENSE, 0).check(Entropy(1))
    assert not worn(check, policy.snapshot_after - 1, policy)
    assert worn(check, policy.snapshot_after, policy)

    class Old(TrainingCheck):
        drift = 1.1 * policy.snapshot_drift

    check.__class__ = Old
    assert not worn(check, 9, policy)
    assert worn(check, 10, policy)
    assert not worn(check, 10, Policy(snapshot_drift=2 * policy.snapshot_drift))


def test_the_benchmark_counts_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lies of two kinds, one of which changes nothing: it has no size, and is not caught."""
    nothing = ("nothing", None)
    random = ("weights: random", REQUIRED)
    monkeypatch.setattr(training_lies, "LIES", {random: LIES[random], nothing: lambda *_: None})
    monkeypatch.setattr(training_lies, "RENEWED_EVERY", 20)
    about, *rows = training_lies.told(DENSE, "constant", 20, lambda _: 1.0)
    assert about["alarms"] == 0
    assert about["steps"] == 20
    for row, caught in zip(rows, (18, 0), strict=True):
        for name in ("y", "dx"):
            assert row[name]["trials"] == 18
            assert row[name]["caught"] == row[name]["large"] == row[name]["large_caught"] == caught
            assert sum(of for _, of in row[name]["by_age"].values()) == caught
