"""What tests need and a machine may lack: they are skipped there, with the reason; CI has everything, and fails."""

import importlib
import os
from typing import Any, NoReturn

import pytest


def skip(reason: str) -> NoReturn:
    """Skip a test, or a module of tests; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def need(module: str) -> Any:
    """Return a module of a package that users may go without."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{module} is not installed: {error}"
    skip(reason)
