import numpy as np
import pytest

from mlff.basics.errors import ModelFileError
from mlff.training.checkpoint import Checkpoints

TREE = {"w": np.arange(6.0).reshape(2, 3), "b": [np.float32([1.5]), np.zeros((0, 3), np.float32)], "step": np.int32(7)}


def newest_arrays(directory):
    """The files of the newest checkpoint that hold array data, largest last."""
    newest = max((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    return sorted((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for number in (10, 20, 30):
            checkpoints.save(number, TREE | {"step": np.int32(number)}, {"epoch": number, "score": 0.1})
    return tmp_path / "c"


def test_what_is_saved_comes_back_bitwise_and_only_the_newest_are_kept(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.numbers == [20, 30]
        tree, record = checkpoints.restore(TREE)
        assert record == checkpoints.record() == {"epoch": 30, "score": 0.1}
    assert tree["step"] == 30 and tree["w"].dtype == np.float64 and tree["b"][1].shape == (0, 3)
    np.testing.assert_array_equal(tree["w"], TREE["w"])


def test_a_number_saved_again_is_replaced(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(30, TREE, {"epoch": 31})
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.restore(TREE)[1] == {"epoch": 31}


@pytest.mark.parametrize("size", [0.0, 0.5])
def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(saved, size, caplog):
    for file in newest_arrays(saved):
        file.write_bytes(file.read_bytes()[: int(size * file.stat().st_size)])
    with Checkpoints(saved, keep=2) as checkpoints:
        tree, record = checkpoints.restore(TREE)
        assert record["epoch"] == 20 and tree["step"] == 20
        assert checkpoints.numbers == [20]
    assert "damaged" in caplog.text


def test_a_flipped_bit_does_not_pass(saved):
    for file in newest_arrays(saved):
        content = bytearray(file.read_bytes())
        if content and "ocdbt" in str(file):
            content[len(content) // 2] ^= 1
            file.write_bytes(bytes(content))
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.restore(TREE)[1]["epoch"] in (20, 30)
        tree, record = checkpoints.restore(TREE)
        assert tree["step"] == record["epoch"]


def test_nothing_whole_is_an_error_and_nothing_at_all_is_not(saved, tmp_path):
    for file in saved.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(ModelFileError, match="no checkpoint is whole"):
        checkpoints.restore(TREE)
    with Checkpoints(tmp_path / "empty", keep=2) as checkpoints:
        assert checkpoints.restore(TREE) is None and checkpoints.record() is None


def test_another_shape_is_refused(saved):
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(ModelFileError, match="another model"):
        checkpoints.restore(TREE | {"w": np.zeros((3, 3))})
