"""Files of the programs that users bring: what is read of them against what their text says.

`files/` holds outputs of CP2K 2023.1, Quantum ESPRESSO 6.7 and LAMMPS (22 July 2025) that were run for these tests. Of programs
that may not be run by everybody the text is written here, in their layout.
"""

import lzma
import re
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units

from mlff import MLFFCalculator
from mlff.basics.errors import DataError
from mlff.config.options import ReadOptions
from mlff.data.dataset import read_dataset
from mlff.data.formats import format_name, read_atoms, read_structures
from mlff.data.readers import programs
from mlff.lint.lint import lint
from tests.conftest import make_potential

FILES = Path(__file__).parent / "files"
RYDBERG = units.Rydberg


def text_of(name):
    with lzma.open(FILES / name, "rt", encoding="utf-8") as file:
        return file.read()


def numbers(text):
    return [float(word) for word in text.split()]


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


# CP2K


def test_cp2k_single_point():
    text = text_of("cp2k.out.xz")
    (structure,), census = read_structures(FILES / "cp2k.out.xz")
    assert format_name(FILES / "cp2k.out.xz") == "CP2K output"
    assert structure.energy == pytest.approx(float(re.search(r"ENERGY\|.*:\s+(\S+)", text)[1]) * units.Hartree, rel=1e-12)
    rows = re.search(r"ATOMIC FORCES in \[a.u.\](.*?)SUM OF", text, re.DOTALL)[1].splitlines()[3:6]
    np.testing.assert_allclose(
        structure.forces, [np.array(numbers(row[30:])) * units.Hartree / units.Bohr for row in rows], rtol=1e-12
    )
    printed = np.array([numbers(row[15:]) for row in re.findall(r"STRESS\|      [xyz]  .*", text)[:3]])
    np.testing.assert_allclose(structure.stress, -printed * units.GPa, rtol=1e-9)
    assert structure.formula == "H2O" and structure.pbc.all()
    np.testing.assert_array_equal(structure.cell, 6 * np.eye(3))
    np.testing.assert_array_equal(structure.positions, [[3, 3, 3], [3.8, 3.6, 3], [2.24, 3.59, 3.05]])
    assert "Hartree by the format" in str(census) and "GPa, positive: compression by the format" in str(census)


def test_cp2k_virial_of_the_forces_agrees_with_the_sign_of_the_stress():
    """A molecule in a box: minus volume times the trace of the stress is the sum of positions times forces, nearly."""
    (structure,), _ = read_structures(FILES / "cp2k.out.xz")
    centred = structure.positions - structure.positions.mean(axis=0)
    assert np.sum(centred * structure.forces) == pytest.approx(-structure.volume * np.trace(structure.stress), rel=0.02)


def test_cp2k_that_did_not_converge(tmp_path):
    path = FILES / "cp2k_unconverged.out.xz"
    data = read_dataset(path)
    assert len(data) == 1 and "the SCF did not converge, says the file (1 structures)" in str(data.census)
    assert [finding.severity for finding in lint(data).findings if finding.code == "unconverged"] == ["warning"]
    with pytest.raises(DataError, match="no structure can be used; the first: the SCF did not converge"):
        read_dataset(path, skip=["unconverged"])


def test_cp2k_trajectory_with_forces_and_cells_beside_it(tmp_path):
    for name in ("water-pos-1.xyz", "water-frc-1.xyz"):
        write(tmp_path, name, (FILES / name).read_text())
    path = tmp_path / "water-pos-1.xyz"
    structures, census = read_structures(path)
    assert len(structures) == 5 and not structures[0].pbc.any()
    assert structures[1].energy == pytest.approx(
        float(re.findall(r"E =\s+(\S+)", path.read_text())[1]) * units.Hartree, rel=1e-12
    )
    line = (tmp_path / "water-frc-1.xyz").read_text().splitlines()[2]
    np.testing.assert_allclose(structures[0].forces[0], np.array(numbers(line[4:])) * units.Hartree / units.Bohr, rtol=1e-12)
    assert "no cell and none stands beside it (-1.cell): taken as not periodic (5 structures)" in str(census)
    assert "Hartree/Bohr by the format" in str(census)
    rows = [f"{step} {0.5 * step} 6 0 0 0 6 0 0 0 {6 + step} 216" for step in range(5)]
    cells = write(tmp_path, "water-1.cell", "\n".join(["#   Step   Time [fs]  Ax ...", *rows]))
    structures, census = read_structures(path)
    assert structures[2].pbc.all() and structures[2].cell[2].tolist() == [0, 0, 8] and not census.remarks
    cells.write_text("\n".join(rows[:3]))
    with pytest.raises(DataError, match="structure 3: water-1.cell has no cell of step 3"):
        read_structures(path)
    with pytest.warns(UserWarning, match="taken as not periodic"):
        cells.unlink()
        list(read_atoms(path))
    write(tmp_path, "water-frc-1.xyz", "\n".join((FILES / "water-frc-1.xyz").read_text().splitlines()[5:]) + "\n")
    with pytest.raises(DataError, match="structure 0: the file of forces has step 1 where that of positions has step 0"):
        read_structures(path)
    write(tmp_path, "water-frc-1.xyz", "\n".join((FILES / "water-frc-1.xyz").read_text().splitlines()[:15]) + "\n")
    with pytest.raises(DataError, match="structure 3: the file of forces ends where that of positions has step 3"):
        read_structures(path)


