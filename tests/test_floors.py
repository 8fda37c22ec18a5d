"""The order of floors: a module imports from its own floor or from below. And no module runs code from a file."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlff"
FLOORS = [
    {"compiler", "errors", "units", "numerics", "plainyaml", "config", "configfile", "files", "interruption", "provenance", "runtime"},
    {"graph"},
    {"data"},
    {"models"},
    {"committee", "coverage", "derivatives", "environments", "modelfile", "potential", "programs", "references"},
    {"training"},
    {"calculator", "simulation", "certificate", "report", "cli"},
]
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_YAML = {"load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def floor(name: str) -> int:
    """The floor of a module of the package or of a folder in it, e.g. data.dataset: 2."""
    (number,) = [number for number, names in enumerate(FLOORS) if name.split(".")[0] in names]
    return number


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


def test_every_module_has_one_floor():
    names = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} - {"__init__"}
    assert names == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(names)


@each_file
def test_imports_go_down(file):
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    if name == "__init__":
        return
    up = [f"line {line}: {module}" for line, module in imports(parse(file)) if floor(module) > floor(name)]
    assert not up, f"mlff.{name} is on floor {floor(name)}, but imports from above: {'; '.join(up)}"


def test_the_package_itself_imports_nothing_heavy():
    tree = parse(PACKAGE / "__init__.py")
    assert {module for _, module in imports(tree)} == {"runtime"}


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
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "yaml":
                assert node.func.attr not in UNSAFE_YAML, where
                assert node.func.attr != "load" or ast.unparse(node.args[1]) in safe_loaders, where
            for keyword in node.keywords:
                safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "allow_pickle" or safe, where


def test_names_from_files_are_looked_up_in_one_table_only():
    dynamic = {file.name for file in FILES if "import_module" in file.read_text(encoding="utf-8")}
    assert dynamic == {"__init__.py", "sampling.py"}, "only public names, and the calculator that the user's own command names"


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
