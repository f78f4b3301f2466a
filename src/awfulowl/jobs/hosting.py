"""The outside of the sandbox: hands a job in, listens, and does with keys what code of others must not.

Every action runs the client's code, the verifier's no less than the runner's, so every action is confined.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shutil import disk_usage
from typing import Any, Final, Protocol

import msgspec

from awfulowl.errors import InputError, JobError, ProofError, ProtocolError
from awfulowl.jobs import archive, countersign, messages
from awfulowl.jobs import certificate as certificates
from awfulowl.jobs import challenge as challenges
from awfulowl.jobs import proof as proofs
from awfulowl.jobs.challenge import Challenge
from awfulowl.jobs.checks.catalogue import Which
from awfulowl.jobs.failures import Failure
from awfulowl.jobs.job import Bounds, Job, canonical
from awfulowl.jobs.keys import PrivateKeys
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.records import read_bounded
from awfulowl.jobs.sandbox import command
from awfulowl.jobs.sandbox.confined import Allowance, Confined, Outcome, Setting, confined
from awfulowl.jobs.sandbox.watching import disk_bytes as disk_used
from awfulowl.jobs.verify import UNREADABLE, Finding, Verdict

_SHARE: Final = 0.9
"""Of this machine's memory, and of what is free on the disk, that a job gets at most, whatever it asks for."""

_MOST_DISK_BYTES: Final = 1 << 62
"""What a resource limit can say."""

_OVER: Final = {
    "time": "took longer than its {0.time_s:g} s",
    "memory": "took more memory than its {0.memory_bytes} bytes",
    "processes": "started more than its {0.processes} processes and threads",
    "disk": "wrote more to the disk than its {0.disk_bytes} bytes",
}
_FAILED: Final[dict[Failure, str]] = {
    "raised": "its code raised",
    "refused": "it cannot be run",
    "ended": "its code ended by itself, or spoke out of turn",
    "memory": "its code asked for more memory than it may have",
    "disk": "its code wrote more than it may",
    "processes": "its code asked for more processes or threads than it may have",
    "network": "its code tried the network, which there is none of",
}
_TAIL_CHARS: Final = 200

Listen = Callable[[messages.Stage | messages.Progress], None]
"""Called with what goes on inside."""


def ignore(_: messages.Stage | messages.Progress) -> None:
    """Listen to nothing."""


class Source(Protocol):
    """A job with its code and data, wherever they come from: an opened package is one."""

    @property
    def job(self) -> Job:
        """The job."""

    @property
    def code(self) -> Mapping[str, bytes]:
        """Its code."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file of data."""

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file of data in parts."""


@dataclass(frozen=True, slots=True)
class Own:
    """A job of one's own, before it is packed."""

    job: Job
    code: Mapping[str, bytes] = field(repr=False)
    data: Mapping[str, bytes] = field(repr=False)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file of data."""
        return {name: len(content) for name, content in self.data.items()}

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file of data in parts."""
        yield self.data[name]


