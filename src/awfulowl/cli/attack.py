"""`owl attack`: the attacks that there are, and one of them alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from awfulowl.cli import json_output, settings
from awfulowl.cli.lab_options import Blocks, Data, Devices, Layer, Seed, Taking, Threat, parse_blocks
from awfulowl.cli.options import Json
from awfulowl.cli.terminal import Stages, report
from awfulowl.cli.threads import limit_threads

attack: Final = typer.Typer(
    help="List the attacks, run some, or redraw the founding paper's figures.",
    epilog="Example: owl attack list; owl attack run surrogate-norms --model digits --data digits --threat t.toml",
    invoke_without_command=True,
)

_Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME", help="Attacks, or path/to/file.py:Class, which runs that file.", show_default=False),
]
_Model = Annotated[str, typer.Option("--model", metavar="MODEL", help="The victim, as for owl audit.")]
_Published = Annotated[
    list[Path] | None,
    typer.Option(
        "--published",
        metavar="FILE",
        help="The paper's own results, drawn under ours; twice for both figures (benchmarks/published has both).",
        show_default=False,
    ),
]
_Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the figures and numbers.")]
_Draws = Annotated[int, typer.Option(min=1, max=100, help="Draws for every point.")]
_Images = Annotated[int, typer.Option(min=1, help="Test images, at most.")]


def list_(*, json: Json = None) -> None:
    """List the attacks: what each is called, the rung that it stands on, and what the threat model has to grant."""
    json_output.check_target(json)
    with Stages() as stages, stages.stage("loading PyTorch"):
        from awfulowl.cli import attacking
    json_output.write(attacking.listed(), json)
    attacking.show_list(report(json))


def run(
    names: _Names,
    *,
    model: _Model = "digits",
    data: Data = "digits",
    threat: Threat,
    layer: Layer = None,
    block: Blocks = None,
    taking: Taking = "columns",
    devices: Devices = 20,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Run attacks once on one victim, beside floors and standard lines. For intervals and a verdict: owl audit."""
    # Neither loads PyTorch: what is wrong with the request is said at once.
    from awfulowl.lab.request import make_request
    from awfulowl.lab.scenes.threat import read_threat

    json_output.check_target(json)
    limit_threads(1)
    request = make_request(
        {
            "model": model,
            "data": data,
            "attacks": names,
            "layers": layer or [],
            "blocks": parse_blocks(block)[:1],
            "taking": taking,
            "devices": devices,
            "victims": 1,
            "shuffles": 1,
            "seed": seed,
            "possession": False,
        },
        read_threat(threat),
    )
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import attacking
        found = attacking.run(request, stages)
    json_output.write(found, json)
    attacking.show(found, report(json))


def exchange(
    *,
    model: _Model = "copies",
    data: Data,
    output: _Output,
    published: _Published = None,
    draws: _Draws = 3,
    images: _Images = 2000,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Redraw figures 6 and 7 of the founding paper: blocks missing, and blocks exchanged.

    copies is the paper's layer, 4096 x 25088 in 1568 blocks, over thin convolutions. The full network: --model
    vgg16 --data cifar100:PATH, which trains for GPU-hours.
    """
    json_output.check_target(json)
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import exchanging
        found = exchanging.run(
            exchanging.Request(
                model=model, data=data, output=output, published=published, draws=draws, images=images, seed=seed
            ),
            stages,
        )
    json_output.write(found, json)
    exchanging.show(found, output, report(json))


EXAMPLES: Final[dict[str, tuple[Callable[..., None], str]]] = {
    "list": (list_, "owl attack list --json attacks.json"),
    "run": (run, "owl attack run norms surrogate-norms --model digits --data digits --threat t.toml"),
    "exchange": (exchange, "owl attack exchange --data cifar-10-python.tar.gz -o figures"),
}
"""Every command of `owl attack`, in the order of the help, and how it is called."""

for _name, (_command, _example) in EXAMPLES.items():
    attack.command(
        _name,
        epilog=f"Example: {_example}",
        context_settings={"auto_envvar_prefix": settings.variable("attack", _name)},
    )(_command)


@attack.callback()
def _start(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