def test_cp2k_outputs_without_geometry_say_what_to_give(tmp_path):
    text = text_of("cp2k.out.xz")
    with pytest.raises(DataError, match="without cell or coordinates, as with PRINT_LEVEL LOW"):
        read_structures(write(tmp_path, "low.out", text.replace("ATOMIC COORDINATES IN", "")))
    with pytest.raises(DataError, match="with 2 energies; of a run give the trajectory: PROJECT-pos-1.xyz"):
        read_structures(write(tmp_path, "md.out", text + text[text.index(" ENERGY|") :]))


# Quantum ESPRESSO


def test_espresso_scf():
    text = text_of("qe_scf.out.xz")
    (structure,), census = read_structures(FILES / "qe_scf.out.xz")
    assert structure.energy == pytest.approx(float(re.search(r"^!.*=\s+(\S+)", text, re.MULTILINE)[1]) * RYDBERG, rel=1e-6)
    forces = np.array([numbers(row) for row in re.findall(r"force =(.*)", text)[:2]]) * RYDBERG / units.Bohr
    np.testing.assert_allclose(structure.forces, forces, rtol=1e-6)
    rows = re.search(r"total   stress.*\n((?:.*\n){3})", text)[1].splitlines()
    printed = np.array([numbers(row)[3:] for row in rows])  # kbar, P = -29.12
    np.testing.assert_allclose(structure.stress, -0.1 * printed * units.GPa, atol=5e-6)  # two digits
    assert np.trace(structure.stress) > 0 and "P=      -29.12" in text, "positive under tension"
    assert structure.formula == "Si2" and structure.pbc.all() and "eV by the format" in str(census) and not census.remarks


def test_espresso_energies_with_smearing_and_forces_of_fixed_atoms():
    text = text_of("qe_scf_smear.out.xz")
    (structure,), _ = read_structures(FILES / "qe_scf_smear.out.xz")
    assert structure.energy == pytest.approx(float(re.search(r"^!.*=\s+(\S+)", text, re.MULTILINE)[1]) * RYDBERG, rel=1e-6)
    structures, census = read_structures(FILES / "qe_relax_fixed.out.xz")
    assert len(structures) == 3 and all(np.abs(s.forces[1]).max() > 0.1 for s in structures) and not census.remarks
    assert (structures[0].positions[1] == structures[2].positions[1]).all(), "the atom that was fixed"


def test_espresso_that_did_not_converge():
    """With scf_must_converge=.false. its text says 'convergence has been achieved' all the same."""
    path = FILES / "qe_scf_must_converge_false.out.xz"
    assert "convergence has been achieved" in text_of(path.name)
    _, census = read_structures(path)
    assert [(item.code, where.rsplit(", ")[1]) for where, item in census.remarks] == [("unconverged", "structure 0")]
    with pytest.raises(DataError, match="the SCF of geometry 0 did not converge, and Quantum ESPRESSO stopped there"):
        read_structures(FILES / "qe_scf_noconv.out.xz")


# LAMMPS


