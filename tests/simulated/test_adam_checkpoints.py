"""Checkpoints of training with Adam: it goes on to the same bits, and with no other optimizer."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.device.lies import Misstep
from awfulowl.errors import AwfulOwlError, CheckpointError, InputError, UnavailableError
from awfulowl.owner.checkpoint import Checkpoint
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options
from awfulowl.placement.request import plan_model
from awfulowl.randomness import Entropy
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.test_adam_churn import adam, all_honest, leave_when_asked
from tests.simulated.test_training_checkpoints import Run, dropped, train
from tests.simulated.test_training_checkpoints import prepared as any_prepared
from tests.simulated.training import REPLICAS, SMALL, image_model, perceptron, training

PARTS = ("weight", "lost", "momentum", "square")


prepared = partial(any_prepared, lr=0.01, most=0.03, algorithm="adam")


@pytest.mark.parametrize(
    "settings",
    [{"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True, "eps": 1e-4}],
    ids=["Adam", "AdamW"],
)
@pytest.mark.parametrize("steps", [0, 4])
def test_training_goes_on_bit_by_bit(settings: dict[str, Any], steps: int, tmp_path: Path) -> None:
    """With a scheduler that moves betas, dropout and batch norm, as without an interruption; also from the start."""
    with still_fleet(3) as fleet:
        plan = plan_model(dropped(), torch.zeros(2, 12), fleet.devices, SMALL, Entropy(0))
        torch.manual_seed(5)
        scattered, optimizer, scheduler = prepared(fleet, plan, None, **settings)
        losses = train(fleet, scattered, optimizer, scheduler, range(steps))
        writing = fleet.checkpoint(scattered, optimizer, tmp_path, extra={"scheduler": scheduler.state_dict()})
        losses += train(fleet, scattered, optimizer, scheduler, range(steps, 7))
        whole = Run(losses, fleet.gather(scattered))
        path = writing.result()
    with still_fleet(3) as fleet:
        found = owl.read_checkpoint(path)
        assert set(found.facts.drift.values()) == {None}
        scattered, optimizer, scheduler = prepared(fleet, plan, found, **settings)
        assert set(fleet.drift(scattered).values()) == {math.inf}
        assert optimizer.steps == found.facts.step == steps
        losses = whole.losses[:steps] + train(fleet, scattered, optimizer, scheduler, range(steps, 7))
        assert losses == whole.losses
        weights = fleet.gather(scattered)
        assert all(torch.equal(weights[name], value) for name, value in whole.weights.items())
        assert fleet.statistics["lies_caught"] == 0


@pytest.mark.parametrize(("make", "devices"), [(perceptron, 1), (perceptron, 4), (image_model, 2)])
def test_training_goes_on_with_other_devices(make: Callable[[], nn.Module], devices: int, tmp_path: Path) -> None:
    example = torch.zeros(1, 12) if make is perceptron else torch.zeros(1, 4, 5, 5)
    with adam(3, model=make(), example=example) as pair:
        pair.step(3)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        with still_fleet(devices) as fleet:
            found = owl.read_checkpoint(tmp_path)
            plan = plan_model(make(), example, fleet.devices, SMALL, Entropy(7))
            pair.scattered = fleet.scatter(make(), plan, train=True, checkpoint=found)
            pair.ours = fleet.optimizer(pair.scattered, lr=1.0, algorithm="adam", betas=(0.1, 0.1))
            pair.ours.load(found)
            first, pair.fleet = pair.fleet, fleet
            pair.step(2)
            pair.agree()
            pair.fleet = first


def resumed(fleet: MemoryFleet, found: Checkpoint, options: Options = SMALL) -> nn.Module:
    """Scatter the perceptron from a checkpoint."""
    plan = plan_model(perceptron(), torch.zeros(1, 12), fleet.devices, options, Entropy(3))
    return fleet.scatter(perceptron(), plan, train=True, checkpoint=found)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_resumed_training_can_be_saved_gathered_and_rebuilt(steps: int, tmp_path: Path) -> None:
    with adam(3) as pair:
        pair.step(steps)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        first = owl.read_checkpoint(tmp_path)
        pair.fleet.release(pair.scattered)
        pair.scattered = resumed(pair.fleet, first)
        pair.ours = pair.fleet.optimizer(pair.scattered, lr=0.01, algorithm="adam")
        pair.ours.load(first)
        pair.agree()
        again = owl.read_checkpoint(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path / "again").result())
        assert again.facts.adapted == first.facts.adapted == ({"0": steps, "2": steps} if steps else {})
        assert first.training.keys() == again.training.keys()
        assert all(torch.equal(tensor, again.training[name]) for name, tensor in first.training.items())
        pair.fleet.kill("d1")
        pair.step(2)
        pair.agree()
        all_honest(pair)


def test_what_it_holds(tmp_path: Path) -> None:
    with adam(2) as pair:
        pair.step(3)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        found = owl.read_checkpoint(tmp_path)
        plain: Any = pair.theirs
        for name, module in (("0", pair.plain[0]), ("2", pair.plain[2])):
            state = plain.state[module.weight]
            for part, wanted in (("momentum", state["exp_avg"]), ("square", state["exp_avg_sq"])):
                torch.testing.assert_close(found.training[f"{part}/{name}"].double(), wanted, rtol=1e-4, atol=1e-7)
            state = plain.state[module.bias]
            for part, wanted in (("momentum", state["exp_avg"]), ("square", state["exp_avg_sq"])):
                torch.testing.assert_close(found.training[f"{part}.{name}.bias"].double(), wanted, rtol=1e-4, atol=1e-7)
            assert float(found.training[f"steps.{name}.bias"]) == 3
        assert found.facts.groups[0]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize("later", [0, 2])
def test_it_is_the_state_of_its_step(later: int, tmp_path: Path) -> None:
    with adam(3) as pair:
        pair.step(3)
        then = {name: value.clone() for name, value in pair.plain.state_dict().items()}
        writing = pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path)
        pair.step(later)
        found = owl.read_checkpoint(writing.result())
        assert found.facts.step == 3
        for name, value in then.items():
            torch.testing.assert_close(found.model[name].double(), value, rtol=0.0, atol=1e-5)
        pair.step()
        pair.agree()


def test_a_layer_that_took_no_step(tmp_path: Path) -> None:
    """One of two layers had no gradient before the checkpoint; it begins after it."""
    with adam(2) as pair:
        for _ in range(2):
            x, _ = pair.batch()
            for model, optimizer, cast in pair.each:
                optimizer.zero_grad()
                model[0](cast(x)).square().mean().backward()
                optimizer.step()
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        found = owl.read_checkpoint(tmp_path)
        assert found.facts.adapted == {"0": 2}
        pair.fleet.release(pair.scattered)
        pair.scattered = resumed(pair.fleet, found)
        pair.ours = pair.fleet.optimizer(pair.scattered, lr=0.01, algorithm="adam")
        pair.ours.load(found)
        pair.step(2)
        pair.agree()
        all_honest(pair)


def test_a_frozen_layer(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = perceptron()
        model[0].requires_grad_(requires_grad=False)
        return model

    with adam(2, model=make()) as pair:
        pair.step(2)
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()
        found = owl.read_checkpoint(tmp_path)
        assert "square/0" not in found.training
        pair.fleet.release(pair.scattered)
        plan = plan_model(make(), torch.zeros(1, 12), pair.fleet.devices, SMALL, Entropy(3))
        pair.scattered = pair.fleet.scatter(make(), plan, train=True, checkpoint=found)
        pair.ours = pair.fleet.optimizer(pair.scattered, lr=0.01, algorithm="adam")
        pair.ours.load(found)
        pair.step(2)
        pair.agree()


class TestDevices:
    """What they do before the copy, and between the copy and its arrival."""

    def test_one_that_leaves_costs_this_checkpoint(self, tmp_path: Path) -> None:
        with adam(3) as pair:
            pair.step(2)
            writing = pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path)
            pair.fleet.kill("d2")
            with pytest.raises(UnavailableError, match="d2"):
                writing.result()
            pair.step()
            assert (
                owl.read_checkpoint(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result()).facts.step == 3
            )
            pair.agree()
            all_honest(pair)

    def test_one_that_leaves_before_the_copy_costs_nothing(self, tmp_path: Path) -> None:
        with adam(3) as pair:
            pair.step(2)
            leave_when_asked(pair.fleet, "d2", 4)
            found = owl.read_checkpoint(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result())
            assert found.facts.step == 2
            pair.step()
            pair.agree()
            all_honest(pair)

    def test_one_that_strayed_is_found_before_anything_is_written(self, tmp_path: Path) -> None:
        """And what is written then is right."""
        with adam(3) as pair:
            pair.step(2)
            pair.fleet.workers["d1"].learner.tamper = Misstep("doubled")
            pair.step()
            found = owl.read_checkpoint(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result())
            assert pair.fleet.standing["d1"] is Standing.QUARANTINED
            for name, value in pair.plain.state_dict().items():
                torch.testing.assert_close(found.model[name].double(), value, rtol=0.0, atol=1e-5)
            pair.agree()

    def test_without_verification(self, tmp_path: Path) -> None:
        with adam(3, Policy(verify=False)) as pair:
            pair.step(2)
            found = owl.read_checkpoint(pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path).result())
            assert {name.partition("/")[0] for name in found.training if "/" in name} == set(PARTS)


def saved(directory: Path, algorithm: str, steps: int, **settings: Any) -> Checkpoint:
    """A checkpoint of the perceptron."""
    with training(2, algorithm=algorithm, lr=0.01, **settings) as pair:
        pair.step(steps)
        pair.fleet.checkpoint(pair.scattered, pair.ours, directory).result()
    return owl.read_checkpoint(directory)


class TestOtherOptimizers:
    """Whoever goes on with another than made the checkpoint is told so, and nothing has moved."""

    @pytest.mark.parametrize("steps", [0, 2])
    def test_sgd_after_adam(self, steps: int, tmp_path: Path) -> None:
        found = saved(tmp_path, "adam", steps)
        with still_fleet(2) as fleet:
            scattered = resumed(fleet, found)
            optimizer = fleet.optimizer(scattered, lr=0.01)
            with pytest.raises(CheckpointError, match="another optimizer"):
                optimizer.load(found)
            scattered(torch.ones(1, 12)).sum().backward()
            with pytest.raises(InputError, match="Adam has moved this model"):
                optimizer.step()
            same(fleet.gather(scattered), found)

    @pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}], ids=["plain", "momentum"])
    @pytest.mark.parametrize("steps", [0, 2])
    def test_adam_after_sgd(self, steps: int, settings: dict[str, Any], tmp_path: Path) -> None:
        found = saved(tmp_path, "sgd", steps, **settings)
        with still_fleet(2) as fleet:
            scattered = resumed(fleet, found)
            with pytest.raises(InputError, match="SGD has moved this model"):
                fleet.optimizer(scattered, lr=0.01, algorithm="adam")
            same(fleet.gather(scattered), found)
            assert Standing.QUARANTINED not in fleet.standing.values()
            optimizer = fleet.optimizer(scattered, lr=0.01)
            optimizer.load(found)
            scattered(torch.ones(1, 12)).sum().backward()
            optimizer.step()
            fleet.gather(scattered)

    def test_replicas(self, tmp_path: Path) -> None:
        found = saved(tmp_path, "adam", 2)
        with still_fleet(3) as fleet:
            scattered = resumed(fleet, found, REPLICAS)
            with pytest.raises(InputError, match="replicas=1"):
                fleet.optimizer(scattered, lr=0.01, algorithm="adam")


def same(weights: dict[str, Tensor], found: Checkpoint) -> None:
    assert all(torch.equal(value, found.model[name]) for name, value in weights.items())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a checkpoint is, of one step of Adam."""
    path = tmp_path_factory.mktemp("written")
    saved(path, "adam", 1)
    return path


