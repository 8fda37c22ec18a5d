"""The configuration: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import json

import pytest

from mlff.basics.errors import ConfigError
from mlff.config.load import dump_config, load_config, make_config
from mlff.config.options import ACE, Config, SchNet

DATA = {"train": "a.xyz"}


def _write(tmp_path, text: str):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _message(raw) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config({"data": DATA} | raw, source="run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ") and "\n" not in message
    return message.removeprefix("run.yaml: ")


def test_defaults_of_a_config_of_one_line(tmp_path):
    config = load_config(_write(tmp_path, "data: {train: a.xyz}"))
    assert config.model == ACE() and config.precision == "float32" and config.training.epochs is None
    assert config.data.train == str(tmp_path / "a.xyz") and config.data.valid is None
    assert load_config(_write(tmp_path, "data: {train: a.xyz}\ntraining: {max_hours: 2}")).training.epochs is None


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        ({}, "mae"),
        ({"forces": 10}, "mae"),
        ({"forces": 0}, "mse"),
        ({"forces": 0.0}, "mse"),
        ({"forces": 0, "error": "mae"}, "mae"),
    ],
)
def test_absolute_errors_by_default_but_squares_for_energies_only(loss, error):
    assert make_config({"data": DATA, "loss": loss}).loss.error == error


def test_a_model_without_architecture_is_ace():
    assert make_config({"data": DATA, "model": {"channels": 16}}).model == ACE(channels=16)
    assert make_config({"data": DATA, "model": {"architecture": "schnet", "channels": 16}}).model == SchNet(channels=16)


def test_sections_left_empty_have_their_defaults(tmp_path):
    text = "data: {train: a.xyz}\nmodel:\nloss:\noptimizer:\ntraining:\n"
    plain = load_config(_write(tmp_path, "data: {train: a.xyz}"))
    assert load_config(_write(tmp_path, text)) == plain
    assert load_config(_write(tmp_path, text), ["model.channels=8"]).model.channels == 8
    with pytest.raises(ConfigError, match="'data.train' is missing"):
        load_config(_write(tmp_path, "data:\n"))


@pytest.mark.parametrize(
    "raw, expected",
    [
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"data": DATA | {"keys": {"enrgy": "E"}}}, "unknown key 'data.keys.enrgy'; did you mean 'energy'?"),
        ({"data": DATA | {"units": {"lenght": "Bohr"}}}, "unknown key 'data.units.lenght'; did you mean 'length'?"),
        ({"model": {"cutof": 4}}, "unknown key 'model.cutof'; did you mean 'cutoff'?"),
        ({"model": {"architecture": "schnet", "l_max": 2}}, "unknown key 'model.l_max'; known: architecture, channels,"),
        (
            {"optimizer": {"schedule": {"warmups": 0}}},
            "unknown key 'optimizer.schedule.warmups'; did you mean 'warmup_fraction'?",
        ),
        ({"loss": {"schedule": [{"start": 0, "force": 1}]}}, "unknown key 'loss.schedule.0.force'; did you mean 'forces'?"),
        (
            {"training": {"zzz": 1}},
            "unknown key 'training.zzz'; known: batch_size, checkpoint_every, devices, ema_decay, epochs,",
        ),
    ],
)
def test_unknown_keys_suggest_known_ones_at_every_level(raw, expected):
    assert _message(raw).startswith(expected)


@pytest.mark.parametrize(
    "raw, expected",
    [
        ({"data": {}}, "'data.train' is missing"),
        (
            {"data": {"train": 5}},
            "'data.train': input should be a valid string or a section of keys and values or a valid list (found 5)",
        ),
        ({"data": DATA | {"reference_energies": {"H": "x"}}}, "'data.reference_energies.H': input should be a valid number"),
        ({"data": DATA | {"reference_energies": "fit"}}, "'data.reference_energies': input should be 'auto', 'isolated'"),
        ({"data": DATA | {"units": {"energy": "kcal"}}}, "'data.units.energy': input should be 'eV', 'meV', 'Hartree'"),
        (
            {"data": DATA | {"test": {"hot": ["a"]}}},
            "'data.test.hot': input should be a valid string or a section of keys and values (found ['a'])",
        ),
        ({"model": {"architecture": "mace"}}, "'model': unknown architecture 'mace'; known: ace, schnet"),
        ({"model": "ace"}, "'model': input should be a section of keys and values (found 'ace')"),
        ({"training": 3}, "'training': input should be a section of keys and values (found 3)"),
        ({"training": {"epochs": "many"}}, "'training.epochs': input should be a valid integer"),
        ({"optimizer": {"learning_rate": float("nan")}}, "'optimizer.learning_rate': input should be"),
        ({"model": {"cutoff": -1}}, "'model.cutoff': input should be greater than 0.5 (found -1)"),
    ],
)
def test_wrong_values_are_named_with_their_path(raw, expected):
    assert _message(raw).startswith(expected)


def test_several_mistakes_in_one_line():
    assert _message({"seed": -1, "modle": {}}).count("; ") == 2


def test_overrides_take_yaml_values(tmp_path):
    path = _write(tmp_path, "data: {train: a.xyz}\noptimizer: {learning_rate: 1e-3}\n")
    settings = ["model.architecture=schnet", "training.epochs=7", "optimizer.schedule.kind=constant", "model.zbl=no"]
    settings.append("data.train=[b.xyz, c.xyz]")
    config = load_config(path, settings)
    assert config.model == SchNet(zbl=False) and config.training.epochs == 7
    assert config.optimizer.learning_rate == 1e-3 and config.optimizer.schedule.kind == "constant"
    assert config.data.train == [str(tmp_path / "b.xyz"), str(tmp_path / "c.xyz")]


@pytest.mark.parametrize(
    "setting, expected",
    [
        ("epochs", "--set 'epochs': expected key=value"),
        ("=3", "--set '=3': expected key=value"),
        ("seed.x=3", "--set 'seed.x=3': seed is a value, not a section"),
        ("seed=[", r"--set 'seed=\[': the value is not valid YAML"),
        ("training.epoch=3", "unknown key 'training.epoch'; did you mean 'epochs'"),
    ],
)
def test_overrides_that_make_no_sense(tmp_path, setting, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(_write(tmp_path, "data: {train: a.xyz}\nseed: 1\n"), [setting])


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    text = "data:\n  train: sub/a.xyz\n  valid: [/abs/b.xyz, '*.xyz']\n  test: {hot: c.xyz, cold: ~/d.xyz}\n"
    data = load_config(_write(tmp_path, text)).data
    assert data.train == str(tmp_path / "sub/a.xyz") and data.valid == ["/abs/b.xyz", str(tmp_path / "*.xyz")]
    assert data.test == {"hot": str(tmp_path / "c.xyz"), "cold": "/home/someone/d.xyz"}
    assert make_config({"data": DATA}).data.train == "a.xyz"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("data: !!python/object/apply:os.system ['true']", "not valid YAML: could not determine a constructor"),
        ("data: !!python/name:os.system", "not valid YAML"),
        ("data: {train: a.xyz}\ndata: {train: b.xyz}\n", "the key 'data' stands there twice"),
        ("data: {train: a.xyz, train: b.xyz}\n", "the key 'train' stands there twice"),
        ("data: [", "not valid YAML"),
        ("- 1\n- 2\n", "expected keys and values .* found list"),
        ("", "expected keys and values .* found NoneType"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, expected):
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="binary.yaml: not a text file"):
        load_config(tmp_path / "binary.yaml")


def test_a_resolved_config_reads_back_as_itself(tmp_path):
    data = DATA | {"reference_energies": {"H": -13.6}}
    config = make_config({"data": data, "model": {"l_max": 3}, "loss": {"schedule": [{"start": 0.5}]}})
    assert load_config(_write(tmp_path, dump_config(config))) == config.model_copy(
        update={"data": config.data.model_copy(update={"train": str(tmp_path / "a.xyz")})}
    )


def test_schema_for_editors():
    schema = Config.model_json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(Config.model_fields) and schema["required"] == ["data"]
    assert schema["additionalProperties"] is False


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        make_config({"data": DATA}).seed = 3


def test_units_of_a_resolved_config_do_not_count_as_stated(tmp_path):
    resolved = load_config(_write(tmp_path, dump_config(make_config({"data": DATA}))))
    assert set(resolved.data.units.model_dump().values()) == {None}
    by_group = make_config({"data": DATA | {"units": {"stress_order": {"Elastic": "vasp"}}}})
    assert load_config(_write(tmp_path, dump_config(by_group))).data.units.stress_order == {"Elastic": "vasp"}
    assert "'data.units.stress_order': input should be 'ase', 'vasp', 'lammps'" in _message(
        {"data": DATA | {"units": {"stress_order": "vasq"}}}
    )


def test_lint_off_is_a_word_though_yaml_reads_a_truth_value(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: {train: a.xyz, lint: off}\n", encoding="utf-8")
    assert load_config(file).data.lint == "off" and load_config(file, ["data.lint=warn"]).data.lint == "warn"
    file.write_text(dump_config(load_config(file)), encoding="utf-8")
    assert load_config(file).data.lint == "off"
    with pytest.raises(ConfigError, match="data.lint.*'stop', 'warn' or 'off'"):
        load_config(file, ["data.lint=ignore"])


def test_a_loss_without_any_weight_is_refused():
    """Every error would count as 0."""
    assert _message({"loss": {"energy": 0, "forces": 0}}).startswith(
        "'loss': energy, forces and stress all have weight 0 from 0 of"
    )
    late = {"forces": 0, "schedule": [{"start": 0.5, "energy": 0}, {"start": 0.8, "energy": 1}]}
    assert "all have weight 0 from 0.5 of training on" in _message({"loss": late})
    make_config({"data": DATA, "loss": {"energy": 0, "forces": 0, "schedule": [{"start": 0, "stress": 1}]}})
