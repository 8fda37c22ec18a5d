"""A potential: a model with its parameters, elements, baseline and units. What is saved, loaded and asked for forces."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
from flax import traverse_util
from rich.progress import Progress, track

from mlff.basics.errors import ConfigError, ModelFileError, StructureError
from mlff.basics.runtime import refuse_forked, set_up_process
from mlff.data import baseline as baselines
from mlff.data.batching import Sizes, make_graph, make_sample, round_up
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.structure import Structure
from mlff.graph import Graph, Prediction
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.potential import modelfile, selfcheck
from mlff.potential.chunks import Derivatives
from mlff.potential.compiled import Programs
from mlff.potential.domain import Environments
from mlff.potential.packing import predictions
from mlff.potential.result import Result, unpack

LARGEST_FORCE = 1e6  #: eV/Å: a larger one is no result but nonsense
_UNLABELLED = "was trained without labels and has no energies: train it on some with mlff finetune"
_DENSEST = 1.0  #: Å³ for an atom; metallic hydrogen at 500 GPa has 1.4
_LARGEST_ENERGY = 1e7  #: eV per atom, the same; all electrons of the heaviest atoms have some 1e6


@dataclass(frozen=True, eq=False)
class Potential:
    """Immutable; `with_precision` and `dataclasses.replace` make new ones. Threads may share it.

    A pickled one leaves behind what is compiled; a copy is the object itself.
    """

    config: Any  #: the model section of the config (mlff.config.options.ACE, SchNet, ...)
    params: dict  #: flax parameters, {"params": {name: array}}; of a committee each with an axis of the members in front
    elements: tuple[int, ...]  #: atomic numbers it knows, ascending
    baseline: dict[int, float]  #: eV per element, added in float64
    statistics: Statistics = Statistics()
    precision: str = "float32"
    metadata: dict = field(default_factory=dict)  #: plain JSON: training config, dataset fingerprint, versions, errors
    environments: Environments | None = None  #: what the training data had around an atom; None: not known
    members: int = 1  #: above 1: a committee (`mlff.potential.committee`), whose results are the means of its members'

    def __post_init__(self):
        set_up_process()  # before JAX starts; an unpickled one: in `scope`

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.config.cutoff

    @property
    def layers(self) -> int:
        """How often messages pass: an atom's energy depends on atoms that are so many cutoffs away; 1 of a pair potential."""
        return self.model.stages

    @property
    def receptive_field(self) -> float:
        """Å: atoms farther from an atom than this do not change its energy."""
        return self.layers * self.cutoff

    @property
    def dtype(self) -> type:
        """The NumPy type of its precision."""
        return np.float64 if self.precision == "float64" else np.float32

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of model, parameters, elements, reference energies and statistics: what decides about its results."""
        constants = self.config.model_dump(mode="json"), self.elements, sorted(self.baseline.items()), self.statistics
        digest = hashlib.sha256(json.dumps(constants).encode())
        for name, value in sorted(traverse_util.flatten_dict(self.params).items()):
            digest.update("/".join(name).encode() + np.asarray(value).tobytes())
        return digest.hexdigest()

    @property
    def reference_structures(self) -> list[ase.Atoms]:
        """The structures that travel with it."""
        return selfcheck.atoms(self.metadata.get(selfcheck.KEY) or ())

    @property
    def failed_checks(self) -> list[str]:
        """Names of the lines of its certificate that it failed; none without a certificate."""
        certificate = self.metadata.get(modelfile.CERTIFICATE) or {}
        lines = [*certificate.get("lines", []), *certificate.get("full", [])]
        return [line["name"] for line in lines if not line["passed"]]

    @property
    def pretrained(self) -> bool:
        """Whether it was trained without labels, by `mlff pretrain`: it has features, and no energies."""
        return modelfile.PRETRAINING in self.metadata

    @functools.cached_property
    def model(self):
        """The flax module."""
        return registry.build(self.config, self.elements, self.statistics)

    @functools.cached_property
    def device_params(self) -> dict:
        """The parameters as arrays of JAX in this potential's precision."""
        with self.scope(), jax.ensure_compile_time_eval():  # also where it is first asked for within a function being traced
            return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x, self.dtype)), self.params)

    def scope(self):
        """Context in which JAX computes in this potential's precision; float64 elsewhere in the process is untouched."""
        set_up_process()
        return jax.enable_x64(True) if self.precision == "float64" else contextlib.nullcontext()

    def with_precision(self, precision: str) -> Potential:
        """The same potential computing in "float32" or "float64"."""
        if precision not in ("float32", "float64"):
            raise ValueError(f"precision is float32 or float64, not {precision!r}")
        return self if precision == self.precision else replace(self, precision=precision)

    def __getstate__(self) -> dict:
        """The fields; what belongs to this process stays here."""
        params = jax.tree.map(np.asarray, self.params)  # not of JAX, which would bring float64 back as float32
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"params": params}

    def __copy__(self) -> Potential:
        return self

    def __deepcopy__(self, memo: dict) -> Potential:
        return self

    def __repr__(self) -> str:
        known = " ".join(_symbol(z) for z in self.elements)
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        many = f", {self.members} members" if self.members > 1 else ""
        return f"Potential({self.config.architecture}, {known}, cutoff {self.cutoff:g} Å, {size:,} parameters, {self.precision}{many})"

    # --- asking -------------------------------------------------------------------------------------------------

    def energy(self, params: dict, graph: Graph) -> jax.Array:
        """(N,) energies of the atoms of a graph, eV, baseline not added; of a committee the mean over its members.

        A pure function of `params` (`device_params`, or others of their shapes) and the graph: JAX may differentiate it in
        forward and reverse mode, batch and compile it. Call it within `scope()`. `graph_of` makes the graph of a structure.
        """
        if self.members == 1:
            return self.model.apply(params, graph)
        return jax.numpy.mean(jax.lax.map(lambda member: self.model.apply(member, graph), params), axis=0)

    def features(self, params: dict, graph: Graph) -> jax.Array:
        """(N, F) what the readout sees of each atom, invariant under rotation and reflection; of a committee, members side by side.

        Pure as `energy` is. Raises ConfigError for a pair potential, which has none.
        """
        if not hasattr(self.model, "features"):
            raise ConfigError(f"{self.config.architecture} is a pair potential: it has no features")

        def of_one(member: dict) -> jax.Array:
            return jax.numpy.concatenate(self.model.apply(member, graph, method="features"), axis=1)

        if self.members == 1:
            return of_one(params)
        return jax.numpy.concatenate(list(jax.lax.map(of_one, params)), axis=1)

    def compute(self, graph: Graph, stress: bool = False) -> Prediction:
        """Energies, forces (and stress) of a padded graph, on the device; baseline not added. One compilation per shape.

        Raises StructureError for a large graph that needs more memory than there is; ProcessError as `predict`.
        """
        return self._run("stress" if stress else "forces", graph)

    def derive_local(self, graph: Graph, rows: np.ndarray) -> Derivatives:
        """What `mlff.potential.chunks.derive_local` says of a graph; of a committee the mean. For `mlff.potential.local_atoms`."""
        return self._run("local", graph, rows)

    @functools.cached_property
    def programs(self) -> Programs:
        """What is compiled for it."""
        return Programs(self.model, self.members)

    def _run(self, name: str, graph: Graph, *arguments):
        refuse_forked()
        self._refuse_unlabelled()
        with self.scope():
            return self.programs.run(name, self.device_params, graph, *arguments)

    def predict(
        self,
        structures: Iterable[ase.Atoms | Structure],
        stress: bool | None = None,
        progress: bool = False,
        check: bool = True,
    ) -> list[Result]:
        """Evaluate many structures, batched by size; results in the order given. No atoms: zeros in the shapes of n = 0.

        `stress`: False never computes it; else it is computed where a structure is periodic in three directions. Raises
        StructureError (unknown element, NaN, atoms on top of each other) before anything is computed, for a structure
        that does not fit into memory by itself (a batch that does not is halved), and with
        `check` for results that are nonsense (`check_result`); ProcessError in a process that was forked after JAX had started.
        """
        refuse_forked()
        if isinstance(structures, ase.Atoms | Structure):
            raise TypeError("predict takes a list of structures; put the one structure into a list")
        structures = [
            s if isinstance(s, Structure) else Structure.from_atoms(s, source=f"structure {i}")
            for i, s in enumerate(structures)
        ]
        for structure in structures:
            self.check(structure)
        filled = [i for i, s in enumerate(structures) if len(s)]
        periodic = np.array([s.pbc.all() for s in structures], bool)
        with_stress = stress is not False and bool(periodic.any())
        nothing = [np.zeros((3, 3)) if with_stress and whole else None for whole in periodic]
        results = [Result(0.0, np.zeros((0, 3)), none, np.zeros(0)) for none in nothing]
        if not filled:
            return results
        listed = track(filled, "neighbours", disable=not progress, transient=True)
        samples = [make_sample(structures[i], self.cutoff, reverse=False) for i in listed]
        with Progress(disable=not progress) as bar:
            task = bar.add_task("evaluating", total=len(filled))
            for indices, prediction in predictions(self, samples, with_stress, [structures[i].source for i in filled]):
                places = [filled[k] for k in indices]
                for index, result in zip(places, self.results(prediction, [structures[i] for i in places]), strict=True):
                    if check:
                        self.check_result(result.energy, result.forces, lambda index=index: structures[index])
                    results[index] = result
                bar.advance(task, len(indices))
        return results

    def results(self, prediction: Prediction, structures: Sequence[Structure]) -> list[Result]:
        """What `compute` says of a batch of these structures, one by one, baseline added."""
        baselines = [self.atom_baselines[structure.numbers] for structure in structures]
        return unpack(prediction, baselines, [bool(structure.pbc.all()) for structure in structures])

    @functools.cached_property
    def atom_baselines(self) -> np.ndarray:
        """(119,) reference energies by atomic number, eV, float64; NaN for elements it does not know."""
        energies = np.full(119, np.nan)
        energies[list(self.elements)] = [self.baseline[z] for z in self.elements]
        return energies

    def baseline_energy(self, numbers: np.ndarray) -> float:
        """Sum of the reference energies, eV, float64."""
        return baselines.energy(self.baseline, numbers)

    def check(self, structure: Structure) -> None:
        """Raise as `check_geometry`; ModelFileError where this was trained without labels, so that it has no energies."""
        self._refuse_unlabelled()
        self.check_geometry(structure)

    def _refuse_unlabelled(self) -> None:
        if self.pretrained:
            raise ModelFileError(f"this potential {_UNLABELLED}")

    def check_geometry(self, structure: Structure) -> None:
        """Raise StructureError for NaN, a cell without extent or room for its atoms, or an element this potential was not trained on."""
        structure.check()
        unknown = set(structure.numbers.tolist()) - set(self.elements)
        if unknown:
            z = min(unknown)
            atom = int(np.flatnonzero(structure.numbers == z)[0])
            raise StructureError(
                f"{structure.source}: atom {atom} is {_symbol(z)}, which this potential does not know; "
                f"it knows {' '.join(_symbol(e) for e in self.elements)}"
            )
        if structure.pbc.all() and structure.volume < _DENSEST * len(structure):
            raise StructureError(
                f"{structure.source}: {len(structure)} atoms in a cell of {structure.volume:.3g} Å³; is it a placeholder, or not in Å? "
                "Correct the cell, or set pbc to F F F"
            )

    def check_result(self, energy: float, forces: np.ndarray, structure: Callable[[], Structure]) -> None:
        """Raise StructureError for an energy (eV) or forces (n, 3; eV/Å) that are not finite or absurdly large.

        The message names the two nearest atoms of `structure()`.
        """
        if (what := self.nonsense(energy, forces)) is None:
            return
        culprit = structure()
        raise StructureError(
            f"{culprit.source}: the potential gives {what}: {self._nearest(culprit)}; look at positions, cell, pbc and their unit"
        )

    @staticmethod
    def nonsense(energy: float, forces: np.ndarray) -> str | None:
        """What is wrong with an energy (eV) and forces (n, 3; eV/Å), in words, if they are not finite or absurdly large."""
        sane = abs(energy) < _LARGEST_ENERGY * max(1, len(forces))
        if sane and np.vdot(forces, forces) < LARGEST_FORCE**2:  # which costs a third of the next line
            return None
        largest = np.abs(forces).max(initial=0.0)
        if sane and largest < LARGEST_FORCE:
            return None
        if np.isfinite([energy, largest]).all():
            return f"an energy of {energy:.2g} eV and forces of up to {largest:.2g} eV/Å"
        return "energies or forces that are not finite"

    def _nearest(self, structure: Structure) -> str:
        """The two nearest atoms and their distance; one of them may be the other's periodic image."""
        geometry = structure.positions, structure.cell, structure.pbc
        for reach in (1.0, self.cutoff):
            i, j, shifts = neighbor_list(*geometry, reach)
            if len(i):
                distances = np.linalg.norm(pair_vectors(*geometry[:2], i, j, shifts), axis=1)
                k = int(distances.argmin())
                a, b = (f"{_symbol(structure.numbers[x])} {x}" for x in (i[k], j[k]))
                image = "its periodic image" if i[k] == j[k] else f"{b} (a periodic image)" if shifts[k].any() else b
                return f"{a} and {image} are {distances[k]:.3g} Å apart"
        return f"no two atoms are nearer than {self.cutoff:g} Å"

    def hessian(self, atoms: ase.Atoms | Structure) -> np.ndarray:
        """d²E/dR² (3n, 3n), eV/Å²; use float64 for vibrations."""
        if len(atoms) == 0:
            return np.zeros((0, 0))
        graph, n = self.graph_of(atoms), len(atoms)
        return np.asarray(self._run("hessian", graph), dtype=np.float64).reshape(3 * n, 3 * n)

    def hessian_vector_product(self, atoms: ase.Atoms | Structure, vector: np.ndarray) -> np.ndarray:
        """H v for v (n, 3): (n, 3), eV/Å² times the unit of v."""
        if len(atoms) == 0:
            return np.zeros((0, 3))
        graph, n = self.graph_of(atoms), len(atoms)
        product = self._run("hessian_vector_product", graph, np.asarray(vector, self.dtype).reshape(n, 3))
        return np.asarray(product, dtype=np.float64)

    def graph_of(self, atoms: ase.Atoms | Structure) -> Graph:
        """The graph of one structure, without padded atoms; positions moved by whole lattice vectors. Raises StructureError."""
        structure = atoms if isinstance(atoms, Structure) else Structure.from_atoms(atoms)
        self.check_geometry(structure)
        sample = make_sample(structure, self.cutoff)
        sizes = Sizes(1, len(structure), round_up(sample.sizes.neighbors, 0.25))
        return make_graph([sample], sizes, self.dtype, sample.shifts is not None)

    # --- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (atomically: a temporary file beside it is renamed).

        Raises DataError: no such directory.
        """
        modelfile.write(path, self)

    @classmethod
    def load(cls, path: str | Path, verify: bool = True, pretrained: bool = False) -> Potential:
        """Read a file written by `save`. Runs no code from it.

        With `verify`, the reference structures in the file are computed again the first time it is loaded on a platform.
        Raises ModelFileError: no such file, not a model, truncated, from a newer version, tensors missing, of the
        wrong shape or not finite; references that come out otherwise here; trained without labels (`mlff pretrain`), unless
        `pretrained` allows it.
        """
        path = Path(path)
        potential = cls(**modelfile.read(path))
        if potential.pretrained and not pretrained:
            raise ModelFileError(f"{path}: {_UNLABELLED}")
        if verify:
            selfcheck.verify(potential, path)
        return potential


def _symbol(z: int) -> str:
    return ase.data.chemical_symbols[z]
