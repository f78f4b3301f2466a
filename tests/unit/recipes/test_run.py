"""A recipe on a fleet in this process: beside the plain run, interrupted, resumed, and with checkpoints that fail."""

import math
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import CheckpointError, InputError, UnavailableError
from awfulowl.owner.checkpoint import newest_checkpoint, read_checkpoint
from awfulowl.owner.optimizer import FleetOptimizer
from awfulowl.placement.plan import Plan
from awfulowl.placement.request import plan
from awfulowl.recipes import saving
from awfulowl.recipes.loop import Between, Progress
from awfulowl.recipes.recipe import Recipe
from awfulowl.recipes.run import FleetRun, Outcome, go_on, train_here, train_on_fleet
from awfulowl.recipes.saving import Home
from awfulowl.recipes.task import Task, make_task
from tests.simulated.memory_fleet import MemoryFleet, memory_fleet
from tests.unit.recipes.conftest import MakeRecipe

DROPOUT = "nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)"
TANH = "nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)"
BATCH_NORM = "nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)"


def on_fleet(
    recipe: Recipe,
    *,
    home: Home | None = None,
    resume: bool = False,
    of: Plan | None = None,
    between: Between = go_on,
    report: Callable[[str], None] = lambda _: None,
    prepare: Callable[[MemoryFleet], None] = lambda _: None,
) -> tuple[Outcome, Plan]:
    """Run a recipe on three devices of one replica."""
    task = make_task(recipe)
    with memory_fleet(3) as fleet:
        prepare(fleet)
        made = of or plan(task.model, task.example, devices=fleet, block=8, replicas=1)
        resumed = saving.read(home.checkpoints, recipe, task.digest()) if home is not None and resume else None
        run = FleetRun(fleet=fleet, plan=made, home=home, resumed=resumed, report=report)
        return train_on_fleet(recipe, task, run, between), made


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        (DROPOUT, {"momentum": 0.9, "weight_decay": 1e-2}),
        (BATCH_NORM, {"momentum": 0.9, "nesterov": True, "schedule": "cosine", "warmup": 2}),
        (BATCH_NORM, {"clip": 0.5, "micro_batches": 2}),
        (DROPOUT, {"weight_decay": 1e-2, "decoupled": True, "momentum": 0.5}),
        (DROPOUT, {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-2}),
        (TANH, {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.1, "decoupled": True, "clip": 0.5}),
    ],
)
def test_a_fleet_learns_what_this_machine_learns(small: MakeRecipe, layers: str, changes: dict[str, Any]) -> None:
    recipe = small(layers, **changes)
    here, there = train_here(recipe, make_task(recipe)), on_fleet(recipe)[0]
    assert there.trained.losses == pytest.approx(here.trained.losses, rel=1e-5)
    assert here.state.keys() == there.state.keys()
    for name, tensor in here.state.items():
        torch.testing.assert_close(there.state[name], tensor, rtol=1e-4, atol=1e-5)
    assert not same(here.state, there.state) or changes.get("clip")


def test_the_model_of_the_task_is_left_as_it_was(small: MakeRecipe) -> None:
    recipe = small()
    task = make_task(recipe)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    with memory_fleet(3) as fleet:
        made = plan(task.model, task.example, devices=fleet, block=8)
        train_on_fleet(recipe, task, FleetRun(fleet, made))
    assert same(before, task.model.state_dict())


def test_what_came_of_it_is_said(small: MakeRecipe) -> None:
    recipe = small(eval_every=2)
    here, there = train_here(recipe, make_task(recipe)).trained, on_fleet(recipe)[0].trained
    assert (here.plain, there.plain) == (True, False)
    for trained in (here, there):
        assert trained.finished
        assert (trained.steps, trained.resumed_at, len(trained.losses)) == (6, 0, 6)
        assert [found.step for found in trained.evaluations] == [2, 4, 6]
        assert trained.figure == trained.evaluations[-1].figure
        assert trained.recipe == recipe
        assert "torch" in trained.versions
    assert here.statistics == here.drift == {}
    assert there.statistics["steps"] == 2 * 6
    assert there.statistics["checks_failed"] == 0
    assert all(0 < drift < 1e-3 for drift in there.drift.values())
    assert len(there.drift) == 2