def test_lammps_dump_has_no_energy_and_units_of_its_own():
    path = FILES / "lammps_ortho.lammpstrj"
    structures, census = read_structures(path)
    row = numbers(path.read_text().splitlines()[9].replace("Si", ""))
    assert (
        len(structures) == 4
        and structures[0].formula == "Si8"
        and structures[0].energy is None
        and census.labels["energy"] == 0
    )
    np.testing.assert_array_equal(structures[0].positions[0], row[2:5])
    np.testing.assert_array_equal(structures[0].forces[0], row[5:8])
    np.testing.assert_allclose(structures[0].cell, 5.431 * np.eye(3))
    assert 'key "forces", calculator, eV/Angstrom assumed' in str(census)
    first = next(read_atoms(path))
    np.testing.assert_allclose(first.get_velocities()[0], np.array(row[8:11]) / 1000 / units.fs, rtol=1e-12)  # metal: Å/ps


def test_lammps_dump_in_the_units_that_it_states():
    path = FILES / "lammps_real.lammpstrj"
    structures, census = read_structures(path)
    assert path.read_text().startswith("ITEM: UNITS\nreal\n") and "kcal/mol/Angstrom by the file" in str(census)
    assert structures[0].formula == "H2O"
    assert structures[0].forces[0, 1] == pytest.approx(5.96684 * units.kcal / units.mol, rel=1e-12)
    first = next(read_atoms(path))
    np.testing.assert_allclose(
        first.get_velocities()[1], np.array([-0.00491492, 0.00894518, -0.0312873]) / units.fs, rtol=1e-12
    )


def test_lammps_velocities_in_atomic_units_are_not_read_and_that_is_said(tmp_path):
    text = (FILES / "lammps_real.lammpstrj").read_text().replace("UNITS\nreal", "UNITS\nelectron")
    (structure, _), census = read_structures(write(tmp_path, "electron.lammpstrj", text))
    assert structure.cell[0, 0] == pytest.approx(10 * units.Bohr, rel=1e-9)
    assert "velocities in the units electron of LAMMPS are not read (2 structures)" in str(census)
    with pytest.warns(UserWarning, match="velocities in the units electron"):
        assert not next(read_atoms(tmp_path / "electron.lammpstrj")).has("momenta")


def test_lammps_triclinic_boxes(tmp_path):
    """The bounds of a dump are those of the tilted box's corners; the data file has the box itself."""
    dumped = read_structures(FILES / "lammps_tri.lammpstrj")[0][-1]
    (structure,), _ = read_structures(FILES / "lammps_tri.data")
    expected = [[5.431, 0, 0], [1.0862, 5.431, 0], [0.5431, -0.81465, 5.431]]
    np.testing.assert_allclose(dumped.cell, expected, atol=1e-10)
    np.testing.assert_allclose(structure.cell, expected, atol=1e-10)
    np.testing.assert_allclose(
        structure.positions[1:], dumped.positions[1:], atol=1e-4
    )  # a dump has six digits, and wraps the first
    (atoms,) = read_atoms(FILES / "lammps_tri.data")
    np.testing.assert_allclose(
        atoms.get_velocities()[0], np.array([-0.6731203341885397, 15.669346000906973, 44.59781944635977]) / 1000 / units.fs
    )


def test_lammps_data_with_charges_bonds_and_units():
    (atoms,) = read_atoms(FILES / "lammps_full.data")
    assert atoms.get_chemical_symbols() == ["O", "H", "H"] and np.allclose(atoms.positions[1], [5.76, 5.59, 5])
    np.testing.assert_allclose(atoms.get_initial_charges(), [-0.834, 0.417, 0.417])


def test_lammps_files_that_do_not_say_their_elements(tmp_path):
    with pytest.raises(DataError, match="a LAMMPS dump without elements.*dump_modify ... element"):
        read_structures(FILES / "lammps_noelement.lammpstrj")
    text = (FILES / "lammps_lj.dump").read_text().replace("id type x", "id element x")
    with pytest.raises(DataError, match="in the units 'lj'"):
        read_structures(write(tmp_path, "lj.dump", text))
    data = (FILES / "lammps_full.data").read_text()
    for text, message in (
        (data.replace("Masses", "Weights"), "without Masses"),
        (data.replace("Atoms # full", "Atoms"), "does not say its atom style"),
        (data.replace("1 15.9994", "1 150.5"), "a mass of 150.5 for type 1, which is no element's"),
        (data.replace("units = real", "units = si"), "in the units 'si'"),
    ):
        with pytest.raises(DataError, match=message):
            read_structures(write(tmp_path, "a.data", text))


# VASP


