"""Dense neighbour arrays against edge lists, for messages times spherical harmonics; writes results/layout.json.

    python scripts/benchmarks/layout.py [--channels 64] [--repeats 9] [--out FILE]

The program is two message steps as in the many-body model: an invariant one, then a density on the sphere up to l = 2.
"dense" keeps (N, K) slots per atom and sums by matrix products, "edges" keeps a list of pairs sorted by center and sums
by segment. Three programs each: energy, energy and forces, and the gradient of a force loss with respect to the weights.
CPU milliseconds (median), so that a busy machine does not matter much; "filled" is the share of slots that hold a pair.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk, molecule
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlff.basics.numerics import dense, safe_norm
from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.models.angular import spherical_harmonics
from mlff.models.radial import bessel_basis, envelope

CUTOFF, BASIS, L_MAX = 5.0, 8, 2


def systems() -> dict[str, list[ase.Atoms]]:
    """Batches of molecules and single periodic cells, rattled."""
    ethanol = molecule("CH3CH2OH")
    cluster = ethanol + ethanol + ethanol
    cluster.positions[9:18] += [4.5, 0, 0]
    cluster.positions[18:] += [0, 4.5, 0]
    silicon = bulk("Si", cubic=True)
    found = {
        "molecule, 9 atoms x 16": [ethanol] * 16,
        "molecules, 27 atoms x 5": [cluster] * 5,
        "silicon, 64 atoms": [silicon.repeat(2)],
        "silicon, 1000 atoms": [silicon.repeat(5)],
    }
    for structures in found.values():
        for seed, atoms in enumerate(structures):
            atoms.rattle(0.05, seed=seed)
    return found


def dense_sums(graph):
    """Pair vectors (N, K, 3), neighbours, and sums over pairs of (pair functions (m, N, K)) x (messages (N, K, C))."""

    def total(functions, messages):
        return jnp.einsum("mnk,nkc->nmc", functions, messages)

    return lambda positions: graph._replace(positions=positions).pair_vectors, graph.neighbors, graph.neighbor_mask, total


def edge_sums(graph):
    """The same with pairs (P,)."""
    centers, slots = (jnp.asarray(index) for index in np.nonzero(graph.neighbor_mask))
    neighbors = jnp.asarray(graph.neighbors)[centers, slots]
    offsets = jnp.einsum("pa,pab->pb", graph.shifts[centers, slots], graph.cell[graph.structure[centers]])
    count = len(graph.atomic_numbers)

    def vectors(positions):
        return positions[neighbors] - positions[centers] + offsets

    def total(functions, messages):
        pairs = jnp.moveaxis(functions, 0, 1)[:, :, None] * messages[:, None, :]
        return jax.ops.segment_sum(pairs, centers, count, indices_are_sorted=True)

    return vectors, neighbors, jnp.ones(len(centers), bool), total


def programs(graph, layout, channels: int):
    """The three compiled functions of weights and positions."""
    pair_vectors, neighbors, mask, total = layout(graph)

    def energy(weights, positions):
        vectors = pair_vectors(positions)
        distances = safe_norm(vectors, mask)
        directions = jnp.where(mask[..., None], vectors / jnp.where(mask, distances, 1.0)[..., None], 0.0)
        basis = bessel_basis(distances, CUTOFF, BASIS) * jnp.where(mask, envelope(distances, CUTOFF), 0.0)[..., None]
        radial = dense(basis, weights["radial"])
        harmonics = spherical_harmonics(L_MAX, directions)
        features = total(harmonics[0], radial[..., :channels] * weights["embedding"][neighbors])[:, 0]
        features = dense(jax.nn.silu(features), weights["mix"])
        out = 0.0
        for l, functions in enumerate(harmonics):
            density = total(functions, radial[..., (l + 1) * channels : (l + 2) * channels] * features[neighbors])
            out = out + jnp.sum(jnp.tanh(jnp.sum(density**2, axis=1)))
        return out

    def loss(weights, positions):
        return jnp.sum(jax.grad(energy, argnums=1)(weights, positions) ** 2)

    functions = {"energy": energy, "forces": jax.value_and_grad(energy, argnums=1), "force loss": jax.grad(loss)}
    return {name: jax.jit(function) for name, function in functions.items()}


def timed(function, *arguments, repeats: int) -> dict:
    """CPU seconds of the first call and median CPU milliseconds of the others."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append(time.process_time() - start)
    return {"compile_s": round(times[0], 2), "ms": round(1e3 * float(np.median(times[1:])), 2)}


def measure(structures: list[ase.Atoms], channels: int, repeats: int) -> dict:
    """All programs in both layouts for one batch."""
    samples = [make_sample(Structure.from_atoms(atoms), CUTOFF) for atoms in structures]
    sizes = Sizes(len(samples), sum(len(s.numbers) for s in samples), max(s.sizes.neighbors for s in samples))
    graph = make_graph(samples, sizes)
    keys = iter(jax.random.split(jax.random.key(0), 3))
    weights = {
        "radial": jax.random.normal(next(keys), (BASIS, (L_MAX + 2) * channels)) / BASIS**0.5,
        "embedding": jax.random.normal(next(keys), (sizes.atoms, channels)),
        "mix": jax.random.normal(next(keys), (channels, channels)) / channels**0.5,
    }
    row = {"atoms": sizes.atoms, "slots": sizes.neighbors, "filled": round(float(graph.neighbor_mask.mean()), 3)}
    values = []
    for name, layout in {"dense": dense_sums, "edges": edge_sums}.items():
        compiled = programs(graph, layout, channels)
        values.append(compiled["forces"](weights, graph.positions))
        row[name] = {what: timed(f, weights, graph.positions, repeats=repeats) for what, f in compiled.items()}
    np.testing.assert_allclose(values[0][1], values[1][1], rtol=0, atol=1e-3 * float(jnp.abs(values[0][1]).max()))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "layout.json")
    arguments = parser.parse_args()
    found = systems()
    rows = {name: measure(found[name], arguments.channels, arguments.repeats) for name in track(found, "layouts")}
    table = Table("system", "slots filled", "program", "dense, ms", "edges, ms", "edges / dense")
    for name, row in rows.items():
        for what in row["dense"]:
            dense_ms, edges_ms = row["dense"][what]["ms"], row["edges"][what]["ms"]
            filled = f"{row['filled']:.0%} of {row['slots']}"
            table.add_row(name, filled, what, f"{dense_ms:.2f}", f"{edges_ms:.2f}", f"{edges_ms / dense_ms:.2f}")
    Console(width=110).print(table)
    content = {"machine": machine(), "channels": arguments.channels, "cutoff_angstrom": CUTOFF, "rows": rows}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
