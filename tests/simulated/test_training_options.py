"""Every option of the optimizer, over dozens of steps, beside `torch.optim.SGD` in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from awfulowl.owner.optimizer import FleetOptimizer
from tests.simulated.training import Twins, image_model, perceptron, training

STEPS = 40

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.8, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"weight_decay": 0.02},
    "momentum, decay": {"momentum": 0.9, "weight_decay": 0.02},
    "nesterov, decay": {"momentum": 0.7, "weight_decay": 0.02, "nesterov": True},
    "dampening, decay": {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.02},
    "maximize": {"maximize": True, "lr": 0.002, "momentum": 0.5, "weight_decay": 0.01},
    "lr 0": {"lr": 0.0, "momentum": 0.9},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_those_of_pytorch(options: dict[str, Any]) -> None:
    with training(**{"lr": 0.05} | options) as pair:
        pair.step(STEPS)
        pair.agree()
        assert pair.fleet.statistics["checks_failed"] == 0


def test_a_decay_below_rounding_is_not_lost() -> None:
    """In float32 alone 1 - 2e-8 is 1, and nothing would ever happen."""
    model = nn.Linear(12, 3, bias=False)
    before = model.weight.detach().double().clone()
    with training(model=model, lr=0.02, weight_decay=1e-6) as pair:
        for _ in range(100):
            pair.ours.zero_grad()
            (0 * pair.scattered(torch.ones(1, 12)).sum()).backward()
            pair.ours.step()
        after = pair.fleet.gather(pair.scattered)["weight"].double()
        # One rounding to float32 of the weight.
        assert ((after - before * (1 - 2e-8) ** 100).abs() <= 2.0**-24 * before.abs()).all()
        assert not torch.equal(after, before)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "nesterov": True}])
def test_convolutions_train_with_options(options: dict[str, Any]) -> None:
    with training(model=image_model(), example=torch.zeros(1, 4, 5, 5), lr=0.02, **options) as pair:
        pair.step(STEPS)
        pair.agree()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_decay_may_be_decoupled(momentum: float, nesterov: bool) -> None:
    """As in `torch.optim.SGDW` of others: weights shrink by lr times decay first, and not through the gradient."""
    decay = 0.05
    with training(momentum=momentum, nesterov=nesterov) as pair:
        ours = pair.ours = pair.fleet.optimizer(
            pair.scattered,
            lr=0.1,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=decay,
            decoupled_weight_decay=True,
        )

        def shrink(optimizer: Any, *_: object) -> None:
            with torch.no_grad():
                for one in pair.plain.parameters():
                    one.mul_(1 - 0.1 * decay)

        pair.theirs.register_step_pre_hook(shrink)
        pair.step(STEPS)
        pair.agree()
        assert ours.param_groups[0]["weight_decay"] == decay


def layers_apart(model: Any) -> list[dict[str, Any]]:
    """The first layer and the bias of the last with rates of their own."""
    return [
        {"params": list(model[0].parameters()), "lr": 0.2, "momentum": 0.5},
        {"params": [model[2].weight], "weight_decay": 0.1},
        {"params": [model[2].bias], "lr": 0.01, "nesterov": True},
    ]


def test_groups_have_options_of_their_own() -> None:
    with training(groups=layers_apart, lr=0.05, momentum=0.9) as pair:
        pair.step(STEPS)
        pair.agree()


def test_decay_may_be_decoupled_for_one_group() -> None:
    with training(weight_decay=0.0) as pair:
        pair.ours = pair.fleet.optimizer(
            pair.scattered,
            [  # type: ignore[arg-type]
                {"params": list(pair.scattered[0].parameters()), "weight_decay": 0.1, "decoupled_weight_decay": True},  # type: ignore[index]
                {"params": list(pair.scattered[2].parameters())},  # type: ignore[index]
            ],
            lr=0.1,
        )

        def shrink(*_: object) -> None:
            with torch.no_grad():
                for one in pair.plain[0].parameters():  # type: ignore[index]
                    one.mul_(1 - 0.1 * 0.1)

        pair.theirs.register_step_pre_hook(shrink)
        pair.step(10)
        pair.agree()


SCHEDULERS: dict[str, Callable[[Any], LRScheduler]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 10, 0.5),
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [5, 25], 0.2),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=STEPS),  # moves momentum too
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "warm-up": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        [5],
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_schedulers_work_as_ever(make: Callable[[Any], LRScheduler]) -> None:
    with training(lr=0.1, momentum=0.9) as pair:
        schedulers = [make(optimizer) for _, optimizer, _ in pair.each]
        for _ in range(STEPS - 1):
            pair.step()
            for scheduler in schedulers:
                scheduler.step()
        assert pair.ours.param_groups[0]["lr"] == pair.theirs.param_groups[0]["lr"] != 0.1
        pair.agree()


def test_options_may_change_between_steps() -> None:
    with training(lr=0.1) as pair:
        for momentum, decay in ((0.0, 0.0), (0.9, 0.0), (0.9, 0.1), (0.0, 0.1), (0.5, 0.0), (0.0, 0.0)):
            for _, optimizer, _ in pair.each:
                optimizer.param_groups[0] |= {"momentum": momentum, "weight_decay": decay}
            pair.step(2)
        pair.agree()


def test_groups_may_be_added() -> None:
    with training(groups=lambda model: model[0].parameters()) as pair:
        pair.step()
        for model, optimizer, _ in pair.each:
            optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})  # type: ignore[index]
        pair.step(2)
        pair.agree()


def test_two_optimizers_take_turns() -> None:
    """One step of each panel for each backward pass, as for two players."""
    with training() as pair:
        for turn in range(6):
            place = 2 * (turn % 2)
            x, wanted = pair.batch()
            for model, optimizer, cast in pair.each:
                one: Any = (
                    pair.fleet.optimizer(model, model[place].parameters(), lr=0.1)  # type: ignore[index]
                    if isinstance(optimizer, FleetOptimizer)
                    else torch.optim.SGD(model[place].parameters(), lr=0.1)  # type: ignore[index]
                )
                optimizer.zero_grad()
                pair.loss(model, cast(x), cast(wanted)).backward()  # type: ignore[no-untyped-call]
                one.step()
        pair.agree()


def test_a_layer_without_gradient_stays() -> None:
    """Not even decay moves it, as in PyTorch."""
    with training(model=nn.Sequential(*perceptron(), nn.Identity()), momentum=0.9, weight_decay=0.1) as pair:
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


def test_statistics_count_steps() -> None:
    with training() as pair:
        pair.step(3)
        assert pair.ours.steps == 3
        assert pair.fleet.statistics["steps"] == 2 * 3


def test_both_twins_are_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison finds what it is there to find: a step of another length."""
    with training() as pair:
        pair.step()
        assert isinstance(pair, Twins)
        pair.theirs.param_groups[0]["lr"] = 0.11
        pair.step()
        with pytest.raises(AssertionError):
            pair.agree()
