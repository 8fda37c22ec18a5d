"""A potential: a model with its parameters, elements, baseline and units. What is saved, loaded and asked for forces.

The file is one safetensors file: tensors are the parameters, the header's `mlff` entry is JSON. Nothing in it is ever
executed or resolved as a name, except the architecture through the fixed table of `mlff.models.registry`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
import pydantic
from flax import traverse_util
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from mlff import derivatives, references
from mlff.data import baseline as baselines
from mlff.data.batching import Batches, Sample, Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.environments import Environments
from mlff.errors import ModelFileError, StructureError
from mlff.files import replacing
from mlff.graph import Graph, Prediction
from mlff.models import registry
from mlff.models.atoms import Statistics
from mlff.runtime import free_memory, quick_compile

FORMAT_VERSION = 4  #: 1: without the core of `Statistics`; 2: without the training environments; 3: `ace` without `passing`
CERTIFICATE = "certificate"  #: where the certificate stands in the metadata
_ATOMS = 512  #: atoms evaluated at once: enough to keep two cores busy, little enough for their caches
_LARGE = 500_000  #: padded pairs from which on a program's memory is looked at before it runs
_PAIRS_PER_COMPILATION = 1e6  #: padded pairs evaluated in the time of one compilation (many-body model, two cores)
_PROGRAMS = {
    "forces": derivatives.predict,
    "stress": functools.partial(derivatives.predict, stress=True),
    "hessian": derivatives.hessian,
    "hessian_vector_product": derivatives.hessian_vector_product,
}
UNITS = {"energy": "eV", "length": "Angstrom", "forces": "eV/Angstrom", "stress": "eV/Angstrom^3"}


@dataclass(frozen=True)
class Result:
    """What a potential says of one structure."""

    energy: float  #: eV, total, baseline included
    forces: np.ndarray  #: (n, 3) eV/Å
    stress: np.ndarray | None  #: (3, 3) eV/Å³, +(1/V) dE/dε; None without a cell of three periodic directions
    energies: np.ndarray  #: (n,) eV per atom, baseline included; they sum to `energy`


@dataclass(frozen=True, eq=False)
class Potential:
    """Immutable; `with_precision` and `dataclasses.replace` make new ones."""

    config: Any  #: the model section of the config (mlff.config.ACE, SchNet, ...)
    params: dict  #: flax parameters, {"params": {name: array}}
    elements: tuple[int, ...]  #: atomic numbers it knows, ascending
    baseline: dict[int, float]  #: eV per element, added in float64
    statistics: Statistics = Statistics()
    precision: str = "float32"
    metadata: dict = field(default_factory=dict)  #: plain JSON: training config, dataset fingerprint, versions, errors
    environments: Environments | None = None  #: what the training data had around an atom; None: not known

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.config.cutoff

    @property
    def dtype(self) -> type:
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
        return references.atoms(self.metadata.get(references.KEY) or ())

    @property
    def failed_checks(self) -> list[str]:
        """Names of the lines of its certificate that it failed; none without a certificate."""
        certificate = self.metadata.get(CERTIFICATE) or {}
        lines = [*certificate.get("lines", []), *certificate.get("full", [])]
        return [line["name"] for line in lines if not line["passed"]]

    @functools.cached_property
    def model(self):
        """The flax module."""
        return registry.build(self.config, self.elements, self.statistics)

    @functools.cached_property
    def _device_params(self):
        with self.scope():
            return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x), self.dtype), self.params)

    def scope(self):
        """Context in which JAX computes in this potential's precision; float64 elsewhere in the process is untouched."""
        return jax.enable_x64(True) if self.precision == "float64" else contextlib.nullcontext()

    def with_precision(self, precision: str) -> Potential:
        """The same potential computing in "float32" or "float64"."""
        if precision not in ("float32", "float64"):
            raise ValueError(f"precision is float32 or float64, not {precision!r}")
        return self if precision == self.precision else replace(self, precision=precision)

    # --- asking -------------------------------------------------------------------------------------------------

    def compute(self, graph: Graph, stress: bool = False) -> Prediction:
        """Energies, forces (and stress) of a padded graph, on the device; baseline not added. One compilation per shape.

        Raises StructureError for a large graph that needs more memory than there is.
        """
        name = "stress" if stress else "forces"
        with self.scope():
            if graph.neighbors.size < _LARGE:
                return self._program(name)(self._device_params, graph)
            return self._large_program(name, graph)(self._device_params, graph)

    def _large_program(self, name: str, graph: Graph):
        """`_program` compiled for the shape of `graph`, if it fits into memory."""
        programs = self.__dict__.setdefault("_large", {})
        key = name, graph.neighbors.shape, graph.n_atoms.shape, graph.shifts is None
        if key not in programs:
            compiled = self._program(name).lower(self._device_params, graph).compile()
            sizes = compiled.memory_analysis()
            needed = 0 if sizes is None else sizes.temp_size_in_bytes + sizes.output_size_in_bytes
            device = jax.local_devices()[0].memory_stats()
            free = device["bytes_limit"] - device["bytes_in_use"] if device else free_memory()
            if needed > free:
                atoms, neighbors = graph.neighbors.shape
                raise StructureError(
                    f"{atoms:,} atoms x {neighbors} neighbours need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are "
                    "free: take fewer atoms at once, a smaller model or cutoff, or a machine with more"
                )
            programs[key] = compiled
        return programs[key]

    def _program(self, name: str):
        """One of `_PROGRAMS` as a compiled function of parameters, graph and what else it takes; made once."""
        programs = self.__dict__.setdefault("_compiled", {})
        if name not in programs:

            def program(params, *arguments):
                return _PROGRAMS[name](functools.partial(self.model.apply, params), *arguments)

            programs[name] = jax.jit(program, compiler_options=quick_compile())
        return programs[name]

    def predict(
        self, structures: Iterable[ase.Atoms | Structure], stress: bool | None = None, progress: bool = False
    ) -> list[Result]:
        """Evaluate many structures, batched by size; results in the order given. No atoms: zeros in the shapes of n = 0.

        `stress`: False never computes it; else it is computed where a structure is periodic in three directions. Raises
        StructureError (unknown element, NaN, atoms on top of each other) before anything is computed.
        """
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
        samples = [make_sample(structures[i], self.cutoff) for i in listed]
        batches = _batches(samples, self.dtype)
        for sizes, indices in track(batches.plan(None), "evaluating", disable=not progress):
            graph = make_graph([samples[i] for i in indices], _rungs(sizes), self.dtype, batches.shifts)
            try:
                prediction = jax.device_get(self.compute(graph, with_stress))
            except StructureError as error:
                largest = max((structures[filled[k]] for k in indices), key=len)
                raise StructureError(f"{largest.source}: {error}") from None
            start = 0
            for row, sample_index in enumerate(indices):
                index = filled[sample_index]
                structure = structures[index]
                stop = start + len(structure)
                results[index] = self.result(
                    structure.numbers,
                    prediction.energies[start:stop],
                    prediction.forces[start:stop],
                    prediction.stress[row] if with_stress and periodic[index] else None,
                )
                start = stop
        return results

    def result(self, numbers: np.ndarray, energies: np.ndarray, forces: np.ndarray, stress: np.ndarray | None) -> Result:
        """Model output of one structure to float64, baseline added."""
        energies = energies.astype(np.float64) + np.array([self.baseline[z] for z in numbers.tolist()])
        return Result(
            float(energies.sum()), forces.astype(np.float64), None if stress is None else stress.astype(np.float64), energies
        )

    def baseline_energy(self, numbers: np.ndarray) -> float:
        """Sum of the reference energies, eV, float64."""
        return baselines.energy(self.baseline, numbers)

    def check(self, structure: Structure) -> None:
        """Raise StructureError for NaN, a cell without extent or an element this potential was not trained on."""
        structure.check()
        unknown = set(structure.numbers.tolist()) - set(self.elements)
        if unknown:
            z = min(unknown)
            atom = int(np.flatnonzero(structure.numbers == z)[0])
            raise StructureError(
                f"{structure.source}: atom {atom} is {_symbol(z)}, which this potential does not know; "
                f"it knows {' '.join(_symbol(e) for e in self.elements)}"
            )

    def hessian(self, atoms: ase.Atoms | Structure) -> np.ndarray:
        """d²E/dR² (3n, 3n), eV/Å²; use float64 for vibrations."""
        if len(atoms) == 0:
            return np.zeros((0, 0))
        graph, n = self._single(atoms)
        with self.scope():
            matrix = self._program("hessian")(self._device_params, graph)
        return np.asarray(matrix, dtype=np.float64).reshape(3 * n, 3 * n)

    def hessian_vector_product(self, atoms: ase.Atoms | Structure, vector: np.ndarray) -> np.ndarray:
        """H v for v (n, 3): (n, 3), eV/Å² times the unit of v."""
        if len(atoms) == 0:
            return np.zeros((0, 3))
        graph, n = self._single(atoms)
        with self.scope():
            vector = jax.numpy.asarray(np.asarray(vector).reshape(n, 3), self.dtype)
            product = self._program("hessian_vector_product")(self._device_params, graph, vector)
        return np.asarray(product, dtype=np.float64)

    def _single(self, atoms: ase.Atoms | Structure) -> tuple[Graph, int]:
        structure = atoms if isinstance(atoms, Structure) else Structure.from_atoms(atoms)
        self.check(structure)
        sample = make_sample(structure, self.cutoff)
        sizes = Sizes(1, len(structure), round_up(sample.sizes.neighbors, 0.25))
        return make_graph([sample], sizes, self.dtype, sample.shifts is not None), len(structure)

    # --- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (atomically: a temporary file beside it is renamed).

        Raises DataError: no such directory.
        """
        from mlff import __version__

        header = {
            "format": "mlff potential",
            "format_version": FORMAT_VERSION,
            "mlff_version": __version__,
            "model": self.config.model_dump(mode="json"),
            "elements": list(self.elements),
            "baseline": {str(z): e for z, e in self.baseline.items()},
            "statistics": self.statistics._asdict(),
            "precision": self.precision,
            "cutoff": self.cutoff,
            "units": UNITS,
            "metadata": self.metadata,
        }
        environments = {}
        if self.environments is not None:
            header["environments"], environments = self.environments.pack()
        leaves = traverse_util.flatten_dict(self.params).items()
        tensors = {"/".join(name): np.ascontiguousarray(np.asarray(value)) for name, value in leaves}
        content = serialise(tensors | environments, metadata={"mlff": json.dumps(header, allow_nan=False)})
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path, verify: bool = True) -> Potential:
        """Read a file written by `save`. Runs no code from it.

        With `verify`, the reference structures in the file are computed again the first time it is loaded on a platform.
        Raises ModelFileError: no such file, not a model, truncated, from a newer version, tensors missing, of the
        wrong shape or not finite; references that come out otherwise here.
        """
        path = Path(path)
        header, tensors = _read(path)
        metadata = header.get("metadata", {})
        if not (isinstance(metadata, dict) and _is_json(metadata) and _is_certificate(metadata.get(CERTIFICATE))):
            raise ModelFileError(f"{path}: the header's metadata are not those of an mlff model")
        stored = {name: tensors.pop(name) for name in list(tensors) if name.startswith("environments/")}
        try:
            architecture = header["model"]["architecture"]
            if architecture not in registry.CONFIGS:
                raise ModelFileError(f"{path}: unknown architecture {architecture!r}; known: {', '.join(registry.CONFIGS)}")
            options = header["model"]
            if header["format_version"] < 4 and architecture == "ace":
                options = {"passing": False} | options
            config = registry.CONFIGS[architecture].model_validate(options)
            _check_size(path, config, tensors)
            known = {"core": ()} | header["statistics"] if header["format_version"] == 1 else header["statistics"]
            scale, neighbors, shifts, core = (known[name] for name in Statistics._fields)
            statistics = Statistics(float(scale), float(neighbors), tuple(map(float, shifts)), tuple(map(float, core)))
            potential = cls(
                config=config,
                params=traverse_util.unflatten_dict({tuple(name.split("/")): value for name, value in tensors.items()}),
                elements=tuple(int(z) for z in header["elements"]),
                baseline={int(z): float(e) for z, e in header["baseline"].items()},
                statistics=statistics,
                precision=header["precision"],
                metadata=metadata,
                environments=Environments.unpack(header["environments"], stored) if "environments" in header else None,
            )
        except pydantic.ValidationError as error:
            raise ModelFileError(f"{path}: the model section is not valid ({error.errors()[0]['msg']})") from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ModelFileError(f"{path}: the header is not that of an mlff model ({problem})") from None
        elements, core = list(potential.elements), statistics.core
        constants = [*statistics[:2], *statistics.shifts, *core, *potential.baseline.values()]
        if not elements or elements != sorted(set(elements)) or not (1 <= elements[0] and elements[-1] <= 118):
            raise ModelFileError(f"{path}: the header's elements are not atomic numbers in ascending order")
        sizes = len(statistics.shifts) in (0, len(elements)) and len(core) in (0, len(elements) ** 2)
        if set(elements) != set(potential.baseline) or not sizes:
            raise ModelFileError(f"{path}: the header's baseline or statistics are not those of its elements")
        if not np.isfinite(constants).all() or statistics.mean_neighbors <= 0 or min(core, default=1.0) <= 0:
            raise ModelFileError(f"{path}: the header's baseline or statistics hold values that make no sense")
        if potential.precision not in ("float32", "float64"):
            raise ModelFileError(f"{path}: unknown precision {potential.precision!r}")
        _check_tensors(path, potential, tensors)
        if verify:
            references.verify(potential, path)
        return potential


def initial_params(model, seed: int) -> dict:
    """Fresh parameters of a model, from a graph of one atom (shapes do not depend on the graph)."""
    return jax.jit(model.init)(jax.random.key(seed), _probe(model))


def _probe(model) -> Graph:
    elements = getattr(model, "elements", (1,))
    structure = Structure.from_atoms(ase.Atoms([elements[0]] * 2, positions=[[0, 0, 0], [0, 0, 0.5 * model.cutoff]]))
    return make_graph([make_sample(structure, model.cutoff)], Sizes(1, 2, 1), np.float32, shifts=False)


def _is_json(entry: Any) -> bool:
    """Whether it can be written again: Python reads NaN and infinities, which JSON does not have."""
    try:
        json.dumps(entry, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_certificate(entry: Any) -> bool:
    """Whether this can be read as a certificate, or says that there is none."""
    if entry is None:
        return True
    lines = entry.get("lines") if isinstance(entry, dict) else None
    return isinstance(lines, list) and all(
        isinstance(line, dict) and isinstance(line.get("name"), str) and isinstance(line.get("passed"), bool)
        for line in lines
    )


def _check_size(path: Path, config: Any, tensors: dict[str, np.ndarray]) -> None:
    """Refuse a model that promises more than its parameters are: building it could take any time and memory."""
    total = sum(tensor.size for tensor in tensors.values())
    for name, value in config.model_dump().items():
        most = len(tensors) if name == "layers" else total
        if type(value) is int and not name.startswith("l_") and name != "correlation" and value > most:
            raise ModelFileError(f"{path}: promises {value} {name}, more than its {total} parameters can be")


def _check_tensors(path: Path, potential: Potential, tensors: dict[str, np.ndarray]) -> None:
    shapes = jax.eval_shape(potential.model.init, jax.random.key(0), _probe(potential.model))
    expected = {"/".join(name): value.shape for name, value in traverse_util.flatten_dict(shapes).items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise ModelFileError(f"{path}: parameter {name} is missing")
        if tensors[name].shape != shape:
            raise ModelFileError(f"{path}: parameter {name} has shape {tensors[name].shape}, expected {shape}")
        if tensors[name].dtype not in (np.float32, np.float64):
            raise ModelFileError(f"{path}: parameter {name} is of type {tensors[name].dtype}, expected float32 or float64")
        if not np.isfinite(tensors[name]).all():
            raise ModelFileError(f"{path}: parameter {name} holds values that are not finite")
    if surplus := set(tensors) - set(expected):
        raise ModelFileError(f"{path}: unknown parameter {sorted(surplus)[0]}")


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file" if not path.exists() else f"{path}: not a file")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["mlff"])
            if header.get("format") != "mlff potential":
                raise KeyError
            if header["format_version"] > FORMAT_VERSION:
                writer = f"format {header['format_version']} by mlff {header.get('mlff_version')}"
                raise ModelFileError(f"{path}: written in {writer}, newer than this one; update mlff")
            return header, {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ModelFileError(f"{path}: not a safetensors file, or truncated ({error})") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from None
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError):  # RecursionError: JSON nested without end
        raise ModelFileError(f"{path}: a safetensors file, but not an mlff model") from None


def _batches(samples: list[Sample], dtype) -> Batches:
    """Samples packed for evaluation: a second shape only if it saves more than its compilation takes."""
    pairs = sum(len(s.numbers) for s in samples) * max(s.sizes.neighbors for s in samples)
    atoms = max(_ATOMS, max(len(s.numbers) for s in samples))
    return Batches(samples, batch_size=32, max_atoms=atoms, dtype=dtype, gain=_PAIRS_PER_COMPILATION / max(1, pairs))


def _rungs(sizes: Sizes) -> Sizes:
    """The shape, a little larger, that other sets of structures share; coarse where a call costs next to nothing."""
    share = 0.25 if sizes.atoms > 128 else 0.5
    return Sizes(round_up(sizes.structures, 1.0), round_up(sizes.atoms, share), round_up(sizes.neighbors, share))


def _symbol(z: int) -> str:
    return ase.data.chemical_symbols[z]
