"""Plain scripts: what they log is chained and signed, what they store is kept, and none of it is verified."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from awfulowl.errors import InputError, ProofError
from awfulowl.jobs.job import Job
from awfulowl.jobs.loop import Row
from awfulowl.jobs.monitor import Monitor, Probe, process_probe
from awfulowl.jobs.proof import LOG, STATES, claim, state_path, write_aside
from awfulowl.jobs.records import RecordBatch, encode_frame, genesis, read_log
from awfulowl.jobs.state import State, encode
from awfulowl.jobs.task import Run, Script
from awfulowl.jobs.verify import UNREADABLE, Finding, Verdict

UNVERIFIED: Final = "a plain script cannot be run again step by step: what it logged is signed, and not verified"


class ScriptRun(Run):
    """Writes the log and the checkpoints of a plain script.

    Args:
        job: of the script.
        directory: of its proof.
        key: of the runner.
        monitor: that samples the machine meanwhile.
    """

    def __init__(self, job: Job, directory: Path, key: Ed25519PrivateKey, monitor: Monitor) -> None:
        self._every: Final = job.proving.checkpoint_every
        self._directory: Final = directory
        self._key: Final = key
        self._monitor: Final = monitor
        self._before = genesis(job)
        self._first = 0
        self._last = 0

    def log(self, step: int, loss: float, *, rate: float = 0.0, norm: float = 0.0) -> None:
        """Record a step.

        Raises:
            InputError: steps do not rise.
        """
        if step < self._last:
            raise InputError(f"step {step} was logged after step {self._last - 1}: steps have to rise")
        self._monitor.step(step, Row(float(loss), float(rate), float(norm)))
        self._last = step + 1
        if self._last - self._first >= self._every:
            self.flush()

    def checkpoint(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors."""
        state = State(step, {name: tensor.detach().cpu().clone() for name, tensor in sorted(tensors.items())})
        write_aside(state_path(self._directory / STATES, step), encode(state))

    def flush(self) -> None:
        """Sign what was recorded since the last time."""
        batch = RecordBatch(
            before=self._before, first=self._first, last=self._last, resumed=False, **self._monitor.take()._asdict()
        )
        frame, self._before = encode_frame(batch, self._key)
        self._first = self._last
        with (self._directory / LOG).open("ab") as file:
            file.write(frame)


def run_script(
    job: Job,
    script: Script,
    files: Mapping[str, bytes],
    directory: Path,
    key: Ed25519PrivateKey,
    probe: Probe | None = None,
) -> None:
    """Run a plain script, and keep what it says.

    Raises:
        InputError: the directory cannot be used, or the script's steps do not rise.
    """
    claim(directory, job)
    if (directory / LOG).exists():
        raise InputError(f"{directory} holds the log of a plain script, which cannot be gone on with: name another one")
    with Monitor(job.logging.sample_every_s, probe or process_probe(job.training.threads)) as monitor:
        run = ScriptRun(job, directory, key, monitor)
        script.main(run, files)
        run.flush()


def look(job: Job, directory: Path) -> Verdict:
    """Return the verdict on a plain script: refused if its log is not the runner's, else "unverified"."""
    reason = None
    steps = 0
    try:
        log = read_log(directory / LOG, job)
        steps = len(log.iterations)
        if not steps:
            reason = "the log is empty"
    except ProofError as error:
        reason = str(error)
    return Verdict(
        status="refused" if reason else "unverified",
        caught_by=UNREADABLE if reason else None,
        reason=reason or UNVERIFIED,
        findings=(Finding(check=UNREADABLE, printed=False, reason=reason, seconds=0.0),),
        verification_cost=None,
        replayed_steps=0,
        evaluated_examples=0,
        steps=steps,
        exact=False,
        job=job.digest.hex(),
        commitment="",
        model="",
    )


def trainer_callback(run: Run) -> Any:
    """Return a callback for Hugging Face's `Trainer` that records what it logs.

    Raises:
        InputError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "the callback needs transformers, which is not installed: pip install 'awfulowl[trainer]'"
        ) from error

    def on_log(_: Any, __: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **___: Any) -> Any:
        if logs is not None and "loss" in logs:
            norm = float(logs.get("grad_norm", 0.0))
            run.log(state.global_step, float(logs["loss"]), rate=float(logs.get("learning_rate", 0.0)), norm=norm)
        return control

    methods: dict[str, Callable[..., Any]] = {"on_log": on_log}
    return type("RunCallback", (TrainerCallback,), methods)()
