"""`owl job`: training jobs on a stranger's machine, as files: ordered, run, verified, certified."""

from collections.abc import Callable
from typing import Final

import typer

from awfulowl.cli import settings
from awfulowl.cli.job_order import answer, keys, pack, run
from awfulowl.cli.job_verify import certificate, challenge, verify

job: Final = typer.Typer(
    help="Have a model trained on a stranger's machine, and prove that the work was really done.",
    epilog="Example: owl job keys client; owl job pack JOB.toml; owl job run job.pkg; owl job verify proof. "
    "docs/jobs.md goes through it step by step.",
    invoke_without_command=True,
)

EXAMPLES: Final[dict[Callable[..., None], str]] = {
    keys: "owl job keys client >> JOB.toml; owl job keys runner --show runner.key",
    pack: "owl job pack JOB.toml -o job.pkg --key client.key",
    run: "owl job run job.pkg -o proof --key runner.key",
    challenge: "owl job challenge proof --package job.pkg -o challenge.json",
    answer: "owl job answer proof challenge.json --package job.pkg",
    verify: "owl job verify proof --package job.pkg --checks all -o certificate.json",
    certificate: "owl job certificate certificate.json --model proof/states/0000000560.safetensors",
}
"""Every command of `owl job`, in the order of the help, and how it is called."""

for _command, _example in EXAMPLES.items():
    job.command(
        _command.__name__,
        epilog=f"Example: {_example}",
        context_settings={"auto_envvar_prefix": settings.variable("job", _command.__name__)},
    )(_command)


@job.callback()
def _start(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
