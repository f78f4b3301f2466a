"""What runs in the sandbox: `python -m awfulowl.jobs.worker`, one order, then the end.

It holds no key. Where it would sign it leaves the signature blank (`BLANK`); the process outside reads what is to be
signed, decides, and fills it in (`countersign`).
"""

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NoReturn

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from awfulowl.allocator import keep_memory
from awfulowl.errors import AwfulOwlError, InputError
from awfulowl.jobs import challenge as challenges
from awfulowl.jobs import plain, verify
from awfulowl.jobs import proof as proofs
from awfulowl.jobs.archive import unpack
from awfulowl.jobs.countersign import BLANK
from awfulowl.jobs.failures import failure
from awfulowl.jobs.importing import ROOT, find, importable
from awfulowl.jobs.job import Job, decode_job, digests
from awfulowl.jobs.loop import Trainer, Work, preflight, prepare, repeatable
from awfulowl.jobs.messages import (
    Failed,
    Finished,
    Order,
    Progress,
    Stage,
    read_exactly,
    read_order,
    write,
)
from awfulowl.jobs.task import Script, Task

_TEXT_CHARS: Final = 1000


class BlankKey(Ed25519PrivateKey):
    """Stands for a key that is elsewhere: it has a public half, and leaves signatures blank."""

    def __init__(self, public: Ed25519PublicKey) -> None:
        self._public = public

    def public_key(self) -> Ed25519PublicKey:
        """Return the public half."""
        return self._public

    def sign(self, data: Any) -> bytes:  # noqa: ARG002
        """Return a blank."""
        return BLANK

    def private_bytes(self, *_: object) -> NoReturn:
        """There are none here."""
        raise InputError("this key is elsewhere")

    def private_bytes_raw(self) -> NoReturn:
        """There are none here."""
        raise InputError("this key is elsewhere")

    def __copy__(self) -> "BlankKey":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "BlankKey":
        return self


def main() -> None:
    """Carry out one order from standard input; whatever goes wrong becomes an event."""
    keep_memory()
    # What the client's code prints must not get among the events.
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.excepthook = lambda kind, error, trace: _report(outbox, error, trace)  # noqa: ARG005
    inbox = sys.stdin.buffer
    order = read_order(inbox)
    job, code = decode_job(order.job), unpack(order.code)
    if digests(code) != dict(job.code):
        raise InputError(f"job {job.name}: its code is not the one that the client signed")
    files = {name: read_exactly(inbox, size) for name, size in order.files.items()}
    with importable(code):
        found = find(job.task)
        if isinstance(found, type) and issubclass(found, Script):
            result = _run_script(order, job, files, found())
        elif isinstance(found, type) and issubclass(found, Task):
            result = _carry_out(order, prepare(job, found(), files), outbox)
        else:
            raise InputError(f"task: {job.task} is no subclass of Task or Script of awfulowl.jobs.task")
    write(outbox, Finished(msgspec.msgpack.encode(result)))


def _carry_out(order: Order, work: Work, outbox: IO[bytes]) -> object:
    directory = Path(order.directory)
    if order.action in {"preflight", "run"} and not (directory / proofs.LOG).exists():
        write(outbox, Stage("preflight: the first steps, twice"))
        preflight(work)
    if order.action == "run":
        write(outbox, Stage("training"))
        proofs.make(work, directory, BlankKey(work.job.keys.runner.verifying_key()), progress=_Throttled(outbox))
    if order.action == "answer":
        challenges.answer(work, directory, _challenge(order))
    if order.action == "verify" and not order.challenge:
        return None
    if order.action == "verify":
        write(outbox, Stage("running challenged steps again"))
        with repeatable(work.job.training.threads):
            Trainer(work)  # what PyTorch loads with its first optimiser is no cost of verifying
        return verify.verify(
            work,
            directory,
            _challenge(order),
            answered=order.answered,
            which=order.which,
            thorough=order.thorough,
        )
    return work.steps


def _run_script(order: Order, job: Job, files: dict[str, bytes], script: Script) -> object:
    directory = Path(order.directory)
    if order.action == "run":
        if digests(files) != dict(job.data):
            raise InputError(f"job {job.name}: its data files are not those that the client signed")
        plain.run_script(job, script, files, directory, BlankKey(job.keys.runner.verifying_key()))
    if order.action == "verify":
        return plain.look(job, directory)
    if order.action == "answer":
        raise InputError(f"{job.task} is a plain script: there is nothing in it that could be challenged")
    return 0


def _challenge(order: Order) -> challenges.Challenge:
    return msgspec.msgpack.decode(order.challenge, type=challenges.Challenge)


class _Throttled:
    """Passes on progress about a hundred times in all, so that telling costs nothing."""

    def __init__(self, outbox: IO[bytes]) -> None:
        self._outbox = outbox
        self._next = 0

    def __call__(self, done: int, total: int, loss: float) -> None:
        if done >= self._next or done == total:
            self._next = done + max(1, total // 100)
            write(self._outbox, Progress(done, total, loss))


def _report(outbox: IO[bytes], error: BaseException, trace: TracebackType | None) -> None:
    """Say what went wrong; of the client's code the place, and never its text."""
    if isinstance(error, AwfulOwlError):
        text = str(error)
    else:
        places = [frame for frame in traceback.extract_tb(trace) if frame.filename.startswith(ROOT)]
        place = f" (in {places[-1].filename.removeprefix(ROOT)}, line {places[-1].lineno})" if places else ""
        text = f"{type(error).__name__}: {str(error)[:_TEXT_CHARS]}{place}"
    write(outbox, Failed(failure(error), text[:_TEXT_CHARS]))


if __name__ == "__main__":
    main()
