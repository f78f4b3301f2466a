"""A directory of a training is what it is said to be, and checkpoints of anything else are refused."""

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from awfulowl.errors import CheckpointError, InputError
from awfulowl.files import write_whole
from awfulowl.owner.checkpoint import Facts, write_checkpoint
from awfulowl.recipes.loop import Evaluation, Progress
from awfulowl.recipes.recipe import BUILT_IN, Recipe, changed
from awfulowl.recipes.saving import Extra, Home, extra_of, read

RECIPE = BUILT_IN["digits"]


def written(
    directory: Path, recipe: Recipe = RECIPE, *, step: int = 3, data: str = "abc", extra: dict[str, Any] | None = None
) -> Path:
    progress = Progress(losses=[2.3, 0.1 + 0.2, 1 / 3][:step], evaluations=[Evaluation(2, 0.125)])
    facts = Facts(
        step=step,
        model=b"digest",
        has_momentum=(),
        adapted={},
        drift={},
        groups=({"lr": 0.1},),
        random=torch.get_rng_state().numpy().tobytes(),
        extra=extra_of(recipe, data, progress) if extra is None else extra,
        sha256={},
    )
    return write_checkpoint(directory, facts, {"weight": torch.ones(2)}, {"momentum.weight": torch.ones(2)})


def test_what_was_done_comes_back_to_the_bit(tmp_path: Path) -> None:
    written(tmp_path)
    found = read(tmp_path, RECIPE, "abc")
    assert found.progress.losses == [2.3, 0.1 + 0.2, 1 / 3]
    assert found.progress.evaluations == [Evaluation(2, 0.125)]
    assert found.checkpoint.facts.step == 3


def test_the_newest_is_read(tmp_path: Path) -> None:
    written(tmp_path, step=1)
    written(tmp_path, step=2)
    assert read(tmp_path, RECIPE, "abc").progress.step == 2


@pytest.mark.parametrize(
    "changes", [{"path": "elsewhere"}, {"checkpoint_every": 7}, {"eval_every": 7}, {"name": "other"}]
)
def test_what_moves_no_weight_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    written(tmp_path)
    assert read(tmp_path, changed(RECIPE, **changes), "abc").progress.step == 3


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lr": 0.2}, "of another recipe: lr was 0.1"),
        ({"seed": 1, "momentum": 0.5}, "momentum was 0.9, seed was 0"),
        ({"steps": 100}, "epochs was 12, steps was None"),
        ({"model": "convnet"}, "model was digits"),
        ({"clip": 1.0}, "clip was None"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    written(tmp_path)
    with pytest.raises(CheckpointError, match=complaint):
        read(tmp_path, changed(RECIPE, **changes), "abc")


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(CheckpointError, match="on other data"):
        read(tmp_path, RECIPE, "def")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"epoch": 3},
        {"recipe": {}, "data": "abc", "progress": {}},
        {"recipe": msgspec.to_builtins(RECIPE), "data": "abc", "progress": {"losses": ["x"]}},
        {"recipe": msgspec.to_builtins(RECIPE), "data": "abc", "progress": {}, "more": 1},
    ],
)
def test_a_checkpoint_that_is_of_no_recipe_is_refused(tmp_path: Path, extra: dict[str, Any]) -> None:
    written(tmp_path, extra=extra)
    with pytest.raises(CheckpointError, match="was not made of a recipe"):
        read(tmp_path, RECIPE, "abc")


def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    extra = msgspec.to_builtins(Extra(recipe=RECIPE, data="abc", progress=Progress(losses=[1.0])))
    written(tmp_path, extra=extra)
    with pytest.raises(CheckpointError, match="3 steps, of which 1 losses are told"):
        read(tmp_path, RECIPE, "abc")


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "checkpoint.json"])
def test_a_truncated_checkpoint_is_refused_and_the_one_before_is_named(tmp_path: Path, name: str) -> None:
    written(tmp_path, step=2)
    path = written(tmp_path, step=3)
    os.truncate(path / name, (path / name).stat().st_size - 5)
    with pytest.raises(CheckpointError, match=f"without {path} --resume goes on from the one before"):
        read(tmp_path, RECIPE, "abc")
    shutil.rmtree(path)
    assert read(tmp_path, RECIPE, "abc").progress.step == 2


def test_without_checkpoints_there_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read(tmp_path, RECIPE, "abc")


def test_a_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    home.prepare(resume=False)
    assert home.path.stat().st_mode & 0o777 == 0o700
    home.prepare(resume=False)


def test_what_was_begun_is_resumed_on_request_only(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(CheckpointError, match="begin without --resume"):
        home.prepare(resume=True)
    written(home.checkpoints)
    home.prepare(resume=True)
    with pytest.raises(CheckpointError, match="go on with --resume, or name another directory"):
        home.prepare(resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_what_is_finished_is_left_alone(tmp_path: Path, resume: bool) -> None:
    home = Home(tmp_path)
    written(home.checkpoints)
    home.save({"weight": torch.ones(2, 3).T})
    assert torch.equal(load_file(home.model)["weight"], torch.ones(3, 2))
    assert home.model.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CheckpointError, match="holds a finished training"):
        home.prepare(resume=resume)


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        Home(tmp_path / "file").prepare(resume=False)
    with pytest.raises(InputError, match="cannot be made"):
        Home(tmp_path / "file" / "below").prepare(resume=False)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one")

    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_whole(path, b"another")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Home(tmp_path / "nowhere").save({"weight": torch.ones(1)})
