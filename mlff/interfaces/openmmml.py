"""`MLPotential("mlff", model_path=...)`: what OpenMM-ML finds by the entry point of the same name.

OpenMM-ML imports this module itself; import `openmmml` and not this.
"""

from __future__ import annotations

from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

from mlff.basics.errors import ConfigError

_EMBEDDING = {"linkAtomDistances"}  #: arguments of OpenMM-ML's own, which it passes on
_STATES = {"charge", "spin", "multiplicity", "info"}


class MLFFPotentialImplFactory(MLPotentialImplFactory):
    """Makes `MLFFPotentialImpl`."""

    def createImpl(self, name: str, model_path: str | None = None, precision: str | None = None, **args) -> MLPotentialImpl:
        """Raises ConfigError: no model, arguments that mlff does not know."""
        _refuse(args, "MLPotential", "model_path, precision")
        if model_path is None:
            raise ConfigError('MLPotential("mlff") needs model_path, e.g. model_path="runs/si/model.safetensors"')
        return MLFFPotentialImpl(model_path, precision)


class MLFFPotentialImpl(MLPotentialImpl):
    """Adds the force of a model file to a System."""

    def __init__(self, model_path: str, precision: str | None):
        self._model_path, self._precision = model_path, precision

    def addForces(self, topology, system, atoms, forceGroup, **args) -> None:
        """Raises StructureError: an element that the model does not know; ConfigError: arguments, such as a charge."""
        from mlff.interfaces.openmm import force

        _refuse(args.keys() - _EMBEDDING, "createSystem", "none")
        made = force(self._model_path, topology, atoms, precision=self._precision)
        made.setForceGroup(forceGroup)
        system.addForce(made)

    def getMLLongRange(self) -> bool:
        """The models see as far as their cutoff."""
        return False


def _refuse(args, where: str, known: str) -> None:
    if asked := sorted(_STATES & set(args)):
        raise ConfigError(
            f"{where}: a model of mlff knows no {' or '.join(asked)}: its energy is that of the state it was trained on"
        )
    if args:
        raise ConfigError(f"{where}: unknown arguments {', '.join(sorted(args))}; known: {known}")
