"""README, guides and tutorials tell the truth: their code runs, commands, options and configs are valid, what they name is there.

Everything runs in a folder laid out like the checkout, with a tiny model and a few structures in place of the real ones. The
README's blocks run first, in their order; guides and tutorials find what they made, and run their own in order. A command that stands on
several pages runs once.
"""

import os
import re
from pathlib import Path

import pytest
import typer.main

from mlff.cli import app
from mlff.config.bias import load_bias
from mlff.config.design import load_design
from mlff.config.load import load_config
from mlff.config.refinement import load_refinement
from tests.pages import DOCS, PAGES, ROOT, TEXTS, all_commands, blocks, checkout, prose

LINKED = [*PAGES, *sorted(set(DOCS.rglob("*.md")) - set(PAGES)), ROOT / "SECURITY.md"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
LONG = {
    "few_structures.md",
    "finetuning.md",
    "pretraining.md",
    "refinement.md",
    "design.md",
    "training.md",
    "safety.md",
    "starts.md",
    "periodic_solid.md",
    "properties.md",
    "free_energy.md",
    "trajectory_gradients.md",
    "gradient_descent.md",
    "many_devices.md",
}  #: long
NEEDS = {"ipi.md": "ipi", "openmm.md": "openmmml", "other_engines.md": "MDAnalysis"}  #: packages beside those of mlff
PRINTS = {
    "guides/use.md": r"meV/Å[^$]*\(27, 27\)",
    "guides/ipi.md": r"Å over 32 beads",
    "guides/openmm.md": r"kJ/mol\n[\d]+ atoms, \d+ constraints",
    "guides/other_engines.md": r"5 C3H4O2 -?\d[^$]*3 frames, O-O 2\.\d\d Å",
    "guides/dynamics.md": r"round trips between 300 and 430 K",
    "guides/free_energy.md": r'"cv_h": -?\d',
    "tutorials/first_force_field.md": r"barrier: 74 meV in the reference, -?\d+ meV learned",
    "tutorials/dynamics.md": r"O-O distance \d\.\d\d ± \d\.\d\d Å",
    "tutorials/few_structures.md": r"compute these frames: \[\d",
    "tutorials/periodic_solid.md": r"bulk modulus -?\d+ GPa",
    "tutorials/reverse_mode.md": r"largest difference \de-1[5-7], largest derivative \d\.\d\d",
    "guides/trajectory_gradients.md": r"O-O distance \d\.\d{4} Å, its slope .*\n.*of 40 frames count",
}  #: something that the Python of a page prints


def after_readme(page: Path):
    return pytest.param(page, id=f"{page.parent.name}/{page.name}", marks=[pytest.mark.slow] if page.name in LONG else [])


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    with checkout(tmp_path_factory.mktemp("checkout")) as reader:
        yield reader


@pytest.fixture(scope="module")
def after_the_readme(reader):
    """The reader who has done what the README says, and what it printed."""
    return reader, reader.read(PAGES[0])


def test_the_readme_runs(after_the_readme):
    _, printed = after_the_readme
    assert " eV\n" in printed and "eV/Å" in printed and re.search(r"^\d+ K$", printed, re.MULTILINE)


@pytest.mark.parametrize("page", [after_readme(page) for page in PAGES[1:]])
def test_a_page_runs(page, after_the_readme):
    reader, _ = after_the_readme
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name], reason="is not installed: pip install '.[test]'")
    printed = reader.read(page)
    assert re.search(PRINTS.get(f"{page.parent.name}/{page.name}", ""), printed), printed


def test_each_command_is_shown():
    shown = {line[1] for line in all_commands() if line[0] == "mlff"}
    assert shown == set(typer.main.get_command(app).commands), "one example per command"


def test_other_commands_are_there():
    for line in all_commands():
        if line[0].startswith("./"):
            assert os.access(ROOT / line[0], os.X_OK), line[0]
        else:
            assert line[0] == "mlff" or line == ["pip", "install", "."] or line[-2:] == ["i-pi", "input.xml"]


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
        if block.lstrip().startswith("variables:"):
            assert load_bias(file) in [load_bias(path) for path in (ROOT / "configs" / "bias").glob("*.yaml")]
            continue
        if "targets:" in block:
            (load_refinement if "\ndata:" in block else load_design)(file)
            continue
        config = load_config(file)
        for path in config.data.train if isinstance(config.data.train, list) else [config.data.train]:
            assert (ROOT / "configs" / Path(path).relative_to(tmp_path)).exists(), path


def test_the_readme_shows_a_config():
    assert [language for language, _ in blocks(PAGES[0])].count("yaml") == 1


def test_configs_of_refinements_are_valid():
    for file in (ROOT / "configs" / "refine").glob("*.yaml"):
        config = load_refinement(file)
        assert all(
            Path(value).exists() for one in config.targets for value in one.files().values() if isinstance(value, str)
        )


def test_configs_of_designs_are_valid():
    for file in (ROOT / "configs" / "design").glob("*.yaml"):
        assert Path(load_design(file).structure).exists()


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


def anchors(page: Path) -> set[str]:
    """Names of headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_pages_are_short_enough():
    assert len(TEXTS[PAGES[0]].splitlines()) <= 150
    assert all(40 <= len(TEXTS[page].splitlines()) <= 150 for page in PAGES[1:])


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_row_of_a_table_has_its_columns(page):
    """A row that was put into the middle of another one, for instance, has not."""
    columns = None
    for number, line in enumerate(re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8")).splitlines(), 1):
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert None in (cells, columns) or cells == columns, f"line {number}"
        columns = cells
