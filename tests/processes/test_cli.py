"""The command line as a user runs it: real processes, the real broker, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import awfulowl as owl

pytestmark = pytest.mark.usefixtures("needs_broker")

OWL = [sys.executable, "-c", "import sys; from awfulowl.cli import main; sys.exit(main())"]
LIMIT_S = 110.0


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user without settings, whose temporary files can be looked at."""
    (tmp_path / "tmp").mkdir()
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AWFULOWL_")}
    return mine | {
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "TMPDIR": str(tmp_path / "tmp"),
    }


class Started:
    """An `owl` that runs, in a session of its own as on a terminal of its own."""

    def __init__(self, words: tuple[object, ...], folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [*OWL, *map(str, words)],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family: set[psutil.Process] = set()

    @property
    def running(self) -> bool:
        """True until it ends."""
        return self._process.poll() is None

    def children(self) -> int:
        """Return how many processes it has started so far that still live."""
        found = psutil.Process(self._process.pid).children(recursive=True) if self.running else []
        self.family.update(found)
        return len(found)

    def press_ctrl_c(self) -> None:
        """Send what a terminal sends, to the whole group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def ask_to_end(self) -> None:
        """Send what a service manager sends."""
        self._process.terminate()

    def end(self, limit_s: float = LIMIT_S) -> tuple[int, str, str]:
        """Wait for the end; return the exit code and what was written."""
        out, err = self._process.communicate(timeout=limit_s)
        return self._process.returncode, out, err

    def stop(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.running:
            self.children()
            self._process.kill()
            self._process.communicate()
        for process in self.family:
            if process.is_running():
                process.kill()


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path, home: dict[str, str]) -> Iterator[Start]:
    """Start `owl` with these words, in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    started: list[Started] = []

    def begin(*words: object) -> Started:
        started.append(Started(words, folder, home))
        return started[-1]

    yield begin
    for process in started:
        process.stop()


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {LIMIT_S:g} s")
        time.sleep(0.02)


def read(path: Path) -> Any:
    until(path.exists, f"{path.name} written")
    return json.loads(path.read_text())


def test_the_demonstration_keeps_its_promises(start: Start, tmp_path: Path) -> None:
    code, out, err = start("demo", "--devices", "4", "--json", "-").end()
    assert code == 0, err
    found = json.loads(out)
    assert found["accuracy_local"] >= 0.96
    assert found["accuracy_scattered"] == found["accuracy_local"]
    assert 0 < found["max_abs_diff"] <= found["largest_tolerance"] < 1e-3
    assert (found["requests_lost"], found["requests_wrong"]) == (0, 0)
    assert found["requests"] >= 45
    assert found["lies_told"] == found["lies_caught"] > 0
    assert found["scattered_parameter_share"] > 0.99
    assert found["outsourced_flop_share"] == 1.0
    assert found["bytes_per_sample"] > 10_000
    assert len(found["blocks_per_device"]) == found["devices"] == 4
    assert [coalition["share"] for coalition in found["exposure"]["model"]] == [0.1, 0.3, 0.5]
    assert "NOT hidden" in err
    assert "every lie was caught" in err
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    assert left_behind(tmp_path) == []


def test_an_interrupted_demonstration_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    demo = start("demo", "--devices", "3", "--json", "demo.json")
    until(lambda: demo.children() >= 3 or not demo.running, "start of the devices")
    demo.press_ctrl_c()
    code, _, err = demo.end()
    assert code == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    until(lambda: not any(process.is_running() for process in demo.family), "end of all processes")
    assert left_behind(tmp_path) == []
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.timeout(300)
def test_the_demonstration_of_training_keeps_its_promises(start: Start, tmp_path: Path) -> None:
    code, out, err = start("demo", "train", "--devices", "6", "--curve", "loss.png", "--json", "-").end(250)
    assert code == 0, err
    found = json.loads(out)
    assert found["accuracy_plain"] >= 0.96
    assert abs(found["accuracy_scattered"] - found["accuracy_plain"]) <= 0.005
    assert found["max_weight_difference"] < 1e-3
    liar, stray, *dead = found["troubles"]
    assert (liar["kind"], stray["kind"]) == ("lied", "skipped its steps")
    assert sorted(found["quarantined"]) == sorted([liar["device"], stray["device"]])
    assert all(one["noticed_after_steps"] is not None for one in found["troubles"])
    assert [one["kind"] for one in dead] == ["died", "died"]
    assert (tmp_path / "work" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "NOT hidden" in err
    assert "Every liar was caught" in err
    assert "Traceback" not in err
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(300)
def test_a_training_that_is_interrupted_goes_on(start: Start, tmp_path: Path) -> None:
    words = ("train", "digits", "--steps", "40", "--devices", "2", "-o", "out")
    train = start(*words)
    checkpoints = tmp_path / "work" / "out" / "checkpoints"
    until(lambda: list(checkpoints.glob("step-*")) or not train.running, "the first checkpoint")
    train.children()
    train.press_ctrl_c()
    code, out, err = train.end()
    assert code == 130, err
    assert err.endswith("interrupted\n")
    assert "--resume goes on from the newest checkpoint" in out
    assert "Traceback" not in err
    until(lambda: not any(process.is_running() for process in train.family), "end of all processes")
    assert left_behind(tmp_path) == []
    code, out, err = start(*words, "--resume", "--json", "found.json").end()
    assert code == 0, err
    found = json.loads((tmp_path / "work" / "found.json").read_text())
    assert found["resumed_at"] < found["steps"] == 40
    assert {path.name for path in (tmp_path / "work" / "out").iterdir()} >= {"model.safetensors", "loss.png"}


def left_behind(tmp_path: Path) -> list[str]:
    """Return our temporary folders that are still there; PyTorch leaves one of its own."""
    return [path.name for path in (tmp_path / "tmp").glob("awfulowl*")]


def enrol(start: Start, folder: Path, *names: str) -> None:
    running = [start("identity", name, "-o", f"{name}.key", "--json", f"{name}.json") for name in names]
    assert [process.end()[0] for process in running] == [0] * len(running)
    assert all((folder / f"{name}.json").exists() for name in names)


def test_a_fleet_by_hand(start: Start, tmp_path: Path) -> None:
    """A broker, two sealed devices and an owner, each a program of its own; then all are asked to end."""
    folder = tmp_path / "work"
    enrol(start, folder, "owner", "d1", "d2")
    who = ("--owner", "owner.json", "--device", "d1.json", "--device", "d2.json")
    broker = start("broker", *who, "--port", "0", "--json", "broker.json")
    url = read(folder / "broker.json")["url"]
    devices = [start("device", url, "--identity", f"{name}.key", "--owner", "owner.json") for name in ("d1", "d2")]
    plan = start("plan", "digits", "--devices", "d1@one,d2@two", "-o", "plan.owl")
    second = start("broker", *who, "--port", url.rpartition(":")[2])
    assert plan.end()[0] == 0
    words = ("--url", url, "--identity", "owner.key", "--device", "d1.json", "--device", "d2.json")
    code, out, err = start("run", "digits", *words, "--plan", "plan.owl", "--batches", "3", "--json", "-").end()
    assert code == 0, err
    found = json.loads(out)
    assert found["max_abs_diff"] < 1e-5
    assert found["statistics"]["requests"] == 3 * 4
    assert found["statistics"]["checks_failed"] == found["statistics"]["requests_lost"] == 0
    code, _, err = second.end()
    assert code == 1
    assert err.startswith(f"error: port {url.rpartition(':')[2]} is in use")
    model, example = torch.nn.Linear(8, 4), torch.randn(3, 8)
    enrolled: list[Path | str] = [str(folder / "d1.json"), folder / "d2.json"]
    with owl.connect(url, identity=str(folder / "owner.key"), devices=enrolled) as fleet:
        scattered = fleet.scatter(model, owl.plan(model, example, devices=fleet.devices))
        torch.testing.assert_close(scattered(example), model(example))
        trained = fleet.scatter(model, owl.plan(model, example, devices=fleet.devices), train=True)
        for one, optimizer in (
            (trained, fleet.optimizer(trained, lr=0.1)),
            (model, torch.optim.SGD(model.parameters(), lr=0.1)),
        ):
            torch.autograd.backward(one(example).square().sum())
            optimizer.step()
        torch.testing.assert_close(fleet.gather(trained), dict(model.state_dict()))
    for process in (*devices, broker):
        assert process.running
        process.children()
        process.ask_to_end()
        code, _, err = process.end()
        assert code == 130
        assert err.endswith("interrupted\n")
        assert "Traceback" not in err
    until(lambda: not any(process.is_running() for process in broker.family), "end of the server")
    assert left_behind(tmp_path) == []
