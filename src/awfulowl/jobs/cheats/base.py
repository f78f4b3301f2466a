"""What runners that cheat have in common: a share phi of steps that they fake, and a log that looks right."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final

import msgspec
import torch
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.jobs.loop import Conduct, Row, Trainer, Work, repeatable, run

_OTHER_SEED: Final = 0x5EED
_UNDERSTATED: Final = 0.1
"""The steps of the largest gradients told are run again: fakes tell a tenth of theirs."""


class Elsewhere:
    """The same training from another seed, done once: the model that can be bought, the job whose proof is copied.

    Args:
        work: of the job that is cheated.
        steps: after which the model is good enough; None: all.
    """

    def __init__(self, work: Work, steps: int | None = None) -> None:
        training = msgspec.structs.replace(work.job.training, seed=work.job.training.seed ^ _OTHER_SEED)
        self.work: Final = work._replace(job=msgspec.structs.replace(work.job, training=training))
        self._steps: Final = steps or work.steps
        self._final: dict[str, Tensor] = {}

    @property
    def final(self) -> Mapping[str, Tensor]:
        """The trained parameters, by name."""
        if not self._final:
            with repeatable(self.work.job.training.threads), torch.enable_grad():
                trainer = Trainer(self.work)
                run(trainer, self._steps)
                self._final = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
        return self._final


class Cheat(Conduct):
    """A runner that fakes some steps, tells a whole and possible log, and commits to what it made.

    Every check is known to it: the number of records, the rates of the schedule, clocks, utilisation, the form of
    states, and that evaluations are made again with the states that it shows, so those it tells truly. What it cannot
    know is which steps will be drawn.

    Args:
        work: the job.
        phi: the share of the steps that it fakes.
        elsewhere: the same training from another seed.
        seed: of what it invents.

    Raises:
        InputError: phi is not in (0, 1].
    """

    name: ClassVar[str]
    does: ClassVar[str]
    """What it does, in a few words."""

    def __init__(self, work: Work, phi: float, elsewhere: Elsewhere, seed: int = 0) -> None:
        if not 0 < phi <= 1:
            raise InputError(f"phi is a share of the steps, in (0, 1], not {phi}")
        self.work: Final = work
        self.elsewhere: Final = elsewhere
        self.seed: Final = seed
        # Everybody knows that step 0 is always run again, and so takes it honestly.
        count = min(work.steps - 1, math.ceil(phi * work.steps - 1e-9))
        self.faked: Final = frozenset(self.places(count))

    def places(self, count: int) -> list[int]:
        """Return which steps after the first are faked: here drawn at random, so that no stretch stands out."""
        generator = torch.Generator().manual_seed(self.seed)
        return [1 + int(one) for one in torch.randperm(self.work.steps - 1, generator=generator)[:count]]

    def step(self, trainer: Trainer) -> Row:
        """Take a step, honestly or not."""
        if trainer.step not in self.faked:
            return trainer.advance()
        row = self.fake(trainer)
        rate = trainer.rates[0] * self.work.task.rate(trainer.step - 1, self.work.steps)
        return row._replace(rate=rate, norm=_UNDERSTATED * row.norm)

    @abstractmethod
    def fake(self, trainer: Trainer) -> Row:
        """Move the trainer to the next step without making this one; its rate is put right afterwards."""

    def invented(self, step: int, size: float = 1.0) -> Row:
        """Return a record of a step that looks like training: a loss that falls, with noise."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        loss, norm = (1 + 0.1 * torch.randn(2, generator=generator).clamp(-3, 3)).tolist()
        level = 2.3 * math.exp(-4 * step / self.work.steps) + 0.01
        return Row(level * loss, 0.0, size * level * norm)


class Tail(Cheat):
    """A cheat that trains honestly first, and fakes all steps from then on."""

    def places(self, count: int) -> list[int]:
        """Return the last steps."""
        return list(range(self.work.steps - count, self.work.steps))


def forward(trainer: Trainer) -> float:
    """Return the loss of the state as it is on the batch of its step, which costs a third of a step."""
    with torch.no_grad():
        return float(trainer.work.task.loss(trainer.model, trainer.work.batch(trainer.step)).item())


def named(trainer: Trainer) -> dict[str, Tensor]:
    """Return the parameters by name."""
    return dict(trainer.model.named_parameters())
