"""Options of `owl audit` and `owl attack`."""

from pathlib import Path
from typing import Annotated, Final

import typer

from awfulowl.errors import InputError

VICTIMS: Final = ("digits", "cifar", "vgg16")
"""Names that are completed; reading the catalogue would make every press of the tabulator wait for PyTorch."""

Victim = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="digits, cifar, vgg16, or path/to/file.py:function, which runs that file; the function returns a trained "
        "torch.nn.Module.",
        autocompletion=lambda incomplete: [name for name in VICTIMS if name.startswith(incomplete)],
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="digits, the path of CIFAR-10 (or cifar100:PATH), or a .safetensors file with inputs and labels. Nothing "
        "is ever downloaded.",
    ),
]
Threat = Annotated[
    Path,
    typer.Option("--threat", metavar="FILE", help="The pirate, as TOML; share = 0.3 alone is one.", show_default=False),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="An attacked layer; may be repeated. By default the victim's largest."),
]
Blocks = Annotated[
    list[str] | None,
    typer.Option("--block", metavar="auto|N", help="Rows and columns of a block; may be repeated."),
]
Taking = Annotated[
    str,
    typer.Option(
        metavar="SHAPE",
        help="How loot is drawn: the devices of a plan that deals columns, rows, rectangles or scattered blocks; or "
        "blocks, a share of all blocks wherever they are.",
    ),
]
Devices = Annotated[int, typer.Option(min=1, help="Devices of the plan.")]
Seed = Annotated[int, typer.Option(min=0, max=10**6, help="Of everything random; equal seeds give equal numbers.")]


def parse_blocks(texts: list[str] | None) -> list[object]:
    """Return what `--block` means.

    Raises:
        InputError: it means nothing.
    """
    for text in texts or []:
        if text != "auto" and not (text.isascii() and text.isdigit() and 1 <= len(text) <= 5):
            raise InputError(f"--block {text!r} is neither auto nor a number such as 64")
    return [text if text == "auto" else int(text) for text in texts or ["auto"]]
