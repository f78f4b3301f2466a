"""Children that live no longer than their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awfulowl.fabric import tether
from awfulowl.fabric.tether import tethered

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the signal of a parent's end is Linux's")
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and waits to be noticed does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_command_gets_its_arguments_and_its_answer_is_the_childs() -> None:
    program = "import sys; print(sys.argv[1:]); sys.exit(7)"
    command = tethered([sys.executable, "-c", program, "one", "two three", "$HOME", ""])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['one', 'two three', '$HOME', '']"
    assert done.returncode == 7


@linux_only
def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    program = (
        "import subprocess, sys, time\n"
        "from awfulowl.fabric.tether import tethered\n"
        f"child = subprocess.Popen(tethered({SLEEP!r}), stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tether.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    while is_alive(child):
        time.sleep(0.01)


@linux_only
def test_a_child_whose_parent_is_gone_already_does_not_start() -> None:
    command = tethered(SLEEP)
    assert str(os.getpid()) in command
    stranger = [argument if argument != str(os.getpid()) else "1" for argument in command]
    done = subprocess.run(stranger, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "is gone" in done.stderr


def test_elsewhere_the_command_just_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tethered(["program", "argument"]) == ["program", "argument"]
