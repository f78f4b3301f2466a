"""`owl train` in this process: here alone, on a fleet in memory, interrupted, resumed, and refused."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from awfulowl.cli import curve, training
from awfulowl.cli.options import RECIPES, complete_recipe
from awfulowl.errors import UnavailableError
from awfulowl.placement.ledger import Device
from awfulowl.recipes.loop import Between
from awfulowl.recipes.recipe import BUILT_IN, Recipe
from awfulowl.recipes.run import FleetRun, Outcome, train_on_fleet
from awfulowl.recipes.task import Task
from tests.simulated.memory_fleet import MemoryFleet, memory_fleet
from tests.unit.cli.conftest import Owl

TOML = """
model = "nets.py:make"
data = "digits"
steps = 8
batch = 32
lr = 0.1
momentum = 0.9
eval_every = 4
checkpoint_every = 3
"""

NETS = """
import signal
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        if self.training:
            self.calls = getattr(self, "calls", 0) + 1
            for _ in range({signals} if self.calls == 5 else 0):
                signal.raise_signal(signal.SIGINT)
        return super().forward(x)

def make():
    return Net(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 10))
"""


@pytest.fixture(autouse=True)
def recipe(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small recipe in the working directory, and variables that the command sets put back."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    Path("small.toml").write_text(TOML)
    Path("nets.py").write_text(NETS.format(signals=0))
    return home / "work" / "small.toml"


@pytest.fixture
def fleets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MemoryFleet]]:
    """Fleets in memory in place of processes, in the order in which they were opened."""
    opened: list[MemoryFleet] = []
    with ExitStack() as stack:

        def open_fleet(devices: Sequence[Device]) -> MemoryFleet:
            opened.append(stack.enter_context(memory_fleet({device.name: device.domain for device in devices})))
            return opened[-1]

        monkeypatch.setattr(training, "local_fleet", open_fleet)
        yield opened


def interrupt(times: int) -> None:
    """Let Ctrl-C be pressed in the fifth step."""
    Path("nets.py").write_text(NETS.format(signals=times))


def test_recipes_are_completed_by_name() -> None:
    assert set(RECIPES) == set(BUILT_IN)
    assert complete_recipe("ci") == ["cifar10"]


def test_the_help_says_how_a_fleet_elsewhere_is_trained(owl: Owl) -> None:
    found = " ".join(owl("train", "--help").out.split())
    assert "Devices are processes of this machine" in found
    assert "owl.connect(" in found
    assert "train=True" in found


def test_training_here_leaves_weights_and_a_curve(owl: Owl) -> None:
    code, out, err = owl("train", "small.toml", "--plain", "-o", "out", "--json", "found.json")
    assert code == 0, err
    assert {path.name for path in Path("out").iterdir()} == {"model.safetensors", "loss.png"}
    assert load_file("out/model.safetensors")["1.weight"].shape == (16, 64)
    assert "small here alone" in out
    assert "8 of 32 examples" in out
    assert "step 4 of 8: loss " in err
    assert "step 8 of 8: loss " in err


def test_the_numbers_are_there_as_json(owl: Owl) -> None:
    outcome = owl("train", "small.toml", "--plain", "--json", "-")
    found = outcome.json
    assert outcome.code == 0
    assert found["finished"]
    assert len(found["losses"]) == found["steps"] == 8
    assert [step for step, _ in found["evaluations"]] == [4, 8]
    assert found["figure"] == found["evaluations"][-1][1]
    assert found["recipe"]["name"] == "small"
    assert found["recipe"]["lr"] == 0.1
    assert outcome.err.startswith("warning: nothing will be kept: name a directory with -o")
    assert list(Path().glob("**/*.safetensors")) == []


def test_options_change_the_recipe(owl: Owl) -> None:
    words = ["--plain", "--json", "-", "--seed", "3", "--steps", "2", "--checkpoint-every", "0"]
    found = owl("train", "small.toml", *words).json
    assert (found["recipe"]["seed"], found["steps"], found["recipe"]["checkpoint_every"]) == (3, 2, 0)
    assert owl("train", "digits", "--plain", "--json", "-", "--epochs", "1").json["steps"] == 22


def test_training_on_a_fleet_is_training_here(owl: Owl, fleets: list[MemoryFleet]) -> None:
    here = owl("train", "small.toml", "--plain", "-o", "here", "--json", "-").json
    outcome = owl("train", "small.toml", "--devices", "3", "-o", "there", "--json", "there.json")
    assert outcome.code == 0, outcome.err
    assert "small on devices" in outcome.out
    assert "lies caught" in outcome.out
    names = {"model.safetensors", "loss.png", "plan.owl", "checkpoints"}
    assert {path.name for path in Path("there").iterdir()} == names
    there = owl("train", "small.toml", "--devices", "3", "--json", "-").json
    assert there["losses"] == pytest.approx(here["losses"], rel=1e-5)
    left, right = load_file("here/model.safetensors"), load_file("there/model.safetensors")
    for name, weight in left.items():
        torch.testing.assert_close(right[name], weight, rtol=1e-4, atol=1e-5)
    assert len(fleets) == 2


@pytest.mark.usefixtures("fleets")
def test_adam_on_a_fleet_says_what_is_not_proved(owl: Owl) -> None:
    """JSON knows no infinity: a bound that there is not is null."""
    Path("small.toml").write_text(
        TOML.replace("momentum = 0.9", "optimizer = 'adam'").replace("lr = 0.1", "lr = 0.001")
    )
    here = owl("train", "small.toml", "--plain", "--json", "-").json
    outcome = owl("train", "small.toml", "--devices", "3", "-o", "there", "--json", "there.json")
    assert outcome.code == 0, outcome.err
    assert "no bound: Adam's steps are sampled" in outcome.out
    assert "blocks rebuilt here" in outcome.out
    there = msgspec.json.decode(Path("there.json").read_bytes())
    assert there["losses"] == pytest.approx(here["losses"], rel=1e-5)
    assert set(there["drift"].values()) == {None}
    assert there["statistics"]["reworked"] > 0


def test_an_interrupted_training_goes_on_to_the_same_bits(owl: Owl, fleets: list[MemoryFleet]) -> None:
    assert owl("train", "small.toml", "--devices", "3", "-o", "whole").code == 0
    Path("half").mkdir()
    Path("half/plan.owl").write_bytes(Path("whole/plan.owl").read_bytes())
    interrupt(1)
    code, out, err = owl("train", "small.toml", "-o", "half")
    assert code == 130
    assert "ending after this step" in err
    assert err.endswith("interrupted\n")
    assert "Ended after 5 steps; --resume goes on from the newest checkpoint." in out
    assert not Path("half/model.safetensors").exists()
    interrupt(0)
    code, out, err = owl("train", "small.toml", "-o", "half", "--resume", "--json", "found.json")
    assert code == 0, err
    assert "of which 3 since it was resumed" in out
    whole, half = load_file("whole/model.safetensors"), load_file("half/model.safetensors")
    assert all(torch.equal(whole[name], half[name]) for name in whole)


def test_who_presses_twice_does_not_wait_for_a_checkpoint(owl: Owl, fleets: list[MemoryFleet]) -> None:
    interrupt(2)
    code, out, err = owl("train", "small.toml", "--devices", "3", "-o", "out")
    assert (code, out) == (130, "")
    assert err.endswith("interrupted\n")
    assert not Path("out/checkpoints/step-0000000005").exists()
    assert Path("out/checkpoints/step-0000000000").exists()


def test_here_alone_nothing_is_kept_of_what_was_interrupted(owl: Owl) -> None:
    interrupt(1)
    code, out, _ = owl("train", "small.toml", "--plain", "-o", "out")
    assert code == 130
    assert "Ended after 5 steps; nothing was kept." in out
    assert list(Path("out").iterdir()) == []


def test_what_was_begun_or_finished_is_left_alone(owl: Owl, fleets: list[MemoryFleet]) -> None:
    interrupt(1)
    assert owl("train", "small.toml", "--devices", "3", "-o", "out").code == 130
    again = owl("train", "small.toml", "-o", "out")
    assert again.code == 2
    assert again.err.endswith("error: out holds checkpoints: go on with --resume, or name another directory\n")
    interrupt(0)
    assert owl("train", "small.toml", "-o", "out", "--resume").code == 0
    for words in ([], ["--resume"], ["--plain"]):
        done = owl("train", "small.toml", "-o", "out", *words)
        assert done.code == 2
        assert "out holds a finished training (model.safetensors)" in done.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--steps", "9"], "of another recipe: steps was 8"),
        (["--seed", "1"], "of another recipe: seed was 0"),
        (["--devices", "2"], "the plan in out is for d1,d2,d3; leave the option out"),
        (["--devices", "d1@acme,d2,d3"], "the plan in out is for d1,d2,d3; leave the option out"),
        (["--replicas", "2"], "the plan in out has 1; leave the option out"),
        (["--key", "other.key"], "there is no key file other.key"),
    ],
)
def test_what_was_begun_goes_on_as_it_was(
    owl: Owl, fleets: list[MemoryFleet], words: list[str], complaint: str
) -> None:
    interrupt(1)
    assert owl("train", "small.toml", "--devices", "3", "-o", "out").code == 130
    code, out, err = owl("train", "small.toml", "-o", "out", "--resume", *words)
    assert (code, out) == (2, "")
    assert complaint in err.splitlines()[-1]
    assert len(fleets) == 1


@pytest.mark.parametrize("name", ["checkpoint.json", "training.safetensors"])
def test_a_truncated_checkpoint_is_refused_before_devices_start(owl: Owl, fleets: list[MemoryFleet], name: str) -> None:
    interrupt(1)
    assert owl("train", "small.toml", "--devices", "3", "-o", "out").code == 130
    path = Path("out/checkpoints/step-0000000005") / name
    path.write_bytes(path.read_bytes()[:-9])
    code, _, err = owl("train", "small.toml", "-o", "out", "--resume")
    assert code == 2
    assert f"without {path.parent} --resume goes on from the one before" in err
    assert len(fleets) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["frob"], "no recipe 'frob'; there are digits, cifar10, text, and path/to/file.toml"),
        (["nowhere.toml"], "nowhere.toml: no readable recipe"),
        (["bad.toml"], "bad.toml: batch: expected `int` >= 1"),
        (["broken.toml"], "broken.toml: no TOML"),
        (["cifar10"], "where is the data (cifar10)? Give its path with --data"),
        (["cifar10", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["text", "--data", "nowhere"], "nowhere: not a readable UTF-8 text"),
        (["digits", "--data", "x"], "digits come with scikit-learn"),
        (["small.toml", "--resume"], "--resume goes on from checkpoints: name their directory with -o"),
        (["small.toml", "--resume", "-o", "none"], "none holds no checkpoint to go on from: begin without --resume"),
        (["small.toml", "-o", "small.toml"], "small.toml cannot be made"),
        (["small.toml", "--plain", "--devices", "3"], "--plain uses no devices"),
        (["small.toml", "--plain", "--resume", "-o", "x"], "--plain uses no devices"),
        (["small.toml", "--plain", "--steps", "1", "--epochs", "1"], "epochs and steps: give one of the two"),
        (["small.toml", "--devices", "0"], "no devices"),
        (["small.toml", "--seed", "-1"], "--seed"),
        (["small.toml", "--replicas", "0"], "--replicas"),
        (["small.toml", "--json", "/nowhere/a"], "there is no folder"),
        ([], "RECIPE"),
    ],
)
def test_bad_input_is_refused(owl: Owl, words: list[str], complaint: str) -> None:
    Path("bad.toml").write_text(TOML.replace("batch = 32", "batch = 0"))
    Path("broken.toml").write_text("model = ")
    code, out, err = owl("train", *words)
    assert (code, out) == (2, "")
    assert complaint in err.splitlines()[-1]


@pytest.mark.parametrize("words", [["--plain"], ["--devices", "3", "-o", "out"]])
def test_a_training_that_diverges_says_so(owl: Owl, fleets: list[MemoryFleet], words: list[str]) -> None:
    Path("small.toml").write_text(TOML.replace("lr = 0.1", "lr = 1000").replace("steps = 8", "steps = 300"))
    layers = "nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10)"
    Path("nets.py").write_text(f"from torch import nn\ndef make():\n    return nn.Sequential({layers})\n")
    code, out, err = owl("train", "small.toml", *words)
    assert (code, out) == (2, "")
    assert "lower lr (1000), set clip, or lengthen warmup" in err.splitlines()[-1]
    assert not Path("out/model.safetensors").exists()


def test_when_nobody_honest_is_left_it_says_how_to_go_on(
    owl: Owl, fleets: list[MemoryFleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(recipe: Recipe, task: Task, run: FleetRun, _: Between) -> Outcome:
        train_on_fleet(recipe, task, run, lambda now: now.step < 3)
        raise UnavailableError("nobody is left")

    monkeypatch.setattr(training, "train_on_fleet", fail)
    code, _, err = owl("train", "small.toml", "--devices", "3", "-o", "out")
    assert code == 3
    assert err.endswith("error: nobody is left; step-0000000003 is kept: go on with --resume\n")
    code, _, err = owl("train", "small.toml", "--devices", "3")
    assert code == 3
    assert err.endswith("error: nobody is left\n")


def test_a_checkpoint_that_fails_is_a_warning(
    owl: Owl, fleets: list[MemoryFleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnavailableError("nobody would copy")

    monkeypatch.setattr(MemoryFleet, "checkpoint", refuse)
    code, _, err = owl("train", "small.toml", "--devices", "3", "-o", "out")
    assert code == 0
    assert "warning: a checkpoint failed" in err
    assert "nobody would copy" in err


def test_without_pillow_there_is_no_curve_and_a_warning(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "can_draw", lambda: False)
    code, _, err = owl("train", "small.toml", "--plain", "-o", "out")
    assert code == 0
    assert "no loss curve will be drawn" in err
    assert [path.name for path in Path("out").iterdir()] == ["model.safetensors"]


def test_the_plan_is_kept_under_the_fleets_key_and_follows_changes(
    owl: Owl, fleets: list[MemoryFleet], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[bool] = []

    def watch(recipe: Recipe, task: Task, run: FleetRun, between: Between) -> Outcome:
        assert run.on_change is not None
        before = Path("out/plan.owl").read_bytes()
        run.on_change(run.plan)
        changes.append(Path("out/plan.owl").read_bytes() != before)  # another nonce
        return train_on_fleet(recipe, task, run, between)

    monkeypatch.setattr(training, "train_on_fleet", watch)
    assert owl("train", "small.toml", "--devices", "3", "-o", "out").code == 0
    assert (home / "data" / "awfulowl" / "fleet.key").exists()
    assert changes == [True]
    assert b"AWFULOWL PLAN" in Path("out/plan.owl").read_bytes()
