"""README and guides tell the truth: their code runs, commands, options and configs are valid, what they name is there.

Everything runs in a folder laid out like the checkout, with a tiny model and a few structures in place of the real ones. The
README's blocks run first, in their order; a guide finds what they made, and runs its own in order. A command that stands on
several pages runs once.
"""

import contextlib
import importlib.util
import io
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.main
from ase.build import bulk
from ase.io import write
from typer.testing import CliRunner

from mlff import MLFFCalculator
from mlff.cli import app
from mlff.config.load import load_config
from tests.potentials import lennard_jones, morse

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
LINKED = [*PAGES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "SECURITY.md"]
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
    "vibrations": ["--fmax", "1000"],
    "neb": ["--fmax", "1000"],
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_guide = pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code), the code indented so that line numbers in tracebacks are those of the page."""
    text = TEXTS[page]
    return [(match[1], "\n" * text[: match.start(2)].count("\n") + match[2]) for match in BLOCK.finditer(text)]


def commands(code: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [line for line in lines if line]


def all_commands() -> list[list[str]]:
    return [line for page in PAGES for language, code in blocks(page) if language == "bash" for line in commands(code)]


def prose(page: Path) -> str:
    return BLOCK.sub("", TEXTS[page])


@dataclass
class Reader:
    """Does what a page says, in a checkout of its own."""

    folder: Path
    done: list[list[str]] = field(default_factory=list)

    def read(self, page: Path) -> str:
        """Runs the blocks of a page in order; what its Python prints."""
        namespace: dict = {}
        printed = io.StringIO()
        with contextlib.chdir(self.folder):
            for language, code in blocks(page):
                if language == "python":
                    with contextlib.redirect_stdout(printed):
                        exec(compile(code, str(page), "exec"), namespace)
                elif language == "bash":
                    for line in commands(code):
                        if line[0] == "mlff" and line not in self.done:
                            self.run(line[1:])
                            self.done.append(line)
        return printed.getvalue()

    def run(self, example: list[str]) -> None:
        short = SHORT.get(example[0], []) if example[0] != "certify" or "--full" in example else []
        if "--restart" in example:
            short = ["--steps", "40"]
        result = CliRunner().invoke(app, [*example, *short])
        uncertified = example[0] == "certify" and ": fails " in result.stderr  # after two epochs
        missing = example[0] == "phonons" and "pip install phonopy" in result.stderr
        assert result.exit_code == 0 or uncertified or missing, f"mlff {shlex.join(example)}\n{result.stderr}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Data of 20 structures per file and a config that takes seconds."""
    root = tmp_path_factory.mktemp("checkout")
    data = root / "data" / "malonaldehyde"
    data.mkdir(parents=True)
    for file in (ROOT / "data" / "malonaldehyde").glob("*.xyz"):
        with open(file, encoding="utf-8") as lines:
            (data / file.name).write_text("".join(line for line, _ in zip(lines, range(20 * 11), strict=False)))
    (root / "runs" / "silicon").mkdir(parents=True)
    (root / "data" / "silicon").mkdir()
    write(root / "data" / "silicon" / "train.xyz", bulk("Si", "fcc", a=3.6, cubic=True))
    lennard_jones(cutoff=4.0).save(root / "runs" / "silicon" / "model.safetensors")
    (root / "configs").mkdir()
    (root / "configs" / "malonaldehyde.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("tblite") is None:
            patch.setattr("mlff.simulation.sampling.teacher", lambda name: MLFFCalculator(morse()))
        yield Reader(root)


@pytest.fixture(scope="module")
def after_the_readme(reader):
    """The reader who has done what the README says, and what it printed."""
    return reader, reader.read(PAGES[0])


def test_the_readme_runs(after_the_readme):
    _, printed = after_the_readme
    assert " eV\n" in printed and "eV/Å" in printed and re.search(r"^\d+ K$", printed, re.MULTILINE)


@each_guide
def test_a_guide_runs(page, after_the_readme):
    reader, _ = after_the_readme
    printed = reader.read(page)
    if page.name == "use.md":
        assert "meV/Å" in printed and "(27, 27)" in printed


def test_each_command_is_shown():
    shown = {line[1] for line in all_commands() if line[0] == "mlff"}
    assert shown == set(typer.main.get_command(app).commands), "one example per command"


def test_other_commands_are_there():
    for line in all_commands():
        if line[0].startswith("./"):
            assert os.access(ROOT / line[0], os.X_OK), line[0]
        else:
            assert line[0] == "mlff" or line == ["pip", "install", "."]


def test_languages_of_blocks_are_checked():
    assert {language for page in PAGES for language, _ in blocks(page)} == {"bash", "python", "yaml"}


@each_page
def test_options_in_the_prose_exist(page):
    known = {"--help", "--debug"}
    for command in typer.main.get_command(app).commands.values():
        known |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    named = {option for code in re.findall(r"`([^`]+)`", prose(page)) for option in re.findall(r"(?<!\S)--[\w-]+", code)}
    assert named <= known, sorted(named - known)


@each_page
def test_configs_are_valid(page, tmp_path):
    for number, block in enumerate(code for language, code in blocks(page) if language == "yaml"):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        config = load_config(file)
        for path in config.data.train if isinstance(config.data.train, list) else [config.data.train]:
            assert (ROOT / "configs" / Path(path).relative_to(tmp_path)).exists(), path


def test_the_readme_shows_a_config():
    assert [language for language, _ in blocks(PAGES[0])].count("yaml") == 1


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configs_to_start_from_are_valid_and_named(file):
    load_config(file)
    assert any(f"`{file.name}`" in text for text in TEXTS.values())


def test_what_the_pages_name_exists():
    named = {
        name
        for text in TEXTS.values()
        for name in re.findall(r"(?<![\w/.])(?:configs|data|scripts|docs|tests|mlff)/[\w/.]+\w", text)
    }
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert len(named) > 10 and not missing, missing


def anchors(text: str) -> set[str]:
    """Names of headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_index_and_short_enough():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name == "README.md" or f"]({page.relative_to(ROOT / 'docs')})" in index, page.name
    assert len(TEXTS[PAGES[0]].splitlines()) <= 150
    assert all(40 <= len(TEXTS[page].splitlines()) <= 150 for page in GUIDES)
