"""A model that is one layer has no name to be called by: people read of "the model"."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from awfulowl.device.lies import Liar
from awfulowl.errors import AwfulOwlError, InputError, ModelError, RuleError
from awfulowl.placement.naming import name_devices
from awfulowl.placement.options import Options
from awfulowl.placement.request import plan_model
from tests.simulated.memory_fleet import MemoryFleet, still_fleet
from tests.simulated.training import REPLICAS, SMALL

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(12, 6)


@pytest.fixture
def fleet() -> Iterator[MemoryFleet]:
    with still_fleet(4) as opened:
        yield opened


def scattered(fleet: MemoryFleet, options: Options = SMALL, *, train: bool = False, scale: float = 1.0) -> nn.Module:
    model = layer()
    model.weight.data *= scale
    return fleet.scatter(model, plan_model(model, X, fleet.devices, options), train=train)


def said(error: type[AwfulOwlError], act: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize("x", [X * torch.nan, X * 1e37], ids=["no numbers", "too large"])
def test_of_inputs(fleet: MemoryFleet, x: Tensor) -> None:
    assert said(InputError, lambda: scattered(fleet, scale=1e3)(x)).startswith("the model: ")


@pytest.mark.parametrize("arithmetic", ["int8", "int16"])
def test_of_integers(fleet: MemoryFleet, arithmetic: str) -> None:
    served = scattered(fleet, replace(SMALL, arithmetic=arithmetic))
    assert said(InputError, lambda: served(X / 0)).startswith("the model: ")


def test_of_gradients(fleet: MemoryFleet) -> None:
    trained = scattered(fleet, train=True)
    assert said(InputError, lambda: (trained(X) * torch.inf).sum().backward()).startswith("the model: gradients")


def test_of_devices_that_lie(fleet: MemoryFleet) -> None:
    served = scattered(fleet, REPLICAS)
    fleet.workers["d1"].tamper = Liar("one row", 0.1, seed=0)
    for _ in range(6):
        served(X)
    told = {event.kind: event.text for event in fleet.events}
    assert told["quarantined"] == "an answer for the model failed the check"


def test_of_cells_that_others_take(fleet: MemoryFleet) -> None:
    trained = scattered(fleet, train=True)
    optimizer = fleet.optimizer(trained, lr=0.1)
    trained(X).sum().backward()
    optimizer.step()
    fleet.workers["d1"].tamper = Liar("one row", 0.1, seed=0)
    for _ in range(6):
        optimizer.zero_grad()
        trained(X).sum().backward()
        optimizer.step()
    texts = [event.text for event in fleet.events if event.kind == "replaced"]
    assert texts
    assert all(text.startswith("takes a cell of the model") for text in texts)


def test_of_layers_that_fit_no_integers() -> None:
    wide, options = nn.Linear(1 << 18, 1), replace(SMALL, arithmetic="int8")
    text = said(ModelError, lambda: plan_model(wide, None, name_devices(2), options))
    assert text.startswith("the model adds up 262144 products")
    assert text.endswith(": choose arithmetic='int16'")


def test_of_rules_that_cannot_be_kept() -> None:
    narrow = nn.Linear(1, 4)
    text = said(RuleError, lambda: plan_model(narrow, None, name_devices(2), Options(strict=True)))
    assert "the model has a single input" in text
    assert "keep it" not in text
    rows = Options(block=8, shape="rows", share=0.25, replicas=1)
    text = said(RuleError, lambda: plan_model(nn.Linear(32, 32), None, name_devices(4), rows))
    assert "slices of the model; allow a larger share" in text


def test_it_is_still_the_empty_name_where_programs_read(fleet: MemoryFleet) -> None:
    trained = scattered(fleet, train=True)
    assert list(fleet.drift(trained)) == [""]
    assert set(fleet.gather(trained)) == {"weight", "bias"}
