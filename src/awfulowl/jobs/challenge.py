"""What a verifier asks after the commitment, and how a runner answers: with states, each under the committed root."""

import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import proof as proofs
from awfulowl.jobs import signing
from awfulowl.jobs.job import VERSION, Digest, Job, canonical
from awfulowl.jobs.loop import EVALUATED_PARTS, HONEST, Conduct, Trainer, Work, repeatable
from awfulowl.jobs.machine import Machine
from awfulowl.jobs.merkle import digest_of
from awfulowl.jobs.proof import Proof, read_commitment, read_digests, read_state, state_path, tree, write_aside
from awfulowl.jobs.records import Iteration, Step, read_bounded
from awfulowl.jobs.state import State, encode
from awfulowl.limits import MIB
from awfulowl.randomness import SYSTEM, Entropy

ANSWERS: Final = "answers"
OPENINGS: Final = "openings.msgpack"
MOST_OPENINGS_BYTES: Final = 64 * MIB

_Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Steps = Annotated[tuple[Step, ...], Meta(max_length=8192)]


class Challenge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which steps a verifier wants to run again; signed, and bound to one commitment."""

    version: Literal[1]
    job: Digest
    commitment: Digest
    exact: bool
    """Runner and verifier are of one class: one step is run again for each challenge, and every bit must be equal."""
    drawn: _Steps
    """Steps drawn at random, and step 0."""
    largest: _Steps
    """Steps of the largest updates, by the runner's log."""
    epochs: _Steps
    """Steps at which an epoch has ended, whose evaluations are made again."""
    parts: Annotated[tuple[Annotated[int, Meta(ge=0, lt=EVALUATED_PARTS)], ...], Meta(max_length=EVALUATED_PARTS)]
    """The small batches of an evaluation that are made again."""

    @property
    def digest(self) -> bytes:
        """What an answer names."""
        return digest_of("awfulowl challenge", canonical(self))


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The digest of one state, and the way from it to the root."""

    step: Step
    state: _Hash
    path: Annotated[tuple[_Hash, ...], Meta(max_length=64)]


class Openings(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that a challenge opens."""

    challenge: _Hash
    openings: Annotated[tuple[Opening, ...], Meta(max_length=65536)]


def draw(proof: Proof, verifier: Machine, entropy: Entropy = SYSTEM) -> Challenge:
    """Draw what is to be run again, now that the runner is bound.

    Args:
        proof: with its commitment and log.
        verifier: the class of the machine that will run it again.
        entropy: fresh randomness that the runner cannot foresee.
    """
    proving, commitment = proof.job.proving, proof.commitment
    drawn = _some(range(commitment.steps), proving.challenges, entropy)
    # Ranges, not lists: what a commitment says of its steps is not yet checked, and may be huge.
    ends = range(commitment.per_epoch, commitment.steps, commitment.per_epoch)
    epochs = {commitment.steps, *_some(ends, proving.epochs - 1, entropy)} if proving.epochs else set()
    return Challenge(
        version=VERSION,
        job=commitment.job,
        commitment=commitment.digest.hex(),
        exact=verifier == commitment.machine,
        drawn=tuple(sorted({0, *drawn})),
        largest=tuple(sorted(_largest(proof, proving.largest))),
        epochs=tuple(sorted(epochs)),
        parts=tuple(sorted(_some(range(EVALUATED_PARTS), proving.parts, entropy))),
    )


def sign(challenge: Challenge, key: Ed25519PrivateKey) -> bytes:
    """Return a challenge as its verifier hands it out."""
    return signing.sign(challenge, key)


def read(content: bytes, job: Job) -> Challenge:
    """Read a challenge.

    Raises:
        ProofError: it is damaged, of another job, or not signed by the job's verifier.
    """
    found = signing.check(content, Challenge, job.keys.verifier.verifying_key(), "the challenge")
    if found.job != job.digest.hex():
        raise ProofError("the challenge is of another job")
    return found


