"""Loops that numba compiles, where it is installed (extra `fast`); whoever calls them has another way without it."""

import contextlib
import threading
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final

WORTH_COMPILING: Final = 1 << 22
"""Weights of a model from which the seconds that loading numba takes are worth it."""


class Loops:
    """A module of loops that is loaded when somebody asks for it, once in a process."""

    def __init__(self, name: str, call_all: Callable[[], None]) -> None:
        """Load nothing yet.

        Args:
            name: of the module; it imports numba.
            call_all: calls each loop with each type that it will get, so that none is compiled under a request.
        """
        self.module: ModuleType | None = None
        self._name = name
        self._call_all = call_all
        self._preparing = threading.Lock()

    def prepare(self) -> bool:
        """Compile the loops, or load them from where they were kept, and say whether they are there."""
        with self._preparing:
            if self.module is None:
                with contextlib.suppress(ImportError):
                    self.module = import_module(self._name)
                    self._call_all()
        return self.module is not None


def loop(*allowed: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles a loop and keeps it on disk; `allowed` are freedoms of LLVM with floats."""
    from numba import njit  # noqa: PLC0415  an extra, and a second to load

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(nogil=True, fastmath=set(allowed), error_model="numpy", cache=True)(function)
        except RuntimeError:  # nowhere to keep what is compiled
            return njit(nogil=True, fastmath=set(allowed), error_model="numpy", cache=False)(function)

    return decorate
