"""`owl train`: train a model by a recipe, on devices of this machine that nobody has to trust."""

from pathlib import Path
from typing import Annotated

import typer

from awfulowl.cli import json_output, settings
from awfulowl.cli.boundary import INTERRUPTED
from awfulowl.cli.options import Json, Key, complete_recipe
from awfulowl.cli.terminal import Stages, report, warn
from awfulowl.cli.threads import limit_threads
from awfulowl.errors import InputError

_Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="digits, cifar10, text, or path/to/recipe.toml. A recipe may name a model as path/to/file.py:function, "
        "and that file is run.",
        autocompletion=complete_recipe,
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Where the data is: an archive or folder of CIFAR, or a text. Nothing is ever downloaded.",
        show_default=False,
    ),
]
_Devices = Annotated[
    str | None,
    typer.Option(
        metavar="N|NAMES",
        help="How many device processes, or their names: d1,d2@acme (name@domain); by default those of the plan in "
        "the directory, or 4.",
        show_default=False,
    ),
]
_Replicas = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Devices that hold each block. With 1, the default, blocks of a device that is gone are rebuilt by "
        "others; with 2 nobody waits for that, and every step costs twice as much.",
        show_default=False,
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Where checkpoints, the loss curve and the trained weights go; without it nothing is kept.",
        show_default=False,
    ),
]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.")]
_Plain = Annotated[
    bool, typer.Option("--plain", help="Train here alone, with torch.optim.SGD: the same but for the devices.")
]
_Seed = Annotated[int | None, typer.Option(min=0, help="Another seed than the recipe's.", show_default=False)]
_Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.", show_default=False)]
_Steps = Annotated[int | None, typer.Option(min=1, help="Steps, instead of passes.", show_default=False)]
_Every = Annotated[
    int | None, typer.Option(min=0, metavar="STEPS", help="Steps between checkpoints; 0: none.", show_default=False)
]
_Threads = Annotated[int, typer.Option(min=1, max=1024, help="Threads that multiply here.")]


def train(
    recipe: _Recipe,
    *,
    data: _Data = None,
    devices: _Devices = None,
    replicas: _Replicas = None,
    output: _Output = None,
    resume: _Resume = False,
    plain: _Plain = False,
    seed: _Seed = None,
    epochs: _Epochs = None,
    steps: _Steps = None,
    checkpoint_every: _Every = None,
    threads: _Threads = 1,
    key: Key = None,
    json: Json = None,
) -> None:
    """Train a model by a recipe on devices whose every product and every step is checked.

    Whoever kills it loses the time since the last checkpoint: --resume goes on from there, and ends with the same bits
    unless a device failed meanwhile. Devices are processes of this machine; a fleet elsewhere is trained from Python:
    fleet = owl.connect(URL, identity="owner.key", devices=["d1.json"]), then fleet.scatter(model, plan, train=True) and
    fleet.optimizer, as README.md shows under Training. Devices hold weights in the clear and see activations and
    gradients; docs/threat-model.md says what follows from that.
    """
    json_output.check_target(json)
    if plain and (resume or devices is not None or replicas is not None):
        raise InputError("--plain uses no devices and writes no checkpoints: leave out --devices, --replicas, --resume")
    if resume and output is None:
        raise InputError("--resume goes on from checkpoints: name their directory with -o")
    if output is None:
        warn("nothing will be kept: name a directory with -o")
    limit_threads(threads)
    with Stages() as stages:
        with stages.stage("loading PyTorch"):
            from awfulowl.cli import training, training_report
            from awfulowl.recipes.recipe import changed, find_recipe
        wanted = changed(
            find_recipe(recipe),
            path=None if data is None else str(data),
            seed=seed,
            epochs=epochs,
            steps=steps,
            checkpoint_every=checkpoint_every,
        )
        request = training.Request(
            recipe=wanted,
            devices=devices,
            replicas=replicas,
            output=output,
            resume=resume,
            plain=plain,
            key=settings.key_file(key),
        )
        found = training.run(request, stages)
    json_output.write(found, json)
    training_report.show(found, output, report(json))
    if not found.finished:
        raise typer.Exit(INTERRUPTED)
