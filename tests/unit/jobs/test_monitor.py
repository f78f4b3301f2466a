"""The monitor keeps every step, and samples by itself."""

import itertools
import threading

import pytest

from awfulowl.jobs.loop import Row
from awfulowl.jobs.monitor import Monitor, process_probe
from tests.unit.jobs.small import no_probe


def test_records_are_kept_and_handed_over_once() -> None:
    clock = itertools.count(100.0)
    with Monitor(3600, lambda: (0.25, 7), lambda: next(clock)) as monitor:
        monitor.step(0, Row(1.0, 0.1, 2.0))
        monitor.step(1, Row(0.5, 0.1, 3.0))
        monitor.evaluation(2, 0.75)
        found = monitor.take()
        assert [(row.step, row.loss, row.rate, row.norm, row.at) for row in found.iterations] == [
            (0, 1.0, 0.1, 2.0, 101.0),
            (1, 0.5, 0.1, 3.0, 102.0),
        ]
        assert [(one.at, one.utilisation, one.memory_bytes) for one in found.samples] == [(100.0, 0.25, 7)]
        assert [(one.step, one.loss) for one in found.evaluations] == [(2, 0.75)]
        assert monitor.take() == ((), (), ())


def test_samples_come_while_training_goes_on() -> None:
    seen = threading.Semaphore(0)

    def probe() -> tuple[float, int]:
        seen.release()
        return 1.0, 1

    with Monitor(0.001, probe) as monitor:
        for _ in range(4):
            assert seen.acquire(timeout=30)
        assert len(monitor.take().samples) >= 3
    assert not any(thread.name == "job monitor" for thread in threading.enumerate())


def test_what_is_kept_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awfulowl.jobs.monitor.FULL", 2)
    monkeypatch.setattr("awfulowl.jobs.monitor.MOST_RECORDS", 3)
    monitor = Monitor(3600, no_probe)
    for _ in range(5):
        monitor._sample()
    assert monitor.full
    assert len(monitor.take().samples) == 3
    assert not monitor.full


def test_the_thread_ends_with_an_error() -> None:
    with pytest.raises(KeyError), Monitor(0.01, lambda: (0.0, 0)):
        raise KeyError
    assert not any(thread.name == "job monitor" for thread in threading.enumerate())


def test_this_process_can_be_looked_at() -> None:
    utilisation, memory_bytes = process_probe(1)()
    assert 0 <= utilisation <= 1
    assert memory_bytes > 1 << 20
