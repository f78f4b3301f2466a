"""Another order of addition changes last bits only, and a plain twin goes on where a state was."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.models.seeding import seeded
from awfulowl.owner.checkpoint import Checkpoint, Facts
from awfulowl.recipes.loop import Progress, plain_optimizer, train
from awfulowl.recipes.recipe import Recipe, changed, find_recipe
from awfulowl.recipes.task import Task, make_task
from benchmarks.training_curves import reorder
from benchmarks.training_stretches import train_twin

MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Linear(300, 7), (5, 300)),
    "dense, without a bias, of sequences": (nn.Linear(300, 7, bias=False), (5, 4, 300)),
    "convolution": (nn.Conv2d(32, 6, 3, stride=2, padding=1, dilation=2), (5, 32, 9, 9)),
}


def passed(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What comes of a pass forward and backward: the answer, and gradients of the input and the parameters."""
    own = x.clone().requires_grad_()
    y: Tensor = model(own)
    y.square().sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    return [y.detach(), own.grad, *(one.grad for one in model.parameters() if one.grad is not None)]


@pytest.mark.parametrize("name", MODELS)
def test_another_order_differs_in_the_last_bits(name: str) -> None:
    model, shape = MODELS[name]
    model, other = copy.deepcopy(model), copy.deepcopy(model)
    reorder(other, 1)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = passed(model, x), passed(other, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not all(map(torch.equal, ours, theirs))
    assert model.state_dict().keys() == other.state_dict().keys()


def test_order_0_is_as_ever() -> None:
    model, shape = MODELS["dense"]
    other, x = copy.deepcopy(model), torch.randn(shape)
    reorder(other, 0)
    assert torch.equal(model(x), other(x))


def state_after(recipe: Recipe, task: Task, steps: int) -> Checkpoint:
    """Train the task's model for some steps; return the state as a fleet's checkpoint holds it."""
    with seeded(0):
        optimizer = plain_optimizer(task.model, recipe)
        train(task.model, optimizer, task, recipe, Progress(), lambda now: now.step < steps)
        random = torch.get_rng_state().numpy().tobytes()
    facts = Facts(
        step=steps,
        model=b"",
        has_momentum=(),
        adapted={},
        drift={},
        groups=(),
        random=random,
        extra={},
        sha256={},
    )
    training: dict[str, Tensor] = {}
    for name, parameter in task.model.named_parameters():
        momentum = optimizer.state[parameter]["momentum_buffer"].clone()
        path = name.removesuffix(".weight")
        training |= {f"momentum.{name}": momentum} if path == name else {f"momentum/{path}": momentum.flatten(1)}
    return Checkpoint(facts=facts, model=copy.deepcopy(task.model.state_dict()), training=training)


class Dropping(nn.Module):
    """A model that drops numbers at random."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        found: Tensor = self.head(functional.dropout(x.flatten(1), 0.5))
        return found


def test_a_twin_goes_on_to_the_same_bits() -> None:
    """Weights, momentum, the rate, batches, and what is drawn at random: all are those of training without a break."""
    recipe = changed(find_recipe("digits"), steps=12)
    torch.manual_seed(0)
    task = make_task(recipe)._replace(model=Dropping())
    start, end = (state_after(recipe, task._replace(model=copy.deepcopy(task.model)), steps) for steps in (5, 9))
    twin, other = (train_twin(recipe, task, start, 9, order) for order in (0, 1))
    assert len(twin.losses) == 4
    assert all(torch.equal(tensor, end.model[name]) for name, tensor in twin.weights.items())
    torch.testing.assert_close(other.weights, twin.weights, rtol=1e-4, atol=1e-5)
    assert not all(torch.equal(tensor, twin.weights[name]) for name, tensor in other.weights.items())
