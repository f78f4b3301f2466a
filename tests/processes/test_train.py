"""A training whose owner is killed: real processes, and the same bits at the end."""

import random
import time
from pathlib import Path

import pytest

from awfulowl.owner.checkpoint import newest_checkpoint, read_checkpoint
from benchmarks.kills import Training, beside, losses, prepare, same_bits

pytestmark = [pytest.mark.usefixtures("needs_broker"), pytest.mark.timeout(300)]

EVERY = 3
LIMIT_S = 100.0


def steps_kept(training: Training) -> int:
    """Return how many steps the newest checkpoint holds; -1 without one."""
    path = newest_checkpoint(training.home.checkpoints)
    return -1 if path is None else int(path.name.removeprefix("step-").partition(".")[0])


def kill_after(training: Training, steps: int, pause_s: float) -> None:
    """Start a training, and kill its owner some time after it has written a checkpoint of so many steps."""
    process = training.start()
    end = time.monotonic() + LIMIT_S
    try:
        while steps_kept(training) < steps:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end, f"no checkpoint of {steps} steps within {LIMIT_S:g} s"
            time.sleep(0.01)
        time.sleep(pause_s)
    finally:
        process.kill()
        process.communicate()


def test_an_owner_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    choose = random.Random(time.time_ns())
    undisturbed, expected = prepare(tmp_path, steps=30, every=EVERY, devices=2, batch=16)
    assert len(expected) == 30
    training = beside(undisturbed, "killed")
    kill_after(training, -1, 0.3)
    assert losses(training.home) is None  # it was hardly born, and begins anew under the same plan
    for least in (0, 9):
        kill_after(training, least, choose.uniform(0, 0.3))
        found = losses(training.home)
        assert found is not None
        assert len(found) >= least
        assert len(found) % EVERY == 0
        assert found == expected[: len(found)]
        assert not training.finished
    before = read_checkpoint(training.home.checkpoints).facts.step
    training.finish()
    assert steps_kept(training) >= before
    assert same_bits(undisturbed.home, training.home)
    assert losses(training.home) == expected
