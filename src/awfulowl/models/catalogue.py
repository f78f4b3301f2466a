"""From a MODEL argument to a model and an example of its input."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from awfulowl.errors import InputError
from awfulowl.models import convnet, vgg
from awfulowl.models.digits import DigitsNet
from awfulowl.models.mlp import Mlp
from awfulowl.models.seeding import seeded
from awfulowl.models.transformer import Transformer, TransformerConfig
from awfulowl.models.user_code import run_file

_MOST = 1_000_000
"""A width or a number of classes above this is a slip of the keyboard."""


class Example(NamedTuple):
    """A model in eval mode, and one sample of its input (None where the user's code gave none)."""

    model: nn.Module
    inputs: object


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One reference model: its name, how it is asked for, and what makes it from its options."""

    name: str
    usage: str
    make: Callable[[str], tuple[nn.Module, Tensor]]


def table(*entries: Entry) -> Mapping[str, Entry]:
    """Return the entries by name.

    Raises:
        ValueError: two of them share a name.
    """
    named: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in named:
            raise ValueError(f"two entries of the catalogue are called {entry.name}")
        named[entry.name] = entry
    return named


def load_example(text: str, *, seed: int = 0) -> Example:
    """Return the model that a MODEL argument means.

    Args:
        text: a name of `CATALOGUE`, alone or with options after a colon (fresh weights), or
            `path/to/file.py:function`, which **runs that file**: the function returns a module, or a module
            and an example.
        seed: of the fresh weights.

    Raises:
        InputError: no such model, options that it does not take, or a file or function that gives no model.
            Errors of the user's own code pass unchanged.
    """
    place, colon, function = text.rpartition(":")
    with seeded(seed):
        if colon and place.endswith(".py"):
            return _user_example(Path(place), function)
        name, _, options = text.partition(":")
        if name not in CATALOGUE:
            known = ", ".join(entry.usage for entry in CATALOGUE.values())
            raise InputError(f"no model {text!r}; there are: {known}, and path/to/file.py:function")
        model, inputs = CATALOGUE[name].make(options)
    return Example(model.eval(), inputs)


def _convnet(options: str) -> tuple[nn.Module, Tensor]:
    classes = _number(options or "10", "convnet", "a number of classes such as convnet:10")
    return convnet.ConvNet(classes), torch.randn(1, *convnet.IMAGE)


def _digits(options: str) -> tuple[nn.Module, Tensor]:
    if options:
        raise InputError(f"digits takes no options, not {options!r}")
    return DigitsNet(), torch.rand(1, 1, 8, 8)


def _mlp(options: str) -> tuple[nn.Module, Tensor]:
    widths = [_number(part, "mlp", "widths such as mlp:784-256-10") for part in (options or "784-256-10").split("-")]
    return Mlp(widths), torch.randn(1, widths[0])


def _transformer(options: str) -> tuple[nn.Module, Tensor]:
    if options not in {"", "causal"}:
        raise InputError(f"transformer takes no options but causal, not {options!r}")
    config = TransformerConfig(causal=options == "causal")
    return Transformer(config), torch.randint(config.vocabulary, (1, config.context))


def _vgg16(options: str) -> tuple[nn.Module, Tensor]:
    classes = _number(options or "100", "vgg16", "a number of classes such as vgg16:100")
    return vgg.Vgg16(classes), torch.randn(1, *vgg.IMAGE)


CATALOGUE: Final = table(
    Entry(name="convnet", usage="convnet or convnet:10", make=_convnet),
    Entry(name="digits", usage="digits", make=_digits),
    Entry(name="mlp", usage="mlp or mlp:784-256-10", make=_mlp),
    Entry(name="transformer", usage="transformer or transformer:causal", make=_transformer),
    Entry(name="vgg16", usage="vgg16 or vgg16:100", make=_vgg16),
)


def _number(text: str, model: str, wanted: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MOST)) and 1 <= int(text) <= _MOST):
        raise InputError(f"{model} takes {wanted}, each from 1 to {_MOST}, not {text!r}")
    return int(text)


def _user_example(path: Path, function: str) -> Example:
    with _beside(path):
        factory = getattr(run_file(path, "user", "function"), function, None)
        if not callable(factory):
            raise InputError(f"{path}: no function {function!r}; give the name of one that returns a model")
        if any(_required(parameter) for parameter in inspect.signature(factory).parameters.values()):
            raise InputError(f"{path}: {function} must be callable without arguments")
        made = factory()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{path}: {function} must return a torch.nn.Module, or one and an example, not {type(made).__name__}"
        )
    return Example(model.eval(), inputs)


def _required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return parameter.default is inspect.Parameter.empty and not variadic


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let the file import its neighbours, as `python path/to/file.py` would."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
