"""A job that takes milliseconds: twelve numbers an example, batch norm, dropout, momentum."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.jobs import challenge, proof
from awfulowl.jobs.challenge import Challenge
from awfulowl.jobs.job import Logging, Proving, Training
from awfulowl.jobs.loop import HONEST, Conduct, Work
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.reference import Signers, reference_work
from awfulowl.jobs.task import Batch, Task
from awfulowl.jobs.verify import Verdict, verify

SIGNERS: Final = Signers.generate()
OTHERS: Final = Signers.generate()
STEPS: Final = 30
EXAMPLES: Final = 50
WIDTH: Final = 12


class Small(Task):
    """Two layers on numbers."""

    def data(self, files: Mapping[str, bytes]) -> Batch:
        numbers = torch.frombuffer(bytearray(files["numbers"]), dtype=torch.uint8).reshape(-1, WIDTH)
        labels = torch.frombuffer(bytearray(files["labels"]), dtype=torch.uint8)
        return numbers.float() / 255, labels.long()

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(WIDTH, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(6, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        numbers, labels = batch
        return functional.cross_entropy(model(numbers), labels)

    def rate(self, step: int, steps: int) -> float:
        return 1.0 - 0.5 * step / steps


def files(examples: int = EXAMPLES) -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 256, (examples, WIDTH), dtype=torch.uint8, generator=generator)
    labels = (numbers[:, 0] // 86).to(torch.uint8)
    return {"labels": labels.numpy().tobytes(), "numbers": numbers.numpy().tobytes()}


def small_work(task: Task | None = None, *, proving: Proving | None = None, **training: Any) -> Work:
    """A job of 30 steps of 8 examples, 6 an epoch; states are stored every 4 steps."""
    fields: dict[str, Any] = {"seed": 3, "batch": 8, "steps": STEPS, "lr": 0.1, "momentum": 0.9, **training}
    return reference_work(
        task or Small(),
        files(),
        Training(**fields),
        SIGNERS,
        proving=proving or Proving(checkpoint_every=4, challenges=12, largest=2, epochs=2),
        logging=Logging(sample_every_s=0.02),
    )


def no_probe() -> tuple[float, int]:
    return 0.5, 1 << 20


def made(work: Work, directory: Path, conduct: Conduct = HONEST) -> Path:
    proof.make(work, directory, SIGNERS.runner, conduct=conduct, probe=no_probe)
    return directory


def asked(work: Work, directory: Path, **changed: Any) -> Challenge:
    """A challenge to a proof, with fields changed."""
    found = challenge.draw(proof.read(directory, work.job), this_machine(work.job.training.threads))
    return msgspec.structs.replace(found, **changed)


def everything(work: Work, directory: Path, **changed: Any) -> Challenge:
    """A challenge of every step and every epoch."""
    return asked(work, directory, drawn=tuple(range(work.steps)), epochs=work.ends, **changed)


def verdict(work: Work, directory: Path, wanted: Challenge | None = None, **options: Any) -> Verdict:
    """The verdict on a proof, every step of it run again unless something else is wanted; states are rebuilt."""
    return verify(work, directory, wanted or everything(work, directory), **{"answered": False, **options})
