"""The promised interface: what is here may be added to, never changed."""

import inspect
import subprocess
import sys

import pytest

import awfulowl as owl
from awfulowl import errors
from awfulowl.fleet.fleet import Fleet


def test_public_names() -> None:
    assert owl.__all__ == ["__version__", "audit", "connect", "local_fleet", "plan", "read_checkpoint"]
    assert set(owl.__all__) <= set(dir(owl))
    with pytest.raises(AttributeError, match="no attribute 'scatter'"):
        owl.scatter  # noqa: B018


def test_plan_takes_what_was_promised() -> None:
    parameters = inspect.signature(owl.plan).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "model": inspect.Parameter.empty,
        "example": None,
        "devices": inspect.Parameter.empty,
        "block": "auto",
        "replicas": None,
        "keep": (),
        "share": None,
        "domain_share": None,
        "arithmetic": "float32",
        "sharing": None,
    }
    assert [p.kind for p in parameters.values()].count(inspect.Parameter.KEYWORD_ONLY) == 8


def test_audits_take_what_was_promised() -> None:
    parameters = inspect.signature(owl.audit).parameters
    assert list(parameters)[:4] == ["model", "data", "threat", "output"]
    assert {"attacks", "workers"} <= set(parameters)


def test_fleets_have_what_was_promised() -> None:
    scatter = inspect.signature(Fleet.scatter).parameters
    assert list(scatter)[:4] == ["self", "model", "plan", "train"]
    assert scatter["train"].default is False
    assert "timeout_s" in scatter
    assert "timeout_s" in inspect.signature(Fleet.gather).parameters
    assert next(iter(inspect.signature(owl.local_fleet).parameters)) == "devices"


def test_importing_costs_nothing() -> None:
    """Names are imported when they are used: `import awfulowl` must not load PyTorch."""
    program = "import sys, awfulowl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def all_errors(kind: type[Exception] = errors.AwfulOwlError) -> list[type[Exception]]:
    return [kind, *(found for child in kind.__subclasses__() for found in all_errors(child))]


def test_the_exception_tree_is_drawn_as_it_is() -> None:
    drawn = errors.__doc__ or ""
    for kind in all_errors():
        if kind.__module__ == "awfulowl.errors":
            assert kind.__name__ in drawn
    assert errors.InputError.exit_code == 2
    assert errors.UnavailableError.exit_code == 3
    assert errors.AwfulOwlError.exit_code == 1
    assert not issubclass(errors.PeerError, errors.LocalError)
