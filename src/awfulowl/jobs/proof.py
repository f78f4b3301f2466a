"""The proof of a training: what a runner writes while it trains, and the commitment that ends it.

::

    proof/
      job               the job's digest: whose proof this is
      digests.bin       32 bytes for the state before every step, and for the last one
      records.bin       the log, chained and signed
      states/N.safetensors   the state before step N: every k steps, at the ends of epochs, at the end
      commitment.json   root of the Merkle tree over all states, signed by the runner: from here on all is fixed
      answers/          what a verifier asked for

A runner may be ended at any moment. States are written aside and renamed, digests and log are appended to, the log
last; what a crash left half-written is cut off when the runner goes on, and what it goes on from is checked first.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs import signing
from awfulowl.jobs.job import VERSION, Digest, Job, Positive, canonical
from awfulowl.jobs.loop import HONEST, Conduct, Trainer, Work, order, repeatable
from awfulowl.jobs.machine import Machine, this_machine
from awfulowl.jobs.merkle import DIGEST_BYTES, Tree, digest_of
from awfulowl.jobs.monitor import Monitor, Probe, Records, process_probe
from awfulowl.jobs.records import Log, RecordBatch, encode_frame, frames, genesis, read_bounded, read_log
from awfulowl.jobs.state import MOST_HEADER_BYTES, State, decode, digest, encode, raw

JOB: Final = "job"
COMMITMENT: Final = "commitment.json"
DIGESTS: Final = "digests.bin"
LOG: Final = "records.bin"
STATES: Final = "states"
MOST_STATE_COPIES: Final = 6
"""A state's bytes over those of its model: optimisers keep one to three tensors for each parameter."""

Progress = Callable[[int, int, float], None]
"""Called after every step: steps done, steps in all, loss."""


