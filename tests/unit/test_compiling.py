"""Loops are compiled once, kept on disk where that can be, and done without where numba is not."""

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest

from awfulowl.compiling import Loops, loop

MODULE = """
from awfulowl.compiling import loop

@loop()
def doubled(x):
    return 2 * x
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with one loop, which nobody has imported."""
    (tmp_path / "some_loops.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_loops", raising=False)
    return "some_loops"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Nowhere is a place to keep what is compiled; what was asked for is told."""
    njit, asked = numba.njit, []

    def nowhere(*arguments: Any, **options: Any) -> Any:
        if "cache" in options:  # numba's own functions do not ask
            asked.append(options["cache"])
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", nowhere)
    return asked


def total(x: Any) -> Any:
    """Return the sum of numbers, in their order."""
    found = 0.0
    for one in x:
        found += one
    return found


def test_where_nothing_can_be_kept_it_is_compiled_each_time(kept: list[bool]) -> None:
    compiled = loop()(total)
    assert compiled(np.arange(5.0)) == 10.0
    assert kept == [True, False]


def test_what_is_compiled_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    loops = Loops(name, lambda: call(loops))
    assert loops.prepare()
    assert list(tmp_path.glob("__pycache__/some_loops.doubled-*.nbi"))


def call(loops: Loops) -> None:
    assert loops.module is not None
    assert loops.module.doubled(2.0) == 4.0


def test_floats_are_added_in_the_order_that_is_written() -> None:
    assert loop()(total)(np.array([1e16, 1.0, -1e16])) == 0.0


@pytest.mark.parametrize("allowed", [(), ("reassoc", "nsz")])
def test_a_loop_has_the_freedoms_that_it_names(allowed: tuple[str, ...]) -> None:
    compiled: Any = loop(*allowed)(total)
    assert compiled.targetoptions["fastmath"] == set(allowed)


def test_divisions_by_zero_are_not_errors() -> None:
    inverse = loop()(lambda x: 1.0 / x)
    assert inverse(0.0) == np.inf


def test_they_are_loaded_once_by_whoever_comes_first(name: str) -> None:
    calls: list[ModuleType | None] = []
    loops = Loops(name, lambda: calls.append(loops.module))
    assert loops.module is None
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(loops.prepare())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    assert calls == [loops.module] != [None]


def test_without_numba_there_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    loops = Loops(name, lambda: pytest.fail("there is nothing to call"))
    assert not loops.prepare()
    assert loops.module is None


def test_other_errors_are_not_hidden(name: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Loops(name, fail).prepare()
