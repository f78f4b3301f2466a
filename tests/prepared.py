"""Compiled loops for the time of a test; other tests find what they had."""

from collections.abc import Iterator
from contextlib import contextmanager

from awfulowl.compiling import Loops


@contextmanager
def prepared(loops: Loops) -> Iterator[None]:
    """Have the loops compiled, and leave them as they were found."""
    before = loops.module
    assert loops.prepare()
    try:
        yield
    finally:
        loops.module = before
