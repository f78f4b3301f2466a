"""Plain scripts are kept and signed, and never accepted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from awfulowl.errors import InputError
from awfulowl.jobs.certificate import issue
from awfulowl.jobs.plain import UNVERIFIED, look, run_script, trainer_callback
from awfulowl.jobs.proof import LOG, STATES, read_state
from awfulowl.jobs.records import read_log
from awfulowl.jobs.task import Run, Script
from tests.missing import need
from tests.unit.jobs.small import SIGNERS, no_probe, small_work

JOB = small_work().job


class Told(Script):
    """Tells what it is told."""

    def __init__(self, tell: Callable[[Run], None]) -> None:
        self._tell = tell

    def main(self, run: Run, files: Mapping[str, bytes]) -> None:
        assert files == {"data": b"x"}
        self._tell(run)


def tell(run: Run) -> None:
    for step in range(9):
        run.log(step, 1.0 / (step + 1), rate=0.1, norm=2.0)
    run.checkpoint(9, {"weight": torch.arange(3.0)})


def ran(directory: Path, told: Callable[[Run], None] = tell) -> Path:
    run_script(JOB, Told(told), {"data": b"x"}, directory, SIGNERS.runner, no_probe)
    return directory


def test_the_verdict_is_never_accepted(tmp_path: Path) -> None:
    found = look(JOB, ran(tmp_path / "proof"))
    assert (found.status, found.reason, found.caught_by, found.steps) == ("unverified", UNVERIFIED, None, 9)
    with pytest.raises(InputError, match="unverified"):
        issue(found, JOB, SIGNERS.verifier, "now")


def test_what_was_told_is_kept(tmp_path: Path) -> None:
    directory = ran(tmp_path / "proof")
    log = read_log(directory / LOG, JOB)
    assert [(row.step, row.loss) for row in log.iterations] == [(step, 1.0 / (step + 1)) for step in range(9)]
    assert torch.equal(read_state(directory / STATES, 9, 1000).tensors["weight"], torch.arange(3.0))
    assert log.samples


def test_steps_have_to_rise(tmp_path: Path) -> None:
    def back(run: Run) -> None:
        run.log(3, 1.0)
        run.log(3, 1.0)

    with pytest.raises(InputError, match="have to rise"):
        ran(tmp_path / "proof", back)


def test_a_log_is_not_gone_on_with(tmp_path: Path) -> None:
    ran(tmp_path / "proof")
    with pytest.raises(InputError, match="another one"):
        ran(tmp_path / "proof")


@pytest.mark.parametrize(
    "change", [lambda content: content[:-1], lambda _: b"", lambda content: content[:-9] + b"123456789"]
)
def test_broken_logs_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    directory = ran(tmp_path / "proof")
    (directory / LOG).write_bytes(change((directory / LOG).read_bytes()))
    assert look(JOB, directory).status == "refused"
    assert look(JOB, tmp_path).status == "refused"


def test_a_trainer_of_hugging_face_can_tell(tmp_path: Path) -> None:
    need("transformers")

    def train(run: Run) -> None:
        callback = trainer_callback(run)
        control = object()
        for step in (10, 20):
            state = SimpleNamespace(global_step=step)
            logs = {"loss": 1.0 / step, "learning_rate": 0.1, "grad_norm": 3.0}
            assert callback.on_log(None, state, control, logs=logs) is control
        callback.on_log(None, SimpleNamespace(global_step=21), control, logs={"eval_loss": 1.0})

    log = read_log(ran(tmp_path / "proof", train) / LOG, JOB)
    assert [(row.step, row.loss, row.rate, row.norm) for row in log.iterations] == [
        (10, 0.1, 0.1, 3.0),
        (20, 0.05, 0.1, 3.0),
    ]
