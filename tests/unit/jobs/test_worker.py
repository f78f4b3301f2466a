"""The inside of the sandbox, without one: why code failed, in one word and in few."""

import errno
import io
import socket
import urllib.error

import pytest

from awfulowl.errors import InputError
from awfulowl.jobs.importing import find, importable
from awfulowl.jobs.messages import Failed, Progress, read_events
from awfulowl.jobs.worker import _report, _Throttled

CASES: list[tuple[BaseException, str]] = [
    (ValueError("why"), "raised"),
    (InputError("not usable"), "refused"),
    (MemoryError(), "memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
    (OSError(errno.ENETDOWN, "down"), "network"),
    (socket.gaierror(-3, "no names"), "network"),
    (urllib.error.URLError(OSError(errno.ENETUNREACH, "no way")), "network"),
    (OSError(errno.ENOSPC, "full"), "disk"),
    (OSError(errno.EFBIG, "large"), "disk"),
    (BlockingIOError(errno.EAGAIN, "no more"), "processes"),
    (RuntimeError("can't start new thread"), "processes"),
    (OSError(errno.ENOENT, "none"), "raised"),
]


def reported(error: BaseException) -> Failed:
    """What goes out when this is raised."""
    outbox = io.BytesIO()
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  as the hook gets it
        _report(outbox, caught, caught.__traceback__)
    outbox.seek(0)
    (event,) = read_events(outbox)
    assert isinstance(event, Failed)
    return event


@pytest.mark.parametrize(("error", "reason"), CASES)
def test_what_is_raised_has_a_reason(error: BaseException, reason: str) -> None:
    assert reported(error).reason == reason


@pytest.mark.parametrize(("error", "reason"), CASES[2:6])
def test_the_reason_behind_the_reason_counts(error: BaseException, reason: str) -> None:
    outer = KeyError("caught on the way")
    outer.__cause__ = error
    assert reported(outer).reason == reason


def test_errors_that_go_round_in_circles_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert reported(one).reason == "raised"


def test_the_place_is_told_and_never_the_text_of_the_code() -> None:
    code = {"secret_task.py": b"def deep():\n    secret_number = 1234\n    return 1 / 0\n\n\nTask = deep()\n"}
    outbox = io.BytesIO()
    with importable(code):
        try:
            find("secret_task:Task")
        except ZeroDivisionError as error:
            _report(outbox, error, error.__traceback__)
    outbox.seek(0)
    (event,) = read_events(outbox)
    assert event == Failed("raised", "ZeroDivisionError: division by zero (in secret_task.py, line 3)")


def test_long_texts_are_cut() -> None:
    assert len(reported(ValueError("x" * 99_999)).text) <= 1100


def test_progress_is_told_a_hundred_times_and_at_the_end() -> None:
    outbox = io.BytesIO()
    tell = _Throttled(outbox)
    for done in range(1, 10_001):
        tell(done, 10_000, 0.5)
    outbox.seek(0)
    told = [event for event in read_events(outbox) if isinstance(event, Progress)]
    assert 90 <= len(told) <= 102
    assert (told[0].done, told[-1].done) == (1, 10_000)
