"""What users of Adam get wrong: a clear error, and nothing has moved."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from awfulowl.errors import AwfulOwlError, InputError, ScatteredError
from awfulowl.owner.peer import Standing
from awfulowl.placement.request import plan_model
from awfulowl.randomness import Entropy
from tests.simulated.memory_fleet import still_fleet
from tests.simulated.test_training_bad_input import unmoved
from tests.simulated.training import REPLICAS, SMALL, Twins, perceptron, training


@pytest.fixture
def pair() -> Iterator[Twins]:
    with training(2, algorithm="adam", lr=0.01) as opened:
        opened.step()
        yield opened
        assert Standing.QUARANTINED not in opened.fleet.standing.values()


@pytest.fixture(scope="module")
def shared() -> Iterator[Twins]:
    """One for all tests that leave it able to go on."""
    with training(2, algorithm="adam", lr=0.01) as opened:
        opened.step()
        yield opened
        goes_on(opened)
        assert Standing.QUARANTINED not in opened.fleet.standing.values()


def goes_on(pair: Twins) -> None:
    pair.step(2)
    pair.agree()


class TestSettings:
    """Of the optimizer, when it is made and later."""

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"momentum": 0.9}, "momentum: no options here; there are lr, betas, decoupled_weight_decay, eps"),
            ({"nesterov": True}, "nesterov: no options here"),
            ({"amsgrad": True}, "amsgrad: no options here"),
            ({"fused": True, "capturable": True}, "capturable, fused: no options here"),
            ({"foreach": True}, "foreach: no options here"),
            ({"lr": -1.0}, "cannot be made"),
            ({"eps": -1.0}, "cannot be made"),
            ({"betas": (1.0, 0.9)}, "cannot be made"),
            ({"betas": (0.9, 1.0)}, "cannot be made"),
            ({"betas": (-0.1, 0.9)}, "cannot be made"),
            ({"betas": 0.9}, "cannot be made"),
            ({"betas": (0.9,)}, "cannot be made"),
            ({"weight_decay": -0.1}, "cannot be made"),
            ({"params": []}, "cannot be made"),
            ({"algorithm": "adamw"}, "AdamW is adam with decoupled_weight_decay=True"),
            ({"algorithm": "lion"}, "algorithm='lion': there are sgd, adam"),
            ({"algorithm": ""}, "there are sgd, adam"),
            ({"algorithm": "Adam"}, "there are sgd, adam"),
        ],
        ids=str,
    )
    def test_that_there_are_not(self, shared: Twins, settings: dict[str, Any], match: str) -> None:
        usual: dict[str, Any] = {"lr": 0.1, "algorithm": "adam"}
        with pytest.raises(InputError, match=match):
            shared.fleet.optimizer(shared.scattered, **{**usual, **settings})

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            *[({"lr": value}, "not finite") for value in (math.nan, math.inf, 1e300)],
            *[({"weight_decay": value}, "not finite") for value in (math.nan, math.inf, 1e300)],
            *[({"eps": value}, "eps=.*above 0") for value in (0.0, -1e-8, math.nan)],
            ({"eps": 1e-60}, "divide by nothing"),
            ({"eps": math.inf}, "not finite"),
            *[({"betas": (value, 0.9)}, "betas=.*below 1") for value in (1.0, 1.5, -0.1, math.nan)],
            *[({"betas": (0.9, value)}, "betas=.*below 1") for value in (1.0, 1.5, -0.1, math.nan)],
        ],
        ids=str,
    )
    def test_that_are_no_step(self, shared: Twins, changed: dict[str, Any], match: str) -> None:
        pair, steps = shared, shared.ours.steps
        pair.ours.zero_grad()
        pair.differentiate_ours()
        before = pair.fleet.gather(pair.scattered)
        kept = dict(pair.ours.param_groups[0])
        pair.ours.param_groups[0] |= changed
        with pytest.raises(InputError, match=match):
            pair.ours.step()
        assert pair.ours.steps == steps
        unmoved(pair, before)
        pair.ours.param_groups[0] |= kept

    def test_replicas(self) -> None:
        with still_fleet(3) as fleet:
            plan = plan_model(perceptron(), torch.zeros(1, 12), fleet.devices, REPLICAS, Entropy(0))
            scattered = fleet.scatter(perceptron(), plan, train=True)
            with pytest.raises(InputError, match="plan with replicas=1"):
                fleet.optimizer(scattered, lr=0.1, algorithm="adam")
            optimizer = fleet.optimizer(scattered, lr=0.1)
            scattered(torch.ones(1, 12)).sum().backward()
            optimizer.step()

    def test_a_model_that_is_served(self) -> None:
        with still_fleet(2) as fleet:
            plan = plan_model(perceptron(), torch.zeros(1, 12), fleet.devices, SMALL)
            served = fleet.scatter(perceptron(), plan)
            with pytest.raises(ScatteredError, match="train=True"):
                fleet.optimizer(served, lr=0.1, algorithm="adam")


class TestGradients:
    """That are not finite, are there twice, or come from half a fleet."""

    @pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
    def test_that_are_no_numbers(self, pair: Twins, factor: float) -> None:
        before = pair.fleet.gather(pair.scattered)
        pair.ours.zero_grad()
        loss = factor * pair.loss(pair.scattered, *pair.batch())
        with pytest.raises(InputError, match=r"not finite|float32"):
            loss.backward()  # type: ignore[no-untyped-call]
        unmoved(pair, before)
        goes_on(pair)

    def test_of_what_is_kept(self, pair: Twins) -> None:
        before = pair.fleet.gather(pair.scattered)
        pair.ours.zero_grad()
        pair.differentiate_ours()
        pair.scattered.get_parameter("0.bias").grad[0] = math.nan  # type: ignore[index]
        with pytest.raises(InputError, match="a gradient is not finite"):
            pair.ours.step()
        unmoved(pair, before)
        goes_on(pair)

    @pytest.mark.parametrize(("size", "passes"), [(1e15, 1), (1e15, 3), (1e19, 1), (1e19, 10), (6e19, 1), (1e21, 1)])
    def test_whose_squares_leave_float32(self, pair: Twins, size: float, passes: int) -> None:
        """Either the step is taken and all agree, or an error says why not; no device is at fault."""
        x, wanted = pair.batch()
        steps, pair.ours.param_groups[0]["betas"] = 0, (0.9, 0.5)
        try:
            for _ in range(2):
                pair.ours.zero_grad()
                for _ in range(passes):
                    (size * pair.loss(pair.scattered, x, wanted)).backward()  # type: ignore[no-untyped-call]
                pair.ours.step()
                steps += 1
        except InputError as error:
            assert "float32" in str(error) or "finite" in str(error)  # noqa: PT017
        assert steps == 2 or size > 1e15
        assert steps == 0 or size < 1e21
        pair.fleet.gather(pair.scattered)
        assert pair.fleet.statistics["lies_caught"] == 0

    def test_two_steps_along_one_gradient(self, pair: Twins) -> None:
        pair.ours.zero_grad()
        pair.differentiate_ours()
        pair.ours.step()
        before = pair.fleet.gather(pair.scattered)
        with pytest.raises(InputError, match="followed already"):
            pair.ours.step()
        unmoved(pair, before)

    def test_states_are_neither_given_nor_taken(self, pair: Twins) -> None:
        for use in (pair.ours.state_dict, lambda: pair.ours.load_state_dict(pair.theirs.state_dict())):
            with pytest.raises(ScatteredError, match=r"fleet\.checkpoint.*optimizer\.load"):
                use()
        pair.step()
        pair.agree()

    def test_closures(self, pair: Twins) -> None:
        pair.ours.zero_grad()
        with pytest.raises(InputError, match="closures"):
            pair.ours.step(lambda: 0.0)

    def test_losses_scaled_for_half_precision(self, pair: Twins) -> None:
        before = pair.fleet.gather(pair.scattered)
        pair.ours.zero_grad()
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(pair.loss(pair.scattered, *pair.batch())).backward()  # type: ignore[no-untyped-call]
        with pytest.raises(AwfulOwlError):
            scaler.step(pair.ours)
        unmoved(pair, before)


@pytest.mark.parametrize("rate", [1e10, 1e25, 1e38])
def test_rates_that_lead_out_of_float32(rate: float) -> None:
    """No device is at fault for it."""
    with training(2, algorithm="adam", lr=0.01) as pair:
        pair.step()
        pair.ours.param_groups[0]["lr"] = rate
        for _ in range(3):
            pair.ours.zero_grad()
            try:
                pair.differentiate_ours()
                pair.ours.step()
            except InputError as error:
                assert "float32" in str(error) or "finite" in str(error)  # noqa: PT017
                break
        assert pair.fleet.statistics["lies_caught"] == 0
        assert Standing.QUARANTINED not in pair.fleet.standing.values()


class TestOtherOptimizers:
    """Adam's mean squares are of all steps: nobody else takes one in between, and it joins nobody."""

    def test_sgd_after_adam(self, pair: Twins) -> None:
        before = pair.fleet.gather(pair.scattered)
        other = pair.fleet.optimizer(pair.scattered, lr=0.1)
        pair.ours.zero_grad()
        pair.differentiate_ours()
        with pytest.raises(InputError, match="Adam has moved this model"):
            other.step()
        assert other.steps == 0
        unmoved(pair, before)
        goes_on(pair)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_adam_after_sgd(self, momentum: float) -> None:
        with training(2, momentum=momentum) as pair:
            pair.step()
            with pytest.raises(InputError, match="SGD has moved this model"):
                pair.fleet.optimizer(pair.scattered, lr=0.1, algorithm="adam")
            goes_on(pair)

    def test_adam_after_sgd_and_a_snapshot(self) -> None:
        with training(2) as pair:
            pair.step()
            deployment: Any = pair.fleet._scattered[pair.scattered][0]
            for number in (0, 1):
                pair.fleet._loop.run(deployment.snapshot(number))
            with pytest.raises(InputError, match="SGD has moved this model"):
                pair.fleet.optimizer(pair.scattered, lr=0.1, algorithm="adam")
            goes_on(pair)

    def test_adam_where_sgd_moved_one_of_two_layers(self) -> None:
        """What it is refused leaves the other layer as it was, too."""
        with training(2, groups=lambda model: model[2].parameters()) as pair:
            pair.step()
            with pytest.raises(InputError, match="SGD has moved this model"):
                pair.fleet.optimizer(pair.scattered, lr=0.1, algorithm="adam")
            for model, optimizer, _ in pair.each:
                optimizer.add_param_group({"params": list(model[0].parameters())})  # type: ignore[index]
            goes_on(pair)

    def test_each_has_a_layer_of_its_own(self) -> None:
        with training(2, groups=lambda model: model[0].parameters(), algorithm="adam", lr=0.01) as pair:
            other = pair.fleet.optimizer(pair.scattered, pair.scattered[2].parameters(), lr=0.1, momentum=0.9)  # type: ignore[index]
            theirs = torch.optim.SGD(pair.plain[2].parameters(), lr=0.1, momentum=0.9)  # type: ignore[index]
            for _ in range(4):
                for one in (pair.ours, pair.theirs, other, theirs):
                    one.zero_grad()
                pair.differentiate()
                for one in (pair.ours, pair.theirs, other, theirs):
                    one.step()
            pair.agree()
            drift = pair.fleet.drift(pair.scattered)
            assert drift["0"] == math.inf
            assert 0 < drift["2"] < 1e-3

    def test_another_adam_goes_on(self, pair: Twins) -> None:
        """Devices keep the means of their blocks; what is kept at the owner has none in a new optimizer."""
        weights = [name for name, _ in pair.scattered.named_parameters() if name.endswith("weight")]
        pair.ours = pair.fleet.optimizer(
            pair.scattered, [pair.scattered.get_parameter(name) for name in weights], lr=0.01, algorithm="adam"
        )
        pair.theirs.param_groups[0]["params"] = [pair.plain.get_parameter(name) for name in weights]
        goes_on(pair)

    def test_of_pytorch_are_refused(self, pair: Twins) -> None:
        pair.ours.zero_grad()
        pair.differentiate_ours()
        with pytest.raises(ScatteredError, match=r"use fleet\.optimizer"):
            torch.optim.Adam(list(pair.scattered.parameters())).step()


def test_a_model_without_scattered_layers_of_its_own() -> None:
    """One that is kept whole is moved by PyTorch alone."""
    model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    with training(2, model=model, groups=lambda one: one[1].parameters(), algorithm="adam", lr=0.01) as pair:
        pair.step(3)
        pair.agree()
        assert pair.fleet.statistics["steps"] == pair.fleet.statistics["snapshots"] == 0
