"""The README tells the truth: its code runs, its commands and configs are valid, what it names is there.

Everything runs in a folder laid out like the checkout, with a tiny model and a few structures in place of the real ones.
"""

import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlff import MLFFCalculator
from mlff.cli import app
from mlff.config.load import load_config
from tests.potentials import morse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = """
data: {train: ../data/malonaldehyde/train.xyz, test: ../data/malonaldehyde/test_300K.xyz}
model: {architecture: schnet, cutoff: 3.0, channels: 4, layers: 1, radial_basis: 4}
training: {epochs: 2, tensorboard: false}
"""
#: what makes an example short; a later option replaces an earlier one
SHORT = {
    "md": ["--steps", "20"],
    "relax": ["--fmax", "1000"],
    "train": ["--no-certify"],
    "certify": ["--length", "0.1"],
    "committee": ["--no-certify"],
    "sample": ["--count", "20"],
}


def blocks(language: str) -> list[str]:
    """Code blocks of one language, indented so that line numbers in tracebacks are those of the README."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return ["\n" * README[: match.start(1)].count("\n") + match.group(1) for match in found]


def commands() -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Data of 20 structures per file and a config that takes seconds."""
    root = tmp_path_factory.mktemp("checkout")
    data = root / "data" / "malonaldehyde"
    data.mkdir(parents=True)
    for file in (ROOT / "data" / "malonaldehyde").glob("*.xyz"):
        with open(file, encoding="utf-8") as lines:
            (data / file.name).write_text("".join(line for line, _ in zip(lines, range(20 * 11), strict=False)))
    (root / "configs").mkdir()
    (root / "configs" / "malonaldehyde.yaml").write_text(CONFIG)
    return root


def test_python_blocks_run(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    namespace: dict = {}
    found = blocks("python")
    assert len(found) == 3
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "eV/Å" in printed and "meV/Å" in printed and "(27, 27)" in printed
    imported = set(re.findall(r"\w+", found[0].split("from mlff import")[1].splitlines()[0]))
    assert len(imported) == 3


def test_mlff_commands_run(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    if importlib.util.find_spec("tblite") is None:
        monkeypatch.setattr("mlff.simulation.sampling.teacher", lambda name: MLFFCalculator(morse()))
    examples = [line[1:] for line in commands() if line[0] == "mlff"]
    for example in examples:
        short = SHORT.get(example[0], []) if example[0] != "certify" or "--full" in example else []
        result = CliRunner().invoke(app, [*example, *short])
        uncertified = example[0] == "certify" and ": fails " in result.stderr  # after two epochs
        assert result.exit_code == 0 or uncertified, f"mlff {shlex.join(example)}\n{result.stderr}"
    shown = {example[0] for example in examples}
    known = set(re.findall(r"^│ (\w+) ", CliRunner().invoke(app, ["--help"]).stdout, re.MULTILINE))
    assert shown == known, "one example per command"


def test_other_commands_are_there():
    for line in commands():
        if line[0].startswith("./"):
            assert os.access(ROOT / line[0], os.X_OK), line[0]
        else:
            assert line[0] == "mlff" or line == ["pip", "install", "."]


def test_configs_are_valid(tmp_path):
    found = blocks("yaml")
    assert found
    for number, block in enumerate(found):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        config = load_config(file)
        for path in config.data.train if isinstance(config.data.train, list) else [config.data.train]:
            assert (ROOT / "configs" / Path(path).relative_to(tmp_path)).exists(), path


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configs_to_start_from_are_valid_and_named(file):
    load_config(file)
    assert f"`{file.name}`" in README


def test_what_the_readme_names_exists():
    named = set(re.findall(r"(?<![\w/.])(?:configs|data|scripts|docs|tests|mlff)/[\w/.]+\w", README))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert len(named) > 10 and not missing, missing
