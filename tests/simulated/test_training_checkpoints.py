"""Checkpoints of training: what they hold, and that training goes on from them as if it had never stopped."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

import awfulowl as owl
from awfulowl.device.lies import Liar, Misstep
from awfulowl.errors import CheckpointError, InputError, UnavailableError
from awfulowl.owner import checkpoint
from awfulowl.owner.checkpoint import Checkpoint
from awfulowl.owner.optimizer import FleetOptimizer
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from awfulowl.randomness import Entropy
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.training import REPLICAS, SMALL, image_model, perceptron, training, twins


class Run(NamedTuple):
    """What a training was: its losses, and the weights at its end."""

    losses: list[float]
    weights: dict[str, Tensor]


def dropped() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


def train(
    fleet: MemoryFleet, scattered: nn.Module, optimizer: FleetOptimizer, scheduler: OneCycleLR, steps: range
) -> list[float]:
    losses = []
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        x, wanted = torch.randn(6, 12, generator=generator), torch.randn(6, 3, generator=generator)
        optimizer.zero_grad()
        loss = functional.mse_loss(scattered(x), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses


def prepared(
    fleet: MemoryFleet, plan: Plan, found: Checkpoint | None, *, lr: float = 0.1, most: float = 0.3, **settings: Any
) -> tuple[nn.Module, FleetOptimizer, OneCycleLR]:
    """Scatter the model with dropout and batch norm, from a checkpoint if there is one."""
    model = dropped()
    if found is not None:  # of a resumed model nothing but its kind counts
        for tensor in model.state_dict().values():
            tensor.zero_()
    scattered = fleet.scatter(model, plan, train=True, checkpoint=found)
    optimizer = fleet.optimizer(scattered, lr=lr, **settings)
    scheduler = OneCycleLR(optimizer, most, total_steps=20)
    if found is not None:
        optimizer.load(found)
        scheduler.load_state_dict(found.extra["scheduler"])
        found.restore_random_state()
    return scattered, optimizer, scheduler


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {"weight_decay": 0.1}],
    ids=str,
)
def test_training_goes_on_bit_by_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    """With a scheduler, dropout and batch norm, under the same plan, as without an interruption."""
    with still_fleet(3) as fleet:
        plan = plan_model(dropped(), torch.zeros(2, 12), fleet.devices, SMALL, Entropy(0))
        torch.manual_seed(5)
        scattered, optimizer, scheduler = prepared(fleet, plan, None, **settings)
        losses = train(fleet, scattered, optimizer, scheduler, range(4))
        extra = {"scheduler": scheduler.state_dict(), "next": 4}
        writing = fleet.checkpoint(scattered, optimizer, tmp_path, extra=extra)
        losses += train(fleet, scattered, optimizer, scheduler, range(4, 9))
        whole = Run(losses, fleet.gather(scattered))
        path = writing.result()
    with still_fleet(3) as fleet:
        found = owl.read_checkpoint(path)
        scattered, optimizer, scheduler = prepared(fleet, plan, found, **settings)
        assert optimizer.steps == found.facts.step == found.extra["next"] == 4
        losses = whole.losses[:4] + train(fleet, scattered, optimizer, scheduler, range(4, 9))
        assert losses == whole.losses
        weights = fleet.gather(scattered)
        assert weights.keys() == whole.weights.keys()
        assert all(torch.equal(weights[name], value) for name, value in whole.weights.items())
        assert optimizer.steps == 9


@pytest.mark.parametrize("later", [0, 3])
def test_it_is_the_state_of_its_step(later: int, tmp_path: Path) -> None:
    """However many steps are taken before it is written."""
    with training(3, momentum=0.9) as pair:
        pair.step(4)
        then = copy.deepcopy(pair.plain.state_dict())
        writing = pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path / "some" / "where")
        pair.step(later)
        found = owl.read_checkpoint(writing.result())
        assert found.facts.step == 4
        assert found.model.keys() == then.keys()
        for name, value in then.items():
            torch.testing.assert_close(found.model[name].double(), value, rtol=0.0, atol=1e-5)
        pair.step()
        pair.agree()


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("make", [perceptron, image_model])
def test_training_goes_on_with_other_devices(make: Callable[[], nn.Module], devices: int, tmp_path: Path) -> None:
    example = torch.zeros(1, 12) if make is perceptron else torch.zeros(1, 4, 5, 5)
    with training(3, model=make(), example=example, momentum=0.9) as pair:
        pair.step(3)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        with still_fleet(devices) as fleet:
            found = owl.read_checkpoint(tmp_path)
            plan = plan_model(make(), example, fleet.devices, SMALL, Entropy(7))
            pair.scattered = fleet.scatter(make(), plan, train=True, checkpoint=found)
            pair.ours = fleet.optimizer(pair.scattered, lr=1.0, momentum=0.1)
            pair.ours.load(found)
            first, pair.fleet = pair.fleet, fleet
            pair.step(3)
            pair.agree()
            pair.fleet = first


def test_a_resumed_training_can_be_saved_and_rebuilt(tmp_path: Path) -> None:
    with training(3, momentum=0.9) as pair:
        pair.step(3)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        first = owl.read_checkpoint(tmp_path)
        pair.fleet.release(pair.scattered)
        plan = plan_model(perceptron(), torch.zeros(1, 12), pair.fleet.devices, SMALL, Entropy(3))
        pair.scattered = pair.fleet.scatter(perceptron(), plan, train=True, checkpoint=first)
        pair.ours = pair.fleet.optimizer(pair.scattered, lr=0.1)
        pair.ours.load(first)
        again = owl.read_checkpoint(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path / "again").result())
        assert again.facts == first.facts or again.facts.sha256.keys() == first.facts.sha256.keys()
        for name in first.training:
            assert torch.equal(first.training[name], again.training[name])
        pair.fleet.kill("d1")
        pair.step(2)
        pair.agree()


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("every", [2, 1000])
def test_what_devices_may_have_strayed_is_not_forgotten(every: int, devices: int, tmp_path: Path) -> None:
    """Over snapshots and several resumes, and whoever has the blocks then."""
    drifts = []
    with training(2, Policy(snapshot_after=every), momentum=0.9) as pair:
        pair.step(5)
        drifts.append(pair.fleet.drift(pair.scattered))
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        pair.step(3)
    for turn in range(2):
        with still_fleet(devices) as fleet:
            found = owl.read_checkpoint(tmp_path)
            assert found.facts.drift == drifts[-1]
            plan = plan_model(perceptron(), torch.zeros(1, 12), fleet.devices, SMALL, Entropy(turn))
            pair.fleet, pair.scattered = fleet, fleet.scatter(perceptron(), plan, train=True, checkpoint=found)
            pair.ours = fleet.optimizer(pair.scattered, lr=0.1)
            pair.ours.load(found)
            assert fleet.drift(pair.scattered) == pytest.approx(drifts[-1], rel=1e-9)
            pair.differentiate_ours()
            pair.ours.step()
            drifts.append(fleet.drift(pair.scattered))
            assert drifts[-1].keys() == drifts[-2].keys()
            assert all(0 < drifts[-2][name] < drifts[-1][name] < 1e-2 for name in drifts[-1])
            fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()


def test_what_devices_may_have_strayed_before_another_plan(tmp_path: Path) -> None:
    """A panel has strayed as far as the product of it that strayed furthest."""
    with training(2, momentum=0.9) as pair:
        pair.step(2)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        found = owl.read_checkpoint(tmp_path)
        drift: dict[str, float | None] = {"0": 0.25, "2": None}
        facts = msgspec.structs.replace(found.facts, drift=drift)
        written = checkpoint.write_checkpoint(tmp_path / "other", facts, found.model, found.training)
        found = owl.read_checkpoint(written)
        assert found.facts.drift == drift
        plan = plan_model(perceptron(), torch.zeros(1, 12), pair.fleet.devices, SMALL, Entropy(9))
        scattered = pair.fleet.scatter(perceptron(), plan, train=True, checkpoint=found)
        assert pair.fleet.drift(scattered) == {"0": pytest.approx(0.25), "2": math.inf}


def test_the_model_is_a_plain_state_dict(tmp_path: Path) -> None:
    with training(2, model=image_model(), example=torch.zeros(1, 4, 5, 5)) as pair:
        pair.step(2)
        path = pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        fresh = image_model(9)
        fresh.load_state_dict(load_file(path / "model.safetensors"))
        gathered = pair.fleet.gather(pair.scattered)
        assert all(torch.equal(value, gathered[name]) for name, value in fresh.state_dict().items())
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
        assert path.stat().st_mode & 0o777 == 0o700


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with training(2) as pair:
        for _ in range(4):
            pair.step()
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, keep=2).result()
        (tmp_path / ".step-0000000009.17").mkdir()
        pair.step(7)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, keep=2).result()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000004", "step-0000000011"]
        assert owl.read_checkpoint(tmp_path).facts.step == 11


@pytest.mark.parametrize("steps", [0, 1])
def test_several_under_way(steps: int, tmp_path: Path) -> None:
    """The next one waits for the one before: devices make one copy of each block."""
    with training(3, momentum=0.9) as pair:
        pair.step()
        writing = []
        for turn in range(3):
            writing.append(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path / str(turn)))
            pair.step(steps)
        found = [owl.read_checkpoint(one.result()).facts.step for one in writing]
        assert found == [1, 1 + steps, 1 + 2 * steps]
        pair.agree()


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_the_newest_is_kept(keep: int, tmp_path: Path) -> None:
    with training(2) as pair, pytest.raises(InputError, match="keep"):
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, keep=keep)


def test_learning_rates_in_tensors(tmp_path: Path) -> None:
    with training(2) as pair:
        optimizer = pair.fleet.optimizer(pair.scattered, lr=torch.tensor(0.25))  # type: ignore[arg-type]
        pair.fleet.checkpoint(pair.scattered, optimizer, tmp_path).result()
        assert owl.read_checkpoint(tmp_path).facts.groups[0]["lr"] == 0.25


def test_a_checkpoint_is_not_served_in_silence(tmp_path: Path) -> None:
    with training(2) as pair:
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        plan = plan_model(perceptron(), torch.zeros(1, 12), pair.fleet.devices, SMALL)
        with pytest.raises(InputError, match="train=True"):
            pair.fleet.scatter(perceptron(), plan, checkpoint=owl.read_checkpoint(tmp_path))


def test_writing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    with training(2) as pair:
        pair.step()
        for turn in range(2):
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, extra={"turn": turn}).result()
        assert owl.read_checkpoint(tmp_path).extra == {"turn": 1}


class TestDevices:
    """What they do between the copy and its arrival."""

    def test_one_that_leaves_costs_this_checkpoint(self, tmp_path: Path) -> None:
        with training(3, momentum=0.9) as pair:
            pair.step(2)
            writing = pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path)
            pair.fleet.kill("d2")
            with pytest.raises(UnavailableError, match="d2"):
                writing.result()
            pair.step(2)
            assert (
                owl.read_checkpoint(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()).facts.step == 4
            )
            pair.agree()

    def test_one_that_lies_is_caught(self, tmp_path: Path) -> None:
        with training(3, momentum=0.9) as pair:
            pair.step(2)
            store = pair.fleet.workers["d2"]._store
            fetch = store.fetch
            store.fetch = lambda *request: [one + 1e-3 for one in fetch(*request)]  # type: ignore[method-assign]
            with pytest.raises(UnavailableError, match="other blocks"):
                pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            assert pair.fleet.standing["d2"] is Standing.QUARANTINED
            pair.step(2)
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            pair.agree()

    def test_one_that_strayed_in_the_last_step_is_caught(self, tmp_path: Path) -> None:
        with training(3) as pair:
            pair.step()
            pair.fleet.workers["d1"].learner.tamper = Misstep("doubled")
            pair.step()
            with pytest.raises(UnavailableError, match="d1"):
                pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            pair.agree()

    def test_liars_and_replicas(self, tmp_path: Path) -> None:
        with training(4, Policy(snapshot_after=3), options=REPLICAS, momentum=0.9) as pair:
            pair.step(2)
            pair.fleet.workers["d4"].tamper = Liar("sign", 0.1)
            writing = pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path)
            pair.step(4)
            assert owl.read_checkpoint(writing.result()).facts.step == 2
            pair.agree()

    def test_copies_are_forgotten(self, tmp_path: Path) -> None:
        with training(2) as pair:
            pair.step()
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            pair.fleet.wait(1)
            sheets = [sheet for worker in pair.fleet.workers.values() for sheet in worker._store._sheets]
            assert sheets
            assert all(not sheet.state.frozen for sheet in sheets)


class TestOtherModels:
    """A checkpoint goes with its model, and with an optimizer that has its groups."""

    def test_of_another_shape(self, tmp_path: Path) -> None:
        with training(2) as pair:
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            found = owl.read_checkpoint(tmp_path)
            other = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
            plan = plan_model(other, torch.zeros(1, 12), pair.fleet.devices, SMALL)
            with pytest.raises(CheckpointError, match="another model"):
                pair.fleet.scatter(other, plan, train=True, checkpoint=found)

    def test_of_another_plan_that_keeps_a_layer(self, tmp_path: Path) -> None:
        with training(2, momentum=0.9) as pair:
            pair.step()
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            found = owl.read_checkpoint(tmp_path)
            del found.training["momentum/0"]
            plan = plan_model(perceptron(), torch.zeros(1, 12), pair.fleet.devices, SMALL)
            with pytest.raises(CheckpointError, match="no state of 0"):
                pair.fleet.scatter(perceptron(), plan, train=True, checkpoint=found)

    def test_with_other_groups(self, tmp_path: Path) -> None:
        with training(2) as pair:
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            groups = [{"params": layer.parameters()} for layer in (pair.scattered[0], pair.scattered[2])]  # type: ignore[index]
            optimizer = pair.fleet.optimizer(pair.scattered, groups, lr=0.1)
            with pytest.raises(CheckpointError, match="groups"):
                optimizer.load(owl.read_checkpoint(tmp_path))

    def test_of_momentum_in_another_shape(self, tmp_path: Path) -> None:
        with training(2, momentum=0.9) as pair:
            pair.step()
            pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
            found = owl.read_checkpoint(tmp_path)
            found.training["momentum.0.bias"] = torch.zeros(3)
            with pytest.raises(CheckpointError, match="another shape"):
                pair.ours.load(found)


def test_a_model_that_is_served_has_none(tmp_path: Path) -> None:
    with still_fleet(2) as fleet:
        pair = twins(fleet, perceptron())
        plan = plan_model(perceptron(), torch.zeros(1, 12), fleet.devices, SMALL)
        served = fleet.scatter(perceptron(), plan)
        with pytest.raises(owl.errors.ScatteredError, match="train=True"):
            fleet.checkpoint(served, pair.ours, tmp_path)
        assert issubclass(CheckpointError, InputError)
