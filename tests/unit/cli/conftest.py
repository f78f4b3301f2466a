"""The command line, called inside this process with a home of its own."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from awfulowl.cli import main
from awfulowl.fabric import nats
from awfulowl.fabric.connection import NatsConfig


class Outcome(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was written to standard output, as JSON."""
        return msgspec.json.decode(self.out)


Owl = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of a user who has no settings; the working directory is another one."""
    for name in [name for name in os.environ if name.startswith("AWFULOWL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("NO_COLOR", "1")
    # A broker that is not there is given up soon.
    monkeypatch.setattr(nats, "NatsConfig", lambda: NatsConfig(connect_s=0.2))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def owl(capfd: pytest.CaptureFixture[str]) -> Iterator[Owl]:
    """Call `owl` with these words."""
    hook, handlers, level = sys.excepthook, list(logging.root.handlers), logging.root.level

    def call(*words: object) -> Outcome:
        code = main([str(word) for word in words])
        return Outcome(code, *capfd.readouterr())

    yield call
    sys.excepthook = hook
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def model_file(home: Path) -> Callable[[str], str]:
    """Write a file with a function `make` of this body, and return the MODEL that means it."""

    def write(body: str) -> str:
        lines = ["import os, signal, time", "import torch", "from torch import nn", "import awfulowl.errors as errors"]
        lines += ["def make():", *(f"    {line}" for line in body.splitlines())]
        path = home / "work" / f"model_{abs(hash(body))}.py"
        path.write_text("\n".join(lines) + "\n")
        return f"{path}:make"

    return write
