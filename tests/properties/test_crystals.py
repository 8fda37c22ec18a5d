"""Elastic constants, equations of state and phonons of crystals against independent computations."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.phonons import Phonons as FiniteDifferences

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, StructureError
from mlff.properties.compression import compression
from mlff.properties.elasticity import elasticity
from mlff.properties.minimum import relaxed
from mlff.simulation.relax import relax
from tests.properties.crystals import copper, potential, primitive_copper

GPA = units.GPa


def strained(atoms: Atoms, six: np.ndarray) -> Atoms:
    """A cell with these strains xx yy zz yz xz xy, shears twice the tensor's."""
    xx, yy, zz, yz, xz, xy = six * [1, 1, 1, 0.5, 0.5, 0.5]
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ (np.eye(3) + [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]), scale_atoms=True)
    return moved


def test_elastic_constants_are_second_derivatives_of_the_energy():
    atoms = copper()
    found = elasticity(potential(), atoms)
    signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
    for a, b in ((0, 0), (0, 1), (3, 3)):
        moved = [strained(atoms, 1e-3 * (p * np.eye(6)[a] + q * np.eye(6)[b])) for p, q in signs]
        energies = np.array([result.energy for result in potential().predict(moved, stress=False)])
        curvature = energies @ [p * q for p, q in signs] / 4e-6
        assert curvature / atoms.get_volume() / GPA == pytest.approx(found.constants[a, b], rel=2e-3)
    assert found.cubic == pytest.approx(tuple(found.constants[[0, 0, 3], [0, 1, 3]]), rel=1e-6)
    assert found.cubic[1] == pytest.approx(found.cubic[2], rel=1e-3), "Cauchy: pair forces, every atom a center of inversion"
    assert found.asymmetry < 1e-6 and found.eigenvalues[0] > 0 and np.abs(found.stress).max() < 0.05
    assert found.bulk == pytest.approx([(found.cubic[0] + 2 * found.cubic[1]) / 3] * 3)
    voigt = (found.cubic[0] - found.cubic[1] + 3 * found.cubic[2]) / 5
    s11_s12, s44 = 1 / (found.cubic[0] - found.cubic[1]), 1 / found.cubic[2]
    assert found.shear[:2] == pytest.approx([voigt, 5 / (4 * s11_s12 + 3 * s44)])


def test_atoms_that_follow_the_strain_are_those_of_a_relaxation():
    """A vacancy, around which no atom is a center of inversion."""
    atoms = copper().repeat((2, 1, 1))
    del atoms[3]
    atoms = relaxed(potential(), atoms, cell=True)
    found = elasticity(potential(), atoms, strain=0.002)
    stresses = []
    for sign in (1, -1):
        moved = strained(atoms, 0.002 * sign * np.eye(6)[0])
        relax(moved, MLFFCalculator(potential()), fmax=1e-5, progress=False)
        stresses.append(moved.get_stress() / GPA)
    np.testing.assert_allclose((stresses[0] - stresses[1]) / 4e-3, found.constants[:, 0], atol=0.15)
    assert np.abs(found.clamped - found.constants)[:, 0].max() > 1.0


def test_the_bulk_modulus_of_the_equation_of_state_is_that_of_the_elastic_constants():
    cell = primitive_copper()
    found = compression(potential(), cell, span=0.04)
    assert found.volume == pytest.approx(cell.get_volume(), rel=1e-3) and found.central
    assert found.bulk == pytest.approx(elasticity(potential(), cell).bulk[2], rel=5e-3)
    assert found.energy == pytest.approx(potential().predict([cell])[0].energy, abs=1e-5)
    np.testing.assert_allclose(found.curve(found.volumes), found.energies, atol=1e-4)