def answer(work: Work, directory: Path, challenge: Challenge, *, conduct: Conduct = HONEST) -> None:
    """Rebuild the states that a challenge asks for, each from the nearest stored one, and write them down.

    Args:
        work: the job.
        directory: of the proof.
        challenge: as it was read.
        conduct: how the runner made its steps.

    Raises:
        InputError: the challenge is of another proof.
        ProofError: the proof is damaged.
    """
    commitment = read_commitment(directory, work.job)
    if challenge.commitment != commitment.digest.hex():
        raise InputError(f"the challenge is of another commitment than that in {directory}")
    digests = read_digests(directory, commitment.steps)
    committed = tree(work, digests)
    into = directory / ANSWERS
    into.mkdir(exist_ok=True)
    for path in into.iterdir():
        path.unlink()
    with repeatable(work.job.training.threads):
        runner = Rebuilder(work, directory, conduct)
        for step in states_wanted(work, challenge):
            write_aside(state_path(into, step), encode(runner.state(step)))
    opened = Openings(
        challenge.digest,
        tuple(Opening(step, digests[step], committed.path(step)) for step in openings_wanted(work, challenge)),
    )
    write_aside(into / OPENINGS, msgspec.msgpack.encode(opened))


def read_openings(directory: Path) -> Openings:
    """Read what a runner opened.

    Raises:
        ProofError: it is missing, too large or damaged.
    """
    path = directory / ANSWERS / OPENINGS
    content = read_bounded(path, MOST_OPENINGS_BYTES)
    try:
        return msgspec.msgpack.decode(content, type=Openings)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProofError(f"{path} holds no openings: {error}") from error


def challenged(challenge: Challenge) -> tuple[int, ...]:
    """Return all steps that are run again, in order."""
    return tuple(sorted({*challenge.drawn, *challenge.largest}))


def segment_end(work: Work, challenge: Challenge, step: int) -> int:
    """Return where the stretch that is run again from `step` ends."""
    return min(work.steps, step + (1 if challenge.exact else work.job.proving.segment))


def states_wanted(work: Work, challenge: Challenge) -> tuple[int, ...]:
    """Return the steps whose states a challenge asks for; W_0 follows from the seed, unless bits may differ."""
    wanted = {*challenged(challenge), *challenge.epochs, work.steps}
    if challenge.exact:
        return tuple(sorted(wanted - {0}))
    return tuple(sorted(wanted | {segment_end(work, challenge, step) for step in challenged(challenge)}))


def openings_wanted(work: Work, challenge: Challenge) -> tuple[int, ...]:
    """Return the steps whose digests a challenge asks for."""
    ends = {segment_end(work, challenge, step) for step in challenged(challenge)}
    return tuple(sorted({0, *states_wanted(work, challenge), *ends}))


class Rebuilder:
    """Makes states again from those that a proof stores; use it inside `repeatable`, with rising steps."""

    def __init__(self, work: Work, directory: Path, conduct: Conduct = HONEST) -> None:
        self._work: Final = work
        self._directory: Final = directory
        self._conduct: Final = conduct
        self._trainer: Final = Trainer(work)
        conduct.start(self._trainer)
        self._bytes: Final = self._trainer.state().bytes

    def state(self, step: int) -> State:
        """Return the state before a step; it changes with the next call.

        Raises:
            ProofError: the stored state is missing or damaged.
        """
        nearest = self._work.nearest(step)
        if nearest > self._trainer.step:
            self._trainer.load(read_state(self._directory / proofs.STATES, nearest, self._bytes))
        while self._trainer.step < step:
            self._conduct.step(self._trainer)
        return self._trainer.state()


def _some(of: Sequence[int], count: int, entropy: Entropy) -> list[int]:
    """Draw without putting back: never less likely to meet a fake than 1 - (1 - phi)^m."""
    left: dict[int, int] = {}
    found = []
    for last in range(len(of) - 1, max(-1, len(of) - 1 - count), -1):
        chosen = entropy.below(last + 1)
        found.append(of[left.get(chosen, chosen)])
        left[chosen] = left.get(last, last)
    return found


def _largest(proof: Proof, count: int) -> list[int]:
    rows = (row for row in proof.log.iterations if row.step < proof.commitment.steps)
    return [row.step for row in heapq.nlargest(count, rows, key=_update)]


def _update(row: Iteration) -> float:
    size = row.rate * row.norm
    return size if size == size else math.inf  # noqa: PLR0124 - NaN is larger than nothing, and would hide others
