"""The command line: `mlff train | schema | evaluate | certify | lint | info | predict | relax | md`.

Heavy imports happen inside the commands, so that --help is quick.
"""

from mlff.cli import learn, measure, simulate
from mlff.cli.app import app

__all__ = ["app", "learn", "main", "measure", "simulate"]


def main() -> None:
    """Entry point of the `mlff` command."""
    app()