class Curve:
    """A potential whose energy is an equation of state by Birch and Murnaghan."""

    def __init__(self, *parameters: float):
        self.parameters = parameters

    def predict(self, structures, stress=None):
        from ase.eos import birchmurnaghan

        from mlff.potential.potential import Result

        energies = [float(birchmurnaghan(atoms.get_volume(), *self.parameters)) for atoms in structures]
        return [Result(e, np.zeros((len(a), 3)), None, np.zeros(len(a))) for e, a in zip(energies, structures, strict=True)]


def test_an_analytic_equation_of_state_is_found_again():
    cell = bulk("Cu", a=(4 * 11.5) ** (1 / 3))
    found = compression(Curve(-45000.0, 1.1, 5.3, 11.3), cell)
    assert (found.energy, found.bulk * GPA, found.derivative, found.volume) == pytest.approx(
        (-45000.0, 1.1, 5.3, 11.3), rel=1e-6
    )
    assert found.misfit < 1e-6 and found.central
    assert not compression(Curve(-45000.0, 1.1, 5.3, 11.0), cell).central
    with pytest.raises(StructureError, match="still falls towards smaller volumes"):
        compression(Curve(-45000.0, 1.1, 5.3, 10.0), cell)
    with pytest.raises(StructureError, match="still falls towards larger volumes"):
        compression(Curve(-45000.0, 1.1, 5.3, 14.0), cell)


def test_what_crystals_are_refused():
    flat = copper()
    flat.pbc = [True, True, False]
    for compute in (elasticity, compression):
        with pytest.raises(StructureError, match="periodic in three directions"):
            compute(potential(), flat)
    rattled = copper()
    rattled.rattle(0.1, seed=0)
    with pytest.raises(StructureError, match="not a minimum"):
        elasticity(potential(), rattled)
    with pytest.raises(ConfigError, match="--strain"):
        elasticity(potential(), copper(), strain=0.5)
    with pytest.raises(ConfigError, match="--points"):
        compression(potential(), copper(), points=3)


def test_phonons_against_finite_differences_of_ase(tmp_path):
    pytest.importorskip("phonopy")
    from mlff.properties.phonons import phonons

    cell = primitive_copper()
    found = phonons(potential(), cell, supercell=(5, 5, 5), temperatures=(0.0, 300.0, 2000.0))
    assert found.stable and abs(found.lowest) < 0.01 and (found.supercell_atoms, found.primitive_atoms) == (125, 1)
    finite = FiniteDifferences(cell, MLFFCalculator(potential()), supercell=(5, 5, 5), delta=0.01, name=str(tmp_path / "ph"))
    finite.run()
    finite.read(acoustic=True)
    path = cell.cell.bandpath(npoints=len(found.path))
    terahertz = np.sort(finite.band_structure(path.kpts, verbose=False) / (units._hplanck / units._e * 1e12))
    np.testing.assert_allclose(found.bands, terahertz, atol=0.02)
    assert [name for _, name in found.ticks[:2]] == ["Γ", "X"]
    assert np.trapezoid(found.density, found.frequency) == pytest.approx(3, rel=0.02)
    assert found.free_energy[0] == pytest.approx(found.zero_point) and found.entropy[0] == 0
    assert found.heat_capacity[-1] == pytest.approx(3 * 8.314, rel=0.01), "Dulong and Petit"


def test_phonons_choose_a_supercell_and_see_instability():
    pytest.importorskip("phonopy")
    from mlff.properties.phonons import phonons

    cubic = Atoms("Cu", cell=np.eye(3) * 2.45, pbc=True)  # simple cubic falls to fcc
    found = phonons(potential(), relaxed(potential(), cubic, cell=True))
    assert min(found.supercell) == 5 and not found.stable
    with pytest.raises(ConfigError, match="--supercell"):
        phonons(potential(), copper(), supercell=(0, 1, 1))


def test_phonons_without_phonopy_say_what_to_install(monkeypatch):
    from mlff.properties import phonons

    monkeypatch.setattr(phonons.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install phonopy"):
        phonons.phonons(potential(), copper())
