"""The command line from end to end: what it prints, what it writes, how it fails."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from typer.testing import CliRunner

from mlff import MLFFCalculator, Potential
from mlff.basics.errors import FileError
from mlff.certificate import checks, stability
from mlff.certificate.certificate import Certificate
from mlff.cli import app
from mlff.cli.app import PANELS
from tests import samples
from tests.potentials import lennard_jones, morse

CONFIG = """
data:
  train: train.xyz
  test: {held_out: test.xyz}
  keys: {energy: REF_energy, forces: REF_forces}
model: {architecture: schnet, cutoff: 4.0, channels: 4, layers: 1, radial_basis: 4}
training: {epochs: 2, batch_size: 4, tensorboard: false}
"""


def call(*arguments):
    """Run `mlff ...` in this process: exit code, stdout, stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def fails(*arguments, code=1):
    """The one line that a failing command says."""
    exit_code, _, stderr = call(*arguments)
    assert exit_code == code, stderr
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    assert "Traceback" not in stderr
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled data, a config, structures and the models of two oracles."""
    folder = tmp_path_factory.mktemp("cli")
    rng, oracle = np.random.default_rng(0), morse()
    for name, count in (("train", 12), ("test", 4)):
        frames = []
        for _ in range(count):
            atoms = molecule("H2O")
            atoms.positions += rng.normal(0, 0.05, (3, 3))
            frames.append(atoms)
        for atoms, result in zip(frames, oracle.predict(frames), strict=True):
            atoms.info["REF_energy"], atoms.arrays["REF_forces"] = result.energy, result.forces
        write(folder / f"{name}.xyz", frames)
    (folder / "config.yaml").write_text(CONFIG)
    write(folder / "water.xyz", molecule("H2O"))
    copper = bulk("Cu", cubic=True).repeat(2)
    copper.rattle(0.05, seed=0)
    write(folder / "copper.xyz", copper)
    lennard_jones().save(folder / "copper.safetensors")
    oracle.save(folder / "bonds.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The directory of a finished training run."""
    code, out, err = call("train", folder / "config.yaml", "--no-certify", "--out", folder / "run")
    assert code == 0, err
    assert out.splitlines()[-1] == str(folder / "run" / "model.safetensors")
    return folder / "run"


def test_info_of_a_deepmd_folder_and_units_by_group(tmp_path):
    assert "eV by the format" in " ".join(call("info", samples.deepmd(tmp_path)[0])[1].split())
    path = samples.mlearn(tmp_path)[0]
    assert "stress 2 " in " ".join(call("info", path, "--unit", "stress_order={Elastic: vasp}")[1].split())
    assert "stress_order" in fails("info", path, "--unit", "stress_order=vasq")


def test_structures_of_every_format_are_predicted_and_relaxed(folder, tmp_path):
    for make in (samples.deepmd, samples.spice, samples.nequip):
        path = make(tmp_path)[0]
        code, out, err = call("predict", folder / "bonds.safetensors", path, tmp_path / "predicted.xyz")
        assert code == 0 and "4 structures" in out, err
        assert len(read(tmp_path / "predicted.xyz", ":")) == 4
    path = tmp_path / "spice.hdf5"
    code, _, err = call("relax", folder / "bonds.safetensors", path, "--frame", 1, "--out", tmp_path / "relaxed.xyz")
    assert code == 0, err
    assert read(tmp_path / "relaxed.xyz").get_distance(0, 1) == pytest.approx(1.2, abs=0.4)  # from Bohr to Å
    path, out = samples.n2p2(tmp_path)[0], tmp_path / "atomic.xyz"
    code, _, err = call("predict", folder / "bonds.safetensors", path, out, "--length", "Bohr")
    assert code == 0 and read(out).positions == pytest.approx(samples.frames()[-1].positions, abs=1e-6), err
    message = fails("predict", folder / "bonds.safetensors", tmp_path / "spice.hdf5", out, "--length", "Angstrom")
    assert "states length in Bohr, but units.length is Angstrom" in message


def test_lint_skips_what_it_is_told_to(folder, tmp_path):
    keys = "--key", "energy=REF_energy", "--key", "forces=REF_forces"
    text = (folder / "train.xyz").read_text().splitlines()
    (tmp_path / "cut.xyz").write_text("\n".join([*text, *text[:5], *text[:4]]) + "\n")
    assert "structure 13: the file ends" in fails("lint", tmp_path / "cut.xyz", *keys)
    report = tmp_path / "report.json"
    code, out, err = call(
        "lint", tmp_path / "cut.xyz", *keys, "--skip", "unreadable", "--skip", "duplicates", "--json", report
    )
    assert code == 0, err
    findings = {item["code"]: item["where"] for item in json.loads(report.read_text())["findings"]}
    assert findings["skipped-unreadable"][0]["index"] == 13 and findings["skipped-duplicate"][0]["index"] == 12
    assert "skip" in fails("lint", tmp_path / "cut.xyz", "--skip", "everything")


