"""Guards: drift of the conserved energy, distance from the training data, spread of a committee; and the frames to label."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError
from mlff.data.structure import Structure
from mlff.potential.committee import committee
from mlff.potential.domain import summarise
from mlff.simulation.flagged import WHY, flagged_path
from mlff.simulation.guard import Limits, SimulationError
from mlff.simulation.md import run_md
from tests.conftest import make_potential
from tests.potentials import lennard_jones

OPTIONS = {"steps": 60, "timestep": 2.0, "progress": False, "interval": 10, "temperature": 300.0}


def crystal():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


@pytest.fixture(scope="module")
def knowing():
    """A potential that knows its training data: crystals that hardly moved."""
    from dataclasses import replace

    frames = []
    for seed in range(20):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.02, seed=seed)
        frames.append(Structure.from_atoms(atoms))
    potential = lennard_jones()
    return replace(potential, environments=summarise(frames, potential.elements, potential.cutoff))


def test_a_frame_beyond_the_data_stops_the_run_and_is_kept(knowing, tmp_path):
    out = tmp_path / "md.traj"
    with pytest.raises(
        SimulationError, match=r"stopped at step \d+: an atom is .* times as far .*limit 2\); last good frame"
    ):
        run_md(crystal(), MLFFCalculator(knowing), trajectory=out, limits=Limits(distance=2.0), **OPTIONS)
    (frame,) = read(flagged_path(out), ":")
    assert "times as far from the training data" in frame.info[WHY] and frame.info["step"] > 0
    assert (
        frame.calc is None
        and "momenta" not in frame.arrays
        and knowing.environments.distances(Structure.from_atoms(frame)).max() > 2
    )


def test_marked_frames_are_all_kept_and_a_restart_repeats_none(knowing, tmp_path):
    options = OPTIONS | {"limits": Limits(distance=2.0, mark=True)}
    files = []
    for name, parts in (("whole", (60,)), ("parts", (30, 60))):
        out = tmp_path / f"{name}.xyz"
        for part in parts:
            again = {"restart": True, "timestep": None} if part != parts[0] else {}
            summary = run_md(crystal(), MLFFCalculator(knowing), trajectory=out, **options | again | {"steps": part})
        files.append(flagged_path(out).read_text())
    assert files[0] == files[1]
    steps = [frame.info["step"] for frame in read(flagged_path(out), ":")]
    assert summary.steps == 60 and len(steps) >= 3 and len(set(steps)) == len(steps)
    run_md(crystal(), MLFFCalculator(knowing), trajectory=out, **OPTIONS)
    assert not flagged_path(out).exists(), "that of another run goes"


@pytest.mark.parametrize("engine", ["jax", "ase"])
def test_a_conserved_energy_that_drifts_stops_the_run(engine, tmp_path):
    out = tmp_path / "md.traj"
    options = OPTIONS | {"ensemble": "nve", "timestep": 4.0, "limits": Limits(drift=1e-5), "engine": engine}
    options |= {"steps": 300, "interval": 300 if engine == "jax" else 10}  # jax: in the step itself, long before a frame
    when = r"stopped at step \d\d?: the conserved energy has changed by .* eV/atom .limit 1e-05.; take a shorter time step"
    with pytest.raises(SimulationError, match=when):
        run_md(crystal(), MLFFCalculator(lennard_jones()), trajectory=out, **options)
    assert "conserved" in read(flagged_path(out), -1).info[WHY]


def test_a_blown_up_run_leaves_its_last_frame(tmp_path):
    out = tmp_path / "md.traj"
    with pytest.raises(SimulationError, match="the temperature is"):
        run_md(crystal(), MLFFCalculator(lennard_jones()), trajectory=out, limits=Limits(temperature=200.0), **OPTIONS)
    assert "the temperature is" in read(flagged_path(out), -1).info[WHY]


def test_a_committee_that_disagrees_stops_the_run(ethanol, tmp_path):
    from dataclasses import replace

    import jax

    one = make_potential("schnet")
    other = replace(one, params=jax.tree.map(lambda leaf: 1.1 * np.asarray(leaf), one.params))
    both, out = committee([one, other]), tmp_path / "md.traj"
    limits = {"force": 1e6, "temperature": 1e9, "fused": 0.0, "drift": 1e9}
    options = OPTIONS | {"timestep": 0.1, "steps": 2, "interval": 1, "engine": "ase"}
    with pytest.raises(SimulationError, match="committee's forces on an atom differ by"):
        run_md(ethanol.copy(), MLFFCalculator(both), trajectory=out, limits=Limits(spread=1e-6, **limits), **options)
    run_md(ethanol.copy(), MLFFCalculator(both), trajectory=out, limits=Limits(spread=1e6, **limits), **options)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"distance": 2.0}, "needs a model of mlff that knows its training data"),
        ({"spread": 0.1}, "needs a committee"),
        ({"drift": 0.0}, "the limit of drift must be positive"),
        ({"mark": True}, "mark has no effect"),
    ],
)
def test_limits_that_mean_nothing_are_said(limits, message):
    with pytest.raises(ConfigError, match=message):
        run_md(crystal(), MLFFCalculator(lennard_jones()), limits=Limits(**limits), **OPTIONS)
