"""Where a layer's outputs go, and in what form the next layer's devices see them."""

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import ModelError
from awfulowl.lab.traffic.relays import Relay, find_relays, outputs_seen
from awfulowl.lab.victims.networks import CifarNet
from awfulowl.models.digits import DigitsNet
from tests.unit.lab.shuffled.networks import ResNet, made


def test_norms_rectifiers_and_pools_are_found() -> None:
    model = CifarNet()
    layers = ["features.0", "features.4", "features.8", "features.12", "hidden", "head"]
    found = find_relays(model, layers)
    assert list(found) == layers
    assert found["features.0"] == Relay("features.4", "features.1", rectified=True, pool=found["features.0"].pool)
    assert isinstance(found["features.0"].pool, nn.MaxPool2d)
    assert found["features.12"] == Relay("hidden", "features.13", rectified=True)
    assert found["hidden"] == Relay("head", rectified=True)
    assert found["head"] == Relay(None)


def test_functional_pools_are_called_as_in_the_network() -> None:
    pool = find_relays(DigitsNet(), ["conv2", "hidden"])["conv2"].pool
    assert pool is not None
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(pool(x), nn.functional.max_pool2d(x, 2))


def test_layers_in_between_that_are_not_watched_break_the_way() -> None:
    assert "conv1" not in find_relays(DigitsNet(), ["conv1", "hidden"])
    assert find_relays(DigitsNet(), ["conv1", "conv2"]).keys() == {"conv1"}


def test_sums_and_forks_are_no_relay() -> None:
    names = [name for name, module in ResNet().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    found = find_relays(ResNet(), names)
    assert found["stages.0.conv1"] == Relay("stages.0.conv2", "stages.0.norm1", rectified=True)
    assert "stages.0.conv2" not in found
    assert "conv" not in found


def test_what_is_seen_of_a_rectified_layer_is_its_output() -> None:
    model = made(CifarNet).eval()
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        model.features[13].running_mean.normal_()
        model.features[13].register_forward_hook(lambda _m, _i, y: kept.__setitem__("normed", y.detach()))
        model.hidden.register_forward_pre_hook(lambda _m, i: kept.__setitem__("entered", i[0].detach()))
        model(torch.randn(3, 3, 32, 32))
    relay = find_relays(model, ["features.12", "hidden"])["features.12"]
    shown = torch.ones(2048, dtype=torch.bool)
    shown[5] = False
    found = outputs_seen(relay, 128, kept["entered"], shown)
    assert found is not None
    outputs, seen = found
    assert torch.equal(outputs.reshape(kept["normed"].shape), kept["normed"].relu())
    assert not seen[0]
    assert bool(seen[1:].all())


def test_what_does_not_fit_is_not_seen() -> None:
    assert outputs_seen(Relay("next"), 5, torch.randn(2, 12), torch.ones(12).bool()) is None
    assert outputs_seen(Relay(None), 5, torch.randn(2, 10), torch.ones(10).bool()) is None
    outputs, seen = outputs_seen(Relay("next"), 12, torch.randn(2, 12), torch.ones(12).bool()) or (None, None)
    assert outputs is not None
    assert seen is not None


def test_models_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="traced"):
        find_relays(Branching(), [])