def test_help_lists_every_command_once_under_a_heading():
    listed = [name for names in PANELS.values() for name in names]
    known = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert sorted(listed) == sorted(known)
    code, out, _ = call("--help")
    assert code == 0 and out.index("Training") < out.index(" train ") < out.index("Properties") < out.index(" phonons ")


def test_help_is_quick_and_shows_units():
    code, out, _ = call("md", "--help")
    assert code == 0 and "Example" in out and "fs" in out and "GPa" in out
    begin = time.process_time()
    children = os.times().children_user + os.times().children_system
    done = subprocess.run(
        [sys.executable, "-c", "from mlff.cli import main; main()", "--help"], capture_output=True, text=True
    )
    used = os.times().children_user + os.times().children_system - children
    assert done.returncode == 0 and "relax" in done.stdout
    assert used < 1.0, f"{used:.2f} s of CPU for --help"
    assert time.process_time() - begin < 1.0


def test_train_writes_a_model_and_a_learning_curve(run):
    assert (run / "model.safetensors").is_file()
    assert (run / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"


def test_train_writes_a_report_of_the_held_out_sets(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "test held_out" in text and "H2O (11)" in text and "no predictions are stored" not in text
    assert json.loads(text.split('id="structures">')[1].split("</script>")[0])["structures"][0]["symbols"] == ["O", "H", "H"]


def test_a_report_that_fails_costs_nothing_else(folder, run, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no fonts")

    before = (run / "report.html").read_bytes()
    monkeypatch.setattr("mlff.report.html.write_report", fails)
    code, out, err = call("train", folder / "config.yaml", "--no-certify", "--out", run)
    assert code == 0 and out.splitlines()[-1] == str(run / "model.safetensors")
    assert "warning: no report: no fonts; with mlff info" in err and "Traceback" not in err
    assert (run / "report.html").read_bytes() == before and Potential.load(run / "model.safetensors").metadata["errors"]


def test_predictions_that_cannot_be_kept_cost_nothing_else(folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise FileError("parity.json: no space left on device")

    monkeypatch.setattr("mlff.training.parity.write", full)
    code, out, err = call("train", folder / "config.yaml", "--no-certify", "--out", tmp_path / "run")
    assert code == 0 and (tmp_path / "run" / "model.safetensors").is_file()
    assert "no space left on device; the report will lack predictions" in " ".join(err.split())
    assert "no predictions are stored" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_dry_run_spends_nothing(folder):
    before = sorted(folder.rglob("*"))
    code, out, err = call(
        "train", folder / "config.yaml", "--dry-run", "--set", "training.batch_size=3", "--out", folder / "nowhere"
    )
    assert code == 0, err
    assert (
        "batch_size: 3" in out
        and "steps per epoch" in out
        and "MiB for the largest step" in out
        and "nothing was written" in out
    )
    assert sorted(folder.rglob("*")) == before


def test_evaluate(run, folder):
    keys = "--key", "energy=REF_energy", "--key", "forces=REF_forces"
    code, out, err = call(
        "evaluate", run, folder / "test.xyz", "--json", folder / "errors.json", "--plot", folder / "parity.png", *keys
    )
    assert code == 0, err
    assert "meV/Å" in out
    errors = json.loads((folder / "errors.json").read_text())
    assert errors["structures"] == 4 and errors["forces_rmse"] > 0 and errors["fingerprint"]
    assert (folder / "parity.png").read_bytes()[:4] == b"\x89PNG"


def test_predict_keeps_what_was_there(folder):
    code, out, err = call("predict", folder / "bonds.safetensors", folder / "test.xyz", folder / "predicted.xyz")
    assert code == 0 and "4 structures" in out, err
    for before, after in zip(read(folder / "test.xyz", ":"), read(folder / "predicted.xyz", ":"), strict=True):
        assert after.info["REF_energy"] == before.info["REF_energy"]
        assert after.info["mlff_energy"] == pytest.approx(before.info["REF_energy"], abs=1e-5)
        assert after.arrays["mlff_forces"] == pytest.approx(before.arrays["REF_forces"], abs=1e-5)
        assert after.calc is None
    code, _, err = call("predict", folder / "copper.safetensors", folder / "copper.xyz", folder / "stress.xyz", "--stress")
    assert code == 0, err
    assert read(folder / "stress.xyz").info["mlff_stress"].shape == (3, 3)


def test_md_and_restart(folder):
    out = folder / "run.traj"
    arguments = [
        "md",
        folder / "copper.safetensors",
        folder / "copper.xyz",
        "--temperature",
        300,
        "--timestep",
        2,
        "--out",
        out,
    ]
    code, printed, err = call(*arguments, "--ensemble", "nve", "--steps", 40, "--plot", folder / "md.png")
    assert code == 0, err
    assert "drift" in printed and "ns/day" in printed
    assert len(read(out, ":")) == 5 and len((folder / "run.jsonl").read_text().splitlines()) == 5
    assert (folder / "md.png").stat().st_size > 10_000
    assert "exists; --restart continues it" in fails(*arguments, "--ensemble", "nve", "--steps", 60)
    code, _, err = call(*arguments, "--ensemble", "nve", "--steps", 60, "--restart")
    assert code == 0, err
    assert len(read(out, ":")) == 7
    code, _, err = call(*arguments, "--ensemble", "npt", "--steps", 20, "--force")
    assert code == 0, err
    assert read(out, -1).get_volume() != read(out, 0).get_volume()


@pytest.mark.parametrize("few, threads", [(True, "1"), (False, None)])
def test_md_of_few_atoms_keeps_to_one_thread(folder, monkeypatch, few, threads):
    monkeypatch.setenv("PJRT_NPROC", "2")  # so that it is taken back afterwards
    monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.setattr("mlff.cli.dynamics._SMALL", 1000 if few else 0)
    code, _, err = call(
        "md", folder / "copper.safetensors", folder / "copper.xyz", "--steps", 2, "--out", folder / f"{few}.traj"
    )
    assert code == 0, err
    assert os.environ.get("PJRT_NPROC") == threads


def test_md_that_blows_up_is_an_error(folder):
    message = fails(
        "md",
        folder / "copper.safetensors",
        folder / "copper.xyz",
        "--max-temperature",
        10,
        "--steps",
        100,
        "--out",
        folder / "bad.xyz",
    )
    assert "stopped at step" in message and "bad.xyz" in message


def test_relax(folder):
    code, out, err = call(
        "relax", folder / "copper.safetensors", folder / "copper.xyz", "--cell", "--out", folder / "relaxed.xyz"
    )
    assert code == 0, err
    assert "cell" in out and "eV/Å" in out
    relaxed = read(folder / "relaxed.xyz")
    assert np.abs(relaxed.arrays["mlff_forces"]).max() < 0.01 and relaxed.calc is None
    assert "not converged" in fails(
        "relax", folder / "bonds.safetensors", folder / "water.xyz", "--steps", 1, "--out", folder / "w.xyz"
    )
    assert (folder / "w.xyz").exists()
    code, _, err = call(
        "relax",
        folder / "bonds.safetensors",
        folder / "water.xyz",
        "--fmax",
        "1e-7",
        "--steps",
        30,
        "--out",
        folder / "w.xyz",
    )
    assert "float64" in err
    arguments = "relax", folder / "bonds.safetensors", folder / "water.xyz", "--out", folder / "w.xyz"
    code, _, err = call(*arguments, "--fmax", "1e-7", "--precision", "float64")
    assert code == 0, err


def test_info(run, folder):
    code, out, err = call("info", run)
    assert code == 0, err
    assert "schnet" in out and "4 Å" in out and "held_out" in out
    code, out, err = call("info", folder / "train.xyz", "--key", "energy=REF_energy", "--key", "forces=REF_forces")
    assert code == 0, err
    assert "12" in out and "H-O" in out and "eV/Å" in out


def test_lint(folder, tmp_path):
    keys = "--key", "energy=REF_energy", "--key", "forces=REF_forces"
    report, picture = tmp_path / "lint.json", tmp_path / "lint.png"
    code, out, err = call("lint", folder / "train.xyz", folder / "test.xyz", *keys, "--json", report, "--plot", picture)
    assert code == 0 and err == "", err
    assert "H-O" in out and "consistent" in out
    assert json.loads(report.read_text())["structures"] == 16 and picture.read_bytes()[:4] == b"\x89PNG"
    code, out, _ = call("lint", folder / "train.xyz", folder / "train.xyz", folder / "test.xyz", *keys)
    assert code == 0 and "16" in out  # a file named twice is read once
    (tmp_path / "copy.xyz").write_bytes((folder / "train.xyz").read_bytes())
    code, out, _ = call("lint", folder / "train.xyz", tmp_path / "copy.xyz", *keys, "--max-examples", 1)
    assert code == 0 and "duplicate-across-files" in out and "23 more" in out
    message = fails("lint", folder / "train.xyz", *keys, "--unit", "forces_sign=gradient", "--json", report)
    assert "train.xyz: energies and forces contradict" in message and message.endswith("units.forces_sign: force")
    assert json.loads(report.read_text())["findings"][0]["code"] == "forces-sign"
    assert "is an input" in fails("lint", folder / "train.xyz", "--json", folder / "train.xyz")


def test_train_stops_at_a_contradiction_unless_told_otherwise(folder, tmp_path):
    wrong = "train", folder / "config.yaml", "--set", "data.units.forces_sign=gradient", "--out", tmp_path / "run"
    for extra in ((), ("--dry-run",)):
        message = fails(*wrong, "--quiet", *extra)
        assert "contradict each other" in message and "units.forces_sign: force; with data.lint: warn" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()
    code, out, err = call(*wrong, "--dry-run", "--set", "data.lint=warn")
    assert code == 0 and "error: energies and forces contradict" in " ".join(out.split()), err
    code, out, err = call(*wrong, "--dry-run", "--set", "data.lint=off")
    assert code == 0 and "contradict" not in out, err


def test_schema_is_json():
    code, out, _ = call("schema")
    assert code == 0 and "optimizer" in json.loads(out)["properties"]


def test_wrong_usage_is_code_2(folder):
    assert "No such option" in fails("md", "a", "b", "--out", "c.traj", "--setps", 3, code=2)
    assert "Missing argument" in fails("evaluate", "model", code=2)
    assert "'nvx' is not one of" in fails("md", "a", "b", "--out", "c.traj", "--ensemble", "nvx", code=2)
    assert "No such command" in fails("trian", code=2)


def test_malformed_input_is_one_line_that_names_it(folder, tmp_path):
    model, water = folder / "bonds.safetensors", folder / "water.xyz"
    new = tmp_path / "new.xyz"

    def broken(name, content=b""):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def structure(name, atoms):
        write(tmp_path / name, atoms)
        return tmp_path / name

    assert "nothing.safetensors: no such model file" in fails("info", tmp_path / "nothing.safetensors")
    assert "text.safetensors: not a safetensors file" in fails("predict", broken("text.safetensors", b"hello"), water, new)
    truncated = broken("short.safetensors", model.read_bytes()[:100])
    assert "short.safetensors: not a safetensors file, or truncated" in fails("evaluate", truncated, folder / "test.xyz")
    assert "empty.xyz: the file is empty" in fails("predict", model, broken("empty.xyz"), new)
    assert "gone.xyz: no such file" in fails("relax", model, tmp_path / "gone.xyz")
    assert "noise.xyz" in fails("relax", model, broken("noise.xyz", bytes(range(256))))
    assert "cut.xyz, structure 1" in fails("predict", model, broken("cut.xyz", (2 * water.read_bytes())[:-40]), new)
    assert "uranium.xyz, structure 0: atom 0 is U" in fails("predict", model, structure("uranium.xyz", Atoms("U")), new)
    fused = structure("fused.xyz", Atoms("HO", positions=[[0, 0, 0], [0, 0, 0]]))
    assert "fused.xyz, structure 0: atoms 0 and 1 are on top of each other" in fails("predict", model, fused, new)
    assert "atoms H 0 and O 1 fused" in fails("md", model, fused, "--out", tmp_path / "md.traj")
    nan = structure("nan.xyz", Atoms("HO", positions=[[0, 0, 0], [0, 0, np.nan]]))
    assert "nan.xyz, structure 0: position of atom 1 is not finite" in fails("predict", model, nan, new)
    assert "nan.xyz" in fails("relax", model, nan, "--out", new)
    assert "has no structure number 7" in fails("relax", model, water, "--frame", 7)
    assert "periodic in three directions" in fails("predict", model, water, new, "--stress")
    assert "npt needs a cell" in fails("md", model, water, "--ensemble", "npt", "--out", tmp_path / "md.traj")
    assert "is an input" in fails("predict", model, water, water)
    assert "no such directory" in fails("predict", model, water, tmp_path / "no" / "out.xyz")
    assert "must end in" in fails("md", model, water, "--out", tmp_path / "md.pdb")
    assert "did you mean 'epochs'" in fails("train", folder / "config.yaml", "--set", "training.epoch=3", "--dry-run")
    assert "expected key=value" in fails("train", folder / "config.yaml", "--set", "epochs", "--dry-run")
    assert "gone.yaml: cannot be read" in fails("train", tmp_path / "gone.yaml")
    assert "expected name=value" in fails("info", folder / "train.xyz", "--key", "enrgy=E")
    assert not new.exists() and not (tmp_path / "md.traj").exists() and not list(tmp_path.glob(".*"))


def test_debug_shows_the_traceback(folder):
    result = CliRunner().invoke(app, ["predict", "--debug", str(folder / "none"), str(folder / "water.xyz"), "out.xyz"])
    assert result.exit_code != 0 and type(result.exception).__name__ == "ModelFileError"


def test_as_a_process(folder):
    """Exit codes, streams and Ctrl-C as a shell sees them."""
    command = [sys.executable, "-c", "from mlff.cli import main; main()"]
    done = subprocess.run(
        [*command, "relax", folder / "none.safetensors", folder / "water.xyz"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    out = folder / "long.traj"
    arguments = [
        "md",
        folder / "bonds.safetensors",
        folder / "water.xyz",
        "--steps",
        "100000000",
        "--out",
        out,
        "--interval",
        "100",
    ]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = folder / "long.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    process.send_signal(2)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == "error: interrupted\n"
    assert out.with_suffix(".state.npz").is_file() and len(read(out, ":")) > 2


def labelled() -> Atoms:
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-2070.0, forces=np.zeros((3, 3)))
    return atoms


def test_certify_writes_into_the_model_and_fails_on_a_failed_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "NVE_STEPS", 200)
    model, plot = tmp_path / "bonds.safetensors", tmp_path / "certificate.png"
    morse().save(model)
    write(tmp_path / "water.xyz", molecule("H2O"))
    code, out, err = call(
        "certify", model, tmp_path / "water.xyz", "--plot", plot, "--json", tmp_path / "lines.json", "--quiet"
    )
    lines = {line["name"]: line for line in json.loads((tmp_path / "lines.json").read_text())["lines"]}
    assert lines["forces against energies"]["passed"] and lines["symmetry, energy"]["passed"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    failed = [name for name, line in lines.items() if not line["passed"]]
    assert failed and code == 1 and f"bonds.safetensors: fails {', '.join(failed)}" in err  # copper is no Morse of 1.2 Å
    with pytest.warns(UserWarning, match="failed checks"):
        assert Potential.load(model).failed_checks == failed
        MLFFCalculator(model)
    assert "nothing to certify" in fails("certify", folder / "bonds.safetensors")
    # --full keeps what is done when it is interrupted, and a short certificate keeps the lines of a full one
    monkeypatch.setattr(stability, "nve", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["certify", model, tmp_path / "labelled.xyz", "--full", "--length", "0.1", "--quiet"]
    write(tmp_path / "labelled.xyz", labelled())
    assert call(*arguments)[0] == 130
    stored = Potential.load(model).metadata["certificate"]
    kept = [line["name"] for line in stored["full"]]
    assert "stability, NVT at 300 K (0.1 of 100 ps)" in kept and not any("heating" in name for name in kept)
    assert stored["errors"]["labelled.xyz"]["forces_rmse_by_element"].keys() == {"H", "O"}
    assert call("certify", model, tmp_path / "water.xyz", "--quiet")[0] == 1
    assert [line["name"] for line in Potential.load(model).metadata["certificate"]["full"]] == kept


def test_nothing_to_compare_is_said(folder, tmp_path, monkeypatch):
    bare = fails("evaluate", folder / "bonds.safetensors", folder / "water.xyz", "--json", tmp_path / "e.json")
    assert "water.xyz: no structure has energy, forces or stress: nothing to compare with; keys there: none" in bare
    assert not (tmp_path / "e.json").exists()
    monkeypatch.setattr("mlff.cli.measure.write_certificate", lambda *arguments: Certificate(()))
    code, _, err = call("certify", folder / "bonds.safetensors", folder / "water.xyz", "--quiet")
    assert code == 0 and "note: " in err and "no labels, nothing to compare" in err
    write(tmp_path / "large.xyz", bulk("Cu", cubic=True).repeat(4))
    assert "holds no structure of up to 200 atoms" in fails(
        "certify", folder / "copper.safetensors", tmp_path / "large.xyz", "--quiet"
    )