def outcar(iterations=(5, 8), most=8, last="aborting loop because EDIFF is reached"):
    """Two hydrogen atoms, one geometry for each number of iterations."""
    text = [
        " vasp.5.4.4.18Apr17-6-g9f103f2a35 (build Jul 12 2018 13:43:46) complex",
        " POTCAR:    PAW_PBE H 15Jun2001",
        " POTCAR:    PAW_PBE H 15Jun2001",
        "   ions per type =               2",
        f"   NELM   = {most:6d};   NELMIN=  2; NELMDL= -5     # of ELM steps",
        "   ISPIN  =      1    spin polarized calculation?",
    ]
    for step, count in enumerate(iterations, 1):
        text += [f"----------------------- Iteration {step:6d}({k:4d})  ---------" for k in range(1, count + 1)]
        text += [f"------------------------ {last} ----------------------------------------"]
        text += ["  in kB      10.00000    20.00000    30.00000     4.00000     5.00000     6.00000"]
        text += [" direct lattice vectors                 reciprocal lattice vectors"]
        text += [
            f"    {' '.join('8.000000000' if i == j else '0.000000000' for j in range(3))}  0.125 0.0 0.0" for i in range(3)
        ]
        text += [" POSITION                                       TOTAL-FORCE (eV/Angst)", " " + "-" * 83]
        text += [
            f"  0.00000  0.00000  0.00000  0.10000  0.00000  {0.1 * step:.5f}",
            f"  0.00000  0.00000  0.75000 -0.10000  0.00000  {-0.1 * step:.5f}",
        ]
        text += [" " + "-" * 83, "    total drift:                                0.000000      0.000000      0.000000", ""]
        text += ["  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)", "  ---------------------------------------------------"]
        text += [f"  free  energy   TOTEN  =        {-6.7 - step:.8f} eV", ""]
        text += [f"  energy  without entropy=       {-6.6 - step:.8f}  energy(sigma->0) =       {-6.65 - step:.8f}", ""]
    return "\n".join(text) + "\n"


def test_vasp_outcar_values_and_convergence(tmp_path):
    path = write(tmp_path, "OUTCAR", outcar())
    structures, census = read_structures(path)
    assert [s.energy for s in structures] == [-7.65, -8.65], "extrapolated to zero broadening"
    assert structures[1].forces[0].tolist() == [0.1, 0, 0.2]
    expected = -0.1 * units.GPa * np.array([[10, 4, 6], [4, 20, 5], [6, 5, 30]])  # kbar, XX YY ZZ XY YZ ZX
    np.testing.assert_allclose(structures[0].stress, expected, rtol=1e-6)
    assert "eV/Angstrom^3" in str(census) and "by the format" in str(census)
    assert [where.rsplit(", ")[1] for where, _ in census.remarks] == ["structure 1"], "the second ended at NELM"
    structures, census = read_structures(path, ReadOptions(skip=["unconverged"]))
    assert len(structures) == 1 and [item.kind for item in census.skipped] == ["unconverged"]
    path.write_text(outcar((5, 5), last="aborting loop EDIFF was not reached (unconverged)"))
    assert len(read_structures(path)[1].remarks) == 2
    path.write_text(outcar() + "  free  energy ML TOTEN  =       -10.0 eV\n")
    with pytest.raises(DataError, match="VASP's own machine-learned force field"):
        read_structures(path)


def vasprun(iterations=(3, 6), most=6):
    def vectors(name, rows):
        return f'<varray name="{name}">' + "".join(f"<v> {' '.join(map(str, row))} </v>" for row in rows) + "</varray>"

    def structure(z):
        return f"<structure><crystal>{vectors('basis', 8 * np.eye(3))}{vectors('rec_basis', np.eye(3) / 8)}</crystal>{vectors('positions', [[0, 0, 0], [0, 0, z]])}</structure>"

    text = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<incar></incar>\n'
    text += f'<parameters><separator name="electronic"><i type="int" name="NELM"> {most}</i></separator></parameters>\n'
    text += '<kpoints><varray name="kpointlist"><v> 0 0 0 </v></varray><varray name="weights"><v> 1 </v></varray></kpoints><atominfo><atoms> 2 </atoms><array name="atoms"><set><rc><c>H </c><c> 1</c></rc><rc><c>H </c><c> 1</c></rc></set></array></atominfo>\n'
    text += structure(0.1).replace("<structure>", '<structure name="initialpos">') + "\n"
    energy = '<energy><i name="e_fr_energy"> {0} </i><i name="e_wo_entrp"> {1} </i><i name="e_0_energy"> {2} </i></energy>'
    for step, count in enumerate(iterations):
        text += "<calculation>\n" + "<scstep>\n".join(
            [""] + [energy.format(-7.7 - step, -7.6 - step, -7.65 - step) + "</scstep>\n"] * count
        )
        text += structure(0.09 + 0.01 * step) + vectors("forces", [[0.1, 0, 0.2 + step], [-0.1, 0, -0.2 - step]])
        text += (
            vectors("stress", [[10, 4, 6], [4, 20, 5], [6, 5, 30]])
            + energy.format(-7.7 - step, -7.6 - step, -7.65 - step)
            + "\n</calculation>\n"
        )
    return text + structure(0.1).replace("<structure>", '<structure name="finalpos">') + "</modeling>\n"