def test_the_global_generator_is_left_as_it_was(small: MakeRecipe) -> None:
    recipe = small(DROPOUT)
    state = torch.get_rng_state()
    train_here(recipe, make_task(recipe))
    on_fleet(recipe)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layers", [DROPOUT, BATCH_NORM])
@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"optimizer": "adam", "lr": 1e-3}], ids=["sgd", "adam"])
def test_a_training_that_was_interrupted_goes_on_to_the_same_bits(
    small: MakeRecipe, tmp_path: Path, layers: str, stop: int, optimizer: dict[str, Any]
) -> None:
    """Random layers, momentum, the schedule, running statistics and the order of the data all go on where they were."""
    recipe = small(layers, steps=7, schedule="cosine", warmup=2, eval_every=3, weight_decay=1e-2, **optimizer)
    home = Home(tmp_path / "home")
    whole, made = on_fleet(recipe)
    half, _ = on_fleet(recipe, home=home, of=made, between=lambda now: now.step < stop)
    assert not half.trained.finished
    assert half.state == {}
    rest, _ = on_fleet(recipe, home=home, of=made, resume=True)
    assert rest.trained.resumed_at == stop
    assert rest.trained.finished
    assert rest.trained.losses == whole.trained.losses
    assert rest.trained.evaluations == whole.trained.evaluations
    assert same(rest.state, whole.state)


def test_a_fleet_with_adam_from_its_first_checkpoint(small: MakeRecipe, tmp_path: Path) -> None:
    """The one before the first step, when nothing has moved yet."""
    recipe, home = small(steps=3, optimizer="adam", lr=1e-3, checkpoint_every=0), Home(tmp_path / "home")
    whole, made = on_fleet(recipe)

    def fail(now: Progress) -> bool:
        raise UnavailableError(f"nobody is left at {now.step}")

    with pytest.raises(UnavailableError, match="nobody is left at 1"):
        on_fleet(recipe, home=home, of=made, between=fail)
    assert steps_in(home) == [0]
    rest, _ = on_fleet(recipe, home=home, of=made, resume=True)
    assert (rest.trained.resumed_at, rest.trained.losses) == (0, whole.trained.losses)
    assert same(rest.state, whole.state)


def test_what_is_said_of_adam(small: MakeRecipe) -> None:
    """That of the last look at what devices hold, when the weights are gathered, included."""
    trained = on_fleet(small(optimizer="adam", lr=1e-3))[0].trained
    assert set(trained.drift.values()) == {math.inf}
    assert trained.statistics["lies_caught"] == 0
    assert trained.statistics["snapshots"] == 2
    assert trained.statistics["reworked"] >= 3


@pytest.mark.parametrize(("before", "after"), [("sgd", "adam"), ("adam", "sgd")])
def test_another_optimizer_is_another_recipe(small: MakeRecipe, tmp_path: Path, before: str, after: str) -> None:
    home = Home(tmp_path / "home")
    on_fleet(small(optimizer=before, lr=1e-3), home=home, between=lambda now: now.step < 2)
    with pytest.raises(CheckpointError, match=f"optimizer was {before}"):
        on_fleet(small(optimizer=after, lr=1e-3), home=home, resume=True)


def steps_in(home: Home) -> list[int]:
    return sorted(read_checkpoint(path).facts.step for path in home.checkpoints.iterdir())


