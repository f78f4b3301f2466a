"""Where the value of an option comes from: the command line, else the environment, else a file of the user.

The environment's name of `owl demo --devices` is `AWFULOWL_DEMO_DEVICES`; the file is `awfulowl/config.toml` in the
user's folder of configurations (`$XDG_CONFIG_HOME`, by default `~/.config`), with a table for each command::

    [demo]
    devices = 12
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import platformdirs
import typer

from awfulowl.errors import InputError

_APPLICATION: Final = "awfulowl"


def variable(*names: str) -> str:
    """Return the name of a variable of the environment: of a command, and of its option."""
    return "_".join((_APPLICATION, *names)).upper().replace("-", "_")


def config_file() -> Path:
    """Return where the user's settings are, whether there are any or not."""
    return platformdirs.user_config_path(_APPLICATION) / "config.toml"


def secrets_folder() -> Path:
    """Return where keys are kept unless the user says otherwise: the user's folder of data, mode 0700."""
    return platformdirs.user_data_path(_APPLICATION)


def key_file(given: Path | None) -> Path:
    """Return the fleet's key file: the one that was named, or the usual one."""
    return secrets_folder() / "fleet.key" if given is None else given


def options_of(context: typer.Context) -> dict[str, set[str]]:
    """Return the names of the options of every command."""
    commands: Mapping[str, Any] = getattr(context.command, "commands", {})
    return {name: {option.name for option in command.params} for name, command in commands.items()}


def read(path: Path, options: Mapping[str, Collection[str]]) -> dict[str, dict[str, Any]]:
    """Read a file of settings: values by command and option. No file, no settings.

    Raises:
        InputError: it cannot be read, is no TOML, or names what there is not.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    return {command: _table(path, command, table, options) for command, table in found.items()}


def _table(path: Path, command: str, table: object, options: Mapping[str, Collection[str]]) -> dict[str, Any]:
    if command not in options or not isinstance(table, dict):
        raise InputError(f"{path}: {command!r} is no table of a command; there are {', '.join(sorted(options))}")
    values = {name.replace("-", "_"): value for name, value in table.items()}
    unknown = sorted(values.keys() - set(options[command]))
    if unknown:
        known = ", ".join(sorted(options[command]))
        raise InputError(f"{path}: 'owl {command}' has no option {unknown[0]!r}; there are {known}")
    return values


def origin(error: typer.TyperException) -> str:
    """Return where a refused value came from, in words, unless it stood on the command line."""
    if not isinstance(error, typer.BadParameter) or error.param is None or error.ctx is None:
        return ""
    source = error.ctx.get_parameter_source(error.param.name)
    if source is None or source.name not in {"ENVIRONMENT", "DEFAULT_MAP"}:
        return ""
    if source.name == "DEFAULT_MAP":
        return f" (from {config_file()})"
    return f" (from the environment: {error.ctx.auto_envvar_prefix}_{error.param.name.upper()})"