def test_vasprun_values_and_convergence(tmp_path):
    structures, census = read_structures(write(tmp_path, "vasprun.xml", vasprun()))
    assert [s.energy for s in structures] == [-7.65, -8.65] and structures[0].forces[0].tolist() == [0.1, 0, 0.2]
    np.testing.assert_allclose(
        structures[0].stress, -0.1 * units.GPa * np.array([[10, 4, 6], [4, 20, 5], [6, 5, 30]]), rtol=1e-6
    )
    assert structures[0].positions[1].tolist() == [0, 0, 0.72]
    assert [where.rsplit(", ")[1] for where, _ in census.remarks] == ["structure 1"]


def test_poscar_keeps_fixed_atoms_and_velocities(tmp_path):
    text = "H2\n1.0\n8 0 0\n0 8 0\n0 0 8\nH\n2\nSelective dynamics\nDirect\n0 0 0 F F F\n0 0 0.1 T T T\n\n0.001 0 0\n0 0 -0.002\n"
    (atoms,) = read_atoms(write(tmp_path, "POSCAR", text))
    assert atoms.constraints[0].index.tolist() == [0] and atoms.positions[1, 2] == pytest.approx(0.8)
    np.testing.assert_allclose(
        atoms.get_velocities(), np.array([[0, 0, 0], [0, 0, -0.002]]) / units.fs, rtol=1e-6
    )  # fixed atoms rest
    with pytest.raises(DataError, match="the reader of vasp does not know 'D', an isotope of hydrogen; write H"):
        list(read_atoms(write(tmp_path, "POSCAR", text.replace("\nH\n", "\nD\n"))))


# Gaussian, ORCA, FHI-aims, CASTEP


def gaussian(orientation="Input", note=""):
    rows = "\n".join(
        f"      {k}          {z}           0        0.000000    0.000000    {x:.6f}"
        for k, z, x in ((1, 1, 0.0), (2, 1, 0.75))
    )
    table = f"                         {orientation} orientation:\n {'-' * 69}\n Center     Atomic      Atomic             Coordinates (Angstroms)\n Number     Number       Type             X           Y           Z\n {'-' * 69}\n{rows}\n {'-' * 69}\n"
    forces = f" Center     Atomic                   Forces (Hartrees/Bohr)\n Number     Number              X              Y              Z\n {'-' * 67}\n      1        1           0.000000000    0.000000000    0.010000000\n      2        1           0.000000000    0.000000000   -0.010000000\n {'-' * 67}\n"
    return (
        " Entering Gaussian System, Link 0=g16\n"
        f" {'-' * 20}\n #P HF/STO-3G force\n {'-' * 20}\n Charge =  0 Multiplicity = 1\n"
        f"{table}{note} SCF Done:  E(RHF) =  -1.11700000000     A.U. after    5 cycles\n{forces} Normal termination of Gaussian 16\n"
    )


def test_gaussian_values_convergence_and_axes(tmp_path):
    (structure, *_), census = read_structures(write(tmp_path, "h2.log", gaussian()))
    assert structure.energy == pytest.approx(-1.117 * units.Hartree, rel=1e-6) and structure.positions[1].tolist() == [
        0,
        0,
        0.75,
    ]
    np.testing.assert_allclose(structure.forces[0], [0, 0, 0.01 * units.Hartree / units.Bohr], rtol=1e-6)
    assert not structure.pbc.any() and not census.remarks
    _, census = read_structures(write(tmp_path, "bad.log", gaussian(note=" >>>>>>>>>> Convergence criterion not met.\n")))
    assert [item.code for _, item in census.remarks] == ["unconverged"]
    with pytest.raises(DataError, match="positions are given in the standard orientation only, forces in that of the input"):
        read_structures(write(tmp_path, "axes.log", gaussian("Standard")))