@dataclass(frozen=True, slots=True)
class Host:
    """Somebody who runs the code of a job.

    Args:
        package: the job.
        keys: theirs.
        unsafe: run without walls.
        listen: told what goes on.
    """

    package: Source
    keys: PrivateKeys = field(repr=False)
    unsafe: bool = False
    listen: Listen = ignore

    @property
    def job(self) -> Job:
        """The job of the package."""
        return self.package.job

    def preflight(self) -> int:
        """Run the job's first steps twice; return how many steps it has.

        Raises:
            JobError: the code failed, is not repeatable, or took more than it may.
            SandboxError: no sandbox can be made here.
        """
        steps: int = _result(self._perform("preflight"), int)
        return steps

    def run(self, directory: Path) -> None:
        """Run the job to its end, from where an earlier run was ended, and commit.

        Raises:
            InputError: these keys are not the runner's, or the directory holds something else.
            JobError: the code failed, is not repeatable, or took more than it may.
            SandboxError: no sandbox can be made here.
        """
        if self.keys.public != self.job.keys.runner:
            raise InputError(f"job {self.job.name}: these keys are not those of [keys.runner], who alone may run it")
        try:
            # Before the client's code runs, which may write there: to a new folder, or to this job's own.
            proofs.claim(directory, self.job)
        except OSError as error:
            raise InputError(f"{directory} cannot be made: {error.strerror}") from error
        # An earlier run may have been ended before this.
        countersign.countersign(self.job, directory, self.keys.signing_key)
        self._perform("run", directory, writes=True)
        countersign.countersign(self.job, directory, self.keys.signing_key)

    def answer(self, directory: Path, challenge: Challenge) -> None:
        """Rebuild the states that a challenge asks for.

        Raises:
            InputError: these keys are not the runner's, or the challenge is of another proof.
            ProofError: the directory holds no proof of this job.
            JobError: the code failed, or took more than it may.
            SandboxError: no sandbox can be made here.
        """
        if self.keys.public != self.job.keys.runner:
            raise InputError(f"job {self.job.name}: these keys are not those of [keys.runner], who alone can answer")
        if proofs.read_commitment(directory, self.job).digest.hex() != challenge.commitment:
            raise InputError(f"the challenge is of another commitment than that in {directory}")
        self._perform("answer", directory, challenge, writes=True)

    def draw(self, directory: Path) -> Challenge:
        """Draw a challenge for the commitment of a proof.

        Raises:
            InputError: these keys are not the verifier's.
            ProofError: the proof is damaged, or of another job.
        """
        self._check_verifier()
        return challenges.draw(proofs.read(directory, self.job), this_machine(self.job.training.threads))

    def verify(
        self, directory: Path, challenge: Challenge | None = None, *, which: Which = "sound", thorough: bool = False
    ) -> Verdict:
        """Verify a proof: what the runner answered to a challenge, or by one drawn now and the states that it stored.

        Raises:
            InputError: these keys are not the verifier's, or there is no such directory.
            JobError: the client's code failed or took more than it may: the proof is neither accepted nor refused.
            SandboxError: no sandbox can be made here.
        """
        self._check_verifier()
        if not directory.is_dir():
            raise InputError(f"{directory} is no folder: name the folder that owl job run wrote")
        answered, bound = challenge is not None, os.path.lexists(directory / proofs.COMMITMENT)
        committed: tuple[str, str] | None = None
        # A plain script commits to nothing, and only its class, in the sandbox, says that it is one.
        if bound:
            try:
                commitment = proofs.read_commitment(directory, self.job)
                challenge = challenge or self.draw(directory)
            except ProofError as error:
                return _refused(self.job, str(error))
            committed = commitment.digest.hex(), commitment.final
            if challenge.commitment != committed[0]:
                raise InputError(f"the challenge was drawn for another commitment than that in {directory}")
        elif not _is_marked(directory, self.job):
            return _refused(self.job, f"{directory} holds no proof of this job")
        content = self._perform(
            "verify", directory, challenge if bound else None, answered=answered, which=which, thorough=thorough
        )
        verdict: Verdict | None = _result(content, Verdict | None)
        if verdict is None:
            return _refused(self.job, f"there is no commitment in {directory}: the run has not come to its end")
        is_other = verdict.status == "accepted" and (verdict.commitment, verdict.model) != committed
        if is_other or verdict.job != self.job.digest.hex():
            raise JobError("the sandbox gave a verdict on something else than this proof", "ended")
        return verdict

    def certify(self, verdict: Verdict) -> bytes:
        """Return the certificate of an accepted proof.

        Raises:
            InputError: it was not accepted, or these keys are not the verifier's.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return certificates.issue(verdict, self.job, self.keys.signing_key, at)

    def _check_verifier(self) -> None:
        if self.keys.public != self.job.keys.verifier:
            raise InputError(f"job {self.job.name}: these keys are not those of [keys.verifier], whom the client named")

    def _perform(
        self,
        action: messages.Action,
        directory: Path | None = None,
        challenge: Challenge | None = None,
        *,
        writes: bool = False,
        **options: object,
    ) -> bytes:
        """Carry out an order in the sandbox, and return its result."""
        place = () if directory is None else (directory.resolve(),)
        order = messages.Order(
            action=action,
            job=canonical(self.job),
            code=archive.pack(self.package.code),
            files=dict(self.package.sizes),
            directory=str(place[0]) if place else "",
            challenge=b"" if challenge is None else msgspec.msgpack.encode(challenge),
            **options,  # type: ignore[arg-type]
        )
        setting = Setting(
            allowance=allowance(self.job.limits, directory if writes else None),
            read=() if writes else place,
            write=place if writes else (),
            threads=self.job.training.threads,
            unsafe=self.unsafe,
        )
        with confined(command.python("awfulowl.jobs.worker"), setting) as running:
            feeder = _Feeder(running, order, self.package)
            said = self._hear(running)
            if said is not None:
                running.stop()
            outcome = running.wait()
            feeder.end()
        if isinstance(said, messages.Finished) and outcome.reason not in _OVER:
            return said.result
        raise _failure(self.job, said, outcome, setting.allowance)

    def _hear(self, running: Confined) -> messages.Finished | messages.Failed | None:
        """Pass on what goes on until the code inside has its result, has failed, or is silent for ever."""
        try:
            for event in messages.read_events(running.stdout):
                if isinstance(event, messages.Finished | messages.Failed):
                    return event
                self.listen(event)
        except ProtocolError as error:
            return messages.Failed("ended", str(error))
        return None


class _Feeder:
    """Hands in an order and the data after it, while the other side is listened to."""

    def __init__(self, running: Confined, order: messages.Order, package: Source) -> None:
        self._running = running
        self._order = order
        self._package = package
        self._error: InputError | None = None
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait for it.

        Raises:
            InputError: the package changed while it was read.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _feed(self) -> None:
        pipe = self._running.stdin
        try:
            messages.write(pipe, self._order)
            for name in self._order.files:
                for part in self._package.read(name):
                    pipe.write(part)
            pipe.flush()
        except InputError as error:
            self._error = error
            self._running.stop()
        except (BrokenPipeError, ValueError):
            return  # it ended before it had heard all, or was ended: the listener knows why


def _result(content: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise JobError(f"what came out of the sandbox is no result: {error}", "ended") from None


def _refused(job: Job, reason: str) -> Verdict:
    """Return the verdict on files that cannot be read as a proof of this job."""
    return Verdict(
        status="refused",
        caught_by=UNREADABLE,
        reason=reason,
        findings=(Finding(check=UNREADABLE, printed=False, reason=reason, seconds=0.0),),
        verification_cost=None,
        replayed_steps=0,
        evaluated_examples=0,
        steps=0,
        exact=False,
        job=job.digest.hex(),
        commitment="",
        model="",
    )


def allowance(bounds: Bounds, directory: Path | None = None) -> Allowance:
    """Return what a job may use here: what it asks for, and never nearly all of the memory and the disk there is.

    Args:
        bounds: that the client wrote.
        directory: that the job may write to, if there is one; what is stored there already counts.
    """
    memory_bytes = int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    disk_bytes = min(bounds.disk_bytes, _MOST_DISK_BYTES)
    if directory is not None:
        disk_bytes = min(disk_bytes, disk_used([directory], disk_bytes) + int(_SHARE * disk_usage(directory).free))
    return Allowance(
        memory_bytes=min(bounds.memory_bytes, memory_bytes),
        processes=bounds.processes,
        disk_bytes=disk_bytes,
        time_s=bounds.time_s,
    )


def _is_marked(directory: Path, job: Job) -> bool:
    """Whether a directory says that it is of this job: no other is shown to the job's code."""
    wanted = job.digest.hex().encode()
    try:
        return read_bounded(directory / proofs.JOB, len(wanted)) == wanted
    except ProofError:
        return False


def _failure(
    job: Job, said: messages.Finished | messages.Failed | None, outcome: Outcome, bounds: Allowance
) -> JobError:
    """Return why there is no result: a bound that was overstepped explains all else."""
    if outcome.reason in _OVER:
        return JobError(f"job {job.name}: its code {_OVER[outcome.reason].format(bounds)}", outcome.reason)
    if isinstance(said, messages.Failed):
        return JobError(f"job {job.name}: {_FAILED[said.reason]}: {said.text}", said.reason)
    last = (outcome.errors.strip().splitlines() or [""])[-1][:_TAIL_CHARS]
    if outcome.code < 0:
        return JobError(f"job {job.name}: its code was ended by signal {-outcome.code}; {last}", "killed")
    return JobError(f"job {job.name}: its code ended by itself, with exit code {outcome.code}; {last}", "ended")
