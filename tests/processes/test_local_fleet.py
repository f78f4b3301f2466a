"""Real processes over the real broker: what only they can show."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import awfulowl as owl
from awfulowl.errors import ClosedError, InputError, UnavailableError
from awfulowl.fleet.local import LocalFleet
from awfulowl.owner.peer import Standing

pytestmark = pytest.mark.usefixtures("needs_broker")


@pytest.fixture(scope="module")
def fleet(needs_broker: None) -> Iterator[LocalFleet]:
    with owl.local_fleet(devices=4) as opened:
        yield opened


def model_and_input() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)).eval(), torch.randn(16, 64)


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"still not so after {timeout_s} s")
        time.sleep(0.05)


@pytest.mark.parametrize("sharing", [None, "inputs:2", "replicated"])
def test_exact_answers_are_the_twins_after_kills_and_lies(needs_broker: None, sharing: str | None) -> None:
    """Shares travel as seeds and as numbers, a device is killed, another flips what it answers: every bit is right."""
    parties = {f"d{number}": "abc"[number % 3] for number in range(6)}
    model, x = model_and_input()
    with owl.local_fleet(devices=parties) as fleet, torch.no_grad():
        plan = owl.plan(model, x, devices=parties, block=16, arithmetic="int8", sharing=sharing)
        scattered, expected = fleet.scatter(model, plan), plan.twin(model)(x)
        assert torch.equal(scattered(x), expected)
        fleet.kill("d1")
        fleet.corrupt("d2", "one row", 1e-9)
        for _ in range(8):
            assert torch.equal(scattered(x), expected)
        assert fleet.standing["d2"] is Standing.QUARANTINED
        assert fleet.statistics["requests_lost"] == 0


def test_a_process_that_is_told_to_end_says_goodbye(needs_broker: None) -> None:
    with owl.local_fleet(devices=2) as fleet:
        fleet._process("d1").leave()
        wait_until(lambda: fleet.standing["d1"] is Standing.ABSENT)
        (gone,) = [event for event in fleet.events if event.kind == "gone"]
        assert (gone.device, gone.text) == ("d1", "the device was stopped")


def test_kills_lies_and_returns(fleet: LocalFleet) -> None:
    """Serve while one device is killed, returns as itself, and another lies: no answer lost, none wrong."""
    model, x = model_and_input()
    scattered = fleet.scatter(model, owl.plan(model, x, devices=fleet, block=16, replicas=2))
    expected = model(x).detach()

    def serve(times: int) -> None:
        for _ in range(times):
            with torch.no_grad():
                torch.testing.assert_close(scattered(x), expected, rtol=1e-4, atol=1e-5)

    serve(3)
    fleet.kill("d2")
    serve(10)
    fleet.restart("d2")
    wait_until(lambda: fleet.standing["d2"] is Standing.PRESENT and fleet.statistics["restored"] > 0)
    serve(3)
    fleet.corrupt("d4", "random", 0.01, probability=0.0)
    fleet.corrupt("d3", "random", 0.01)
    while fleet.standing["d3"] is not Standing.QUARANTINED:
        serve(1)
    serve(5)
    assert fleet.statistics["requests_lost"] == 0
    assert fleet.statistics["lies_caught"] >= 1
    assert fleet.lies_told("d3").used >= 1
    assert fleet.lies_told("d4") == (0, 0)
    assert all(standing is not Standing.QUARANTINED for name, standing in fleet.standing.items() if name != "d3")
    state = fleet.gather(scattered)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_names_that_do_not_exist(fleet: LocalFleet) -> None:
    with pytest.raises(InputError, match="no device 'd9'"):
        fleet.kill("d9")


def test_devices_and_broker_end_with_the_owner() -> None:
    """An owner that is killed leaves no process behind."""
    program = (
        "import awfulowl as owl, os, sys, time, psutil\n"
        "with owl.local_fleet(devices=2):\n"
        "    print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        children = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(children) == 3
        owner.kill()
    wait_until(lambda: not any(alive(pid) for pid in children))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_forked_child_ends_as_it_would_without_a_fleet() -> None:
    """And leaves the fleet to its parent: it closed what it has no connection to, which failed."""
    code = """
import os, sys
import awfulowl as owl
from torch import nn
fleet = owl.local_fleet(1)
path, child = fleet._folder.path, os.fork()
if not child:
    sys.exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
child = os.fork()
if not child:
    with fleet:
        sys.exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
assert list(path.iterdir())
with fleet:
    model = nn.Linear(4, 2).eval()
    fleet.release(fleet.scatter(model, owl.plan(model, devices=fleet)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_after_a_fork_the_child_cannot_use_the_fleet(fleet: LocalFleet) -> None:
    model, x = model_and_input()
    scattered = fleet.scatter(model, owl.plan(model, x, devices=["d1", "d4"], block=16))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  the child
        try:
            with torch.no_grad():
                scattered(x)
            os.write(writer, b"it answered")
        except ClosedError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"another process" in os.read(reader, 1000)
    with torch.no_grad():
        torch.testing.assert_close(scattered(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_device_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UnavailableError, match="d1"):
        owl.local_fleet(devices=1)