def orca(box="SCF CONVERGED AFTER   6 CYCLES", tail=""):
    return (
        "                                 *****************\n                                 * O   R   C   A *\n                                 *****************\n"
        "Number of atoms                             ...      2\n"
        "---------------------------------\nCARTESIAN COORDINATES (ANGSTROEM)\n---------------------------------\n"
        "  H      0.000000    0.000000    0.000000\n  H      0.000000    0.000000    0.750000\n\n"
        f"               *****************************************************\n               *           {box}          *\n               *****************************************************\n"
        f"-------------------------   --------------------\nFINAL SINGLE POINT ENERGY        -1.117000000000{tail}\n-------------------------   --------------------\n"
        "------------------\nCARTESIAN GRADIENT\n------------------\n\n   1   H   :    0.000000000    0.000000000   -0.010000000\n   2   H   :    0.000000000    0.000000000    0.010000000\n\n"
        "Difference to translation invariance:\n\n                             ****ORCA TERMINATED NORMALLY****\n"
    )


def test_orca_values_and_convergence(tmp_path):
    (structure,), census = read_structures(write(tmp_path, "h2.out", orca()))
    assert structure.energy == pytest.approx(-1.117 * units.Hartree, rel=1e-6) and structure.positions[1].tolist() == [
        0,
        0,
        0.75,
    ]
    np.testing.assert_allclose(
        structure.forces[0], [0, 0, 0.01 * units.Hartree / units.Bohr], rtol=1e-6
    )  # minus the gradient
    assert not structure.pbc.any() and not census.remarks
    _, census = read_structures(write(tmp_path, "bad.out", orca("SCF NOT CONVERGED AFTER 125 CYCLES")))
    assert [item.code for _, item in census.remarks] == ["unconverged"]


def test_aims_marks_and_its_molecular_dynamics(tmp_path):
    text = "          Invoking FHI-aims ...\n  Self-consistency cycle converged.\n  | Total energy corrected        :  -100.0 eV\n"
    bad = "* WARNING! SELF-CONSISTENCY CYCLE DID NOT CONVERGE\n  | Total energy corrected        :  -100.0 eV\n"
    assert programs.aims(write(tmp_path, "a.out", text + bad + text)) == [True, False, True]
    with pytest.raises(DataError, match="FHI-aims' molecular dynamics.*convert it"):
        read_structures(
            write(tmp_path, "md.out", text + "  Atomic structure (and velocities) as used in the preceding time step:\n")
        )


def castep_md():
    row = "{:>26}{:>26}{:>26}  <-- {}\n"
    block = "                       {}\n                     -0.5    -0.5   0.001                        <-- E\n"
    block += "".join(
        f"  {'15.0' if i == 0 else '0.0'}  {'15.0' if i == 1 else '0.0'}  {'15.0' if i == 2 else '0.0'}    <-- h\n"
        for i in range(3)
    )
    block += "".join(f" H   {k}  0.0  0.0  {1.4 * (k - 1)}   <-- R\n" for k in (1, 2)) + "".join(
        f" H   {k}  0.0  0.0  0.0   <-- V\n" for k in (1, 2)
    )
    block += " H   1  0.0  0.0  0.01   <-- F\n H   2  0.0  0.0  -0.01   <-- F\n\n"
    return " BEGIN header\n \n END header\n \n" + block.format("0.0") + row[:0]


def test_castep_md_has_an_energy_and_its_marks(tmp_path):
    (structure,), census = read_structures(write(tmp_path, "h2.md", castep_md()))
    assert structure.energy == pytest.approx(-0.5 * units.Hartree, rel=1e-5)
    assert structure.positions[1, 2] == pytest.approx(1.4 * units.Bohr, rel=1e-5)
    assert structure.forces[0, 2] == pytest.approx(0.01 * units.Hartree / units.Bohr, rel=1e-5) and structure.pbc.all()
    text = "Final energy =  -10.0 eV\n(energy not corrected for finite basis set)\n"
    three = text * 3 + " Total energy corrected for finite basis set =    -10.1 eV\n"
    assert programs.castep(write(tmp_path, "a.castep", three)) == [True]
    with pytest.raises(DataError, match="1 of 4 energies are corrected for the finite basis set"):
        programs.castep(write(tmp_path, "a.castep", three + text))
    bad = "*Warning* max. SCF cycles performed but system has not reached the groundstate.\n" + text
    assert programs.castep(write(tmp_path, "a.castep", text + bad)) == [True, False]


