"""Plasticity: a learning rate for every parameter, as a factor on that of the run. 0 is frozen, 1 is free.

Factors come from patterns over the names of parameters (`optimizer.plasticity`), from a file with an array for each
parameter (`optimizer.plasticity_map`), or from both, multiplied. Such a file can be made from structures that a potential
was trained on (`importance`): parameters on which its results there depend most learn slowly, the others are free, so that
fine-tuning changes first what it need not forget (the Fisher information of elastic weight consolidation: Kirkpatrick et
al., PNAS 114, 3521 (2017)).

A factor multiplies the update, after clipping, momentum and weight decay. Frozen parameters stay what they are, bit by bit.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlff.basics import compiler
from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.files import replacing
from mlff.config.options import Optimizer
from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.potential.derivatives import predict
from mlff.potential.potential import Potential
from mlff.training.objectives import Params

Factors = Callable[[Array], Any]  #: progress of training (0 to 1) -> factors, a tree like that of the parameters


def factors(config: Optimizer, params: Params) -> Factors | None:
    """The factors of a run on the learning rates of `params`; None if all are 1.

    Raises ConfigError: a pattern that matches no parameter; a file that is none, or whose arrays do not fit the parameters.
    """
    if not config.plasticity and config.plasticity_map is None:
        return None
    flat = _named(params)
    ends = {name: (1.0, 1.0) for name in flat}
    for pattern, given in config.plasticity.items():
        matching = fnmatch.filter(flat, pattern)
        if not matching:
            raise ConfigError(
                f"optimizer.plasticity: {pattern!r} matches no parameter; there are {', '.join(_shortened(flat))}"
            )
        ends |= dict.fromkeys(matching, tuple(np.broadcast_to(given, 2).tolist()))
    single = {} if config.plasticity_map is None else _read(Path(config.plasticity_map), flat)

    def at(progress: Array) -> Any:
        values = {}
        for name, leaf in flat.items():
            first, last = ends[name]
            factor = jnp.asarray(first + (last - first) * jnp.clip(progress, 0.0, 1.0), leaf.dtype)
            values[name] = factor * single[name].astype(leaf.dtype) if name in single else factor
        return _tree(values)

    return at


def scaled(updates: Any, factors: Any) -> Any:
    """Updates times factors; where a factor is 0, 0 whatever the update is."""
    return jax.tree.map(lambda u, f: jnp.where(f == 0, 0.0, f * u).astype(u.dtype), updates, factors)


def describe(config: Optimizer, params: Params) -> list[str]:
    """One line for each layer (first part of the name): its number of parameters and the mean factor at start and end."""
    at = factors(config, params)
    if at is None:
        return []
    first, last = (_named(jax.device_get(at(jnp.asarray(share)))) for share in (0.0, 1.0))
    groups: dict[str, list[str]] = {}
    for name in first:
        groups.setdefault(name.split("/")[0], []).append(name)
    sizes = {name: np.size(leaf) for name, leaf in _named(params).items()}
    lines = []
    for group, names in groups.items():
        count = sum(sizes[name] for name in names)
        means = [sum(np.mean(values[name]) * sizes[name] for name in names) / count for values in (first, last)]
        text = f"{means[0]:.3g}" if means[0] == means[1] else f"{means[0]:.3g} at the start, {means[1]:.3g} at the end"
        lines.append(f"plasticity of {group}: {text} ({count:,} parameters)")
    return lines


def describe_map(values: dict[str, np.ndarray]) -> list[str]:
    """One line for each layer: mean factor and the tenth and ninetieth percentile."""
    groups: dict[str, list[np.ndarray]] = {}
    for name, value in values.items():
        groups.setdefault(name.split("/")[0], []).append(np.ravel(value))
    lines = []
    for group, parts in groups.items():
        every = np.concatenate(parts)
        low, high = np.quantile(every, [0.1, 0.9])
        lines.append(
            f"{group}: mean factor {every.mean():.3g}, 10 % below {low:.3g}, 10 % above {high:.3g} ({every.size:,})"
        )
    return lines


def fingerprint(path: str | None) -> str | None:
    """SHA-256 of a file of factors: what it holds counts for a run, not where it lies. Raises ConfigError: cannot be read."""
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"optimizer.plasticity_map: {path}: cannot be read ({error.strerror})") from None


def importance(potential: Potential, structures: Iterable[Structure], seed: int = 0) -> dict[str, np.ndarray]:
    """Name -> factors of the parameter's shape: 1 / (1 + F / <F>), F the Fisher information of that parameter.

    F says how much energies per atom and forces of the structures change with the parameter (their labels do not count):
    the mean of the squared derivatives of E/n / (s Å) and of the force components / s, s the force RMS of the data that the
    potential was trained on, from one random projection for each structure. <F> is the mean over all parameters. Raises
    StructureError: no structures, or one that the potential cannot compute.
    """
    samples = []
    for structure in structures:
        potential.check(structure)
        samples.append(make_sample(structure, potential.cutoff))
    if not samples:
        raise StructureError("no structures: the Fisher information needs those that the model was trained on")
    largest = Sizes(1, max(s.sizes.atoms for s in samples), max(1, *(s.sizes.neighbors for s in samples)))
    shifts = any(sample.shifts is not None for sample in samples)
    apply, scale = potential.model.apply, potential.statistics.energy_scale

    def squares(params, ranges, graph, key):
        def projected(params):
            prediction = predict(lambda g: apply({**params, **ranges}, g), graph, forces=True, stress=False)
            n = jnp.maximum(graph.n_atoms, 1)
            energy, forces = jax.random.split(key)
            one = jax.random.rademacher(energy, prediction.energy.shape, prediction.energy.dtype)
            many = jax.random.rademacher(forces, prediction.forces.shape, prediction.forces.dtype)
            many = many * graph.atom_mask[:, None] / jnp.sqrt(3.0 * n[graph.structure])[:, None]
            return (jnp.sum(one * graph.structure_mask * prediction.energy / n) + jnp.sum(many * prediction.forces)) / scale

        return jax.tree.map(jnp.square, jax.grad(projected)(params))

    with potential.scope():
        compiled = jax.jit(squares, compiler_options=compiler.quick())
        params = potential.device_params
        learned, others = {"params": params["params"]}, {k: v for k, v in params.items() if k != "params"}
        total = None
        for number, sample in enumerate(samples):
            graph = make_graph([sample], largest, potential.dtype, shifts)
            found = compiled(learned, others, graph, jax.random.fold_in(jax.random.key(seed), number))
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        information = {name: np.asarray(leaf, np.float64) / len(samples) for name, leaf in _named(total).items()}
    mean = sum(leaf.sum() for leaf in information.values()) / sum(leaf.size for leaf in information.values())
    return {name: (1.0 / (1.0 + leaf / mean)).astype(np.float32) for name, leaf in information.items()}


def save(path: Path, values: dict[str, np.ndarray]) -> None:
    """Write factors to a safetensors file, atomically. Raises FileError."""
    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, temporary)


def _read(path: Path, flat: dict[str, Any]) -> dict[str, np.ndarray]:
    where = f"optimizer.plasticity_map: {path}"
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{where}: cannot be read as a safetensors file ({error})") from None
    for name, array in arrays.items():
        if name not in flat:
            raise ConfigError(f"{where}: {name!r} is no parameter; there are {', '.join(_shortened(flat))}")
        if array.shape != np.shape(flat[name]):
            raise ConfigError(
                f"{where}: {name} has the shape {array.shape}, that of the parameter is {np.shape(flat[name])}"
            )
        if not (np.isfinite(array).all() and (array >= 0).all()):
            raise ConfigError(f"{where}: {name} has factors that are negative or not finite")
    return arrays


def _named(params: Params) -> dict[str, Any]:
    """Parameters by name, parts joined by "/", without the collection in front."""
    return {"/".join(name[1:]): leaf for name, leaf in traverse_util.flatten_dict(params).items()}


def _tree(flat: dict[str, Any]) -> Params:
    return traverse_util.unflatten_dict({("params", *name.split("/")): leaf for name, leaf in flat.items()})


def _shortened(names: Iterable[str], most: int = 12) -> list[str]:
    names = list(names)
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]
