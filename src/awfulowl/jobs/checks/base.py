"""What every check is given, and what it says."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Final

from awfulowl.errors import ProofError
from awfulowl.jobs.challenge import Challenge, challenged
from awfulowl.jobs.failures import Blamed
from awfulowl.jobs.loop import Row, Trainer, Work
from awfulowl.jobs.proof import Proof
from awfulowl.jobs.records import Iteration
from awfulowl.jobs.segments import MOST_LOOKS
from awfulowl.jobs.state import State, digest, form
from awfulowl.randomness import SYSTEM, Entropy


@dataclass(slots=True)
class Cost:
    """What verifying took, in steps of the training and in seconds of the processor."""

    steps: int = 0
    """Steps that were run."""
    examples: int = 0
    """Examples whose loss was computed without a step."""
    seconds: list[float] = field(default_factory=list)
    """Processor time of each step."""

    @property
    def step_s(self) -> float:
        """Processor time of one step of the training: the median."""
        return statistics.median(self.seconds) if self.seconds else 0.0


class Own:
    """What the verifier makes by itself, from the client's package: W_0, step 0, and the form of all later states.

    Raises:
        ModelError: the client's model or optimiser cannot be used.
        InputError: step 0 diverges.
    """

    def __init__(self, work: Work) -> None:
        self.work: Final = work
        self.cost: Final = Cost()
        self.trainer: Final = Trainer(work)
        self.begun: Final = self.trainer.state().copy()
        with timed(self.cost):
            self.row: Final = self.trainer.advance()
        self.after: Final = self.trainer.state().copy()
        self._forms: Final = (form(self.begun), form(self.after))

    def held(self, state: State, wanted: bytes) -> State:
        """Return a state that a runner stored, if it is what was committed and can be one of this job.

        Raises:
            ProofError: it is not.
        """
        if form(state) != self._forms[state.step > 0]:
            raise ProofError(f"the state before step {state.step} does not have the form of this job's states")
        if digest(state) != wanted:
            raise ProofError(f"the state before step {state.step} is not the one that the runner committed to")
        return state


class States(ABC):
    """Where states come from; every one is held against the committed root before it is used."""

    @abstractmethod
    def digest(self, step: int) -> bytes:
        """Return the committed digest of the state before a step.

        Raises:
            ProofError: the runner did not show it to be under its root.
        """

    @abstractmethod
    def state(self, step: int) -> State:
        """Return a committed state; it may change with the next call.

        Raises:
            ProofError: it is missing, or not the one that was committed.
        """

    @abstractmethod
    def stored(self, step: int) -> State | None:
        """Return the state that the runner stored, held against the root; None where only answers are at hand.

        Raises:
            ProofError: it is missing, or not the one that was committed.
        """


class Case:
    """All that a verifier has of one proof: its own copy of the job, what the runner committed to, and a trainer.

    Nothing that the runner's files say is believed: states are held against the root, and the rest is recomputed.
    """

    def __init__(
        self, own: "Own", proof: Proof, challenge: Challenge, states: States, entropy: Entropy = SYSTEM
    ) -> None:
        self.work: Final = own.work
        self.own: Final = own
        self.proof: Final = proof
        self.challenge: Final = challenge
        self.states: Final = states
        self.entropy: Final = entropy
        """The verifier's own."""
        self.cost: Final = own.cost
        self.trainer: Final = own.trainer
        self.rows: Final = {0: own.row}
        """What steps that were run again said."""
        self.looks = MOST_LOOKS
        """Second looks that are left."""

    @property
    def challenged(self) -> tuple[int, ...]:
        """The steps that are run again."""
        return challenged(self.challenge)

    def told(self) -> dict[int, Iteration]:
        """Return the log's records of the challenged steps, by step."""
        wanted = set(self.challenged)
        return {row.step: row for row in self.proof.log.iterations if row.step in wanted}

    def advance(self) -> Row:
        """Take one step with the verifier's trainer, and count it.

        Raises:
            InputError: loss or gradient are not finite.
            ProofError: the job's code raises at this state.
        """
        with timed(self.cost), Blamed(self.trainer.step):
            return self.trainer.advance()


@contextmanager
def timed(cost: Cost) -> Iterator[None]:
    """Count one step and its processor time."""
    before = time.process_time()
    yield
    cost.seconds.append(time.process_time() - before)
    cost.steps += 1


class Check(ABC):
    """One thing that is checked; `name` is what verdicts show."""

    name: ClassVar[str]
    printed: ClassVar[bool] = False
    """As the founding paper prints it, for comparison; it decides nothing by default."""

    @abstractmethod
    def refuse(self, case: Case) -> str | None:
        """Return why the proof is refused, or None.

        Raises:
            ProofError: a part of the proof is missing, or not what was committed: the proof is refused.
            InputError: the training diverges where the runner said it did not: the proof is refused.
        """
