"""Code imported from memory: nothing of it reaches a disk, and nothing of it stays behind.

The client's files are modules as they would be with their folder in `sys.path`, in front of everything installed, so
that a job means the same on every machine. What would stand in the place of the standard library, of this package or
of a module in use is refused. This keeps order, not prisoners: code that runs can do all that its process can.
"""

import importlib.util
import linecache
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Final

from awfulowl.errors import InputError

ROOT: Final = "<job>/"
"""In front of a file's name in tracebacks: there is no such folder."""

_PACKAGE: Final = "/__init__.py"


@contextmanager
def importable(code: Mapping[str, bytes]) -> Iterator[None]:
    """Let `import` find the modules of some files inside the block.

    Raises:
        InputError: a file would hide a module of somebody else.
    """
    finder = _Finder(code)
    for name in sorted(finder.tops):
        if name in sys.stdlib_module_names or name in sys.modules or name == "awfulowl":
            raise InputError(f"the code has a module {name!r}, which would hide another of that name; rename it")
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if _is_of(module, finder)]:
            del sys.modules[name]
        for name in [name for name in linecache.cache if name.startswith(ROOT)]:
            del linecache.cache[name]


def find(path: str) -> object:
    """Return what `module:name` means; inside `importable`.

    Raises:
        InputError: there is no such module or name. What the module raises is raised.
    """
    module_name, _, name = path.partition(":")
    try:
        missing = importlib.util.find_spec(module_name) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise InputError(f"task: the code has no module {module_name!r}")
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise InputError(f"task: the module {module_name!r} has no {name!r}")
    return getattr(module, name)


class _Finder(MetaPathFinder):
    """Finds modules among files in memory."""

    def __init__(self, code: Mapping[str, bytes]) -> None:
        self.loader: Final = _Loader(code)
        self.tops: Final = {name.partition("/")[0].removesuffix(".py") for name in code if name.endswith(".py")}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return how a module is loaded, or None if it is none of these files."""
        file = self.loader.file_of(fullname)
        if file is None:
            return None
        packaged = self.loader.is_package(fullname)
        spec = ModuleSpec(fullname, self.loader, origin=ROOT + file if file else None, is_package=packaged)
        spec.has_location = bool(file)
        return spec


class _Loader(InspectLoader):
    """Compiles modules out of memory; `exec_module` is the base class's."""

    def __init__(self, code: Mapping[str, bytes]) -> None:
        self._code = code
        self._folders = {name[:place] for name in code for place, char in enumerate(name) if char == "/"}

    def file_of(self, fullname: str) -> str | None:
        """Return the file of a module, "" for a folder without `__init__.py`, None where there is neither."""
        base = fullname.replace(".", "/")
        if base + _PACKAGE in self._code:
            return base + _PACKAGE
        if base + ".py" in self._code:
            return base + ".py"
        return "" if base in self._folders and self._holds_modules(base) else None

    def _holds_modules(self, folder: str) -> bool:
        return any(name.startswith(folder + "/") and name.endswith(".py") for name in self._code)

    def is_package(self, fullname: str) -> bool:
        """Whether a module has others below it."""
        file = self.file_of(fullname)
        return file is not None and not (file.endswith(".py") and not file.endswith(_PACKAGE))

    def get_source(self, fullname: str) -> str:
        """Return the text of a module, for the compiler and for tools that read it, such as `torch.jit`."""
        file = self.file_of(fullname)
        if file is None:
            raise ImportError(f"the code has no module {fullname!r}", name=fullname)
        return importlib.util.decode_source(self._code[file]) if file else ""

    def get_code(self, fullname: str) -> CodeType:
        """Compile a module under its name, which tracebacks show."""
        return self.source_to_code(self.get_source(fullname), ROOT + (self.file_of(fullname) or ""))

    def get_data(self, path: str) -> bytes:
        """Return the content of a file beside the modules (`pkgutil.get_data`)."""
        name = path.removeprefix(ROOT)
        if name not in self._code:
            raise FileNotFoundError(f"the code has no file {name!r}")
        return self._code[name]


def _is_of(module: ModuleType | None, finder: _Finder) -> bool:
    spec = getattr(module, "__spec__", None)
    return spec is not None and spec.loader is finder.loader
