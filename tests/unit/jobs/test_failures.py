"""A state that a runner committed to is to blame for what it makes the job's code raise; a machine's bounds are not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs.challenge import answer
from awfulowl.jobs.failures import Blamed, failure
from awfulowl.jobs.loop import Conduct, Row, Trainer
from awfulowl.jobs.task import Batch
from awfulowl.jobs.verify import verify
from tests.unit.jobs.small import STEPS, Small, asked, made, small_work, verdict


class Table(nn.Module):
    """Reads a row of a table at the place that a buffer names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, 3))
        self.register_buffer("place", torch.tensor(0))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.table[int(self.get_buffer("place"))].expand(len(numbers), 3)


class Looks(Small):
    def model(self) -> nn.Module:
        return Table()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        numbers, labels = batch
        return functional.cross_entropy(model(numbers), labels)


class Misleads(Conduct):
    """Commits before a step to a state from which the code raises, and goes on without running it."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, trainer: Trainer) -> Row:
        if trainer.step == self._step:
            trainer.step += 1
            row = Row(1.0, trainer.rates[0] * trainer.work.task.rate(trainer.step - 1, trainer.work.steps), 1.0)
        else:
            row = trainer.advance()
        self._place(trainer).fill_(9 if trainer.step == self._step else 0)
        return row

    def evaluate(self, trainer: Trainer, epoch: int) -> float:
        return 1.0 if int(self._place(trainer)) else super().evaluate(trainer, epoch)

    @staticmethod
    def _place(trainer: Trainer) -> Tensor:
        return trainer.model.get_buffer("place")


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(("step", "check"), [(8, "replay"), (STEPS, "epochs")])
def test_a_state_at_which_the_code_raises_is_refused(tmp_path: Path, answered: bool, step: int, check: str) -> None:
    work = small_work(Looks())
    directory = made(work, tmp_path / "proof", Misleads(step))
    wanted = asked(work, directory, drawn=(0, min(step, STEPS - 4)), largest=(), epochs=(STEPS,))
    answer(work, directory, wanted, conduct=Misleads(step))
    found = verify(work, directory, wanted, answered=answered)
    assert (found.status, found.caught_by) == ("refused", check)
    assert found.reason == f"the job's code raises IndexError at the state before step {step}"


def test_a_state_at_which_the_code_raises_while_others_are_rebuilt(tmp_path: Path) -> None:
    work = small_work(Looks())
    directory = made(work, tmp_path / "proof", Misleads(8))
    found = verdict(work, directory, asked(work, directory, drawn=(0, 9), largest=(), epochs=()))
    assert (found.status, found.caught_by) == ("refused", "replay")
    assert "raises IndexError at the state before step 8" in (found.reason or "")


class Fails(Looks):
    """Code that fails whatever the state."""

    def data(self, files: Mapping[str, bytes]) -> Batch:
        self.failing = False
        return super().data(files)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.failing:
            raise ValueError("no")
        return super().loss(model, batch)


def test_code_that_fails_at_the_seeds_own_start_is_no_runners_fault(tmp_path: Path) -> None:
    task = Fails()
    work = small_work(task)
    directory = made(work, tmp_path / "proof")
    task.failing = True
    with pytest.raises(ValueError, match="no"):
        verdict(work, directory)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (IndexError("x"), "raised"),
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("can't start new thread"), "processes"),
        (InputError("diverges"), "refused"),
    ],
)
def test_what_a_bound_of_the_machine_does_is_passed_on(error: Exception, reason: str) -> None:
    assert failure(error) == reason
    with pytest.raises(ProofError if reason == "raised" else type(error)) as caught, Blamed(3):
        raise error
    assert (caught.value is error) is (reason != "raised")


def test_an_interruption_is_nobodys_fault() -> None:
    with pytest.raises(KeyboardInterrupt), Blamed(3):
        raise KeyboardInterrupt
