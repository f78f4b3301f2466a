"""A user's own attack, from a file."""

import inspect
from collections.abc import Iterable
from pathlib import Path

from awfulowl.errors import InputError
from awfulowl.lab.attacks.base import Attack
from awfulowl.lab.attacks.catalogue import ATTACKS, find_attacks
from awfulowl.models.user_code import run_file


def resolve(names: Iterable[str]) -> list[Attack]:
    """Return attacks by name, or from path/to/file.py:Class, which **runs that file**; none named: all there are.

    Raises:
        InputError: there is no such attack, file or class, or two have the same name.
    """
    wanted = [*names]
    found = [_own(name) if ".py:" in name else find_attacks([name])[0] for name in wanted] or [*ATTACKS.values()]
    twice = [attack.name for attack in found if [other.name for other in found].count(attack.name) > 1]
    if twice:
        raise InputError(f"two attacks are called {twice[0]!r}")
    return found


def _own(text: str) -> Attack:
    place, _, name = text.rpartition(":")
    path = Path(place)
    module = run_file(path, "attack", "Class")
    kind = getattr(module, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, Attack)) or inspect.isabstract(kind):
        raise InputError(
            f"{path}: no attack {name!r}: name a class that inherits from Attack and has its method recover"
        )
    missing = [field for field in ("name", "rung") if not isinstance(getattr(kind, field, None), str)]
    if missing:
        raise InputError(f"{path}: {name} has no class attribute {missing[0]!r}")
    try:
        made: Attack = kind()
    except TypeError as error:
        raise InputError(f"{path}: {name} must be callable without arguments: {error}") from error
    return made
