"""What cannot be trained, and what users get wrong: a clear error, and nothing has moved."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from awfulowl.errors import AwfulOwlError, InputError, ModelError, PlanError, ScatteredError
from awfulowl.owner.peer import Standing
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.test_training_models import Heads
from tests.simulated.training import SMALL, Twins, perceptron, training


@pytest.fixture
def pair() -> Iterator[Twins]:
    with training(2, momentum=0.9) as opened:
        opened.step()
        yield opened


@pytest.fixture(scope="module")
def fleet() -> Iterator[MemoryFleet]:
    with still_fleet({"d1": "one", "d2": "two", "d3": "three"}) as opened:
        yield opened


def plan_of(model: nn.Module, fleet: MemoryFleet, options: Options = SMALL) -> Plan:
    return plan_model(model, torch.zeros(1, 12), fleet.devices, options)


class TestOptimizers:
    """Of others, and ours with settings that devices cannot follow."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=False),
            torch.optim.Adam,
            lambda parameters: torch.optim.AdamW(parameters, fused=False),
            torch.optim.Rprop,
        ],
    )
    def test_of_pytorch_are_refused(self, pair: Twins, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        other = make(list(pair.scattered.parameters()))
        pair.ours.zero_grad()
        pair.theirs.zero_grad()
        pair.differentiate()
        with pytest.raises(ScatteredError, match=r"'0\.weight'.*use fleet\.optimizer"):
            other.step()
        pair.ours.step()
        pair.theirs.step()
        pair.agree()

    def test_of_pytorch_for_what_is_kept_are_fine(self, pair: Twins) -> None:
        biases = [pair.scattered.get_parameter("0.bias")]
        before = biases[0].detach().clone()
        pair.ours.zero_grad()
        pair.loss(pair.scattered, *pair.batch()).backward()  # type: ignore[no-untyped-call]
        torch.optim.Adam(biases).step()
        assert not torch.equal(before, biases[0])

    def test_half_a_state_is_not_given_away(self, pair: Twins) -> None:
        """It would hold the momentum of what is kept, and look whole."""
        with pytest.raises(ScatteredError, match=r"fleet\.checkpoint.*optimizer\.load"):
            pair.ours.state_dict()
        pair.step(2)
        pair.agree()

    @pytest.mark.parametrize("whose", ["plain", "of another kind", "empty"])
    def test_states_of_others_are_not_taken(self, pair: Twins, whose: str) -> None:
        other = torch.optim.Adam(pair.plain.parameters())
        state = {"plain": pair.theirs.state_dict(), "of another kind": other.state_dict(), "empty": {}}[whose]
        before = pair.ours.settings()
        with pytest.raises(ScatteredError, match=r"fleet\.checkpoint.*optimizer\.load"):
            pair.ours.load_state_dict(state)
        assert pair.ours.settings() == before
        pair.step(2)
        pair.agree()

    def test_closures(self, pair: Twins) -> None:
        pair.ours.zero_grad()
        with pytest.raises(InputError, match="closures"):
            pair.ours.step(lambda: 0.0)

    @pytest.mark.parametrize("momentum", [1.0, 1.5, -0.1, math.nan])
    def test_momentum_out_of_range(self, pair: Twins, momentum: float) -> None:
        pair.ours.zero_grad()
        pair.differentiate_ours()
        before = pair.fleet.gather(pair.scattered)
        pair.ours.param_groups[0]["momentum"] = momentum
        with pytest.raises(InputError, match="momentum"):
            pair.ours.step()
        unmoved(pair, before)

    @pytest.mark.parametrize("option", ["lr", "weight_decay", "dampening"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
    def test_settings_that_are_no_numbers(self, pair: Twins, option: str, value: float) -> None:
        pair.ours.zero_grad()
        pair.differentiate_ours()
        before = pair.fleet.gather(pair.scattered)
        pair.ours.param_groups[0] |= {"weight_decay": 0.1, option: value}
        with pytest.raises(InputError, match="not finite"):
            pair.ours.step()
        unmoved(pair, before)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"betas": (0.9, 0.9)}, "betas: no options here"),
            ({"fused": True, "differentiable": True}, "differentiable, fused"),
            ({"lr": -1.0}, "cannot be made"),
            ({"momentum": -1.0}, "cannot be made"),
            ({"weight_decay": -0.1}, "cannot be made"),
            ({"nesterov": True}, "cannot be made"),
            ({"params": []}, "cannot be made"),
            ({"params": [3]}, "cannot be made"),
        ],
        ids=str,
    )
    def test_settings_that_there_are_not(self, pair: Twins, settings: dict[str, Any], match: str) -> None:
        with pytest.raises(InputError, match=match):
            pair.fleet.optimizer(pair.scattered, **({"lr": 0.1} | settings))

    def test_parameters_of_one_panel_in_two_groups(self, fleet: MemoryFleet) -> None:
        model = Heads()
        scattered: Any = fleet.scatter(model, plan_of(model, fleet), train=True)
        groups = [{"params": scattered.one.parameters()}, {"params": scattered.other.parameters(), "lr": 0.2}]
        with pytest.raises(InputError, match="put them in one group"):
            fleet.optimizer(scattered, groups, lr=0.1)
        fleet.release(scattered)

    def test_models_of_others(self, pair: Twins, fleet: MemoryFleet) -> None:
        for model in (perceptron(), pair.scattered):
            with pytest.raises(ScatteredError, match="not scattered by this fleet"):
                fleet.optimizer(model, lr=0.1)

    def test_models_that_are_served(self, fleet: MemoryFleet) -> None:
        model = perceptron()
        served = fleet.scatter(model, plan_of(model, fleet))
        for use in (lambda: fleet.optimizer(served, lr=0.1), lambda: fleet.drift(served)):
            with pytest.raises(ScatteredError, match="train=True"):
                use()
        fleet.release(served)


