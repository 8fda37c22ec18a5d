"""Loss and gradient of every model on one device and on four, as a program of its own: `python -m tests.training.every_model`.

Prints JSON: for each model the loss, and how far loss and gradient on four devices are from those on one, relative.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk, molecule

from mlff.config.options import Loss
from mlff.data.batching import Batches, make_sample
from mlff.data.structure import Structure
from mlff.training.devices import Devices, find_devices
from mlff.training.objectives import supervised
from mlff.training.processes import Group
from tests.conftest import ELEMENTS, MODELS, make_potential


def structures():
    """Molecules and crystals of 1 to 9 atoms with made-up labels, some of which are missing."""
    rng = np.random.default_rng(0)
    frames = [bulk("Si"), molecule("CH3CH2OH"), molecule("H2O"), molecule("CH4"), bulk("Si", cubic=True), molecule("CO")]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=number)
        n = len(atoms)
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(n, 3))}
        if atoms.pbc.all():
            labels["stress"] = (matrix := 0.01 * rng.normal(size=(3, 3))) + matrix.T
        if number == 2:
            del labels["energy"]
        yield Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, **labels)


def compare(name, devices):
    """The loss on one device, and the relative differences of loss and gradient on several."""
    potential, found = make_potential(name, "float64"), []
    assert potential.elements == ELEMENTS
    samples = [make_sample(structure, potential.cutoff) for structure in structures()]
    for these in (Devices(), devices):
        batches = Batches(samples, batch_size=6, dtype=np.float64, max_classes=1)
        ((sizes, indices),) = batches.plan(None)
        _, graph, labels = these.place(batches, sizes, indices)
        objective = supervised(potential.model.apply, Loss(stress=1.0), 1.0, these.summed)
        derive = jax.jit(jax.value_and_grad(objective, has_aux=True))
        params = these.replicated(jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), potential.params))
        (loss, _), gradient = derive(params, graph, labels, np.float64(0.5), jax.random.key(0))
        found.append((float(loss), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)] or [np.zeros(1)])))
    (loss, gradient), (other, theirs) = found
    size = max(np.linalg.norm(gradient), 1e-30)
    return [loss, abs(other / loss - 1), float(np.linalg.norm(theirs - gradient) / size)]


if __name__ == "__main__":
    with jax.enable_x64(True):
        four = find_devices(4, Group(0, 1))
        print(json.dumps({name: compare(name, four) for name in MODELS}))
