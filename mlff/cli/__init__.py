"""The command line: `mlff train | pretrain | evaluate | certify | lint | info | predict | relax | md | analyze | vibrations | ...`.

Heavy imports happen inside the commands, so that --help is quick.
"""

from mlff.cli import analyze, design, dynamics, engines, export, learn, measure, pretraining, properties, refine, simulate
from mlff.cli.app import app

__all__ = [
    "analyze",
    "app",
    "design",
    "dynamics",
    "engines",
    "export",
    "learn",
    "main",
    "measure",
    "pretraining",
    "properties",
    "refine",
    "simulate",
]


def main() -> None:
    """Entry point of the `mlff` command."""
    app()
