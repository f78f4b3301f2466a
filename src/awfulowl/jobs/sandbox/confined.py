"""A program started in a sandbox, watched until it ends, and what came of it.

Before the code inside begins, bubblewrap waits: its processes go into their control groups and get their resource
limits from outside, so that there is no moment without bounds.
"""

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

import msgspec

from awfulowl.errors import InputError, SandboxError
from awfulowl.jobs.sandbox import command, seccomp, watching
from awfulowl.jobs.sandbox.cgroups import Groups
from awfulowl.limits import GIB, KIB, MIB

Reason = Literal["ok", "failed", "time", "memory", "processes", "disk", "killed"]
"""How a program ended: by itself well or not, over a bound, or by a signal that no bound explains."""

ERROR_TAIL_BYTES: Final = 16 * KIB
"""Of what a program writes to standard error, the end is kept."""

_POLL_S: Final = 0.05
_START_S: Final = 30.0
_RUNAWAY_S: Final = 1.0
_UNLINKED_S: Final = 0.5
"""Files without a name are looked for less often: all descriptors have to be read."""
_OWN_TASKS: Final = 2
"""Processes of bubblewrap itself."""
_OPEN_FILES: Final = 4096
_LOWEST_PRIORITY: Final = 19
_SPARE_BYTES: Final = 512 * MIB
"""Between what a process uses and what it has reserved, where only the latter can be bounded."""
_SIGNALLED: Final = 128
"""bubblewrap ends with this and the number of the signal that ended the program."""
_LEAST_SCRATCH_BYTES: Final = 1 * MIB
_CHILD: Final = re.compile(rb'"child-pid":\s*(\d+)')
_EXCEEDED: Final[dict[str, Reason]] = {"memory": "memory", "pids": "processes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """What a program in a sandbox may use."""

    memory_bytes: int = 8 * GIB
    """All its processes together, with what they write to folders in memory."""
    processes: int = 64
    """Processes and threads at once."""
    disk_bytes: int = 16 * GIB
    """In each folder that it may write to, with what was there before."""
    time_s: float = 7 * 86400.0
    """By the clock on the wall."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a program ended."""

    reason: Reason
    code: int
    """Its exit code; negative: a signal's number."""
    seconds: float
    peak_bytes: int | None
    """The most memory in use at once, where the kernel counts it."""
    kept_by: tuple[str, ...]
    """Bounds that the kernel kept (memory, pids); the others were watched."""
    errors: str
    """The end of what it wrote to standard error; for a person, never to be believed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where a program runs."""

    allowance: Allowance = field(default_factory=Allowance)
    read: tuple[Path, ...] = ()
    """Folders or files that it may read; inside they are where they are outside."""
    write: tuple[Path, ...] = ()
    """Folders that it may write to, likewise."""
    threads: int = 1
    """Of the mathematical libraries, which would start one for each core."""
    unsafe: bool = False
    """Without bubblewrap: run all the same, with bounds but without walls."""


class Confined:
    """A program that runs in a sandbox; made by `confined`."""

    def __init__(self, started: "_Started", groups: Groups, setting: Setting) -> None:
        process = started.process
        self.stdin: Final = _pipe(process.stdin)
        self.stdout: Final = _pipe(process.stdout)
        self._process = process
        self._inside = started.inside
        self._groups = groups
        self._setting = setting
        self._began = time.monotonic()
        self._over: Reason | None = None
        self._unlinked = 0
        self._next_unlinked = self._began
        self._tail = bytearray()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._keep_errors)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> Outcome:
        """Wait for its end, and say how it ended."""
        code = self._process.wait()
        seconds = time.monotonic() - self._began
        self._join()
        reason = self._over or self._exceeded()
        if code > _SIGNALLED:
            code = _SIGNALLED - code
        if reason is None:
            reason = "ok" if code == 0 else "killed" if code < 0 else "failed"
        errors = self._tail.decode(errors="replace")
        if reason == "failed" and errors.startswith("bwrap: "):
            raise SandboxError(f"bubblewrap cannot make a sandbox here: {errors.splitlines()[0][7:200]}")
        return Outcome(
            reason=reason,
            code=code,
            seconds=seconds,
            peak_bytes=self._groups.peak_bytes(),
            kept_by=tuple(sorted(self._groups.controllers)),
            errors=errors,
        )

    def stop(self) -> None:
        """End it now, with all that it started."""
        self._groups.kill()
        with contextlib.suppress(ProcessLookupError):
            if self._inside is not None:
                # The first of its namespace: with it end all others, whatever they do.
                signal.pidfd_send_signal(self._inside, signal.SIGKILL)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def close(self) -> None:
        """End it if it still runs, and leave nothing of it behind."""
        if self._process.poll() is None:
            self.stop()
        self._process.wait()
        if self._inside is not None:
            os.close(self._inside)
            self._inside = None
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._join()

    def _join(self) -> None:
        # Without walls something that ran away may still hold the pipe.
        for thread in self._threads:
            thread.join(_RUNAWAY_S if self._setting.unsafe else None)

    def _keep_errors(self) -> None:
        errors = _pipe(self._process.stderr)
        while part := os.read(errors.fileno(), ERROR_TAIL_BYTES):
            self._tail += part
            del self._tail[:-ERROR_TAIL_BYTES]
        errors.close()

    def _watch(self) -> None:
        while self._process.poll() is None:
            self._over = self._find_over()
            if self._over is not None:
                self.stop()
                return
            time.sleep(_POLL_S)

    def _find_over(self) -> Reason | None:
        allowance = self._setting.allowance
        if time.monotonic() - self._began > allowance.time_s:
            return "time"
        if (exceeded := self._exceeded()) is not None:
            return exceeded
        if self._disk_is_over(allowance.disk_bytes):
            return "disk"
        if len(self._groups.controllers) < len(_EXCEEDED):
            used = watching.use(watching.family(self._process.pid))
            if used.tasks > allowance.processes + _OWN_TASKS:
                return "processes"
            if used.memory_bytes > allowance.memory_bytes:
                return "memory"
        return None

    def _disk_is_over(self, bound: int) -> bool:
        folders, now = self._setting.write, time.monotonic()
        if folders and now >= self._next_unlinked:
            self._next_unlinked = now + _UNLINKED_S
            self._unlinked = watching.unlinked_bytes(watching.family(self._process.pid), folders)
        return any(watching.disk_bytes([one], bound) + self._unlinked > bound for one in folders)

    def _exceeded(self) -> Reason | None:
        which = self._groups.exceeded()
        return None if which is None else _EXCEEDED[which]


