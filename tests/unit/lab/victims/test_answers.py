"""Answers that are remembered are those that the network gives, and what has to be asked anew is."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from awfulowl.lab.victims import answers as module
from awfulowl.lab.victims import tail
from awfulowl.lab.victims.answers import Answers, predict
from awfulowl.limits import MIB


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 16), nn.ReLU(), nn.Linear(16, 10)
    ).eval()


class Residual(nn.Module):
    """Something goes around the layer, and the batch size decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(64, 64)
        self.layer = nn.Linear(64, 64)
        self.after = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x.flatten(1)))
        answer: Tensor = self.after(x + torch.relu(self.layer(x)))
        return answer


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x.flatten(1))
        return answer if bool(answer.sum() > 0) else -answer


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_MEMORY", tail._Memory(64 * MIB))


IMAGES = torch.randn(1203, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def changed(model: nn.Module, *names: str) -> nn.Module:
    """Return a copy with other weights in some modules."""
    other = copy.deepcopy(model)
    for name in names:
        weight = other.get_submodule(name).get_parameter("weight")
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    return other


class Counted(nn.Module):
    """Counts the images that go through a layer."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.images = 0
        model.get_submodule(name).register_forward_hook(self._count)

    def _count(self, _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        self.images += len(args[0])


@pytest.mark.parametrize("names", [("3",), ("5",), ("3", "5"), ("0",), ("0", "3"), ()])
def test_all_classes_are_those_of_the_network(names: tuple[str, ...]) -> None:
    victim = network()
    answers, other = Answers(victim), changed(victim, *names)
    for _ in range(2):
        assert torch.equal(answers.of(other, IMAGES, names), predict(other, IMAGES))
        assert torch.equal(answers.own(IMAGES), predict(victim, IMAGES))
        assert torch.equal(answers.of(victim, IMAGES, names), predict(victim, IMAGES))


def test_what_comes_before_the_layer_is_computed_once() -> None:
    victim = network()
    answers, seen = Answers(victim), Counted(victim, "0")
    others = [changed(victim, "3") for _ in range(3)]
    counts = [Counted(other, "0") for other in others]
    for other in others:
        answers.of(other, IMAGES, ["3"])
    assert [count.images for count in counts] == [len(IMAGES) + 1, 0, 0]  # one more, whose size is looked at
    assert torch.equal(answers.own(IMAGES), answers.own(IMAGES))
    assert seen.images == len(IMAGES)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: model.get_submodule("0").get_parameter("bias").data.add_(1e-6),
        lambda model: model.get_submodule("0").get_parameter("weight").data.mul_(2),
        lambda model: model.set_submodule("1", nn.Tanh()),
        lambda model: model.set_submodule("0", nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 4, 5))),
    ],
    ids=["bias", "weight", "activation", "another"],
)
def test_a_network_that_differs_before_the_layer_is_asked_itself(spoil: Callable[[nn.Module], object]) -> None:
    """Whatever the caller believes."""
    victim = network()
    other = changed(victim, "3")
    spoil(other)
    assert torch.equal(Answers(victim).of(other, IMAGES, ["3"]), predict(other, IMAGES))


def test_a_network_of_another_shape_is_asked_itself() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert torch.equal(Answers(network()).of(other, IMAGES, ["3"]), predict(other, IMAGES))


@pytest.mark.parametrize("make", [Residual, Branching])
def test_other_networks(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    victim = make().eval()
    other = changed(victim, "layer")
    found = Answers(victim).of(other, IMAGES, ["layer"])
    assert torch.equal(found, predict(other, IMAGES))


def test_other_images_get_their_own_answers() -> None:
    victim = network()
    answers, other = Answers(victim), changed(victim, "3")
    for images in (IMAGES, IMAGES[:100], IMAGES[:200:2], IMAGES[100:200], IMAGES.clone().neg()):
        assert torch.equal(answers.of(other, images, ["3"]), predict(other, images))
        assert torch.equal(answers.own(images), predict(victim, images))


def test_more_than_may_be_kept_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ENTERED_BYTES", 4 * len(IMAGES) * 4 * 36 - 1)
    victim = network()
    answers, other = Answers(victim), changed(victim, "3")
    count = Counted(other, "0")
    assert torch.equal(answers.of(other, IMAGES, ["3"]), predict(other, IMAGES))
    assert count.images == len(IMAGES) + len(IMAGES) + 1


def test_what_is_kept_does_not_pass_for_other_images_at_the_same_place() -> None:
    """Memory of images that are gone may be used again: they are held as long as their answers."""
    answers = Answers(network())
    places = {(images := torch.randn(5, 1, 8, 8)).data_ptr(): answers.own(images) for _ in range(50)}
    assert len(places) == 50
