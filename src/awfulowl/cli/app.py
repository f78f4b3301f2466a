"""The command line as a whole: its commands, what they share, and the way in."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, Final

import typer

from awfulowl import __version__
from awfulowl.cli import settings
from awfulowl.cli.attack import attack
from awfulowl.cli.audit import audit
from awfulowl.cli.boundary import INTERRUPTED, Boundary
from awfulowl.cli.broker import broker
from awfulowl.cli.demo import demo
from awfulowl.cli.device import device
from awfulowl.cli.identity import identity
from awfulowl.cli.inspect import inspect
from awfulowl.cli.job import job
from awfulowl.cli.plan import plan
from awfulowl.cli.run import run
from awfulowl.cli.train import train
from awfulowl.errors import AwfulOwlError

_PROGRAM: Final = "owl"
_DEBUG: Final = "--debug"

app: Final = typer.Typer(
    help="Run neural networks on machines you do not trust, and know that every answer is right.",
    epilog=f"Example: owl demo. Every option can also be set in the environment (owl demo --devices: "
    f"{settings.variable('demo', 'devices')}) and in {settings.config_file()} (devices in the table demo).",
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)

EXAMPLES: Final[dict[Callable[..., None], str]] = {
    demo: "owl demo --devices 8 --json demo.json; owl demo train --curve loss.png",
    train: "owl train digits -o trained; owl train cifar10 --data cifar-10-python.tar.gz -o trained --resume",
    audit: "owl audit digits --data digits --threat t.toml -o audit",
    inspect: "owl inspect vgg16 --devices 8 --json vgg16.json",
    plan: "owl plan vgg16 --devices 8 -o plan.owl; owl plan --show plan.owl",
    identity: "owl identity d1 -o d1.key > d1.json",
    broker: "owl broker --owner owner.json --device d1.json --device d2.json",
    device: "owl device nats://127.0.0.1:4222 --identity d1.key --owner owner.json",
    run: "owl run digits --url nats://127.0.0.1:4222 --identity owner.key --device d1.json --device d2.json",
}
"""Every command, in the order of the help, and how it is called."""

for _command, _example in EXAMPLES.items():
    app.command(
        _command.__name__,
        epilog=f"Example: {_example}",
        context_settings={"auto_envvar_prefix": settings.variable(_command.__name__)},
    )(_command)

app.add_typer(attack, name="attack")
app.add_typer(job, name="job")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{_PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    debug: Annotated[
        bool,
        typer.Option(
            _DEBUG, envvar=settings.variable("debug"), help="Show where an error comes from, and what goes on."
        ),
    ] = False,
    version: Annotated[  # noqa: ARG001  the callback answers
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    context.ensure_object(Boundary).show_details(debug)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    context.default_map = settings.read(settings.config_file(), settings.options_of(context))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0: yes. 1: refused or failed. 2: bad input. 3: peers are not there. 130: interrupted.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # The option is the whole program's, and people write it last.
    words = [word for word in given if word != _DEBUG]
    boundary = Boundary()
    sys.excepthook = boundary.unexpected
    try:
        with _end_as_interrupt():
            outcome = _program()(
                args=[_DEBUG, *words] if len(words) < len(given) else words,
                prog_name=_PROGRAM,
                standalone_mode=False,
                obj=boundary,
            )
    except KeyboardInterrupt:
        outcome = INTERRUPTED
    except (AwfulOwlError, typer.TyperException, typer.Abort) as error:
        return boundary.report(error)
    if outcome == INTERRUPTED:
        boundary.say_interrupted()
    return outcome if isinstance(outcome, int) else 0


def _program() -> Any:
    program: Any = typer.main.get_command(app)
    for command in program.commands.values():
        for option in command.params:
            option.show_envvar = False  # said once for all, in the help of the whole
    return program


@contextmanager
def _end_as_interrupt() -> Iterator[None]:
    """Let a request to end (SIGTERM) do what Ctrl-C does: everything is closed on the way out."""

    def interrupt(_: int, __: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in jobs that a shell started in the background
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
