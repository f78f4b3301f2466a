"""The command `owl`: one module per command. Settings are read here and nowhere else."""

from awfulowl.cli.app import main

__all__ = ["main"]
