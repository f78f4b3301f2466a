"""Gradients are clipped by their length, which devices may have to be asked for."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import InputError, UnavailableError
from awfulowl.owner.clipping import band
from awfulowl.owner.peer import Standing
from awfulowl.wire.messages import Measure
from tests.simulated.training import REPLICAS, SMALL, Twins, image_model, perceptron, training

CLIPPED = 0.1


def wide_model() -> nn.Module:
    """So many weights for so few samples that the owner computes the length itself."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 48))


def clipped_step(pair: Twins, length: float = CLIPPED) -> tuple[float, float]:
    """Take a clipped step with both, and return the lengths before that they state: ours and theirs."""
    for _, optimizer, _ in pair.each:
        optimizer.zero_grad()
    pair.differentiate()
    lengths = (
        pair.ours.clip_grad_norm_(length),
        float(nn.utils.clip_grad_norm_(pair.plain.parameters(), length)),
    )
    for _, optimizer, _ in pair.each:
        optimizer.step()
    return lengths


def measures(pair: Twins) -> list[Measure]:
    """Return, as they come, the requests of a length that devices get."""
    seen: list[Measure] = []
    for worker in pair.fleet.workers.values():
        measure = worker.learner.measure

        def noting(body: Measure, measure: Any = measure) -> Tensor:
            seen.append(body)
            answer: Tensor = measure(body)
            return answer

        worker.learner.measure = noting  # type: ignore[method-assign,assignment]
    return seen


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lengths_computed_by_the_owner(momentum: float) -> None:
    with training(model=wide_model(), example=torch.zeros(1, 64), momentum=momentum, options=SMALL) as pair:
        pair.samples, pair.outputs = 4, 48
        asked = measures(pair)
        for _ in range(20):
            ours, theirs = clipped_step(pair, 0.05)
            assert ours == pytest.approx(theirs, rel=1e-5)
            assert theirs > 0.05
        pair.agree()
        assert asked == []


@pytest.mark.parametrize("kind", ["convolution", "many samples"])
def test_lengths_measured_by_devices(kind: str) -> None:
    images = kind == "convolution"
    model, example = (image_model(), torch.zeros(1, 4, 5, 5)) if images else (perceptron(), torch.zeros(1, 12))
    with training(model=model, example=example, momentum=0.9, lr=0.1) as pair:
        pair.samples = 4 if images else 40
        asked = measures(pair)
        for _ in range(20):
            ours, theirs = clipped_step(pair)
            assert ours == pytest.approx(theirs, rel=1e-5)
        pair.agree()
        assert len(asked) >= 20 * (1 if images else 4)
        assert pair.fleet.statistics["lies_caught"] == 0


def test_replicas_do_not_count_twice() -> None:
    """A device may hold more columns than it is asked for: the other replica is asked for those."""
    with training(4, model=perceptron(), options=REPLICAS) as pair:
        pair.samples = 40
        for _ in range(3):
            ours, theirs = clipped_step(pair)
            assert ours == pytest.approx(theirs, rel=1e-5)
        pair.agree()


def test_clipping_twice_clips_to_the_shorter() -> None:
    with training() as pair:
        pair.differentiate()
        for length in (0.1, 0.05, 0.2):
            ours = pair.ours.clip_grad_norm_(length)
            theirs = float(nn.utils.clip_grad_norm_(pair.plain.parameters(), length))
            assert ours == pytest.approx(theirs, rel=1e-4)
        for _, optimizer, _ in pair.each:
            optimizer.step()
        pair.agree()


def test_short_gradients_stay_as_they_are() -> None:
    with training() as pair:
        for length in (1e3, math.inf):
            ours, theirs = clipped_step(pair, length)
            assert ours == pytest.approx(theirs, rel=1e-5)
        pair.agree()


def test_frozen_and_absent_layers_count_nothing() -> None:
    model = perceptron()
    model[0].weight.requires_grad_(False)  # noqa: FBT003
    with training(model=model) as pair:
        ours, theirs = clipped_step(pair)
        assert ours == pytest.approx(theirs, rel=1e-5)
        pair.agree()


