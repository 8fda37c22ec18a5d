"""Learn molecular force fields and run molecular dynamics with them.

The public names; each is imported when first used. Units are eV, Å, eV/Å, eV/Å³ throughout.
"""

import importlib

from mlff.basics.runtime import hide_loader_messages

__version__ = "0.2.0"

_PUBLIC = {
    "Config": "mlff.config.options",
    "load_config": "mlff.config.load",
    "read_dataset": "mlff.data.dataset",
    "Graph": "mlff.graph",
    "Potential": "mlff.potential.potential",
    "train": "mlff.training.train",
    "evaluate": "mlff.training.evaluate",
    "MLFFCalculator": "mlff.interfaces.ase",
    "MLFFError": "mlff.basics.errors",
}
__all__ = [*_PUBLIC, "__version__"]

hide_loader_messages()


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mlff' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