class Commitment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a runner can no longer change; digests are in hex."""

    version: Literal[1]
    job: Digest
    steps: Positive
    per_epoch: Positive
    root: Digest
    """Of the Merkle tree over the states before every step and after the last one."""
    final: Digest
    """Of the last state: the model that was trained."""
    log: Digest
    machine: Machine
    state_bytes: Annotated[int, Meta(ge=0)]

    @property
    def digest(self) -> bytes:
        """What challenges and certificates name."""
        return digest_of("awfulowl commitment", canonical(self))


class Proof(NamedTuple):
    """The signed parts of a proof; states and digests stay in its directory."""

    directory: Path
    job: Job
    commitment: Commitment
    log: Log


def make(
    work: Work,
    directory: Path,
    key: Ed25519PrivateKey,
    *,
    conduct: Conduct = HONEST,
    progress: Progress | None = None,
    probe: Probe | None = None,
) -> Commitment:
    """Run a job to its end, from where an earlier run was ended if there was one, and commit.

    Args:
        work: what is run.
        directory: of the proof; it is made.
        key: of the runner.
        conduct: how steps are made, for experiments.
        progress: told about every step.
        probe: what the monitor samples, by default this process.

    Raises:
        InputError: the directory is another job's or cannot be written, the key is not the runner's, or the job
            diverges.
    """
    if key.public_key() != work.job.keys.runner.verifying_key():
        raise InputError(f"job {work.job.name} names another runner: this key is not the one that may prove it")
    try:
        claim(directory, work.job)
        if (directory / COMMITMENT).exists():
            return read_commitment(directory, work.job)
        return _make(work, _Writer(work, directory, key), conduct, progress, probe)
    except OSError as error:
        raise InputError(f"{directory} cannot be written: {error.strerror}") from error


def _make(
    work: Work, writer: "_Writer", conduct: Conduct, progress: Progress | None, probe: Probe | None
) -> Commitment:
    training, logging = work.job.training, work.job.logging
    ends = set(work.ends)
    with (
        repeatable(training.threads),
        Monitor(logging.sample_every_s, probe or process_probe(training.threads)) as monitor,
    ):
        trainer = Trainer(work)
        conduct.start(trainer)
        writer.begin(trainer)
        while trainer.step < work.steps:
            row = conduct.step(trainer)
            step = trainer.step
            monitor.step(step - 1, row)
            state = trainer.state()
            writer.digests.append(digest(state))
            if step in ends:
                monitor.evaluation(step, conduct.evaluate(trainer, work.epoch(step - 1)))
            if work.kept(step):
                writer.keep(state, monitor.take())
            elif monitor.full:
                writer.flush(step, monitor.take())
            if progress is not None:
                progress(step, work.steps, row.loss)
        return writer.commit(trainer.state())


def read(directory: Path, job: Job) -> Proof:
    """Read what a runner signed.

    Raises:
        ProofError: something is missing, too large, damaged, not signed by the job's runner, or of another job.
    """
    commitment = read_commitment(directory, job)
    log = read_log(directory / LOG, job)
    if log.head.hex() != commitment.log:
        raise ProofError(f"{directory / LOG} is not the log that the runner committed to")
    return Proof(directory, job, commitment, log)


def read_commitment(directory: Path, job: Job) -> Commitment:
    """Read the commitment of a proof.

    Raises:
        ProofError: it is missing, damaged, not signed by the job's runner, or of another job.
    """
    path = directory / COMMITMENT
    content = read_bounded(path, signing.MOST_STATEMENT_BYTES)
    found = signing.check(content, Commitment, job.keys.runner.verifying_key(), str(path))
    if found.job != job.digest.hex():
        raise ProofError(f"{path} is of another job: the runner proved something, but not this")
    return found


def read_digests(directory: Path, steps: int) -> list[bytes]:
    """Read the digests of all states.

    Raises:
        ProofError: there are more or fewer than `steps` + 1.
    """
    wanted = (steps + 1) * DIGEST_BYTES
    content = read_bounded(directory / DIGESTS, wanted)
    if len(content) != wanted:
        raise ProofError(f"{directory / DIGESTS} holds {len(content)} bytes, not {wanted}: it is cut short")
    return [content[place : place + DIGEST_BYTES] for place in range(0, wanted, DIGEST_BYTES)]


def state_path(directory: Path, step: int) -> Path:
    """Return where the state before a step is stored."""
    return directory / f"{step:010d}.safetensors"


def read_state(directory: Path, step: int, model_bytes: int) -> State:
    """Read a stored state; what it holds is for its digest to say.

    Args:
        directory: of states or of answers.
        step: before which the state stands.
        model_bytes: of the job's model, which bounds what is read.

    Raises:
        ProofError: it is missing, larger than a state of this model can be, or damaged.
    """
    path = state_path(directory, step)
    return decode(read_bounded(path, MOST_STATE_COPIES * model_bytes + MOST_HEADER_BYTES), step, str(path))


def leaf(work: Work, step: int, state: bytes) -> bytes:
    """Return the leaf of one state: bound to its job (hyper-parameters, code, all data), its step, and its order."""
    return digest_of(
        "awfulowl leaf",
        work.job.digest,
        step.to_bytes(8, "little"),
        state,
        order_digest(work.job.training.seed, work.epoch(step), work.rows),
    )


def tree(work: Work, digests: Sequence[bytes]) -> Tree:
    """Return the Merkle tree over all states."""
    return Tree([leaf(work, step, state) for step, state in enumerate(digests)])


@lru_cache(maxsize=4096)
def order_digest(seed: int, epoch: int, count: int) -> bytes:
    """Return the digest of the order of the examples in an epoch."""
    return digest_of("awfulowl order", raw(order(seed, epoch, count)))


def write_aside(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there: after a kill it is there whole or not at all.

    It is not flushed to the disk: what a power cut leaves is found by its digest.
    """
    side = path.with_name(f".{path.name}.new")
    side.write_bytes(content)
    side.replace(path)


