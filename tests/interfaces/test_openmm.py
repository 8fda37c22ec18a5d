"""OpenMM: energies and forces are the calculator's in nm and kJ/mol; real runs, alone and in water; what is refused."""

import copy
import io

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.io import read

pytest.importorskip("openmm", reason="OpenMM is not installed: pip install '.[openmm]'")
pytest.importorskip("openmmml", reason="OpenMM-ML is not installed: pip install '.[openmm]'")

import openmm
from openmm import app, unit
from openmmml import MLPotential

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, MLFFError, StructureError
from mlff.interfaces.openmm import Computation, force
from tests.pages import ROOT, register_with_openmm
from tests.potentials import lennard_jones, morse

KJ = units.kJ / units.mol
SEED = 1


@pytest.fixture(autouse=True, scope="module")
def registered():
    register_with_openmm()


@pytest.fixture
def model(tmp_path):
    morse(precision="float64").save(tmp_path / "m.safetensors")
    return str(tmp_path / "m.safetensors")


def topology(atoms, periodic=False):
    made = app.Topology()
    residue = made.addResidue("MOL", made.addChain())
    for number, symbol in enumerate(atoms.symbols):
        made.addAtom(f"{symbol}{number}", app.Element.getBySymbol(symbol), residue)
    if periodic:
        made.setPeriodicBoxVectors([openmm.Vec3(*vector) * unit.angstrom for vector in atoms.cell.array])
    return made


def context(atoms, forces, platform="Reference", integrator=None, constraints=()):
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    for i, j in constraints:
        system.addConstraint(i, j, atoms.get_distance(i, j) / 10)
    for each in forces:
        system.addForce(each)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*[openmm.Vec3(*vector) * unit.angstrom for vector in atoms.cell.array])
    made = openmm.Context(system, integrator or openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName(platform))
    made.setPositions(atoms.positions / 10)
    return made


def said(context):
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, np.array(state.getForces(asNumpy=True)._value)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_energies_and_forces_are_the_calculators(name, precision, tolerance, platform):
    atoms = molecule("CH3CH2OH") if name == "molecule" else bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    potential = (morse if name == "molecule" else lennard_jones)(precision=precision)
    energy, forces = said(context(atoms, [force(potential, topology(atoms, name == "crystal"))], platform))
    atoms.calc = MLFFCalculator(potential)
    assert energy * KJ == pytest.approx(atoms.get_potential_energy(), rel=tolerance)
    expected = atoms.get_forces()
    np.testing.assert_allclose(forces * KJ / 10, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_a_molecule_across_the_boundary_is_whole():
    atoms = molecule("CH3CH2OH")
    atoms.set_cell(np.eye(3) * 20)
    atoms.pbc = True
    made = context(atoms, [force(morse(precision="float64"), topology(atoms, True))])
    energy, forces = said(made)
    atoms.positions[2:5, 0] += 20
    atoms.positions[4] -= [0, 20, 40]
    made.setPositions(atoms.positions / 10)
    split_energy, split_forces = said(made)
    assert split_energy == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(split_forces, forces, atol=1e-8)


def test_a_run_conserves_energy_with_one_program():
    atoms = molecule("CH3CH2OH")
    computation = Computation(morse(precision="float64"), atoms.numbers, False)
    made = context(atoms, [openmm.PythonForce(computation)])
    made.setVelocitiesToTemperature(300, 1)
    energies = []
    for _ in range(20):
        made.getIntegrator().step(5)
        state = made.getState(energy=True)
        energies.append([state.getKineticEnergy()._value, state.getPotentialEnergy()._value])
    kinetic, potential = np.array(energies).T
    assert np.ptp(kinetic + potential) < 0.02 * np.ptp(kinetic)
    assert computation.calculator.compilations == 1 < computation.calculator.rebuilds < 50


def test_a_thermostat_keeps_its_temperature():
    atoms = bulk("Cu", cubic=True).repeat(2)
    thermostat = openmm.LangevinMiddleIntegrator(300, 20, 0.004)
    thermostat.setRandomNumberSeed(SEED)
    made = context(atoms, [force(lennard_jones(epsilon=0.5), topology(atoms, True))], integrator=thermostat)
    kinetic = []
    made.setVelocitiesToTemperature(600, 1)  # half of it becomes potential energy
    for _ in range(60):
        thermostat.step(5)
        kinetic.append(made.getState(energy=True).getKineticEnergy()._value)
    temperature = np.mean(kinetic[10:]) / (1.5 * 32 * 8.314e-3)
    assert temperature == pytest.approx(300, abs=60)


def test_a_barostat_moves_the_box():
    atoms = bulk("Cu", cubic=True)
    barostat, thermostat = openmm.MonteCarloBarostat(3e5, 300, 1), openmm.LangevinMiddleIntegrator(300, 10, 0.002)
    barostat.setRandomNumberSeed(SEED)
    thermostat.setRandomNumberSeed(SEED)
    made = context(atoms, [force(lennard_jones(), topology(atoms, True)), barostat], integrator=thermostat)
    thermostat.step(60)
    state = made.getState(energy=True, positions=True)
    assert state.getPeriodicBoxVolume().value_in_unit(unit.angstrom**3) < 0.99 * atoms.get_volume()
    atoms.set_cell(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom))
    atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    atoms.calc = MLFFCalculator(lennard_jones())
    assert state.getPotentialEnergy()._value * KJ == pytest.approx(atoms.get_potential_energy(), rel=1e-6)


