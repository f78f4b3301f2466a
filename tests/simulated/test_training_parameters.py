"""Parameters of a model under training: hooks that they had before, and gradients that are at devices."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from awfulowl.errors import ModelError
from awfulowl.placement.options import Options
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan_model
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.training import SMALL, perceptron


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
