"""Parameters of a model under training: hooks that they had before, and gradients that are at devices."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from awfulowl.errors import ModelError, ScatteredError
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.training import SMALL, Twins, perceptron, training


@pytest.fixture(scope="module")
def fleet() -> Iterator[MemoryFleet]:
    with still_fleet(2) as opened:
        yield opened


def plan_of(model: nn.Module, fleet: MemoryFleet, options: Options = SMALL) -> Plan:
    return plan_model(model, torch.zeros(1, 12), fleet.devices, options)


class TestHooks:
    """Registered on parameters before the model was scattered."""

    @pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
    def test_are_refused_by_name(self, fleet: MemoryFleet, register: str) -> None:
        """They would be called in one process, and never on a fleet: the copy has other parameters."""
        called: list[str] = []

        def hook(one: torch.Tensor) -> None:
            called.append(str(tuple(one.shape)))

        kept = r"hooks of 2\.bias would not be called: remove them.*get_parameter\('2\.bias'\) of what scatter returns$"
        elsewhere = r"hooks of 2\.weight would not be called.*get_parameter\('2\.weight'\).*keep=\['2'\]"
        for name, match in (("2.bias", kept), ("2.weight", elsewhere)):
            model = perceptron()
            plan = plan_of(model, fleet)
            handle = getattr(model.get_parameter(name), register)(hook)
            with pytest.raises(ModelError, match=match):
                fleet.scatter(model, plan, train=True)
            fleet.release(fleet.scatter(model, plan))  # nothing calls hooks where nothing is trained
            handle.remove()
            fleet.release(fleet.scatter(model, plan, train=True))
        assert not called

    def test_of_what_is_frozen_are_never_called_anyway(self, fleet: MemoryFleet) -> None:
        model = perceptron()
        model.get_parameter("0.weight").register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
        model[0].requires_grad_(requires_grad=False)
        fleet.release(fleet.scatter(model, plan_of(model, fleet), train=True))

    def test_work_where_the_error_sends_them(self, fleet: MemoryFleet) -> None:
        """On the copy's own parameters, once the layer is kept: they are called, and what they return counts."""
        model, name = perceptron(), "2.weight"
        scattered = fleet.scatter(model, plan_of(model, fleet, Options(block=4, keep=("2",))), train=True)
        own = scattered.get_parameter(name)
        own.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
        optimizer = fleet.optimizer(scattered, lr=0.1)
        scattered(torch.ones(2, 12)).square().sum().backward()
        optimizer.step()
        assert torch.equal(own, model.get_parameter(name))
        assert not torch.equal(scattered.get_parameter("2.bias"), model.get_parameter("2.bias"))
        fleet.release(scattered)


def unscale(pair: Twins) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))  # it begins with the first
    scaler.unscale_(pair.ours)


class TestGradients:
    """Of scattered weights: None would be taken for none by whoever clips or adds up those of all parameters."""

    @pytest.mark.parametrize(
        "look",
        [
            lambda pair: nn.utils.clip_grad_norm_(pair.scattered.parameters(), 0.01),
            lambda pair: nn.utils.clip_grad_value_(pair.scattered.parameters(), 0.01),
            lambda pair: [one.grad for one in pair.scattered.parameters()],
            lambda pair: torch.optim.SGD(pair.scattered.parameters()).zero_grad(),
            lambda pair: pair.scattered[2].zero_grad(),
            unscale,
        ],
        ids=[
            "clip_grad_norm_",
            "clip_grad_value_",
            "grad",
            "zero_grad of another",
            "zero_grad of a part",
            "GradScaler",
        ],
    )
    def test_are_not_to_be_seen_while_they_wait(self, look: Callable[[Twins], Any]) -> None:
        with training(2) as pair:
            pair.step()
            for _, optimizer, _ in pair.each:
                optimizer.zero_grad()
            pair.differentiate()
            with pytest.raises(
                ScatteredError, match=r"gradient of '[02]\.weight' is at devices.*optimizer\.clip_grad_norm_"
            ):
                look(pair)
            for _, optimizer, _ in pair.each:
                optimizer.step()
            pair.agree()

    def test_are_none_before_and_after(self) -> None:
        with training(2) as pair:
            weight = pair.scattered.get_parameter("0.weight")
            assert weight.grad is None
            for clear in (pair.ours.step, pair.ours.zero_grad, pair.scattered.zero_grad):
                pair.ours.zero_grad()
                pair.differentiate_ours()
                with pytest.raises(ScatteredError, match=r"'0\.weight'"):
                    getattr(weight, "grad")  # noqa: B009  a lookup that does something
                clear()
                assert weight.grad is None

    def test_wait_where_there_are_any(self) -> None:
        """Frozen layers and those that the loss does not depend on have none, as in PyTorch."""
        model = perceptron()
        model[0].requires_grad_(requires_grad=False)
        with training(2, model=model) as pair:
            pair.differentiate_ours()
            assert pair.scattered.get_parameter("0.weight").grad is None
            with pytest.raises(ScatteredError, match=r"'2\.weight'"):
                nn.utils.clip_grad_norm_(pair.scattered.parameters(), 1.0)
        with training(2) as pair:
            pair.scattered[0](torch.ones(2, 12)).sum().backward()  # type: ignore[index]
            assert pair.scattered.get_parameter("2.weight").grad is None
            with pytest.raises(ScatteredError, match=r"'0\.weight'"):
                nn.utils.clip_grad_norm_(pair.scattered.parameters(), 1.0)

    def test_wait_in_a_model_that_was_moved(self) -> None:
        with training(2) as pair:
            pair.scattered.to(torch.float32)
            pair.differentiate_ours()
            with pytest.raises(ScatteredError, match=r"'0\.weight'"):
                nn.utils.clip_grad_norm_(pair.scattered.parameters(), 1.0)

    @pytest.mark.parametrize("algorithm", ["sgd", "adam"])
    @pytest.mark.parametrize("decoupled", [False, True])
    def test_are_in_nobody_else_s_way(self, algorithm: str, decoupled: bool) -> None:
        """What is usual between backward and step goes on: looks at the model, copies of its state, the step itself."""
        with training(2, algorithm=algorithm) as pair:
            pair.ours.param_groups[0] |= {"weight_decay": 0.01, "decoupled_weight_decay": decoupled}
            before = copy.deepcopy(pair.fleet.gather(pair.scattered))  # what is kept is there as it is
            pair.differentiate_ours()
            assert "ScatteredWeight('0.weight'" in str(list(pair.scattered.parameters()))
            assert "Linear" in repr(pair.scattered)
            assert pair.scattered.state_dict().keys() == {"0.bias", "2.bias"}
            assert copy.deepcopy(pair.scattered.state_dict()).keys() == {"0.bias", "2.bias"}
            pair.scattered.load_state_dict(pair.scattered.state_dict())
            assert sum(one.numel() for one in pair.scattered.parameters() if one.requires_grad) == 13 * 8 + 9 * 3
            with pytest.raises(ScatteredError, match=r"fleet\.checkpoint saves all"):  # as always: not of gradients
                pair.ours.state_dict()
            assert len(pair.ours.param_groups[0]["params"]) == 4
            pair.scattered.train().eval().float()
            assert nn.utils.clip_grad_norm_([pair.scattered.get_parameter("0.bias")], 1e6) > 0
            assert pair.ours.clip_grad_norm_(1e6) > 0
            pair.ours.step()
            after = pair.fleet.gather(pair.scattered)
            assert all(not torch.equal(after[name], value) for name, value in before.items())