def test_constraints_stay_rigid():
    atoms = molecule("H2O")
    made = context(atoms, [force(morse(), topology(atoms))], constraints=[(0, 1), (0, 2)])
    made.setVelocitiesToTemperature(300, 1)
    made.getIntegrator().step(20)
    positions = made.getState(positions=True).getPositions(asNumpy=True)._value * 10
    assert np.linalg.norm(positions[1] - positions[0]) == pytest.approx(atoms.get_distance(0, 1), abs=1e-4)


def solvated(box=1.9):
    """Malonaldehyde in water: topology, positions and a System of a conventional force field without bonds in the molecule."""
    atoms = read(ROOT / "data" / "malonaldehyde" / "test_300K.xyz", index=0)
    made = topology(atoms)
    types, sites, particles = "", "", ""
    charges = {"O": -0.5, "C": 0.2, "H": 0.1}
    for number, (symbol, mass) in enumerate(zip(atoms.symbols, atoms.get_masses(), strict=True)):
        types += f'<Type name="M{number}" class="M{number}" element="{symbol}" mass="{mass}"/>'
        sites += f'<Atom name="{symbol}{number}" type="M{number}" charge="{charges[symbol]}"/>'
        particles += f'<Atom type="M{number}" sigma="0.3" epsilon="0.3"/>'
    text = f"""<ForceField><AtomTypes>{types}</AtomTypes><Residues><Residue name="MOL">{sites}</Residue></Residues>
    <NonbondedForce coulomb14scale="0.833333" lj14scale="0.5"><UseAttributeFromResidue name="charge"/>{particles}
    </NonbondedForce>
    </ForceField>"""
    field = app.ForceField("amber14/tip3p.xml", io.StringIO(text))
    modeller = app.Modeller(made, atoms.positions / 10 * unit.nanometer)
    modeller.addSolvent(field, boxSize=openmm.Vec3(box, box, box))
    system = field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8, constraints=app.HBonds)
    system.addConstraint(4, 5, 0.1)
    return atoms, modeller, system


def test_a_molecule_in_water_is_mixed(model):
    atoms, modeller, conventional = solvated()
    rigid = conventional.getNumConstraints()
    assert rigid > 300
    system = MLPotential("mlff", model_path=model).createMixedSystem(modeller.topology, conventional, range(9), forceGroup=7)
    assert system.getNumConstraints() == rigid - 1  # within the molecule none
    made = openmm.Context(system, openmm.LangevinMiddleIntegrator(300, 1, 0.0005), openmm.Platform.getPlatformByName("CPU"))
    made.setPositions(modeller.positions)
    state = made.getState(energy=True, forces=True, groups={7})
    atoms.calc = MLFFCalculator(model)
    assert state.getPotentialEnergy()._value * KJ == pytest.approx(atoms.get_potential_energy(), rel=1e-8)
    forces = np.array(state.getForces(asNumpy=True)._value)
    np.testing.assert_allclose(forces[:9] * KJ / 10, atoms.get_forces(), atol=1e-4)
    assert not forces[9:].any()
    openmm.LocalEnergyMinimizer.minimize(made, maxIterations=5)
    made.getIntegrator().step(20)
    assert np.isfinite(made.getState(energy=True).getPotentialEnergy()._value)