def unmoved(pair: Twins, before: dict[str, torch.Tensor]) -> None:
    after = pair.fleet.gather(pair.scattered)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class TestWeights:
    """What scattered weights refuse."""

    @pytest.mark.parametrize(
        "use",
        [
            lambda weight: weight.register_hook(lambda gradient: gradient),
            lambda weight: weight.register_post_accumulate_grad_hook(lambda one: None),
            lambda weight: weight.requires_grad_(requires_grad=False),
            lambda weight: setattr(weight, "requires_grad", False),
            lambda weight: setattr(weight, "grad", torch.zeros(8, 12)),
            lambda weight: setattr(weight, "data", torch.zeros(8, 12)),
            lambda weight: weight.add_(1.0),
            lambda weight: weight.norm(),
            lambda weight: nn.utils.parameters_to_vector([weight]),
            copy.deepcopy,
        ],
    )
    def test_is_refused(self, pair: Twins, use: Callable[[Any], Any]) -> None:
        with pytest.raises(ScatteredError, match=r"0\.weight"):
            use(pair.scattered.get_parameter("0.weight"))
        pair.step()
        pair.agree()

    def test_freezing_after_scattering(self, pair: Twins) -> None:
        with pytest.raises(ScatteredError, match="scatter with"):
            pair.scattered.requires_grad_(requires_grad=False)

    def test_hooks_of_modules_work(self, pair: Twins) -> None:
        """They see activations and their gradients, which are at the owner."""
        seen: list[torch.Tensor] = []
        for model, _, _ in pair.each:
            layer: Any = model[2]  # type: ignore[index]
            layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append(inputs[0].double()))
        pair.step()
        torch.testing.assert_close(seen[0], seen[1], rtol=0.0, atol=1e-5)
        pair.agree()

    def test_two_steps_along_one_gradient(self, pair: Twins) -> None:
        """PyTorch would take both; devices forget gradients with the step, so nobody moves again."""
        pair.ours.zero_grad()
        pair.differentiate_ours()
        pair.ours.step()
        before = pair.fleet.gather(pair.scattered)
        with pytest.raises(InputError, match="followed already"):
            pair.ours.step()
        unmoved(pair, before)

    def test_losses_scaled_for_half_precision(self, pair: Twins) -> None:
        """What is scattered would move 65536 times as far as it should: GradScaler cannot unscale it."""
        before = pair.fleet.gather(pair.scattered)
        pair.ours.zero_grad()
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(pair.loss(pair.scattered, *pair.batch())).backward()  # type: ignore[no-untyped-call]
        with pytest.raises(AwfulOwlError):
            scaler.step(pair.ours)
        unmoved(pair, before)


