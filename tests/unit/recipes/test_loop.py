"""The loop takes the steps that a slow and obvious one takes, and stops where it has to."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.errors import InputError
from awfulowl.models.data import Labelled
from awfulowl.models.seeding import seeded
from awfulowl.recipes import loop
from awfulowl.recipes.loop import Evaluation, PlainSGD, Progress, options, plain_optimizer, train
from awfulowl.recipes.recipe import Recipe
from awfulowl.recipes.run import go_on
from awfulowl.recipes.task import Batches, Task, evaluate, make_task
from tests.unit.recipes.conftest import MakeRecipe


def run(recipe: Recipe, progress: Progress | None = None, between: loop.Between = go_on) -> tuple[Task, Progress]:
    task, progress = make_task(recipe), progress or Progress()
    train(task.model, plain_optimizer(task.model, recipe), task, recipe, progress, between)
    return task, progress


def obvious(recipe: Recipe) -> tuple[nn.Module, list[float]]:
    """The same training, written down step by step."""
    task = make_task(recipe)
    batches = Batches(task.train, recipe.batch, recipe.seed)
    total = recipe.total(batches.per_epoch)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adam":
        kind = torch.optim.AdamW if recipe.decoupled else torch.optim.Adam
        optimizer = kind(task.model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            task.model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    losses = []
    for step in range(total):
        optimizer.param_groups[0]["lr"] = recipe.lr * recipe.factor(step, total)
        batch = batches.at(step)
        optimizer.zero_grad()
        value = functional.cross_entropy(task.model(batch.inputs), batch.labels)
        value.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(task.model.parameters(), recipe.clip)
        optimizer.step()
        losses.append(value.item())
    return task.model, losses


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    other = right.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in left.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9, "weight_decay": 1e-3, "schedule": "cosine", "warmup": 3},
        {"momentum": 0.9, "nesterov": True, "clip": 0.5},
        {"epochs": 1, "batch": 256},
        {"optimizer": "adam", "lr": 1e-3},
        {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.1, "schedule": "cosine", "warmup": 3},
        {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.1, "decoupled": True, "clip": 0.5},
    ],
)
def test_steps_are_those_of_ordinary_pytorch(small: MakeRecipe, changes: dict[str, Any]) -> None:
    recipe = small(**changes)
    (task, progress), (model, losses) = run(recipe), obvious(recipe)
    assert progress.losses == losses
    assert same_weights(task.model, model)


def test_micro_batches_add_up_to_the_batch(small: MakeRecipe) -> None:
    whole, parts = run(small(batch=48)), run(small(batch=48, micro_batches=4))
    assert parts[1].losses == pytest.approx(whole[1].losses, rel=1e-5)
    for name, weight in whole[0].model.state_dict().items():
        torch.testing.assert_close(parts[0].model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_learning_learns(small: MakeRecipe) -> None:
    task, progress = run(small(steps=60, momentum=0.9))
    assert progress.losses[-1] < 0.5 * progress.losses[0]
    assert progress.evaluations[-1].figure > 0.8
    assert evaluate(task.model, task) == progress.evaluations[-1].figure


@pytest.mark.parametrize(("every", "steps"), [(0, [6]), (2, [2, 4, 6]), (4, [4, 6]), (9, [6])])
def test_evaluations_come_when_they_are_due_and_at_the_end(small: MakeRecipe, every: int, steps: list[int]) -> None:
    assert [found.step for found in run(small(eval_every=every))[1].evaluations] == steps


def test_evaluations_move_nothing(small: MakeRecipe) -> None:
    layers = "nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10)"
    with seeded(0):
        often = run(small(layers, eval_every=1))
    with seeded(0):
        once = run(small(layers))
    assert often[1].losses == once[1].losses
    assert same_weights(often[0].model, once[0].model)


def test_between_is_called_after_every_step(small: MakeRecipe) -> None:
    seen: list[tuple[int, int]] = []

    def watch(now: Progress) -> bool:
        seen.append((now.step, len(now.evaluations)))
        return True

    run(small(eval_every=3), between=watch)
    assert seen == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2)]


@pytest.mark.parametrize(("stop", "done"), [(1, False), (5, False), (6, True), (7, True)])
def test_training_stops_when_it_is_told_to(small: MakeRecipe, stop: int, done: bool) -> None:
    recipe = small()
    task, progress = make_task(recipe), Progress()
    optimizer = PlainSGD(task.model, **options(recipe))
    assert train(task.model, optimizer, task, recipe, progress, lambda now: now.step < stop) is done
    assert progress.step == min(stop, 6)


def test_training_in_two_parts_is_training_in_one(small: MakeRecipe) -> None:
    recipe = small(momentum=0.9, schedule="cosine", warmup=2, eval_every=2)
    task, progress = make_task(recipe), Progress()
    first = PlainSGD(task.model, **options(recipe))
    train(task.model, first, task, recipe, progress, lambda now: now.step < 3)
    second = PlainSGD(task.model, **options(recipe))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert train(task.model, second, task, recipe, progress, go_on)
    whole = run(recipe)
    assert progress == whole[1]
    assert same_weights(task.model, whole[0].model)


def test_what_is_done_is_done(small: MakeRecipe) -> None:
    recipe = small()
    task, progress = run(recipe)
    before = copy.deepcopy(progress)
    assert train(task.model, PlainSGD(task.model, **options(recipe)), task, recipe, progress, go_on)
    assert progress == before


def test_a_loss_that_is_no_number_stops_it_and_says_what_to_do(small: MakeRecipe) -> None:
    recipe = small("nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)", lr=1000.0, momentum=0.9, steps=200)
    progress = Progress()
    with pytest.raises(InputError, match=r"after \d+ steps: the loss is (nan|inf)\. .*lower lr \(1000\)"):
        run(recipe, progress)
    assert all(map(math.isfinite, progress.losses))
    assert 0 < progress.step < 200


def test_an_evaluation_that_is_no_number_stops_it_too(small: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_: math.nan)
    with pytest.raises(InputError, match="after 6 steps: the evaluation is nan"):
        run(small())


def test_decoupled_decay_does_not_go_through_the_momentum() -> None:
    layer = nn.Linear(3, 2, bias=False)
    weight, grad = layer.weight.detach().clone(), torch.randn(2, 3)
    buffer = torch.zeros_like(weight)
    optimizer = PlainSGD(layer, lr=0.1, momentum=0.5, weight_decay=0.2, decoupled_weight_decay=True)
    for _ in range(3):
        layer.weight.grad = grad.clone()
        optimizer.step()
        buffer = 0.5 * buffer + grad
        weight = weight * (1 - 0.1 * 0.2) - 0.1 * buffer
    torch.testing.assert_close(layer.weight.detach(), weight)
    assert optimizer.param_groups[0]["weight_decay"] == 0.2


def test_coupled_decay_is_pytorchs() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    ours = PlainSGD(one, lr=0.1, momentum=0.5, weight_decay=0.2)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5, weight_decay=0.2)
    for _ in range(3):
        for layer, optimizer in ((one, ours), (other, theirs)):
            layer.weight.grad, layer.bias.grad = torch.ones(2, 3), None
            optimizer.step()
    assert same_weights(one, other)


def test_clipping_is_pytorchs() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad, layer.bias.grad = torch.full((2, 3), 2.0), torch.full((2,), 1.0)
    optimizer = PlainSGD(layer, lr=0.1)
    length = math.sqrt(6 * 4 + 2)
    assert optimizer.clip_grad_norm_(1.0) == pytest.approx(length)
    torch.testing.assert_close(layer.weight.grad, torch.full((2, 3), 2 / length))


def test_a_batch_is_cut_evenly() -> None:
    batch = Labelled(torch.arange(12.0), torch.arange(12))
    parts = list(loop._parts(batch, 3))
    assert [len(part.labels) for part in parts] == [4, 4, 4]
    whole: Tensor = torch.cat([part.inputs for part in parts])
    assert torch.equal(whole, batch.inputs)


def test_progress_counts_by_its_losses() -> None:
    assert Progress().step == 0
    assert Progress(losses=[1.0, 0.5], evaluations=[Evaluation(1, 0.3)]).step == 2
