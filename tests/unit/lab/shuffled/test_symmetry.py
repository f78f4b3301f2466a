"""The symmetries that are found are symmetries, and none that matters is missed."""

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import ModelError
from awfulowl.lab.shuffled.symmetry import Axis, find_symmetry
from awfulowl.lab.shuffled.weight_matching import draw_permutations, permute
from awfulowl.models.convnet import ConvNet
from awfulowl.models.digits import DigitsNet
from awfulowl.randomness import Entropy
from tests.unit.lab.shuffled.networks import ResNet, made, settled


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


@torch.no_grad()
def changed_at_most(model: nn.Module, x: Tensor, seed: int = 1) -> float:
    """Permute all that is said to be free; return the largest difference of an output."""
    model = model.eval()
    symmetry = find_symmetry(model)
    before = model(x)
    state = permute(model.state_dict(), symmetry, draw_permutations(symmetry, Entropy(seed)))
    assert any(not torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    model.load_state_dict(state)
    return float((model(x) - before).abs().max())


@pytest.mark.parametrize(
    ("kind", "shape", "sizes"),
    [
        (mlp, (6,), (12, 8)),
        (DigitsNet, (1, 8, 8), (32, 64, 128)),
        (ConvNet, (3, 32, 32), (32, 96, 192)),
        (ResNet, (3, 8, 8), (8, 8, 16, 16, 32, 32)),
    ],
)
def test_permuted_units_compute_the_same(kind: type[nn.Module], shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    model = settled(made(kind), *shape)
    assert sorted(find_symmetry(model).sizes) == sorted(sizes)
    assert changed_at_most(model, torch.randn(4, *shape)) < 1e-5


def test_units_that_are_added_move_together() -> None:
    symmetry = find_symmetry(ResNet(8))
    stream = symmetry.axes["conv.weight"][0]
    assert stream is not None
    assert symmetry.axes["stages.0.conv2.weight"][0] == stream
    assert symmetry.axes["stages.0.norm2.running_var"] == (stream,)
    assert symmetry.axes["stages.1.conv1.weight"][1] == stream
    assert symmetry.axes["stages.1.shortcut.0.weight"] == (
        symmetry.axes["stages.1.conv2.weight"][0],
        stream,
        None,
        None,
    )


def test_a_flattened_map_spreads_over_its_pixels() -> None:
    axes = find_symmetry(DigitsNet()).axes
    assert axes["hidden.weight"] == (Axis(2), Axis(1, 16))
    assert axes["head.weight"] == (None, Axis(2))
    assert axes["head.bias"] == (None,)
    assert axes["conv1.weight"] == (Axis(0), None, None, None)


def test_what_enters_and_leaves_stays() -> None:
    axes = find_symmetry(mlp()).axes
    assert axes["0.weight"][1] is None
    assert axes["4.weight"][0] is None


class Tokens(nn.Module):
    """Dense layers over tokens: flattening afterwards puts the tokens first, not the units."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.two = nn.Linear(18, 5)
        self.three = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.three(torch.relu(self.two(torch.relu(self.one(x)).flatten(1))))
        return y


class Strange(nn.Module):
    """Operations that are not known: a product of units with other units, and their order."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.two = nn.Linear(6, 6)
        self.three = nn.Linear(6, 5)
        self.four = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = self.two(torch.cumsum(y, dim=1)) * y
        z: Tensor = self.four(torch.relu(self.three(y)))
        return z


class Twice(nn.Module):
    """One layer that is used twice: its outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.again = nn.Linear(6, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        y: Tensor = self.out(torch.relu(self.again(torch.relu(self.again(x)))))
        return y


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.three = nn.Linear(4, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.three(torch.relu(self.two(torch.relu(self.one(x))))))
        z: Tensor = self.out(y)
        return z


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.two = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.three = nn.Conv2d(8, 6, 1)
        self.four = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.four(torch.relu(self.three(torch.relu(self.two(torch.relu(self.one(x)))))))
        return y.mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "shape", "free"),
    [
        (Tokens, (3, 4), (5,)),
        (Strange, (4,), (5,)),
        (Twice, (4,), (6,)),
        (Tied, (4,), (3,)),
        (Grouped, (3, 4, 4), (6,)),
    ],
)
def test_what_is_not_known_stays(kind: type[nn.Module], shape: tuple[int, ...], free: tuple[int, ...]) -> None:
    model = made(kind)
    assert find_symmetry(model).sizes == free
    assert changed_at_most(model, torch.randn(5, *shape)) < 1e-5


def test_layer_norm_of_dense_units_is_free() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(4, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 2)))
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.normal_()
    assert find_symmetry(model).axes["1.bias"] == (Axis(0),)
    assert changed_at_most(model, torch.randn(5, 4)) < 1e-5


def test_kept_dimensions_of_a_mean_are_not_taken_for_flat() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            self.out = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.conv(x).mean((2, 3), keepdim=True).flatten(1))
            return y

    assert find_symmetry(Kept()).sizes in {(), (8,)}
    assert find_symmetry(Kept()).sizes == ()


def test_a_model_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="traced"):
        find_symmetry(Branching())
