"""Ctrl-C in the middle of something that has to be ended in order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def in_order(notice: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the user wants to end; who asks a second time is obeyed at once.

    Args:
        notice: called when the user asks for the first time.
    """
    asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        notice()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in jobs that a shell started in the background
            signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
