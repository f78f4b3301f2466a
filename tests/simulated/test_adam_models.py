"""Training with Adam on a fleet beside `torch.optim.Adam` in float64: options, schedulers, models of all kinds."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from awfulowl.device.lies import Liar
from awfulowl.owner.descents import FleetAdam
from awfulowl.owner.peer import Standing
from awfulowl.owner.policy import Policy
from awfulowl.placement.options import Options, Shape
from tests.simulated import test_training_churn
from tests.simulated.memory_fleet import memory_fleet
from tests.simulated.training import Twins, image_model, perceptron, training, twins

STEPS = 10

IMAGE = torch.zeros(1, 4, 5, 5)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "betas": {"betas": (0.5, 0.9)},
    "no momentum": {"betas": (0.0, 0.99)},
    "epsilon": {"eps": 1e-3},
    "decay": {"weight_decay": 0.02},
    "AdamW": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "lr": 1e-3, "weight_decay": 0.1},
    "lr 0": {"lr": 0.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_those_of_pytorch(options: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"algorithm": "adam", "lr": 0.01, **options}
    with training(**settings) as pair:
        pair.step(STEPS)
        pair.agree()
        statistics = pair.fleet.statistics
        assert statistics["checks_failed"] == statistics["lies_caught"] == 0
        assert statistics["steps"] == 2 * STEPS
        assert statistics["snapshots"] == 2
        assert statistics["reworked"] == 2 * 2  # a block of each device, of both layers


def test_what_it_is() -> None:
    with training(algorithm="adam") as pair:
        assert isinstance(pair.ours, FleetAdam)
        assert isinstance(pair.ours, torch.optim.Adam)
        pair.step()
        assert pair.ours.steps == 1


@pytest.mark.parametrize("shape", ["rows", "scattered"])
def test_convolutions(shape: Shape) -> None:
    options = Options(block=(4, 2), shape=shape, replicas=1, share=1.0, domain_share=1.0)
    with training(3, model=image_model(), example=IMAGE, options=options, algorithm="adam", lr=0.01) as pair:
        pair.step(4)
        pair.agree()
        pair.step()
        pair.agree()
        assert pair.fleet.statistics["lies_caught"] == 0


def grouped() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))


def test_groups_of_convolutions() -> None:
    with training(2, model=grouped(), example=IMAGE, algorithm="adam", lr=0.01) as pair:
        pair.step(6)
        pair.agree()


def normed() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def test_statistics_of_batches() -> None:
    """With an ε that hides the rounding of gradients which batch norm makes 0."""
    with training(2, model=normed(), example=torch.zeros(2, 12), algorithm="adam", lr=0.01, eps=1e-3) as pair:
        pair.step(8)
        pair.agree()


@pytest.mark.parametrize("frozen", [0, 2])
def test_frozen_layers_stay(frozen: int) -> None:
    model = perceptron()
    model[frozen].requires_grad_(requires_grad=False)
    with training(model=model, algorithm="adam", lr=0.01) as pair:
        pair.step(6)
        pair.agree()
        assert pair.fleet.statistics["steps"] == pair.fleet.statistics["snapshots"] + 5 == 6


@pytest.mark.parametrize("keep", ["0", "2"])
def test_kept_and_scattered_layers(keep: str) -> None:
    options = Options(block=(4, 2), replicas=1, share=1.0, domain_share=1.0, keep=(keep,))
    with training(options=options, algorithm="adam", lr=0.01, weight_decay=0.02) as pair:
        pair.step(8)
        pair.agree()


def layers_apart(model: Any) -> list[dict[str, Any]]:
    """The first layer and the bias of the last with options of their own."""
    return [
        {"params": list(model[0].parameters()), "lr": 0.02, "betas": (0.5, 0.9)},
        {"params": [model[2].weight], "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"params": [model[2].bias], "lr": 0.001},
    ]


def test_groups_have_options_of_their_own() -> None:
    with training(groups=layers_apart, algorithm="adam", lr=0.01) as pair:
        pair.step(STEPS)
        pair.agree()


def test_groups_may_be_added() -> None:
    """A layer that joins later has means of its own age."""
    with training(groups=lambda model: model[0].parameters(), algorithm="adam", lr=0.01) as pair:
        pair.step(3)
        for model, optimizer, _ in pair.each:
            optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.003})  # type: ignore[index]
        pair.step(3)
        pair.agree()


def test_a_layer_without_gradient_stays_and_its_means_do_not_age() -> None:
    with training(algorithm="adam", lr=0.01, weight_decay=0.1) as pair:
        for turn in range(6):
            x, wanted = pair.batch()
            for model, optimizer, cast in pair.each:
                optimizer.zero_grad()
                first: Any = model[0]  # type: ignore[index]
                hidden = torch.tanh(first(cast(x)))
                if turn % 2:
                    hidden.square().mean().backward()  # type: ignore[no-untyped-call]
                else:
                    pair.loss(nn.Sequential(*model[1:]), hidden, cast(wanted)).backward()  # type: ignore[index,no-untyped-call]
                optimizer.step()
        pair.agree()


SCHEDULERS: dict[str, Callable[[Any], LRScheduler]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 4, 0.5),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=STEPS),  # moves betas too
    "to 0": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 1),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_work_as_ever(make: Callable[[Any], LRScheduler]) -> None:
    with training(algorithm="adam", lr=0.01) as pair:
        schedulers = [make(optimizer) for _, optimizer, _ in pair.each]
        for _ in range(STEPS - 1):
            pair.step()
            for scheduler in schedulers:
                scheduler.step()
        assert pair.ours.param_groups[0]["lr"] == pair.theirs.param_groups[0]["lr"] != 0.01
        pair.agree()


def test_options_may_change_between_steps() -> None:
    with training(algorithm="adam", lr=0.01) as pair:
        for betas, decay, eps in (((0.9, 0.999), 0.0, 1e-8), ((0.5, 0.999), 0.1, 1e-8), ((0.9, 0.9), 0.0, 1e-3)):
            for _, optimizer, _ in pair.each:
                optimizer.param_groups[0] |= {"betas": betas, "weight_decay": decay, "eps": eps}
            pair.step(3)
        pair.agree()


@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_clipping(most: float, samples: int) -> None:
    """Of lengths that devices say, or that the owner computes where that is cheap. ε feels how long gradients are."""
    with training(3, algorithm="adam", lr=0.01, eps=1e-3) as pair:
        pair.samples = samples
        for _ in range(5):
            for _, optimizer, _ in pair.each:
                optimizer.zero_grad()
            pair.differentiate()
            found = pair.ours.clip_grad_norm_(most)
            assert found == pytest.approx(float(nn.utils.clip_grad_norm_(pair.plain.parameters(), most)), rel=1e-5)
            for _, optimizer, _ in pair.each:
                optimizer.step()
        pair.agree()


def test_gradients_of_several_passes_add_up() -> None:
    with training(3, algorithm="adam", lr=0.01) as pair:
        for passes in (1, 3, 2):
            for _, optimizer, _ in pair.each:
                optimizer.zero_grad()
            for _ in range(passes):
                pair.differentiate()
            for _, optimizer, _ in pair.each:
                optimizer.step()
        pair.agree()


def test_micro_batches_on_several_threads() -> None:
    with memory_fleet(3) as fleet:
        pair = twins(fleet, perceptron(), algorithm="adam", lr=0.01)
        for _ in range(3):
            test_training_churn.TestPipelines().step(pair, 3)
        pair.agree()


@pytest.mark.parametrize("samples", [1, 60])
def test_batches_of_any_size(samples: int) -> None:
    with training(2, Policy(part_bytes=256), algorithm="adam", lr=0.01) as pair:
        pair.samples = samples
        pair.step(4)
        pair.agree()


def test_evaluation_between_steps() -> None:
    with training(2, algorithm="adam", lr=0.01) as pair:
        for _ in range(3):
            pair.step()
            x, _ = pair.batch()
            with torch.no_grad():
                torch.testing.assert_close(pair.scattered(x).double(), pair.plain(x.double()), rtol=0.0, atol=1e-5)
        pair.agree()


def dying(seed: int = 0) -> nn.Sequential:
    """Most units of the first layer are 0 for every input: their weights have no gradient, ever."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    first: Any = model[0]
    with torch.no_grad():
        first.bias[::2] = -10.0
    return model


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_dead_units(decay: float) -> None:
    with training(3, model=dying(), algorithm="adam", lr=0.01, weight_decay=decay) as pair:
        pair.step(8)
        pair.agree()
        assert all(standing is Standing.PRESENT for standing in pair.fleet.standing.values())