class TestStatesThatAreNone:
    """Parts that are missing, or of another shape or type."""

    @pytest.mark.parametrize("name", [f"{part}/0" for part in PARTS])
    @pytest.mark.parametrize("how", ["missing", "another shape", "another type"])
    def test_of_blocks(self, name: str, how: str, written: Path) -> None:
        found = owl.read_checkpoint(written)
        if how == "missing":
            del found.training[name]
        else:
            own = found.training[name]
            found.training[name] = own[:3].clone() if how == "another shape" else own.double()
        with still_fleet(2) as fleet, pytest.raises(CheckpointError, match="no state of 0"):
            resumed(fleet, found)

    @pytest.mark.parametrize("name", ["momentum.0.bias", "square.2.bias", "steps.0.bias"])
    @pytest.mark.parametrize("how", ["missing", "another shape", "a number"])
    def test_of_what_is_kept(self, name: str, how: str, written: Path) -> None:
        found = owl.read_checkpoint(written)
        if how == "missing":
            del found.training[name]
        else:
            found.training[name] = torch.zeros(7) if how == "another shape" else torch.tensor(1.0)
        with still_fleet(2) as fleet:
            optimizer = fleet.optimizer(resumed(fleet, found), lr=0.01, algorithm="adam")
            if name.startswith("steps") and how == "a number":
                optimizer.load(found)
                return
            with pytest.raises(CheckpointError, match=r"does not hold|another shape"):
                optimizer.load(found)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers(self, value: float, written: Path) -> None:
        found = owl.read_checkpoint(written)
        found.training["momentum/0"][0, 0] = value
        with still_fleet(2) as fleet, pytest.raises(AwfulOwlError, match="not finite"):
            resumed(fleet, found)

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_files_that_were_cut_short(self, kept: float, written: Path, tmp_path: Path) -> None:
        (whole,) = written.iterdir()
        path = shutil.copytree(whole, tmp_path / whole.name)
        content = (path / "training.safetensors").read_bytes()
        (path / "training.safetensors").write_bytes(content[: int(kept * len(content))])
        with pytest.raises(CheckpointError, match="cut short or changed"):
            owl.read_checkpoint(tmp_path)