def test_checkpoints_come_when_they_are_due(small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One before the first step, so that a training can be resumed from then on; the two newest stay."""
    home = Home(tmp_path)
    asked: list[int] = []

    def prepare(fleet: MemoryFleet) -> None:
        right = fleet.checkpoint

        def note(scattered: nn.Module, optimizer: FleetOptimizer, directory: Path, **keywords: Any) -> Future[Path]:
            asked.append(optimizer.steps)
            return right(scattered, optimizer, directory, **keywords)

        monkeypatch.setattr(fleet, "checkpoint", note)

    on_fleet(small(checkpoint_every=2), home=home, prepare=prepare)
    assert asked == [0, 2, 4, 6]
    assert steps_in(home) == [4, 6]


def test_no_checkpoints_but_the_first_and_the_last_where_none_are_wanted(small: MakeRecipe, tmp_path: Path) -> None:
    home = Home(tmp_path)
    on_fleet(small(checkpoint_every=0), home=home, between=lambda now: now.step < 4)
    assert steps_in(home) == [0, 4]


def test_a_checkpoint_that_fails_is_reported_and_the_next_is_tried(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    said: list[str] = []

    def prepare(fleet: MemoryFleet) -> None:
        right = fleet.checkpoint
        asked: list[int] = []

        def sometimes(*args: Any, **keywords: Any) -> Future[Path]:
            asked.append(len(asked))
            if asked[-1] == 1:
                raise UnavailableError("nobody would copy")
            if asked[-1] == 2:
                failed: Future[Path] = Future()
                failed.set_exception(UnavailableError("a copy was lost"))
                return failed
            return right(*args, **keywords)

        monkeypatch.setattr(fleet, "checkpoint", sometimes)

    outcome, _ = on_fleet(small(checkpoint_every=1), home=home, report=said.append, prepare=prepare)
    assert outcome.trained.finished
    assert len(said) == 2
    assert "nobody would copy" in said[0]
    assert "a copy was lost" in said[1]
    assert steps_in(home) == [5, 6]


def test_the_last_checkpoint_is_tried_again_if_it_failed(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was due after four steps fails, and training ends there: the last one is for the same step."""
    home = Home(tmp_path)

    def prepare(fleet: MemoryFleet) -> None:
        right, fail = fleet.checkpoint, iter([False, False, True, False])

        def sometimes(*args: Any, **keywords: Any) -> Future[Path]:
            if next(fail):
                raise UnavailableError("nobody would copy")
            return right(*args, **keywords)

        monkeypatch.setattr(fleet, "checkpoint", sometimes)

    on_fleet(small(checkpoint_every=2), home=home, prepare=prepare, between=lambda now: now.step < 4)
    assert steps_in(home) == [2, 4]


def test_an_error_waits_for_the_checkpoint_under_way(small: MakeRecipe, tmp_path: Path) -> None:
    home = Home(tmp_path)

    def fail(now: Progress) -> bool:
        if now.step == 4:
            raise UnavailableError("nobody is left")
        return True

    with pytest.raises(UnavailableError, match="nobody is left"):
        on_fleet(small(checkpoint_every=4), home=home, between=fail)
    assert steps_in(home) == [0, 4]


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(small: MakeRecipe, tmp_path: Path) -> None:
    home = Home(tmp_path)
    layers = "nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)"
    recipe = small(layers, lr=1000.0, momentum=0.9, steps=200, checkpoint_every=1)
    with pytest.raises(InputError, match=r"after \d+ steps: .*lower lr"):
        on_fleet(recipe, home=home)
    assert newest_checkpoint(home.checkpoints) is not None
    saving.read(home.checkpoints, recipe, make_task(recipe).digest())


def test_a_checkpoint_of_another_model_is_refused(small: MakeRecipe, tmp_path: Path) -> None:
    home = Home(tmp_path)
    recipe = small()
    on_fleet(recipe, home=home, between=lambda now: now.step < 2)
    path = Path(recipe.model.rpartition(":")[0])
    path.write_text(path.read_text().replace("16", "24"))
    with pytest.raises(CheckpointError, match="of another model"):
        on_fleet(recipe, home=home, resume=True)


def test_plain_training_can_be_stopped(small: MakeRecipe) -> None:
    recipe = small()
    found = train_here(recipe, make_task(recipe), lambda now: now.step < 3)
    assert not found.trained.finished
    assert (found.trained.steps, found.trained.figure) == (3, None)


def test_tasks_know_their_example(small: MakeRecipe) -> None:
    task: Task = make_task(small())
    assert task.example.shape == (1, 1, 8, 8)
