"""The loop that the platform owns: every step a function of the state before it, so any stretch can be run again.

W_0, the order of the examples and the random numbers of each step follow from the job's seed alone.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from awfulowl.errors import InputError, ModelError
from awfulowl.jobs.job import Job, digests
from awfulowl.jobs.records import check_length
from awfulowl.jobs.state import Layout, State, digest
from awfulowl.jobs.task import Batch, Task
from awfulowl.randomness import Seeded, derive

EVALUATED_PARTS: Final = 8
"""An evaluation is the mean over so many small batches, together about one batch of the training."""
_PREFLIGHT_STEPS: Final = 6

_ORDER, _STEP, _START, _EVALUATION, _EVALUATED = range(5)
"""What a seed is derived for."""


class Row(NamedTuple):
    """What one step says of itself: loss before it, learning rate, norm of the gradient."""

    loss: float
    rate: float
    norm: float


class Work(NamedTuple):
    """A job with its code imported and its data read: all that executing it takes."""

    job: Job
    task: Task
    examples: Batch

    @property
    def rows(self) -> int:
        """Examples."""
        return len(self.examples[0])

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch: whole batches."""
        return self.rows // self.job.training.batch

    @property
    def steps(self) -> int:
        """Steps of the job."""
        training = self.job.training
        return training.steps if training.steps is not None else (training.epochs or 0) * self.per_epoch

    @property
    def ends(self) -> tuple[int, ...]:
        """The steps before which an epoch has ended; a last one that is cut short counts."""
        return (*range(self.per_epoch, self.steps, self.per_epoch), self.steps)

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, from 0; the end of the job belongs to its last epoch."""
        return min(step, self.steps - 1) // self.per_epoch

    def indices(self, step: int) -> Tensor:
        """Return the int64 numbers of the examples of a step (batch,)."""
        size = self.job.training.batch
        place = step % self.per_epoch * size
        return order(self.job.training.seed, step // self.per_epoch, self.rows)[place : place + size]

    def batch(self, step: int) -> Batch:
        """Return the examples of a step."""
        chosen = self.indices(step)
        return tuple(tensor[chosen] for tensor in self.examples)

    def nearest(self, step: int) -> int:
        """Return the newest stored state that is not after a step, or 0."""
        if step == self.steps:
            return step
        return step - min(step % self.job.proving.checkpoint_every, step % self.per_epoch)

    def next_kept(self, step: int) -> int:
        """Return the first stored state after a step."""
        every, size = self.job.proving.checkpoint_every, self.per_epoch
        return min(self.steps, step + every - step % every, step + size - step % size)

    @property
    def count_kept(self) -> int:
        """How many states are stored."""
        every, size, steps = self.job.proving.checkpoint_every, self.per_epoch, self.steps
        whole = steps // every + steps // size - steps // math.lcm(every, size)
        return whole + (steps % every != 0 and steps % size != 0)

    def kept(self, step: int) -> bool:
        """Say whether the state before a step is stored."""
        return step > 0 and (
            step % self.job.proving.checkpoint_every == 0 or step == self.steps or step % self.per_epoch == 0
        )


def prepare(job: Job, task: Task, files: Mapping[str, bytes]) -> Work:
    """Return what executing a job takes.

    Args:
        job: as the client signed it.
        task: an instance of the client's class.
        files: the contents of its data files, by name.

    Raises:
        InputError: a data file is not the one that the job names, or the task's data cannot be used.
    """
    if digests(files) != dict(job.data):
        raise InputError(f"job {job.name}: its data files are not those that the client signed")
    examples = tuple(task.data(files))
    if not examples or not all(one.dim() for one in examples):
        raise InputError(f"{job.task}.data must return tensors of examples")
    lengths = {len(one) for one in examples}
    if len(lengths) > 1 or min(lengths) < job.training.batch:
        raise InputError(
            f"{job.task}.data returned {sorted(lengths)} examples: equal numbers, and a batch "
            f"({job.training.batch}) or more, are needed"
        )
    return Work(job, task, examples)


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of the examples in an epoch, a permutation (count,), from the seed alone.

    Sorting by keystream, because the permutations of PyTorch and NumPy may change with their versions.
    """
    return Seeded(_derived(seed, _ORDER, epoch), torch.int64, (count,)).expand().argsort(stable=True)


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Run with so many threads and repeatable algorithms only; settings and generators are put back afterwards."""
    before = torch.get_num_threads()
    strict = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - what clients' code may draw from
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # `use_deterministic_algorithms` loads the compiler: a second
    memory.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)
        torch.set_deterministic_debug_mode(strict)
        memory.fill_uninitialized_memory = filled
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002


class Trainer:
    """A model under training, before its step `step`; use it inside `repeatable`.

    Raises:
        ModelError: model or optimiser of the task cannot be used.
    """

    def __init__(self, work: Work) -> None:
        self.work: Final = work
        _seed(_derived(work.job.training.seed, _START))
        self.model: Final[nn.Module] = work.task.model()
        self.optimizer: Final = work.task.optimizer(self.model, work.job.training)
        self.layout: Final = Layout(self.model, self.optimizer)
        self.parameters: Final = [one for group in self.optimizer.param_groups for one in group["params"]]
        self.rates: Final = [float(group["lr"]) for group in self.optimizer.param_groups]
        """Learning rates before the schedule, by group; the log tells the first."""
        self.step = 0
        self.model.train()

    def state(self) -> State:
        """Return the state now; the next step changes its tensors."""
        return self.layout.capture(self.step)

    def load(self, state: State) -> None:
        """Go on from another state."""
        self.layout.restore(state)
        self.step = state.step

    def advance(self) -> Row:
        """Take one step of the job.

        Raises:
            InputError: loss or gradient are not finite.
        """
        return self.descend(self.work.batch(self.step), self.factor())

    def factor(self) -> float:
        """Return the factor that the job's schedule puts on the learning rate of this step."""
        return float(self.work.task.rate(self.step, self.work.steps))

    def descend(self, batch: Batch, factor: float, precision: str | None = None) -> Row:
        """Take one step on a batch with `factor` on the learning rate, by default in the job's precision.

        Raises:
            InputError: loss or gradient are not finite.
        """
        training = self.work.job.training
        _seed(_derived(training.seed, _STEP, self.step))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad()
        with _precision(precision or training.precision):
            loss = self.work.task.loss(self.model, batch)
        torch.autograd.backward(loss)
        norm = float(self.clipped(training.clip))
        value = float(loss.item())
        if not math.isfinite(value) or not math.isfinite(norm):
            raise InputError(f"step {self.step}: loss {value}, gradient {norm}; the job diverges: lower its lr")
        self.optimizer.step()
        self.step += 1
        return Row(value, self.rates[0] * factor, norm)

    def clipped(self, limit: float | None) -> Tensor:
        """Clip the gradient, and return the norm that it had."""
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return norm

    def evaluate(self, epoch: int, parts: Sequence[int] = range(EVALUATED_PARTS)) -> list[float]:
        """Return the mean losses of some of the small batches on which an epoch's last state is evaluated."""
        training = self.work.job.training
        size = max(1, training.batch // EVALUATED_PARTS)
        chosen = Seeded(_derived(training.seed, _EVALUATED, epoch), torch.int64, (EVALUATED_PARTS * size,)).expand()
        numbers = torch.split(chosen.remainder(self.work.rows), size)
        losses = []
        with evaluating(self.model), _precision(training.precision):
            for part in parts:
                _seed(_derived(training.seed, _EVALUATION, epoch, part))
                batch = tuple(tensor[numbers[part]] for tensor in self.work.examples)
                losses.append(float(self.work.task.loss(self.model, batch).item()))
        return losses


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Compute without gradients and in the mode of evaluation; every module goes back to its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Conduct:
    """How a runner goes through a job: this is the honest way, and `cheats` are the others."""

    def start(self, trainer: Trainer) -> None:
        """Begin from W_0."""

    def step(self, trainer: Trainer) -> Row:
        """Take one step, and say what goes into the log."""
        return trainer.advance()

    def evaluate(self, trainer: Trainer, epoch: int) -> float:
        """Return the loss that is logged for the state at the end of an epoch."""
        losses = trainer.evaluate(epoch)
        return sum(losses) / len(losses)


HONEST: Final = Conduct()


Observer = Callable[[Trainer, Row], None]
"""Called after every step."""


def run(trainer: Trainer, last: int, observer: Observer | None = None) -> None:
    """Take steps until the next one is `last`.

    Raises:
        InputError: the training diverges.
    """
    while trainer.step < last:
        row = trainer.advance()
        if observer is not None:
            observer(trainer, row)


def preflight(work: Work, steps: int = _PREFLIGHT_STEPS) -> None:
    """Run a job's first steps twice, the second time from a state that was put back half-way.

    Raises:
        ModelError: the job is not repeatable, so that no proof of it could be checked.
        InputError: the task cannot be run, or its log would be longer than what is read.
    """
    check_length(work.steps, work.count_kept)
    last = min(steps, work.steps)
    with repeatable(work.job.training.threads):
        first = Trainer(work)
        digests_first, half = [digest(first.state())], first.state().copy()
        for _ in range(last):
            first.advance()
            digests_first.append(digest(first.state()))
            if first.step == (last + 1) // 2:
                half = first.state().copy()
        again = Trainer(work)
        if digest(again.state()) != digests_first[0]:
            raise ModelError(f"{work.job.task}.model() drew other initial weights the second time: {_UNREPEATABLE}")
        again.load(half)
        while again.step < last:
            again.advance()
            if digest(again.state()) != digests_first[again.step]:
                raise ModelError(f"step {again.step - 1} came out otherwise the second time: {_UNREPEATABLE}")


_UNREPEATABLE: Final = (
    "the task draws from a generator of its own, reads a clock, or keeps something outside parameters, buffers and "
    "optimiser; draw from torch's, numpy's or Python's global generators, and keep counters in buffers"
)


def _precision(name: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bfloat16")


def _derived(seed: int, *numbers: int) -> bytes:
    return derive(seed.to_bytes(8, "little"), *numbers)


def _seed(seed: bytes) -> None:
    number = int.from_bytes(seed[:8], "little")
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002 - what clients' code may draw from
