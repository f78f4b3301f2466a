"""Options that several commands share, and what their texts mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from awfulowl.errors import InputError

if TYPE_CHECKING:
    from awfulowl.placement.ledger import Device

MODELS: Final = ("convnet", "digits", "mlp", "transformer", "vgg16")
RECIPES: Final = ("digits", "cifar10", "text")
"""Names that are completed. Reading the catalogues would make every press of the tabulator wait for PyTorch."""


def _complete_model(incomplete: str) -> list[str]:
    return _beginning(MODELS, incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes that begin so."""
    return _beginning(RECIPES, incomplete)


def complete_arithmetic(incomplete: str) -> list[str]:
    """Return the kinds of arithmetic that begin so."""
    return _beginning(("float32", "int8", "int16", "auto"), incomplete)


def _beginning(words: Sequence[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


_MODEL_HELP: Final = (
    "A reference model (digits, mlp:784-256-10, convnet:10, vgg16:100, transformer:causal), or "
    "path/to/file.py:function, which runs that file; the function returns a torch.nn.Module, or one and an example of "
    "its input."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=_complete_model)]
OptionalModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=_complete_model, show_default=False)
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - is standard output.", show_default=False),
]
Devices = Annotated[
    str,
    typer.Option(metavar="N|NAMES", help="How many devices, or their names: d1,d2@acme,d3@acme (name@domain)."),
]
Block = Annotated[str, typer.Option(metavar="auto|N|RxC", help="Rows and columns of a block.")]
Replicas = Annotated[
    int | None,
    typer.Option(min=1, help="Devices that hold each block; by default 2, but 1 on fewer than 4 or with shares."),
]
Arithmetic = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="float32, or exact integers: int8 (fast), int16 (near lossless), auto (int8 where a layer's error on the "
        "example is at most 1 %, else int16; auto:0.002 sets another limit).",
        autocompletion=complete_arithmetic,
    ),
]
Sharing = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of integers: inputs:2 (to inputs:8), inputs split among domains that hold the weights; replicated, "
        "inputs and weights split among three. Name domains with --devices d1@alice,d2@bob.",
        autocompletion=lambda incomplete: _beginning(("inputs:2", "inputs:3", "replicated"), incomplete),
        show_default=False,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="A module that stays at the owner, with all below it; may be repeated."),
]
PlanSeed = Annotated[
    int | None, typer.Option(help="Make the plan repeatable, and so UNSAFE: for experiments only.", show_default=False)
]
Identity = Annotated[Path, typer.Option(metavar="FILE", help="Your key file, made by owl identity.")]
Key = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The key file under which plan files are encrypted; by default fleet.key in your folder of data.",
        show_default=False,
    ),
]


def parse_devices(text: str) -> "tuple[Device, ...]":
    """Return devices from a number, or from names with or without domains, separated by commas.

    Raises:
        InputError: there are none, two share a name, or a name cannot be one.
    """
    from awfulowl.fabric.base import check_name
    from awfulowl.placement.naming import name_devices

    text = text.strip()
    if text.lstrip("-").isdigit():
        return name_devices(int(text))
    devices = name_devices([part.strip() for part in text.split(",")])
    for device in devices:
        check_name(device.name)
    return devices


def parse_block(text: str) -> Literal["auto"] | int | tuple[int, int]:
    """Return what `--block` means: auto, one number, or rows x columns.

    Raises:
        InputError: it means nothing.
    """
    if text == "auto":
        return "auto"
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) <= 9 for side in sides):
        raise InputError(f"--block {text!r} is neither auto nor a number such as 64, nor rows x columns such as 64x32")
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 else int(sides[0])


def names(paths: Sequence[str] | None) -> tuple[str, ...]:
    """Return the values of an option that may be repeated."""
    return tuple(paths or ())