@pytest.mark.parametrize("size", [1e-30, 1e-24, 1e-12, 1e6])
def test_losses_of_all_sizes(size: float) -> None:
    """Nobody is suspected where squares of gradients are no float32; ε makes tiny steps nothing."""
    with training(3, algorithm="adam", lr=0.01) as pair:
        for _ in range(4):
            pair.ours.zero_grad()
            (size * pair.loss(pair.scattered, *pair.batch())).backward()  # type: ignore[no-untyped-call]
            pair.ours.step()
            pair.fleet.gather(pair.scattered)
        assert pair.fleet.statistics["lies_caught"] == 0
        assert all(standing is Standing.PRESENT for standing in pair.fleet.standing.values())


class TestSnapshots:
    """They are taken on schedule, when the state is asked for, and not without reason."""

    def test_on_schedule(self) -> None:
        with training(3, Policy(snapshot_after=4), algorithm="adam", lr=0.01) as pair:
            pair.step(10)
            assert pair.fleet.statistics["snapshots"] == 2 * 2
            pair.agree()
            assert pair.fleet.statistics["snapshots"] == 2 * 3
            pair.agree()
            assert pair.fleet.statistics["snapshots"] == 2 * 3
            assert pair.fleet.statistics["reworked"] == 3 * 2 * 3

    @pytest.mark.parametrize(("share", "blocks"), [(0.0, 1), (0.1, 1), (0.4, 2), (1.0, 3), (7.0, 3)])
    def test_a_share_of_each_devices_blocks_is_rebuilt(self, share: float, blocks: int) -> None:
        """Of six columns each device has three."""
        model = nn.Linear(12, 3)
        with training(2, Policy(reworked=share), model, algorithm="adam", lr=0.01) as pair:
            pair.step()
            pair.agree()
            assert pair.fleet.statistics["reworked"] == 2 * blocks

    def test_none_before_the_first_step(self) -> None:
        with training(2, algorithm="adam") as pair:
            pair.agree()
            assert pair.fleet.statistics["snapshots"] == 0

    def test_there_is_no_bound_on_what_goes_unseen(self) -> None:
        with training(2, algorithm="adam", lr=0.01) as pair:
            assert set(pair.fleet.drift(pair.scattered).values()) == {math.inf}
            pair.step(2)
            assert set(pair.fleet.drift(pair.scattered).values()) == {math.inf}


