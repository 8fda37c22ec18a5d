"""The site: its reference is complete, its menu has every page, its links lead somewhere; notebooks run."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys

import pytest
import typer.main
import yaml

import mlff
from mlff.cli import app
from tests.pages import DOCS, ROOT

SITE = DOCS / "site"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def load_reference():
    spec = importlib.util.spec_from_file_location("reference", SITE / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()


def menu(entry) -> list[str]:
    """The pages of a part of the menu."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in menu(part)]


def test_the_menu_has_every_page():
    lines = (SITE / "mkdocs.yml").read_text(encoding="utf-8")
    listed = menu(yaml.safe_load(lines)["nav"])
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.parent.name != "decisions"}
    made = {"readme.md", "security.md", "licence.md", *(f"notebooks/{notebook.stem}.md" for notebook in NOTEBOOKS)}
    assert sorted(listed) == sorted(there | made)


def test_decisions_are_numbered_short_and_listed():
    pages = sorted((DOCS / "develop" / "decisions").glob("*.md"))
    index = (DOCS / "develop" / "README.md").read_text(encoding="utf-8")
    for number, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        title = re.match(rf"# {number}\. (.+)\n", text)
        assert page.name.startswith(f"{number:03d}-") and title, page.name
        assert f"{number}. [{title[1]}](decisions/{page.name})" in index, page.name
        parts = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Figures", "Consequences"], page.name
        assert len(text.splitlines()) <= 25, page.name


def test_every_key_of_the_config_is_in_the_reference_and_described():
    made = {part.split("\n", 1)[0]: part for part in reference.config().split("\n## ")}
    for path, model in reference.sections().items():
        section = made[f"`{path}`" if path else "## Top level"]
        for name, field in model.model_fields.items():
            assert f"| `{name}` |" in section, f"{path}.{name}"
            assert reference.meaning(field).strip(), f"{path}.{name} has no description"


def test_ranges_and_defaults_stand_in_the_reference():
    made = reference.config()
    assert "| `valid_fraction` | number, > 0, < 1 | `0.1` |" in made
    assert "| `max_hours` | number, > 0 | not set |" in made


def test_every_command_and_option_is_in_the_reference():
    made = {part.split("\n", 1)[0]: part for part in ("\n" + reference.command_line()).split("\n## ")}
    for name, command in typer.main.get_command(app).commands.items():
        section = made[f"mlff {name}"]
        assert command.help.split("\n")[0] in section
        for parameter in command.params:
            if parameter.name == "help":
                continue
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert option in section or option.upper() in section, f"mlff {name} {option}"


def test_every_public_name_is_in_the_reference_and_has_a_docstring():
    made = reference.api()
    assert set(mlff._PUBLIC) == set(mlff.__all__) - {"__version__"}
    for module, names in reference.public().items():
        for name in names:
            assert f"::: {module}.{name}\n" in made + "\n"
            thing = getattr(importlib.import_module(module), name)
            assert inspect.getdoc(thing), f"{module}.{name}"
            if inspect.isclass(thing):
                missing = [key for key, member in vars(thing).items() if is_bare(key, member)]
                assert not missing, f"{module}.{name}: {missing}"


def is_bare(name: str, member) -> bool:
    """A public method or property of a class that says nothing of itself."""
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    written_here = inspect.isfunction(function) and function.__module__.startswith("mlff")
    return written_here and not name.startswith("_") and not function.__doc__


def test_generated_marks_have_makers():
    marks = [re.findall(r"<!-- generated: (\w+) -->", page.read_text(encoding="utf-8")) for page in DOCS.rglob("*.md")]
    assert sorted(mark for found in marks for mark in found) == sorted(reference.MAKERS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site, built as ./scripts/docs does."""
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(needed, reason="the site needs the extra: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = ["mkdocs", "build", "--strict", "--config-file", str(SITE / "mkdocs.yml"), "--site-dir", str(out)]
    result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_the_site_needs_no_network(built):
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\s\">]+)", text) + re.findall(
            r"<link[^>]* href=\"?([^\s\">]+)", text
        )
        assert loaded and not [name for name in loaded if re.match(r"(https?:)?//", name)], page
    assert not re.findall(r"url\(['\"]?https?:", "".join(file.read_text(encoding="utf-8") for file in built.rglob("*.css")))


def test_links_and_images_of_the_site_lead_somewhere(built):
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"(?:href|src)=\"?([^\s\">]+)", text):
            name = link.partition("#")[0].partition("?")[0]
            if name and not re.match(r"[a-z]+:", name) and page.name != "404.html":
                assert (page.parent / name).exists(), f"{page.relative_to(built)}: {link}"


def test_the_built_reference_and_formulas_are_there(built):
    api = (built / "reference" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="{module}.{name}"' in api for module, names in reference.public().items() for name in names)
    assert "<math" in (built / "theory" / "radial.html").read_text(encoding="utf-8")
    assert (built / "search" / "search_index.js").exists()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_carry_no_outputs_and_parse(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["cells"][0]["cell_type"] == "markdown" and notebook.stat().st_size < 20_000
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra: pip install '.[docs]'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name in ("data", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    assert any(output.get("data", {}).get("image/png") for cell in content.cells for output in cell.get("outputs", []))


def test_the_workflow_calls_the_three_commands_and_nothing_else():
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert {step["run"] for step in steps if "run" in step} == {"./scripts/test", "./scripts/quickstart", "./scripts/docs"}
    for step in steps:
        assert "run" in step or step["uses"].startswith("actions/"), step


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mlff.__version__ and citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "license"} <= citation.keys()
