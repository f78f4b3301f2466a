"""Honest passes are never called wrong, and small lies are."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.cli.agreement import Z, tolerance, wrong_rows
from awfulowl.device.lies import KINDS, Kind, falsify
from awfulowl.models.digits import DigitsNet
from awfulowl.verification.rounding import variance

LAYERS = ["conv1", "conv2", "hidden", "head"]


@pytest.fixture(scope="module")
def model() -> DigitsNet:
    torch.manual_seed(0)
    return DigitsNet().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 1, 8, 8, generator=generator)


def in_pieces(weight: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """W x as a fleet computes it: cut along the inputs, the parts added up in any order."""
    order = torch.randperm(x.shape[1], generator=generator)
    parts = [
        functional.linear(x[:, order[at : at + 7]], weight[:, order[at : at + 7]]) for at in range(0, len(order), 7)
    ]
    total = torch.zeros_like(parts[0])
    for part in torch.randperm(len(parts), generator=generator):
        total += parts[part]
    return total


@torch.no_grad()
def scattered(model: DigitsNet, images: Tensor, seed: int) -> Tensor:
    """Another honest pass in float32: convolutions unfolded, all sums in another order."""
    generator = torch.Generator().manual_seed(seed)
    x = images
    for layer in (model.conv1, model.conv2):
        taps = functional.unfold(x, 3, padding=1)
        rows = taps.transpose(1, 2).reshape(-1, taps.shape[1])
        y = in_pieces(layer.weight.flatten(1), rows, generator)
        y = y.reshape(len(x), -1, y.shape[1]).transpose(1, 2).reshape(len(x), -1, 8, 8)
        assert layer.bias is not None
        x = functional.relu(y + layer.bias[:, None, None])
    x = functional.max_pool2d(x, 2).flatten(1)
    x = functional.relu(in_pieces(model.hidden.weight, x, generator) + model.hidden.bias)
    return in_pieces(model.head.weight, x, generator) + model.head.bias


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_honest_passes_agree_whatever_the_order_of_their_sums(
    model: DigitsNet, images: Tensor, seed: int, scale: float
) -> None:
    with torch.no_grad():
        ours = model(images * scale)
    theirs = scattered(model, images * scale, seed)
    assert not torch.equal(ours, theirs)
    assert not wrong_rows(ours, theirs, tolerance(model, images * scale)).any()


def test_an_honest_pass_stays_well_within_the_tolerance_of_an_exact_one(model: DigitsNet, images: Tensor) -> None:
    """A fifth of ten deviations: two, of 120 logits."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        assert not wrong_rows(model(images), exact, tolerance(model, images) / 5).any()


def test_the_tolerance_of_one_layer_is_that_of_its_sums() -> None:
    layer = nn.Linear(20, 3)
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        squares = functional.linear(x.square(), layer.weight.square(), layer.bias.square()) + layer(x).square()
    torch.testing.assert_close(tolerance(layer, x), Z * (2 * variance(21) * squares).sqrt())


def test_errors_of_an_earlier_layer_are_carried_along() -> None:
    """Slow and obvious: every output of the first layer is nudged by itself."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 5), nn.Linear(5, 2)
    x = torch.randn(1, 6)
    with torch.no_grad():
        hidden = first(x)
        spread = variance(7) * (first.weight.square() @ x[0].square() + first.bias.square() + hidden[0].square())
        after = functional.relu(hidden)
        own = variance(6) * (
            second.weight.square() @ after[0].square() + second.bias.square() + second(after)[0].square()
        )
        carried = torch.zeros(2)
        for number in range(5):
            nudged = hidden.clone()
            nudged[0, number] += 1e-2
            slope = (second(functional.relu(nudged)) - second(after))[0] / 1e-2
            carried += slope.square() * spread[number]
    expected = Z * (2 * (own + carried)).sqrt()
    torch.testing.assert_close(tolerance(nn.Sequential(first, nn.ReLU(), second), x)[0], expected, rtol=1e-3, atol=0)


def test_a_layer_without_bias_has_a_tolerance_too() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Flatten())
    assert bool((tolerance(model, torch.rand(2, 2, 5, 5)) > 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_lie_of_one_per_cent_in_the_answer_is_wrong(model: DigitsNet, images: Tensor, kind: Kind) -> None:
    with torch.no_grad():
        ours = model(images)
    lie = falsify(ours, kind, 0.01, torch.Generator().manual_seed(0))
    assert wrong_rows(ours, lie, tolerance(model, images)).all()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_a_lie_of_one_device_in_any_layer_is_wrong(model: DigitsNet, images: Tensor, name: str, kind: Kind) -> None:
    """One of eight devices falsifies its part of a layer's sum by one per cent."""
    layer = model.get_submodule(name)
    share = copy.deepcopy(layer)
    width = max(1, share.get_parameter("weight").shape[1] // 8)
    share.get_parameter("weight").data[:, width:] = 0
    share.get_parameter("bias").data.zero_()

    def lie(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        part: Tensor = share(inputs[0])
        return output + falsify(part, kind, 0.01, torch.Generator().manual_seed(0)) - part

    with torch.no_grad():
        ours = model(images)
        handle = layer.register_forward_hook(lie)
        theirs = model(images)
        handle.remove()
    assert wrong_rows(ours, theirs, tolerance(model, images)).all()


def test_one_answer_that_differs_makes_its_row_wrong_and_no_other() -> None:
    ours = torch.zeros(3, 10)
    theirs = ours.clone()
    theirs[1, 4] = 0.2
    assert wrong_rows(ours, theirs, torch.full((3, 10), 0.1)).tolist() == [False, True, False]
    assert wrong_rows(ours, theirs, torch.full((3, 10), 0.25)).tolist() == [False, False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_wrong(value: float) -> None:
    theirs = torch.zeros(2, 10)
    theirs[0, 0] = value
    assert wrong_rows(torch.zeros(2, 10), theirs, torch.ones(2, 10)).tolist() == [True, False]


def test_an_empty_batch_has_no_rows(model: DigitsNet) -> None:
    assert tolerance(model, torch.zeros(0, 1, 8, 8)).shape == (0, 10)
    assert wrong_rows(torch.zeros(0, 10), torch.zeros(0, 10), torch.zeros(0, 10)).shape == (0,)


def test_the_model_is_as_it_was(model: DigitsNet, images: Tensor) -> None:
    weights = copy.deepcopy(model.state_dict())
    tolerance(model, images)
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.conv1._forward_hooks