def test_the_weights_that_are_sent_are_all_of_them_after_every_step() -> None:
    """What a user pays for Adam: the weights of every layer, each time."""
    model = nn.Linear(64, 64, bias=False)
    received = {}
    for algorithm in ("sgd", "adam"):
        options = Options(block=32, replicas=1, share=1.0, domain_share=1.0)
        with training(2, model=model, example=torch.zeros(1, 64), algorithm=algorithm, options=options) as pair:
            pair.outputs = 64
            before = pair.fleet.statistics["bytes_received"]
            pair.step(3)
            received[algorithm] = pair.fleet.statistics["bytes_received"] - before
    more = received["adam"] - received["sgd"]
    assert 3 * model.weight.nbytes < more < 1.2 * 3 * model.weight.nbytes


@pytest.mark.parametrize("lies", [False, True])
def test_without_verification(lies: bool) -> None:
    """Nothing is stated, nothing is rebuilt, and whoever lies is believed."""
    with training(2, Policy(verify=False), algorithm="adam", lr=0.01) as pair:
        if lies:
            pair.fleet.workers["d2"].tamper = Liar("random", 0.1)
            with pytest.raises(AssertionError):
                pair.step(3)
            return
        pair.step(6)
        pair.agree()
        statistics = pair.fleet.statistics
        assert statistics["reworked"] == statistics["checks"] == 0


def test_both_twins_are_twins() -> None:
    """The comparison finds what it is there to find: a step of another length."""
    with training(algorithm="adam", lr=0.01) as pair:
        pair.step()
        assert isinstance(pair, Twins)
        pair.theirs.param_groups[0]["betas"] = (0.89, 0.999)
        pair.step()
        with pytest.raises(AssertionError):
            pair.agree()
