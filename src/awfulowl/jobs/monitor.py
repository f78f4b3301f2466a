"""The monitor: keeps what every step says of itself, and looks at the machine once a second, while training goes on."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

from awfulowl.errors import InputError
from awfulowl.jobs.loop import Row
from awfulowl.jobs.records import FULL, MOST_RECORDS, Evaluation, Iteration, Sample

Probe = Callable[[], tuple[float, int]]
"""Returns utilisation (0 to 1) and memory in bytes."""


class Records(NamedTuple):
    """What was written since the last time."""

    iterations: tuple[Iteration, ...]
    samples: tuple[Sample, ...]
    evaluations: tuple[Evaluation, ...]


class Monitor:
    """Collects records; a thread of its own takes the samples.

    Args:
        every_s: seconds between samples.
        probe: what is sampled.
        clock: seconds since 1970.
    """

    def __init__(self, every_s: float, probe: Probe, clock: Callable[[], float] = time.time) -> None:
        self._every_s: Final = every_s
        self._probe: Final = probe
        self._clock: Final = clock
        self._iterations: list[Iteration] = []
        self._samples: list[Sample] = []
        self._evaluations: list[Evaluation] = []
        self._lock: Final = threading.Lock()
        self._over: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._watch, name="job monitor", daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def step(self, step: int, row: Row) -> None:
        """Keep what a step says."""
        self._iterations.append(Iteration(step, row.loss, row.rate, row.norm, self._clock()))

    def evaluation(self, step: int, loss: float) -> None:
        """Keep the evaluation of the state before a step."""
        self._evaluations.append(Evaluation(step, loss))

    @property
    def full(self) -> bool:
        """Whether so much was kept that it has to be taken: a batch of the log has an end."""
        return max(len(self._iterations), len(self._samples)) >= FULL

    def take(self) -> Records:
        """Return what was kept, and forget it."""
        with self._lock:
            samples, self._samples = self._samples, []
        found = Records(tuple(self._iterations), tuple(samples), tuple(self._evaluations))
        self._iterations, self._evaluations = [], []
        return found

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        utilisation, memory_bytes = self._probe()
        sample = Sample(self._clock(), utilisation, memory_bytes)
        with self._lock:
            if len(self._samples) < MOST_RECORDS:
                self._samples.append(sample)


def process_probe(threads: int) -> Probe:
    """Return what looks at this process: the share of `threads` cores that it used since the last look, its memory.

    Raises:
        InputError: psutil is not installed.
    """
    try:
        import psutil  # noqa: PLC0415 - an extra: only jobs need it
    except ImportError as error:
        raise InputError("the monitor needs psutil, which is not installed: pip install 'awfulowl[jobs]'") from error
    process = psutil.Process()
    process.cpu_percent()

    def look() -> tuple[float, int]:
        return min(1.0, process.cpu_percent() / 100 / threads), int(process.memory_info().rss)

    return look