class TestGradients:
    """Of graphs that are used as they cannot be."""

    def test_a_step_without_clearing_gradients(self, pair: Twins) -> None:
        with pytest.raises(InputError, match="zero_grad"):
            pair.differentiate_ours()
        before = pair.fleet.gather(pair.scattered)
        pair.step()
        pair.agree()
        assert not torch.equal(before["0.weight"], pair.fleet.gather(pair.scattered)["0.weight"])

    def test_twice_through_one_graph(self, pair: Twins) -> None:
        loss = pair.loss(pair.scattered, *pair.batch())
        pair.ours.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()  # type: ignore[no-untyped-call]

    def test_gradients_of_gradients(self, pair: Twins) -> None:
        pair.ours.zero_grad()
        x = torch.randn(2, 12, requires_grad=True)
        (gradient,) = torch.autograd.grad(pair.scattered(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            torch.autograd.backward(gradient.square().sum())
        pair.step()
        pair.agree()

    def test_inputs_that_were_changed_in_place(self, pair: Twins) -> None:
        pair.ours.zero_grad()
        x, wanted = pair.batch()
        loss = pair.loss(pair.scattered, x, wanted)
        x.add_(1.0)
        with pytest.raises(RuntimeError, match=r"an input of \S+ was modified by an inplace operation.*: clone it"):
            loss.backward()  # type: ignore[no-untyped-call]
        pair.step()
        pair.agree()

    @pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
    def test_losses_that_are_not_finite(self, pair: Twins, factor: float) -> None:
        before = pair.fleet.gather(pair.scattered)
        pair.ours.zero_grad()
        loss = pair.loss(pair.scattered, *pair.batch()) * factor
        with pytest.raises(InputError, match="not finite"):
            loss.backward()  # type: ignore[no-untyped-call]
        with pytest.raises(InputError, match="not finite"):
            pair.ours.step()
        unmoved(pair, before)
        pair.step(2)
        pair.agree()
        assert all(standing is Standing.PRESENT for standing in pair.fleet.standing.values())
        assert pair.fleet.statistics["lies_caught"] == 0

    def test_gradients_that_float32_cannot_hold(self, pair: Twins) -> None:
        """dy and x can be sent, and their product is infinite."""
        before = pair.fleet.gather(pair.scattered)
        pair.ours.zero_grad()
        with pytest.raises(InputError, match="too large for float32"):
            (1e37 * pair.scattered[0](torch.full((2, 12), 1e3)).sum()).backward()  # type: ignore[index]
        unmoved(pair, before)
        pair.step(2)
        pair.agree()

    def test_a_training_that_diverges_blames_nobody(self) -> None:
        with training(2, lr=100.0) as pair:
            with pytest.raises(InputError, match=r"float32|finite"):  # noqa: PT012  any of the steps may notice
                for _ in range(30):
                    pair.ours.zero_grad()
                    x, wanted = pair.batch()
                    pair.scattered[2](pair.scattered[0](x)).sub(wanted).square().mean().backward()  # type: ignore[index]
                    pair.ours.step()
            assert all(standing is Standing.PRESENT for standing in pair.fleet.standing.values())

    def test_inputs_that_are_not_finite(self, pair: Twins) -> None:
        pair.ours.zero_grad()
        with pytest.raises(InputError, match="not finite"):
            pair.scattered(torch.full((2, 12), math.inf))
        pair.step()
        pair.agree()

    def test_inputs_of_another_shape_or_type(self, pair: Twins) -> None:
        for x in (torch.zeros(2, 11), torch.zeros(2, 12).double(), torch.zeros(2, 12, dtype=torch.long)):
            with pytest.raises(InputError):
                pair.scattered(x)
        pair.step()
        pair.agree()


class TestModels:
    """Models and plans that cannot be trained."""

    @pytest.mark.parametrize(
        ("arithmetic", "sharing"), [("int8", None), ("int16", None), ("int8", "inputs:2"), ("int16", "replicated")]
    )
    def test_integers(self, fleet: MemoryFleet, arithmetic: str, sharing: str | None) -> None:
        model = perceptron()
        plan = plan_of(model, fleet, Options(block=4, arithmetic=arithmetic, sharing=sharing))
        with pytest.raises(PlanError, match="make a plan of float32") as raised:
            fleet.scatter(model, plan, train=True)
        assert str(raised.value).startswith(f"sharing {sharing!r}:" if sharing else f"{plan.panels[0].title}:")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, fleet: MemoryFleet, dtype: torch.dtype) -> None:
        model = perceptron().to(dtype)
        plan = plan_model(model, torch.zeros(1, 12, dtype=dtype), fleet.devices, SMALL)
        with pytest.raises(ModelError, match=r"only float32 is trained: call \.float\(\)"):
            fleet.scatter(model, plan, train=True)

    def test_tied_weights(self, fleet: MemoryFleet) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(12, 12)
                self.last = nn.Linear(12, 12, bias=False)
                self.last.weight = self.embedding.weight

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = self.last(x) + self.embedding.weight.mean()
                return y

        model = Tied()
        with pytest.raises(ModelError, match=r"last\.weight is also embedding\.weight.*keep=\['last'\]"):
            fleet.scatter(model, plan_of(model, fleet), train=True)
        model.requires_grad_(requires_grad=False)  # what stays as it is may be in two places
        fleet.release(fleet.scatter(model, plan_of(model, fleet), train=True))

    def test_partly_frozen_panels(self, fleet: MemoryFleet) -> None:
        model = Heads()
        model.one.requires_grad_(requires_grad=False)
        with pytest.raises(ModelError, match="some of its layers are frozen"):
            fleet.scatter(model, plan_of(model, fleet), train=True)

    def test_partly_frozen_modules(self, fleet: MemoryFleet) -> None:
        class Attending(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
                self.attention.out_proj.weight.requires_grad_(False)  # noqa: FBT003  as PyTorch has it

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = self.attention(x, x, x)[0]
                return y

        model = Attending()
        plan = plan_model(model, torch.zeros(1, 2, 12), fleet.devices, SMALL)
        with pytest.raises(ModelError, match="partly frozen"):
            fleet.scatter(model, plan, train=True)

    def test_models_to_be_served_take_no_inputs_that_require_gradients(self, fleet: MemoryFleet) -> None:
        model = perceptron()
        served = fleet.scatter(model, plan_of(model, fleet))
        with pytest.raises(ScatteredError, match="train=True"):
            served(torch.zeros(1, 12, requires_grad=True))
        assert not served(torch.zeros(1, 12)).requires_grad
        fleet.release(served)

    def test_plans_are_used_once(self, fleet: MemoryFleet) -> None:
        model = perceptron()
        plan = plan_of(model, fleet)
        scattered = fleet.scatter(model, plan, train=True)
        with pytest.raises(PlanError, match="in use"):
            fleet.scatter(model, plan, train=True)
        fleet.release(scattered)

    def test_released_models(self, pair: Twins) -> None:
        pair.fleet.release(pair.scattered)
        with pytest.raises(ScatteredError, match="not scattered by this fleet"):
            pair.fleet.gather(pair.scattered)
