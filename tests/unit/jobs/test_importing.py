"""Code imported from memory: it works as from a folder, and nothing of it stays."""

import importlib
import inspect
import linecache
import sys
from types import ModuleType

import pytest

from awfulowl.errors import InputError
from awfulowl.jobs.importing import find, importable

CODE = {
    "task_of_a_job.py": b"import helping.numbers\nfrom network_of_a_job import SIZE\n"
    b"VALUE = helping.numbers.TWO * SIZE\n\nclass Task:\n    value = VALUE\n",
    "helping/numbers.py": b"TWO = 2\n",
    "network_of_a_job/__init__.py": b"import pkgutil\nfrom .sizes import SIZE\n"
    b"WORDS = pkgutil.get_data('network_of_a_job', 'words.txt')\n",
    "network_of_a_job/sizes.py": b"SIZE = 21\n",
    "network_of_a_job/words.txt": b"one two",
    "data/only.txt": b"",
}


def test_modules_packages_and_folders_are_found_and_forgotten() -> None:
    before, paths = set(sys.modules), list(sys.meta_path)
    with importable(CODE):
        found = find("task_of_a_job:Task")
        assert isinstance(found, type)
        assert found.__dict__["value"] == 42
        assert sys.modules["network_of_a_job"].__dict__["WORDS"] == b"one two"
        assert inspect.getsource(found) == "class Task:\n    value = VALUE\n"
    assert set(sys.modules) - before - {"pkgutil"} == set()
    assert sys.meta_path == paths
    assert [name for name in linecache.cache if name.startswith("<job>")] == []
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("task_of_a_job")


def test_nothing_stays_when_the_code_raises() -> None:
    before = set(sys.modules)
    with (
        pytest.raises(ZeroDivisionError),
        importable({"raising_task.py": b"import helping_it\n1 / 0", "helping_it.py": b""}),
    ):
        find("raising_task:Task")
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("missing_one:Task", "no module 'missing_one'"),
        ("helping.missing:Task", "no module 'helping.missing'"),
        ("helping.numbers.deeper:Task", "no module"),
        ("helping.numbers:Task", "has no 'Task'"),
        ("data:Task", "no module 'data'"),
    ],
)
def test_what_is_not_there_is_named(path: str, match: str) -> None:
    with importable(CODE), pytest.raises(InputError, match=match):
        find(path)


@pytest.mark.parametrize("name", ["random.py", "torch/__init__.py", "awfulowl/jobs.py", "json.py", "pytest.py"])
def test_code_that_would_hide_others_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="rename it"), importable({name: b""}):
        pass


def test_code_with_an_error_says_where() -> None:
    with pytest.raises(SyntaxError) as caught, importable({"broken_task.py": b"x = 1\ny ="}):
        find("broken_task:Task")
    assert (caught.value.filename, caught.value.lineno) == ("<job>/broken_task.py", 2)


def test_files_are_read_by_their_names_only() -> None:
    with importable(CODE):
        module = importlib.import_module("network_of_a_job")
        assert isinstance(module, ModuleType)
        loader = module.__spec__.loader if module.__spec__ else None
        with pytest.raises(FileNotFoundError):
            loader.get_data("/etc/passwd")  # type: ignore[union-attr]
