"""What is missing is skipped here and a failure in CI."""

import json

import pytest

from tests.missing import need, skip


def test_what_is_missing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        skip("no such thing")
    with pytest.raises(pytest.skip.Exception, match="there_is_no_such_package"):
        need("there_is_no_such_package")


def test_what_is_missing_in_ci_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such thing"):
        skip("no such thing")
    with pytest.raises(pytest.fail.Exception, match="there_is_no_such_package"):
        need("there_is_no_such_package")


def test_what_is_there_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert need("json") is json
