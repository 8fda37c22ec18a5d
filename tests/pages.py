"""Readers of the documentation: they run what a page shows, in a folder laid out like the checkout, with little data."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.socketio import SocketServer
from ase.io import read, write
from typer.testing import CliRunner

from mlff import MLFFCalculator, Potential
from mlff.cli import app
from tests.conftest import loaded_once
from tests.potentials import lennard_jones, morse

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES, *TUTORIALS, DOCS / "theory" / "reverse_mode.md"]  #: whose code is run
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
MODEL = """
model: {architecture: schnet, cutoff: 3.0, channels: 4, layers: 1, radial_basis: 4}
training: {epochs: 2, tensorboard: false}
"""
CONFIGS = {
    "malonaldehyde": "data: {train: ../data/malonaldehyde/train.xyz, test: ../data/malonaldehyde/test_300K.xyz}" + MODEL,
    "silicon": "data: {train: ../data/silicon/train.xyz}\nloss: {stress: 1.0}" + MODEL,
}
#: what makes an example short; a later option replaces an earlier one
SHORT = {
    "md": ["--steps", "20"],
    "relax": ["--fmax", "1000"],
    "train": ["--no-certify"],
    "finetune": ["--no-certify"],
    "plasticity": ["--count", "4"],
    "certify": ["--length", "0.1"],
    "committee": ["--no-certify"],
    "sample": ["--count", "20"],
    "vibrations": ["--fmax", "1000"],
    "neb": ["--fmax", "1000"],
    "design": [
        "--set",
        "model=../../runs/malonaldehyde",
        "--set",
        "starts=1",
        "--set",
        "targets=[{kind: energy_difference, change: 0.0, error: 0.01, frame: 6, structure: ../../data/malonaldehyde/path.xyz}]",
    ],
    "refine": [
        "--no-certify",
        "--set",
        "steps=1",
        "--set",
        "targets=[{kind: energy_difference, value: 0.07, error: 0.01, frames: [0, 6], "
        "structures: [../../data/malonaldehyde/path.xyz, ../../data/malonaldehyde/path.xyz]}]",
    ],
}
BIASED = "--steps 1000 --interval 1 --timestep 0.2 --temperature 20".split()  #: of md with a bias, for a profile
SETTINGS = {"training.epochs": "2", "data.n_train": "12"}  #: the same of --set
FRAMES = 20  #: of each file that comes along
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code), the code indented so that line numbers in tracebacks are those of the page."""
    text = page.read_text(encoding="utf-8")
    return [(match[1], "\n" * text[: match.start(2)].count("\n") + match[2]) for match in BLOCK.finditer(text)]


def commands(code: str) -> list[list[str]]:
    """The words of each line; a line that ends in a backslash goes on."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def all_commands() -> list[list[str]]:
    """Of all pages."""
    return [line for page in PAGES for language, code in blocks(page) if language == "bash" for line in commands(code)]


def prose(page: Path) -> str:
    """A page without its code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


@dataclass
class Reader:
    """Does what a page says, in a checkout of its own."""

    folder: Path
    done: list[list[str]] = field(default_factory=list)
    loaded: dict[tuple, Potential] = field(default_factory=dict)  #: models

    def read(self, page: Path) -> str:
        """Runs the blocks of a page in order; what its Python prints."""
        namespace: dict = {}
        printed = io.StringIO()
        with contextlib.chdir(self.folder), crystal() if page.name == "properties.md" else contextlib.nullcontext():
            for language, code in blocks(page):
                if language == "python":
                    with contextlib.redirect_stdout(printed):
                        exec(compile(code, str(page), "exec"), namespace)
                elif language == "bash":
                    for line in commands(code):
                        if line[0] == "mlff" and line not in self.done:
                            with server(line) if line[1] == "serve" else contextlib.nullcontext():
                                self.run(line[1:])
                            self.done.append(line)
                        elif line[-2:-1] == ["i-pi"]:
                            run_ipi(Path(line[1]), line[-1])
        return printed.getvalue()

    def run(self, example: list[str]) -> None:
        """One command of `mlff`, shortened."""
        short = SHORT.get(example[0], []) if example[0] != "certify" or "--full" in example else []
        if "--bias" in example:
            short = BIASED
        if "--restart" in example:
            short = ["--steps", "40"]
        named = [word.partition("=")[0] for word in example]
        short = [*short, *(word for key in SETTINGS if key in named for word in ("--set", f"{key}={SETTINGS[key]}"))]
        with loaded_once(self.loaded):
            result = CliRunner().invoke(app, [*example, *short])
        uncertified = example[0] == "certify" and ": fails " in result.stderr  # after two epochs
        assert result.exit_code == 0 or uncertified, f"mlff {shlex.join(example)}\n{result.stderr}"


@contextlib.contextmanager
def server(line: list[str]) -> Iterator[None]:
    """One of the protocol of i-PI, with one question for `mlff serve`."""
    there = SocketServer(unixsocket=line[line.index("--unix") + 1])
    atoms = read(line[3], index=int(line[line.index("--frame") + 1]))

    def ask() -> None:
        there.calculate(atoms)
        there.close()

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    thread.join()


def run_ipi(folder: Path, name: str) -> None:
    """A few steps of an input of i-PI in its folder."""
    from tests.interfaces.servers import changed, simulation

    assert name == "input.xml"
    with simulation(folder, changed(folder, ("10000 </total", "2 </total"))) as run:
        run.run()


def register_with_openmm() -> None:
    """As the entry point of mlff does where it is installed: a checkout may have been before it had one."""
    from openmmml import MLPotential

    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    module, _, name = entry["openmmml.potentials"]["mlff"].partition(":")
    MLPotential.registerImplFactory("mlff", getattr(importlib.import_module(module), name)())


@contextlib.contextmanager
def crystal() -> Iterator[None]:
    """In place of silicon and a model of it a crystal that has a minimum: Lennard-Jones, face-centred cubic."""
    data, model = Path("data/silicon/train.xyz"), Path("runs/silicon")
    kept = data.read_text(encoding="utf-8")
    write(data, bulk("Si", "fcc", a=3.6, cubic=True))
    model.mkdir(parents=True, exist_ok=True)
    lennard_jones(cutoff=4.0).save(model / "model.safetensors")
    yield
    data.write_text(kept, encoding="utf-8")
    shutil.rmtree(model)


@contextlib.contextmanager
def checkout(root: Path) -> Iterator[Reader]:
    """A reader with data of 20 structures per file and configs that take seconds."""
    for file in (ROOT / "data").glob("*/*.xyz"):
        copy = root / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(file, encoding="utf-8") as lines:
            kept: list[str] = []
            for _, count in zip(range(FRAMES), lines, strict=False):
                kept += [count, *(next(lines) for _ in range(int(count) + 1))]
        copy.write_text("".join(kept), encoding="utf-8")
    (root / "configs").mkdir()
    for name in ("bias", "refine", "design"):
        shutil.copytree(ROOT / "configs" / name, root / "configs" / name)
    for name, text in CONFIGS.items():
        (root / "configs" / f"{name}.yaml").write_text(text, encoding="utf-8")
    if importlib.util.find_spec("openmmml") is not None:
        register_with_openmm()
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("tblite") is None:
            patch.setattr("mlff.simulation.sampling.teacher", lambda name: MLFFCalculator(morse()))
        yield Reader(root)