class _Started(NamedTuple):
    process: subprocess.Popen[bytes]
    inside: int | None
    """A descriptor of the first process behind walls (pidfd_open(2)); None where there are none."""


@contextmanager
def confined(arguments: Sequence[str], setting: Setting) -> Iterator[Confined]:
    """Run a program in a sandbox while the block runs; what is left of it at the end is ended.

    Raises:
        SandboxError: there is no bubblewrap and `unsafe` was not asked for, or it makes no sandbox here.
        InputError: a folder that is to be written to is not there.
    """
    for folder in setting.write:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
    program = command.find_bubblewrap()
    if program is None and not setting.unsafe:
        raise SandboxError(
            "bubblewrap (bwrap) is not installed, and without it a job's code could do all that you can; install it "
            "(apt install bubblewrap), or give --unsafe for code that you trust"
        )
    allowance = setting.allowance
    with ExitStack() as stack:
        groups = Groups.make(allowance.memory_bytes, allowance.processes + _OWN_TASKS)
        stack.callback(groups.close)
        if program is None or setting.unsafe:
            scratch = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="awfulowl-", ignore_cleanup_errors=True))
            )
            setting = replace(setting, write=(*setting.write, scratch))
            started = _start_bare(arguments, setting, groups, scratch)
        else:
            started = _start(program, arguments, setting, groups)
        running = Confined(started, groups, setting)
        stack.callback(running.close)
        yield running


def run_confined(arguments: Sequence[str], setting: Setting, *, stdin: bytes = b"") -> tuple[Outcome, bytes]:
    """Run a program in a sandbox to its end; return how it ended and what it wrote to standard output.

    Raises:
        SandboxError: there is no bubblewrap and `unsafe` was not asked for, or it makes no sandbox here.
    """
    with confined(arguments, setting) as running:
        feeder = threading.Thread(target=_feed, args=(running.stdin, stdin), daemon=True)
        feeder.start()
        output = running.stdout.read()
        outcome = running.wait()
        feeder.join()
    return outcome, output


