"""Snapshots while training goes on: when they are taken, and that everything is rebuilt from them afterwards."""

from typing import Any

import pytest
import torch
from torch import Tensor

from awfulowl.device.lies import Liar
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.owner.training import TrainedDeployment
from tests.simulated.training import REPLICAS, Twins, image_model, training


def deployment(pair: Twins) -> TrainedDeployment:
    found = pair.fleet._scattered[pair.scattered][0]
    assert isinstance(found, TrainedDeployment)
    return found


def test_on_schedule() -> None:
    with training(3, Policy(snapshot_after=5), momentum=0.9, weight_decay=0.01) as pair:
        pair.step(12)
        assert pair.fleet.statistics["snapshots"] == 2 * 2
        assert [len(history.log) for history in deployment(pair).histories] == [2, 2]
        pair.agree()


def test_devices_are_rebuilt_from_the_last_one() -> None:
    with training(3, Policy(snapshot_after=4), momentum=0.9) as pair:
        pair.step(6)
        pair.fleet.kill("d1")
        pair.fleet.start("d1")
        pair.fleet.wait(3)
        # Two steps of each panel since the last one, not six.
        assert 1 <= pair.fleet.statistics["replayed"] <= 2 * 2 * 3
        pair.step(3)
        pair.fleet.kill("d2")
        pair.step(2)
        pair.agree()


def test_when_the_log_is_full() -> None:
    """The panels with most bytes of log for a byte of weights come first."""
    with training(2, Policy(log_bytes=4000), momentum=0.9) as pair:
        pair.step(15)
        histories = deployment(pair).histories
        assert pair.fleet.statistics["snapshots"] > 0
        assert sum(history.log_bytes for history in histories) <= 4000
        pair.agree()


def test_when_weights_went_far() -> None:
    with training(2, Policy(snapshot_stretch=0.1), lr=0.5) as pair:
        pair.step(6)
        assert pair.fleet.statistics["snapshots"] > 0
        pair.agree()


def test_when_devices_may_have_strayed_far() -> None:
    """Two panels, every ten steps: sooner it would be no better."""
    with training(2, Policy(snapshot_drift=1e-12), momentum=0.9) as pair:
        pair.step(9)
        assert pair.fleet.statistics["snapshots"] == 0
        pair.step(3)
        assert pair.fleet.statistics["snapshots"] == 2
        assert [len(history.log) for history in deployment(pair).histories] == [2, 2]
        pair.step(8)
        assert pair.fleet.statistics["snapshots"] == 4
        pair.agree()


def test_after_many_failed_checks() -> None:
    with training(5, Policy(snapshot_failures=2)) as pair:
        for name in ("d2", "d4"):
            pair.fleet.workers[name].tamper = Liar("random", 0.1)
            pair.step(2)
        assert pair.fleet.statistics["snapshots"] > 0
        pair.agree()


def test_with_jobs_of_the_next_step_already_there() -> None:
    """Secrets are drawn anew between the micro-batches of a step."""
    with training(3, momentum=0.9) as pair:
        pair.step(2)
        for _, optimizer, _ in pair.each:
            optimizer.zero_grad()
        pair.differentiate()
        trained = deployment(pair)
        for number in range(len(trained.panels)):
            pair.fleet._loop.run(trained.snapshot(number))
        pair.differentiate()
        for _, optimizer, _ in pair.each:
            optimizer.step()
        pair.step(2)
        pair.agree()


def test_what_devices_may_have_strayed_adds_up() -> None:
    with training(2, Policy(snapshot_after=3)) as pair:
        pair.step(2)
        first = pair.fleet.drift(pair.scattered)
        pair.step(8)
        last = pair.fleet.drift(pair.scattered)
        assert first.keys() == last.keys()
        assert all(0 < first[name] < last[name] < 1e-2 for name in first)


def test_a_replica_with_other_bits_is_loaded_anew() -> None:
    """Bits that the check lets pass: maybe those of an honest device, but replicas are to be equal."""
    with training(4, Policy(snapshot_after=4), options=REPLICAS, momentum=0.9) as pair:
        pair.step(3)
        for sheet in pair.fleet.workers["d3"]._store._sheets:
            weight = sheet.whole(0)
            with torch.inference_mode():
                weight.copy_(torch.nextafter(weight, weight + 1))
        pair.step()
        behind = [event.device for event in pair.fleet.events if event.kind == "behind"]
        assert pair.fleet.statistics["snapshots"] == 2
        assert behind
        pair.step(2)
        assert all(standing is Standing.PRESENT for standing in pair.fleet.standing.values())
        pair.agree()


def test_convolutions_have_snapshots() -> None:
    example = torch.zeros(1, 4, 5, 5)
    with training(3, Policy(snapshot_after=2), model=image_model(), example=example, momentum=0.9) as pair:
        pair.step(3)
        pair.fleet.kill("d2")
        pair.step(2)
        pair.agree()


@pytest.mark.parametrize("steps", [0, 2])
def test_the_owner_keeps_no_weights_in_memory(steps: int) -> None:
    with training(2, Policy(snapshot_after=2)) as pair:
        pair.step(steps)
        state: Any = deployment(pair).numbers[0]
        kept: tuple[Tensor, ...] = state._weights
        assert kept == ()
