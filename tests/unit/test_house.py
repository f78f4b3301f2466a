"""The rules of the house that no linter knows: sizes, names, and what the package must not contain."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

import awfulowl

PACKAGE = Path(inspect.getfile(awfulowl)).parent
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
FORBIDDEN_NAMES = {"common", "core", "helper", "helpers", "misc", "util", "utils"}
MOST_MODULE_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef
Node = TypeVar("Node", bound=ast.AST)


class Found(NamedTuple):
    """One function and the name it is known by."""

    name: str
    node: Function


def functions(tree: ast.AST, prefix: str = "") -> Iterator[Found]:
    """Every function, with the classes and functions around it in its name."""
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, Function | ast.ClassDef):
            inner = f"{prefix}{node.name}."
        if isinstance(node, Function):
            yield Found(inner[:-1], node)
        yield from functions(node, inner)


def everywhere() -> Iterator[tuple[str, Function]]:
    """Every function of the package, as "file name"."""
    return ((f"{name} {found.name}", found.node) for name, tree in TREES.items() for found in functions(tree))


def nodes(kind: type[Node]) -> Iterator[tuple[str, Node]]:
    """Every node of one kind in the package, with its file."""
    return ((name, node) for name, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kind))


def lines(node: Function) -> int:
    """Lines without the docstring: `def` to the last statement."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def parameters(node: Function) -> int:
    """All parameters but `self`."""
    arguments = node.args
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - 1


def imported(node: ast.AST) -> set[str]:
    """The top names that an import brings in."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def hides(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything and keeps it: cleaning up and raising again hides nothing."""
    names = (
        {ast.unparse(node) for node in ast.walk(handler.type) if isinstance(node, ast.expr)} if handler.type else {""}
    )
    last = handler.body[-1]
    raised = isinstance(last, ast.Raise) and last.exc is None
    return bool(names & {"", "Exception", "BaseException"}) and not raised


def test_there_is_something_to_check() -> None:
    assert "errors.py" in TREES


def test_modules_are_short() -> None:
    sizes = {name: len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name in TREES}
    assert {name: size for name, size in sizes.items() if size >= MOST_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    assert [where for where, node in everywhere() if lines(node) >= MOST_FUNCTION_LINES] == []


def test_constructors_take_few_parameters() -> None:
    constructors = [(where, node) for where, node in everywhere() if node.name == "__init__"]
    assert [where for where, node in constructors if parameters(node) > MOST_PARAMETERS] == []


def test_modules_and_public_functions_say_what_they_do() -> None:
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []
    public = {where: node for where, node in everywhere() if not re.search(r"[ .]_", where)}
    nested = {where for where in public if where.rpartition(".")[0] in public}
    assert [where for where, node in public.items() if not ast.get_docstring(node) and where not in nested] == []


def test_nothing_is_asserted() -> None:
    """`python -O` removes assertions; checks raise."""
    assert [f"{name}:{node.lineno}" for name, node in nodes(ast.Assert)] == []


def test_no_error_is_swallowed_unnamed() -> None:
    assert [f"{name}:{node.lineno}" for name, node in nodes(ast.ExceptHandler) if hides(node)] == []


def test_nothing_is_run_that_was_read() -> None:
    forbidden = {"torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec", "os.system", "os.popen"}
    calls = [(name, node.lineno, ast.unparse(node.func)) for name, node in nodes(ast.Call)]
    assert [call for call in calls if call[2] in forbidden] == []


def test_nothing_is_unpickled_but_by_the_restricted_unpickler() -> None:
    forbidden = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    users = {name for name, tree in TREES.items() if forbidden & set().union(*map(imported, ast.walk(tree)))}
    assert users == {"models/unpickling.py"}


def test_names_say_what_is_in_them() -> None:
    parts = {part for name in TREES for part in Path(name).with_suffix("").parts}
    assert parts & FORBIDDEN_NAMES == set()


def test_no_folder_bears_the_name_of_a_public_function() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders & set(getattr(awfulowl, "__all__", ())) == set()


def test_every_folder_is_a_package() -> None:
    folders = {(PACKAGE / name).parent for name in TREES}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("try: pass\nexcept: pass", True),
        ("try: pass\nexcept Exception: pass", True),
        ("try: pass\nexcept (OSError, BaseException) as e: raise ValueError from e", True),
        ("try: pass\nexcept BaseException:\n    clean()\n    raise", False),
        ("try: pass\nexcept OSError: pass", False),
    ],
)
def test_what_hides_an_error(source: str, expected: bool) -> None:
    handler = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler))
    assert hides(handler) is expected


def test_what_is_counted_of_a_function() -> None:
    source = 'class A:\n    def f(self, a, *, b):\n        """One\n        two."""\n        x = 1\n        return x\n'
    found = next(functions(ast.parse(source)))
    assert found.name == "A.f"
    assert lines(found.node) == 3
    assert parameters(found.node) == 2
