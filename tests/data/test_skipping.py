"""What the user wants left out is left out, counted and named; nothing else is."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest

from mlff.basics.errors import ConfigError, DataError
from mlff.config.options import Data, Loss
from mlff.data.dataset import load_data, read_dataset
from mlff.data.skipping import choose
from mlff.lint.lint import lint
from tests import samples
from tests.data import labelled


@pytest.fixture(scope="module")
def molecules():
    return list(labelled.dataset(labelled.molecules(40)).structures)


def test_copies_and_what_contradicts_itself(molecules):
    copy, other = molecules[3], replace(molecules[5], energy=molecules[5].energy + 1)
    kept, dropped = choose([*molecules, copy, other], ["duplicates"])
    assert kept == [k for k in range(40) if k != 5]
    assert [item.kind for item in dropped] == ["duplicate"] * 3
    assert "a copy of data.xyz, structure 3" in dropped[1].why and "other labels" in dropped[0].why
    assert choose([*molecules, copy], []) == (list(range(41)), [])


def test_outliers(molecules):
    structures = [*molecules]
    structures[7] = replace(molecules[7], energy=molecules[7].energy + 100)
    kept, dropped = choose(structures, ["outliers"])
    assert 7 not in kept and len(kept) == 39 and dropped[0].source == "data.xyz, structure 7"
    assert choose(molecules, ["outliers"])[1] == []


@pytest.fixture
def broken(tmp_path):
    """Four structures of water: the second with an energy that is not finite, the last cut short."""
    frames = samples.frames()
    frames[1].calc.results["energy"] = np.nan
    ase.io.write(tmp_path / "broken.xyz", frames)
    text = (tmp_path / "broken.xyz").read_text().splitlines()
    (tmp_path / "broken.xyz").write_text("\n".join(text[:-1]) + "\n")
    return tmp_path / "broken.xyz"


def test_unreadable_structures_are_named_and_counted(broken):
    with pytest.raises(DataError, match="structure 3: .*cut short"):
        read_dataset(broken)
    data = read_dataset(broken, skip=["unreadable"])
    assert [s.source[-1] for s in data] == ["0", "2"]
    assert [item.source[-1] for item in data.census.skipped] == ["1", "3"]
    assert "skipped 2 unreadable (the first:" in str(data.census) and "not finite" in str(data.census)
    (finding,) = [item for item in lint(data).findings if item.code == "skipped-unreadable"]
    assert finding.severity == "note" and finding.to_dict()["where"][1] == {"file": str(broken), "index": 3}
    text = broken.read_text().splitlines()
    broken.write_text("\n".join(text[5:10]) + "\n")
    with pytest.raises(DataError, match="no structure can be used; the first: energy .*not finite"):
        read_dataset(broken, skip=["unreadable"])
    with pytest.raises(ConfigError, match="skip"):
        read_dataset(broken, skip=["nonsense"])


def test_held_out_sets_keep_their_outliers_and_copies(tmp_path):
    frames = samples.frames(periodic=False)
    ase.io.write(tmp_path / "train.xyz", [*frames, *frames])
    options = {"train": str(tmp_path / "train.xyz"), "test": {"same": str(tmp_path / "train.xyz")}}
    with pytest.warns(UserWarning, match="are in the training set too"):
        splits = load_data(Data(**options, skip="duplicates"), 0, Loss())
    assert len(splits.train) + len(splits.valid) == 4 and len(splits.test["same"]) == 8
