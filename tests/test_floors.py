"""The order of floors: a module imports from its own floor or from below. And no module runs code from a file."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlff"
FLOORS = {
    "basics": "errors, units, properties, files, signals, JAX and its compiler",
    "config": "the options of a training run, of a bias, of a refinement and of a design, and how a file of them is read",
    "graph": "the arrays of one batch",
    "data": "files to structures, neighbour lists, batches",
    "lint": "whether reference data can be right",
    "models": "graph to energies of atoms: `ace`, `schnet`, pair potentials",
    "potential": "energy to forces, stress, Hessian; compiled, saved, loaded, checked on a new machine; distance from the training data",
    "training": "losses, optimisers, steps, checkpoints, metrics",
    "simulation": "molecular dynamics and its gradients, relaxation, sampling",
    "interfaces": "the potential in other programs: ASE, LAMMPS, i-PI, OpenMM, JAX MD",
    "properties": "vibrations, phonons, elastic constants, equations of state, reaction paths, free energies; analysis of trajectories",
    "refinement": "a trained potential corrected to match observables",
    "design": "structures, conditions of a run, and compositions that have a wanted property",
    "certificate": "checks of a potential before it is used",
    "report": "tables, plots and the HTML report",
    "cli": "the commands",
}  #: from below; a folder imports from those before it only
APART = {
    ("lint", "models"),
    ("training", "simulation"),
    ("simulation", "interfaces"),
    ("training", "interfaces"),
}  #: know nothing of each other
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_YAML = {"load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def folder(module: str) -> str:
    """The folder of a module, e.g. of data.dataset: data."""
    return module.split(".")[0]


def imports(tree: ast.Module):
    """(line, module below mlff) of all imports from the package, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, name.name.removeprefix("mlff.")) for name in node.names if name.name.startswith("mlff.")
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write from mlff..."
            if node.module == "mlff":
                yield from ((node.lineno, name.name) for name in node.names if name.name != "__version__")
            elif node.module.startswith("mlff."):
                yield node.lineno, node.module.removeprefix("mlff.")


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def imported_modules(file: Path) -> set[str]:
    """Modules of the package that a module imports, those inside functions and for types too."""
    found = set()
    for _, name in imports(parse(file)):
        found.add(name if name in MODULES else name.rpartition(".")[0])
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mlff."):
            parent = node.module.removeprefix("mlff.")
            found |= {f"{parent}.{name.name}" for name in node.names if f"{parent}.{name.name}" in MODULES}
    return found & MODULES.keys()


def test_floors_are_the_folders():
    assert {folder(name) for name in MODULES} - {"__init__"} == FLOORS.keys()


@each_file
def test_imports_go_down(file):
    name, order = module_name(file), list(FLOORS)
    if name == "__init__":
        return
    own = folder(name)
    up = [other for other in imported_modules(file) if order.index(folder(other)) > order.index(own)]
    up += [other for other in imported_modules(file) if {(own, folder(other)), (folder(other), own)} & APART]
    assert not up, f"mlff.{name} imports from above or from beside: {', '.join(sorted(up))}"


def test_no_module_imports_in_a_circle():
    arrows = {name: imported_modules(file) - {name} for name, file in MODULES.items()}
    done: list[str] = []
    while free := [name for name, others in arrows.items() if name not in done and others <= set(done)]:
        done += free
    left = {name: sorted(others - set(done)) for name, others in arrows.items() if name not in done}
    assert not left, f"modules that import each other: {left}"


def test_the_readme_shows_these_floors():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {what} |" for name, what in reversed(FLOORS.items())]
    assert "\n".join(["| folder of `mlff/` | |", "|---|---|", *rows]) in readme


def test_the_package_itself_imports_nothing_heavy():
    tree = parse(PACKAGE / "__init__.py")
    assert {module for _, module in imports(tree)} == {"basics.runtime"}


@each_file
def test_no_code_is_read_from_files(file):
    tree = parse(file)
    safe_loaders = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "yaml.SafeLoader" in map(ast.unparse, node.bases)
    }
    for node in ast.walk(tree):
        where = f"{file.name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & FORBIDDEN_MODULES, where
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES, where
        elif isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS), where
            if (
                isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "yaml"
            ):
                assert node.func.attr not in UNSAFE_YAML, where
                assert node.func.attr != "load" or ast.unparse(node.args[1]) in safe_loaders, where
            for keyword in node.keywords:
                safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "allow_pickle" or safe, where


def test_names_from_files_are_looked_up_in_one_table_only():
    dynamic = {file.name for file in FILES if "import_module" in file.read_text(encoding="utf-8")}
    assert dynamic == {"__init__.py", "sampling.py"}, (
        "only public names, and the calculator that the user's own command names"
    )


@each_file
def test_what_is_public_has_a_docstring(file):
    tree = parse(file)
    assert ast.get_docstring(tree), "the module has none"
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    missing = [f"{node.name} (line {node.lineno})" for node in public if not ast.get_docstring(node)]
    assert not missing, missing


@each_file
def test_a_module_can_be_read_in_one_sitting(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450