def test_part_of_a_molecule_ends_in_link_atoms(model):
    atoms = molecule("CH3CH2OH")
    made, system, bonds = topology(atoms), openmm.System(), openmm.HarmonicBondForce()
    nodes = list(made.atoms())
    for mass in atoms.get_masses():
        system.addParticle(mass)
    for i, j in zip(*np.nonzero(np.triu(atoms.get_all_distances() < 1.6)), strict=True):
        if i != j and {atoms.symbols[i], atoms.symbols[j]} != {"H"}:
            made.addBond(nodes[i], nodes[j])
            bonds.addBond(i, j, 0.11, 1e4)
    system.addForce(bonds)
    alcohol = [k for k in range(9) if atoms.get_distance(1, k) < 1.2 or atoms.get_distance(2, k) < 1.1]  # CH2OH
    other = 0  # carbon of CH3
    assert len(alcohol) == 5 and other not in alcohol
    mixed = MLPotential("mlff", model_path=model).createMixedSystem(made, system, alcohol, forceGroup=3)
    assert mixed.getNumParticles() == 10 and mixed.isVirtualSite(9)
    there = openmm.Context(mixed, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
    positions = np.vstack([atoms.positions, np.zeros(3)]) / 10

    def energy_and_forces(moved):
        there.setPositions(moved)
        there.computeVirtualSites()
        state = there.getState(energy=True, forces=True, groups={3})
        return state.getPotentialEnergy()._value, np.array(state.getForces(asNumpy=True)._value)

    forces = energy_and_forces(positions)[1]
    np.testing.assert_allclose(forces[:9].sum(axis=0), 0, atol=1e-6)
    for axis in range(3):
        step = np.zeros_like(positions)
        step[other, axis] = 1e-5
        slope = (energy_and_forces(positions + step)[0] - energy_and_forces(positions - step)[0]) / 2e-5
        assert forces[other, axis] == pytest.approx(-slope, abs=0.05)
    assert np.abs(forces[other]).max() > 1


def test_interpolation_between_both_force_fields(model):
    _, modeller, conventional = solvated()
    potential = MLPotential("mlff", model_path=model)
    system = potential.createMixedSystem(modeller.topology, conventional, range(9), interpolate=True)
    made = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
    made.setPositions(modeller.positions)
    energies = []
    for share in (0.0, 0.5, 1.0):
        made.setParameter("lambda_interpolate", share)
        energies.append(made.getState(energy=True).getPotentialEnergy()._value)
    assert energies[1] == pytest.approx((energies[0] + energies[2]) / 2, rel=1e-9)
    assert energies[0] - energies[2] > 1e5  # total energies, at 1


def test_a_system_goes_through_xml_by_the_path_of_the_model(model, tmp_path):
    atoms = molecule("CH3CH2OH")
    system = MLPotential("mlff", model_path=model).createSystem(topology(atoms))
    text = openmm.XmlSerializer.serialize(system)
    assert len(text) < 4000
    energies = []
    for each in (system, openmm.XmlSerializer.deserialize(text)):
        made = openmm.Context(each, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
        made.setPositions(atoms.positions / 10)
        energies.append(said(made)[0])
    assert energies[0] == energies[1]
    lennard_jones(precision="float64").save(model)
    for each in (openmm.XmlSerializer.deserialize(text), copy.deepcopy(openmm.XmlSerializer.deserialize(text))):
        made = openmm.Context(each, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
        made.setPositions(atoms.positions / 10)
        with pytest.raises(openmm.OpenMMException, match="is another model than the one"):
            made.getState(energy=True)


def test_a_potential_in_memory_goes_along():
    atoms = molecule("H2O")
    text = openmm.XmlSerializer.serialize(force(morse(), atoms.numbers))
    energies = [
        said(context(atoms, [each]))[0] for each in (force(morse(), atoms.numbers), openmm.XmlSerializer.deserialize(text))
    ]
    assert energies[0] == energies[1]


def refused(call, *arguments, **options):
    with pytest.raises(MLFFError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_is_refused_in_one_line(model):
    water = topology(molecule("H2O"))
    potential = MLPotential("mlff", model_path=model)
    for asked in ({"charge": 0}, {"multiplicity": 1}, {"spin": 2}):
        assert f"knows no {next(iter(asked))}" in refused(potential.createSystem, water, **asked)
    assert "unknown arguments colour" in refused(potential.createSystem, water, colour="red")
    assert "knows no charge" in refused(MLPotential, "mlff", model_path=model, charge=1)
    assert "needs model_path" in refused(MLPotential, "mlff")
    assert "no.safetensors" in refused(MLPotential("mlff", model_path="no.safetensors").createSystem, water)
    iron = topology(bulk("Fe"))
    assert "atom 0 is Fe, which this potential does not know" in refused(potential.createSystem, iron)
    water.addAtom("M", None, next(water.residues()))
    assert "particle 3 has no element" in refused(potential.createSystem, water)
    assert "atom 3 is asked for, there are 3" in refused(force, morse(), [8, 1, 1], [0, 3])
    assert "named once" in refused(force, morse(), [8, 1, 1], [0, 0])
    with pytest.raises(StructureError):
        force(morse(), [8, 1, 1], [])
    with pytest.raises(ConfigError):
        MLPotential("mlff", model_path=model, device="cuda")


def test_nonsense_ends_the_run(monkeypatch):
    atoms = molecule("H2O")
    made = context(atoms, [force(morse(), atoms.numbers)])
    made.getIntegrator().step(1)
    monkeypatch.setattr("mlff.potential.potential.LARGEST_FORCE", 1e-3)
    with pytest.raises(openmm.OpenMMException, match="the potential gives an energy of .* O 0 and H 1 are .* apart"):
        made.getIntegrator().step(1)
    atoms.positions[1] = np.nan
    made.setPositions(atoms.positions / 10)
    with pytest.raises(openmm.OpenMMException, match="NaN|not finite"):
        made.getIntegrator().step(1)
