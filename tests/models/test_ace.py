"""What the many-body model can tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from mlff.config.options import ACE
from mlff.models import registry
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential


def chain(dihedral: float) -> Atoms:
    """Four hydrogens 2 Å apart, 100° at the bends, turned by `dihedral` (degrees) around the bond in the middle."""
    bend, turn = np.radians([100, dihedral])
    first = 2 * np.array([np.sin(bend), 0, np.cos(bend)])
    last = 2 * np.array([np.sin(bend) * np.cos(turn), np.sin(bend) * np.sin(turn), 1 - np.cos(bend)])
    return Atoms("H4", [first, [0, 0, 0], [0, 0, 2], last])


@pytest.mark.parametrize(("options", "sees"), [({}, True), ({"l_message": 0}, False), ({"layers": 1}, False)])
def test_a_torsion_beyond_the_cutoff_is_seen_through_vectors_that_are_passed_on(options, sees):
    """No atom has another one than its next neighbours within the cutoff: only messages know how the ends are turned."""
    config = ACE(cutoff=3.0, channels=4, radial_basis=4, l_max=2, correlation=2, zbl=False, **options)
    params = initial_params(registry.build(config, (1,)), seed=0)
    potential = Potential(config, params, (1,), {1: 0.0}, precision="float64")
    atoms = [chain(40.0), chain(170.0)]
    assert all(sorted(a.get_all_distances()[0])[2] > 3.0 for a in atoms)
    first, second = (result.energy for result in potential.predict(atoms))
    assert abs(first - second) > 1e-6 * abs(first) if sees else first == pytest.approx(second, rel=1e-12)
