"""What training chooses where the config is silent, and that it chooses nothing where it is not."""

from __future__ import annotations

import ase
import pytest
from ase.build import bulk, molecule

from mlff.basics.errors import ConfigError
from mlff.config.load import make_config
from mlff.config.options import ACE, SchNet
from mlff.data.dataset import Splits
from mlff.data.structure import Structure
from mlff.training import recipe, start
from tests.conftest import make_potential


class Set(list):
    """As much of a dataset as is looked at."""

    structures = property(list)
    elements = ()


NOTHING = Splits(Set(), Set(), {})


def choose(structures, beginning=None, **sections):
    config = make_config({"data": {"train": "a.xyz"}} | sections)
    return recipe.choose(config, Set(Structure.from_atoms(atoms) for atoms in structures), beginning)


def test_molecules_and_periodic_cells_have_their_own_cutoff():
    config, reasons = choose([molecule("CH3OH")] * 50)
    assert (config.model.cutoff, config.model.channels) == (4.0, 64) and "only molecules" in reasons[0]
    boxed = ase.Atoms("H", cell=[20] * 3, pbc=True)  # an isolated atom in its box is no solid
    assert choose([molecule("CH3OH"), boxed])[0].model.cutoff == 4.0
    config, reasons = choose([bulk("Cu", cubic=True), molecule("CH3OH")])
    assert config.model.cutoff == 5.0 and "periodic" in reasons[0]


@pytest.mark.parametrize(("count", "epochs"), [(20, 1000), (450, 278), (40_000, 20)])
def test_the_number_of_epochs_is_that_of_the_steps(count, epochs):
    config, reasons = choose([molecule("CH3OH")] * count)
    assert config.training.epochs == epochs
    assert f"{epochs * max(1, -(-count // 5)):,} steps" in reasons[1]


def test_what_is_said_stays_and_nothing_is_told_of_it():
    for model in ({"cutoff": 5.0}, {"architecture": "schnet"}):
        config, reasons = choose([molecule("CH3OH")], model=model, training={"max_hours": 0.1})
        assert config.model == (ACE(cutoff=5.0) if "cutoff" in model else SchNet()) and not reasons
        assert config.training.epochs is None
    resolved, _ = choose([molecule("CH3OH")])
    again, reasons = choose(
        [bulk("Cu")], **{k: v for k, v in resolved.model_dump(mode="json").items() if k in ("model", "training")}
    )
    assert again.model == resolved.model and not reasons


def test_the_model_to_start_from_is_taken_as_it_is():
    beginning = make_potential("ace")
    config, reasons = choose([molecule("CH3OH")], beginning, training={"epochs": 1})
    assert config.model == beginning.config and "as in the potential to start from" in reasons[0]
    start.check(beginning, config, NOTHING)
    config, _ = choose([molecule("CH3OH")], beginning, model={"channels": 16})
    with pytest.raises(ConfigError, match="differs from the config's in channels"):
        start.check(beginning, config, NOTHING)