def claim(directory: Path, job: Job) -> None:
    """Make a directory the place of a job's proof, or see that it is.

    Raises:
        InputError: it is another job's, or holds something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mark, wanted = directory / JOB, job.digest.hex().encode()
    if mark.exists():
        if read_bounded(mark, 2 * len(wanted)) != wanted:
            raise InputError(f"{directory} holds the proof of another job: name another directory")
        return
    if any(not path.name.startswith(f".{JOB}.") for path in directory.iterdir()):
        raise InputError(f"{directory} is not empty, and holds no proof: name another directory")
    write_aside(mark, wanted)
    (directory / STATES).mkdir(exist_ok=True)


class _Writer:
    """Writes the parts of a proof in the order that survives a kill: state, digests, log."""

    def __init__(self, work: Work, directory: Path, key: Ed25519PrivateKey) -> None:
        self._work: Final = work
        self._directory: Final = directory
        self._key: Final = key
        self.digests: list[bytes] = []
        self._written = 0
        self._before = genesis(work.job)
        self._first = 0
        self._resumed = False

    def begin(self, trainer: Trainer) -> None:
        """Go on from the newest stored state that the log and the digests lead to, else from the start."""
        (self._directory / STATES).mkdir(exist_ok=True)
        log, stored = self._directory / LOG, self._directory / DIGESTS
        begun = digest(trainer.state())
        content = stored.read_bytes() if stored.exists() else b""
        known = [content[place : place + DIGEST_BYTES] for place in range(0, len(content), DIGEST_BYTES)]
        for last, end, named in reversed(self._marks(log) if known[:1] == [begun] else []):
            state = self._stored(last, known, trainer)
            if state is not None:
                trainer.load(state)
                self.digests = known[: state.step + 1]
                self._before, self._resumed = named, True
                os.truncate(log, end)
                break
        else:
            self.digests = [begun]
            log.write_bytes(b"")
        stored.write_bytes(b"".join(self.digests))
        self._written, self._first = len(self.digests), trainer.step

    def _marks(self, log: Path) -> list[tuple[int, int, bytes]]:
        """Return of each batch of the log the step that comes next, where it ends in the file, and its digest."""
        if not log.exists():
            return []
        with log.open("rb") as file:
            found = frames(file, self._work.job, self._key.public_key(), torn=True)
            return [(batch.last, end, named) for batch, end, named in found]

    def _stored(self, step: int, known: Sequence[bytes], trainer: Trainer) -> State | None:
        if not self._work.kept(step) or step >= len(known):
            return None
        size = sum(one.nbytes for one in trainer.state().tensors.values())
        try:
            state = read_state(self._directory / STATES, step, size)
        except ProofError:
            return None
        return state if digest(state) == known[step] else None

    def keep(self, state: State, records: Records) -> None:
        """Store a state, and all that leads to it."""
        write_aside(state_path(self._directory / STATES, state.step), encode(state))
        with (self._directory / DIGESTS).open("ab") as file:
            file.write(b"".join(self.digests[self._written :]))
        self._written = len(self.digests)
        self.flush(state.step, records)

    def flush(self, last: int, records: Records) -> None:
        """Append a batch to the log."""
        batch = RecordBatch(
            before=self._before, first=self._first, last=last, resumed=self._resumed, **records._asdict()
        )
        frame, self._before = encode_frame(batch, self._key)
        self._first, self._resumed = last, False
        with (self._directory / LOG).open("ab") as file:
            file.write(frame)

    def commit(self, final: State) -> Commitment:
        """Fix everything."""
        commitment = Commitment(
            version=VERSION,
            job=self._work.job.digest.hex(),
            steps=self._work.steps,
            per_epoch=self._work.per_epoch,
            root=tree(self._work, self.digests).root.hex(),
            final=self.digests[-1].hex(),
            log=self._before.hex(),
            machine=this_machine(self._work.job.training.threads),
            state_bytes=final.bytes,
        )
        write_aside(self._directory / COMMITMENT, signing.sign(commitment, self._key))
        return commitment