# CIF, PDB, and formats whose units nobody has checked

CIF = """data_x
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 5.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Si1 Si 0 0 0 1.0
H1 H 0.25 0.25 0.3 1.0
"""


def test_cif_occupancies_and_isotopes(tmp_path):
    (structure,), census = read_structures(write(tmp_path, "a.cif", CIF))
    assert structure.formula == "HSi" and structure.pbc.all()
    np.testing.assert_allclose(structure.positions[structure.numbers == 1], [[1, 1, 1.5]], atol=1e-10)
    assert "positions (Angstrom by the format)" in str(census)
    for row in ("Ge1 Ge 0 0 0 0.4\n", ""):
        with pytest.raises(DataError, match="is occupied in part .*Si 0.6"):
            read_structures(write(tmp_path, "half.cif", CIF.replace("0 0 0 1.0", "0 0 0 0.6") + row))
    _, census = read_structures(write(tmp_path, "d.cif", CIF.replace("H1 H", "D1 D")))
    assert "deuterium is read as hydrogen" in str(census)


PDB = """CRYST1   12.000   12.000   12.000  90.00  90.00  90.00 P 1           1
MODEL        1
HETATM    1 O1   HOH A   1       0.000   0.000   0.000  1.00  0.00           O
HETATM    2 H2   HOH A   1       0.960   0.000   0.000  1.00  0.00           H
HETATM    3 H3   HOH A   1      -0.240   0.930   0.000  1.00  0.00           H
ENDMDL
"""


def test_pdb_models_dummy_cells_and_what_is_refused(tmp_path):
    frames = list(read_atoms(write(tmp_path, "a.pdb", PDB + PDB.split("\n", 1)[1] + "END\n")))
    assert len(frames) == 2 and frames[1].pbc.all() and frames[0].cell.lengths().tolist() == [12] * 3
    dummy = PDB.replace("12.000", " 1.000")
    for name in ("nmr.pdb", "nmr.ent"):
        (atoms, *_) = read_atoms(write(tmp_path, name, dummy))
        assert not atoms.pbc.any() and not atoms.cell.any() and atoms.get_chemical_symbols() == ["O", "H", "H"]
    for text, message in (
        (PDB.replace("H2   HOH", "H2  AHOH"), "line 4: an atom with alternate locations .'A' in column 17"),
        (
            PDB.replace("P 1 ", "P 21"),
            "line 1: a crystal of space group 'P 21', of which the file holds the asymmetric unit only",
        ),
        (PDB.replace("1.00  0.00           H", "0.50  0.00           H"), "atom 1 is occupied in part .0.5"),
    ):
        with pytest.raises(DataError, match=message):
            list(read_atoms(write(tmp_path, "bad.pdb", text)))


def test_units_of_formats_that_no_test_has_checked_are_assumed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (atoms,) = read_atoms(FILES / "qe_scf.out.xz")
        ase.io.write(tmp_path / "a.xsf", atoms)
        ase.io.write(tmp_path / "a.traj", atoms)
    assert "Angstrom assumed" in str(read_structures(tmp_path / "a.xsf")[1])
    assert "eV by the format" in str(read_structures(tmp_path / "a.traj")[1])


def test_a_name_that_ends_in_out_says_nothing(tmp_path):
    with pytest.raises(DataError, match="the format is not recognised"):
        read_structures(write(tmp_path, "something.out", "a program that nobody knows\n" * 5))


def test_a_cell_that_cannot_be_is_computed_by_nothing(tmp_path):
    text = '3\nLattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0.5\n'
    (atoms,) = read_atoms(write(tmp_path, "a.xyz", text))
    with pytest.raises(DataError, match="structure 0: 3 atoms in a cell of 1 Å³; is it a placeholder"):
        make_potential("morse").predict([atoms])
    atoms.calc = MLFFCalculator(make_potential("morse"))
    with pytest.raises(DataError, match="3 atoms in a cell of 1 Å³; is it a placeholder"):
        atoms.get_potential_energy()
