"""The choice of the event loop."""

import asyncio
import sys

import pytest

from awfulowl.fabric.loop import new_event_loop
from tests.missing import need


def test_uvloop_is_taken_where_it_is_installed() -> None:
    uvloop = need("uvloop")
    loop = new_event_loop()
    try:
        assert isinstance(loop, uvloop.Loop)
    finally:
        loop.close()


def test_the_loop_of_python_is_taken_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_event_loop()
    try:
        assert isinstance(loop, asyncio.SelectorEventLoop)
    finally:
        loop.close()
