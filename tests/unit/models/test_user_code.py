"""Files of users are run as they are."""

import os
import py_compile
import sys
from pathlib import Path

import pytest

from awfulowl.errors import InputError
from awfulowl.models.user_code import run_file


def test_it_is_a_module_that_others_find(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from dataclasses import dataclass\n@dataclass\nclass Mine:\n    size: int = 16\n")
    module = run_file(path, "test", "function")
    assert module.Mine().size == 16
    assert sys.modules["awfulowl_test_mine"] is module


def test_what_was_compiled_of_another_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("size = 16\n")
    py_compile.compile(str(path))
    before = path.stat()
    path.write_text("size = 24\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run_file(path, "test", "function").size == 24


def test_nothing_is_left_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    path.write_text("size = 16\n")
    run_file(path, "test", "function")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (None, "no such Python file; give path/to/file.py:Class"),
        ("import nothing_of_this_name", "cannot be imported: No module named 'nothing_of_this_name'"),
        ("def", "cannot be imported: invalid syntax"),
    ],
)
def test_what_cannot_be_run_is_said(code: str | None, what: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(InputError, match=rf"mine\.py: {what}"):
        run_file(path, "test", "Class")
