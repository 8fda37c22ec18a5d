"""Whatever is wrong with an input, the user gets one line that names what and where, and nothing is written or run."""

import pytest
from typer.testing import CliRunner

from mlff.cli import app
from tests import malformed


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "inputs"
    folder.mkdir()
    malformed.prepare(folder)
    return folder


@pytest.mark.parametrize("case", malformed.CASES, ids=lambda case: case.what)
def test_error_is_one_line_that_names_what_and_where(case, good, tmp_path):
    folder = malformed.copy(good, tmp_path / "case")
    arguments = [str(argument) for argument in case.arguments(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == case.code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    missing = [fragment for fragment in case.says if fragment not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"
    assert not (folder / "executed").exists()
    assert not (folder / "new").exists() or not list((folder / "new").glob("**/*.safetensors"))
    assert not (folder / "out.xyz").exists()


def test_there_are_enough():
    assert len(malformed.CASES) >= 20
    assert len({case.what for case in malformed.CASES}) == len(malformed.CASES)
