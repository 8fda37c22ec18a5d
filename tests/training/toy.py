"""A learnable pair potential that compiles in a second, and data labelled with it."""

import jax
import jax.numpy as jnp
import numpy as np

from mlff.basics.numerics import safe_norm
from mlff.config.options import Config, Data, Loss, Optimizer, Schedule, Training
from mlff.data.batching import Batches, Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.models.common import Statistics
from mlff.potential.derivatives import predict
from mlff.training.devices import Devices
from mlff.training.task import Task

CUTOFF = 3.0
TRUTH = jnp.array([0.8, -0.3, 0.5, -0.4])


def pair_energies(params, graph):
    """Per-atom energies (N,), eV, of a sum of Gaussians in the distance."""
    r = safe_norm(graph.pair_vectors, graph.neighbor_mask)[..., None]
    shapes = jnp.exp(-4 * (r - jnp.linspace(0.5, 2.5, 4)) ** 2) * (1 - (r / CUTOFF) ** 2) ** 3
    values = jnp.where(graph.neighbor_mask, shapes @ params["w"], 0.0)
    return jnp.where(graph.atom_mask, values.sum(axis=1), 0.0)


_truth = jax.jit(lambda graph: predict(lambda g: pair_energies({"w": TRUTH}, g), graph))


def make_structures(count, seed, sizes=(4, 4)):
    """Random clusters of `sizes` (from, to) atoms, at most eight, all within the cutoff, with exact labels."""
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(count):
        n = int(rng.integers(sizes[0], sizes[1] + 1))
        lattice = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)
        positions = 1.4 * rng.permutation(lattice)[:n] + rng.normal(scale=0.1, size=(n, 3))
        bare = Structure(np.full(n, 6, np.int32), positions, np.zeros((3, 3)), np.zeros(3, bool))
        graph = make_graph([make_sample(bare, CUTOFF)], Sizes(1, 12, 12))
        exact = _truth(graph)
        labels = {"energy": float(exact.energy[0]), "forces": np.asarray(exact.forces[:n], np.float64)}
        structures.append(Structure(bare.numbers, positions, bare.cell, bare.pbc, **labels))
    return structures


def make_config(training=None, optimizer=None, **options):
    training = {"epochs": 4, "batch_size": 2, "tensorboard": False, "ema_decay": 0.9} | (training or {})
    optimizer = {"learning_rate": 0.05, "schedule": Schedule(kind="constant", warmup_fraction=0)} | (optimizer or {})
    sections = {"training": Training(**training), "optimizer": Optimizer(**optimizer), "loss": Loss()} | options
    return Config(data=Data(train="unused.xyz"), **sections)


def make_task(config, structures, valid=None, apply=pair_energies, devices=None):
    dtype = np.dtype(config.precision)
    batches = [
        Batches([make_sample(s, CUTOFF) for s in part], config.training.batch_size, config.training.max_atoms, dtype)
        for part in (structures, valid or structures[:2])
    ]
    params = {"w": jnp.zeros(4, dtype)}
    return Task(config, (6,), {6: 0.0}, Statistics(1.0), apply, params, *batches, devices=devices or Devices())