def _feed(pipe: IO[bytes], content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.write(content)
        pipe.close()


def _start(program: str, arguments: Sequence[str], setting: Setting, groups: Groups) -> _Started:
    ends = [os.pipe() for _ in range(3)]
    (filter_read, filter_write), (info_read, info_write), (block_read, block_write) = ends
    try:
        os.write(filter_write, seccomp.program())
        os.close(filter_write)
        words = command.bubblewrap(
            program,
            arguments,
            threads=setting.threads,
            scratch_bytes=_scratch_bytes(setting.allowance),
            read=setting.read,
            write=setting.write,
            descriptors=(filter_read, info_write, block_read),
        )
        process = _popen(words, {}, pass_fds=(filter_read, info_write, block_read))
    finally:
        for descriptor in (filter_read, info_write, block_read):
            os.close(descriptor)
    inside = None
    try:
        child = _child(info_read)
        if child is not None:
            inside = os.pidfd_open(child)
            _bound(child, setting.allowance, groups)
            groups.add(process.pid)
            os.write(block_write, b"\0")
    except BaseException:
        # Before the pipe is closed that it waits on: a closed pipe would let it begin.
        if inside is not None:
            signal.pidfd_send_signal(inside, signal.SIGKILL)
            os.close(inside)
        process.kill()
        process.wait()
        raise
    finally:
        os.close(info_read)
        os.close(block_write)
    return _Started(process, inside)


def _start_bare(arguments: Sequence[str], setting: Setting, groups: Groups, scratch: Path) -> _Started:
    """Start without walls: what is counted and bounded is bounded, but nothing is hidden or forbidden."""
    environment = command.environment(setting.threads) | {"HOME": str(scratch), "TMPDIR": str(scratch)}
    process = _popen(arguments, environment, cwd=scratch)
    _bound(process.pid, setting.allowance, groups)
    return _Started(process, None)


def _popen(
    words: Sequence[str], environment: Mapping[str, str], *, pass_fds: tuple[int, ...] = (), cwd: Path | None = None
) -> "subprocess.Popen[bytes]":
    # The thread that starts it must outlive it: bubblewrap's --die-with-parent means the thread.
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        pass_fds=pass_fds,
        cwd=cwd,
        start_new_session=True,
    )


def _child(info: int) -> int | None:
    """Return the first process inside, as bubblewrap reports it; None if it ended without a report."""
    said = b""
    end = time.monotonic() + _START_S
    # To the end of what it says: it writes in pieces, and a pipe that is closed meanwhile would end it.
    while b"}" not in said:
        ready, _, _ = select.select([info], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise SandboxError(f"bubblewrap has not started anything within {_START_S:g} s")
        part = os.read(info, KIB)
        if not part:
            return None
        said += part
    number = _CHILD.search(said)
    return None if number is None else int(number[1])


def _bound(process: int, allowance: Allowance, groups: Groups) -> None:
    """Put a process that has not begun into its control groups, and give it its resource limits."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_FSIZE: allowance.disk_bytes,
        resource.RLIMIT_NPROC: allowance.processes + _OWN_TASKS,
    }
    if "memory" not in groups.controllers:
        limits[resource.RLIMIT_DATA] = allowance.memory_bytes + _SPARE_BYTES
    try:
        groups.add(process)
        if "pids" not in groups.controllers:
            # A limit on processes does not bind root: who watches must not be outrun by what it watches.
            os.setpriority(os.PRIO_PROCESS, process, _LOWEST_PRIORITY)
        for which, bound in limits.items():
            _, most = resource.prlimit(process, which)
            least = bound if most == resource.RLIM_INFINITY else min(bound, most)
            resource.prlimit(process, which, (least, least))
    except OSError as error:
        raise SandboxError(f"no limits can be put on a job's code here: {error.strerror}") from error


def _scratch_bytes(allowance: Allowance) -> int:
    """Room in a folder in memory: what two of them hold is memory, too."""
    return max(_LEAST_SCRATCH_BYTES, min(allowance.disk_bytes, allowance.memory_bytes // 4))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise SandboxError("a program was started without a pipe to it")
    return pipe