def test_clipping_lasts_until_gradients_are_cleared() -> None:
    with training() as pair:
        clipped_step(pair, 0.01)
        pair.step(2)
        pair.agree()


def test_infinite_gradients_of_what_is_kept_are_refused() -> None:
    with training() as pair:
        pair.differentiate()
        bias = pair.scattered[0].bias  # type: ignore[index]
        assert isinstance(bias.grad, Tensor)
        bias.grad[0] = math.inf
        with pytest.raises(InputError, match="not finite"):
            pair.ours.clip_grad_norm_(1.0)
        pair.theirs.zero_grad()
        pair.step()
        pair.agree()


class TestLies:
    """About how long a gradient is."""

    @pytest.mark.parametrize("factor", [0.0, 0.01, 20.0, -1.0, math.nan, math.inf])
    def test_a_length_that_cannot_be_is_caught(self, factor: float) -> None:
        with training(3) as pair:
            learner = pair.fleet.workers["d2"].learner
            measure = learner.measure
            learner.measure = lambda body: measure(body) * factor  # type: ignore[method-assign,assignment]
            for _ in range(3):
                ours, theirs = clipped_step(pair)
                assert ours == pytest.approx(theirs, rel=1e-5)
            assert pair.fleet.standing["d2"] is Standing.QUARANTINED
            assert pair.fleet.statistics["lies_caught"] >= 1
            pair.agree()

    def test_a_small_lie_changes_the_length_of_steps_only(self) -> None:
        low, high = band(64)
        assert low < 0.9 < 1.1 < high
        with training(2) as pair:
            for worker in pair.fleet.workers.values():
                measure = worker.learner.measure
                worker.learner.measure = lambda body, measure=measure: measure(body) * 1.1  # type: ignore[method-assign,misc]
            before = pair.fleet.gather(pair.scattered)
            pair.differentiate()
            gradients = {name: one.grad for name, one in pair.plain.named_parameters()}
            length = pair.ours.clip_grad_norm_(CLIPPED)
            pair.ours.step()
            after = pair.fleet.gather(pair.scattered)
            for name in ("0.weight", "2.weight"):
                moved, gradient = before[name].double() - after[name], gradients[name]
                assert gradient is not None
                torch.testing.assert_close(moved, 0.1 * gradient * CLIPPED / length, rtol=1e-3, atol=1e-6)
            assert pair.fleet.statistics["lies_caught"] == 0

    def test_an_answer_of_another_shape_is_a_lie(self) -> None:
        with training(3) as pair:
            learner = pair.fleet.workers["d2"].learner
            learner.measure = lambda body: torch.ones(1)  # type: ignore[method-assign,assignment]
            clipped_step(pair)
            assert pair.fleet.standing["d2"] is Standing.QUARANTINED
            pair.agree()

    def test_when_all_lie_clipping_fails_and_nothing_moved(self) -> None:
        with training(2) as pair:
            before = pair.fleet.gather(pair.scattered)
            for worker in pair.fleet.workers.values():
                worker.learner.measure = lambda body: torch.zeros(1, dtype=torch.float64)  # type: ignore[method-assign,assignment]
            pair.differentiate()
            with pytest.raises(UnavailableError, match="lying"):
                pair.ours.clip_grad_norm_(1.0)
            assert torch.equal(before["0.bias"], pair.scattered.state_dict()["0.bias"])
            assert pair.fleet.statistics["steps"] == 0


def test_a_device_that_left_is_not_asked() -> None:
    with training(3) as pair:
        for name in ("d1", "d2"):
            for _, optimizer, _ in pair.each:
                optimizer.zero_grad()
            pair.differentiate()
            pair.fleet.kill(name)
            ours = pair.ours.clip_grad_norm_(CLIPPED)
            theirs = float(nn.utils.clip_grad_norm_(pair.plain.parameters(), CLIPPED))
            assert ours == pytest.approx(theirs, rel=1e-5)
            for _, optimizer, _ in pair.each:
                optimizer.step()
        pair.agree()
