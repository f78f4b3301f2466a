"""Files of users that are run: models, and attacks of their own."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from awfulowl.errors import InputError


class _AsItIs(SourceFileLoader):
    """Compiles the file each time: what Python keeps may be of another one of the same size and second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def run_file(path: Path, kind: str, wanted: str) -> ModuleType:
    """Run a Python file and return what it defines.

    Args:
        path: the file.
        kind: what it is, part of the module's name.
        wanted: what is named after the file, for whoever gave none: function or Class.

    Raises:
        InputError: there is no such file, or it cannot be imported.
    """
    name = f"awfulowl_{kind}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsItIs(name, str(path)))
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{path}: no such Python file; give path/to/file.py:{wanted}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be imported: {error}") from error
    return module
