"""Self-diffusion as a function of the parameters: short runs from the frames of an ensemble, differentiated.

D = 1/3 ∫ <v(0)·v(t)> dt over a window is the mean of v(0)·(r(window) - r(0)) / 3 over short runs at constant energy that begin
at canonical frames with velocities of the same temperature. With the parameters change the short runs, whose derivative is
taken by backpropagation, and the share of each frame (DiffTRe: Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021)):

    ∂D/∂θ = <∂D_i/∂θ> - <(D_i - D) ∂E_i/∂θ> / kT

Each part is known with a noise, which is the scatter over the frames. The second one is left out where noise drowns it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mlff.basics import compiler
from mlff.basics.errors import ConfigError
from mlff.basics.units import DIFFUSION, KB
from mlff.config.observables import SelfDiffusion
from mlff.graph import Graph
from mlff.potential.potential import Potential
from mlff.properties.averages import block_error
from mlff.properties.minimum import need_cell
from mlff.refinement.averages import Sampled
from mlff.refinement.ensembles import Ensemble, Frames
from mlff.refinement.observables import Goal, penalised
from mlff.refinement.short_runs import MeanGradient, ShortRuns, mean_gradient


class Found(NamedTuple):
    """What short runs at some parameters say."""

    at: Any  #: the parameters that are learned
    values: np.ndarray  #: (M,) D of each frame, in the unit of the goal
    runs: MeanGradient  #: through the dynamics
    weights: MeanGradient  #: through the shares of the frames


class Diffusion(Sampled):
    """The self-diffusion coefficient of one element, relative to the center of mass of all atoms."""

    def __init__(self, options: SelfDiffusion, ensemble: Ensemble, potential: Potential, precision: str):
        """`potential` in float64; short runs are made in `precision`. Raises ConfigError: no such element; StructureError: no cell."""
        atoms, sampling = ensemble.atoms, options.sampling
        need_cell(atoms, f"{sampling.structure}: diffusion coefficients")
        chosen = np.array([symbol == options.element for symbol in atoms.symbols])
        if not chosen.any():
            raise ConfigError(f"{sampling.structure}: has no {options.element}, whose diffusion is asked for")
        self.ensemble, self._options, self._potential = ensemble, options, potential
        steps = round(options.window / sampling.timestep)
        shares = chosen / chosen.sum() / DIFFUSION[options.unit]
        self.runs = ShortRuns(ensemble, potential.with_precision(precision), steps, shares)
        name = f"D {options.element} at {sampling.temperature:g} K"
        self.goal = Goal(name, options.unit, np.array([options.value]), np.array([options.error]), options.weight)
        self._compiled = penalised(self.goal, self._observable)
        self._weighing = jax.jit(self._of_weights, compiler_options=compiler.quick())
        self._found: Found | None = None
        self._seen = 0  #: run of the ensemble whose frames were taken

    def fresh(self, potential: Potential) -> tuple[np.ndarray, np.ndarray]:
        """From a run of its own; the error from blocks, where these say nothing the scatter of single frames."""
        ensemble = self.ensemble.again()
        params = potential.with_precision("float64").device_params
        ensemble.sample(params)
        values = self.runs.values(params, ensemble)
        error = block_error(values)
        return values.mean(keepdims=True), np.array([values.std() if error is None else error])

    def remarks(self) -> tuple[str, ...]:
        """A line about the noise of the gradient at the last short runs."""
        if self._found is None:
            return ()
        runs, weights = self._found.runs, self._found.weights
        drowned = ", which drowns it: take more frames (sampling.frames) or a shorter window" if runs.drowned else ""
        left_out = ", so that this part is left out" if weights.drowned else ""
        return (
            f"{self.goal.name}: noise of the gradient through the short runs is {100 * runs.noise:.0f} % of its length{drowned} "
            f"({runs.frames} frames); through the weights of frames {100 * weights.noise:.0f} %{left_out} ({weights.frames} frames)",
        )

    def state(self) -> dict[str, np.ndarray]:
        """Frames of the ensemble, and what the short runs said."""
        held = self.ensemble.state() | {"seen": np.array(self._seen)}
        if self._found is None:
            return held
        found = self._found
        trees = {"at": found.at, "runs_mean": found.runs.mean, "weights_mean": found.weights.mean}
        leaves = {f"{name}_{k}": np.asarray(a) for name, tree in trees.items() for k, a in enumerate(jax.tree.leaves(tree))}
        return held | leaves | {"values": found.values, "noise": np.array([found.runs[1:], found.weights[1:]])}

    def restore(self, held: dict[str, np.ndarray]) -> None:
        """Take up what `state` gave."""
        self.ensemble.restore(held)
        self._seen = int(held["seen"])
        if "values" in held:
            leaves, tree = jax.tree.flatten(self._potential.params["params"])
            at, runs, weights = (
                jax.tree.unflatten(tree, [held[f"{name}_{k}"].reshape(np.shape(leaf)) for k, leaf in enumerate(leaves)])
                for name in ("at", "runs_mean", "weights_mean")
            )
            noise = [
                MeanGradient(mean, noise, int(frames))
                for mean, (noise, frames) in zip((runs, weights), held["noise"], strict=True)
            ]
            self._found = Found(at, held["values"], *noise)

    def _ask(self, params: dict):
        if self._seen != self.ensemble.runs:
            self._look(params)
            self._seen = self.ensemble.runs
        found, ensemble = self._found, self.ensemble
        arguments = ensemble.frames, found.values[:, None], found.at, found.runs.mean
        return self._compiled(params, *arguments, not found.weights.drowned)

    def _observable(self, params: dict, frames: Frames, values: Array, at, slope, weighted: Array):
        """D (1,), to the first order in the change of the parameters since the short runs, and the effective number of frames."""
        mean, effective = self.ensemble.average(params, frames, lambda params, graph, seen: seen, values)
        change = optax.tree.vdot(slope, jax.tree.map(jnp.subtract, params["params"], at))
        return jnp.where(weighted, mean, values.mean(axis=0)) + change, effective

    def _look(self, params: dict) -> None:
        """Short runs from the frames of the ensemble."""
        values, runs = self.runs.values(params, self.ensemble), self.runs.slope(params, self.ensemble)
        weights = mean_gradient(*jax.device_get(self._weighing(params, self.ensemble.graphs, values)), len(values))
        self._found = Found(jax.tree.map(np.asarray, params["params"]), values, runs, weights)

    def _of_weights(self, params: dict, graphs: Graph, values: Array) -> tuple[Any, Array]:
        """Sums over frames of the gradient through their weights, and of its squared length."""

        def slope(graph: Graph) -> Any:
            def energy(learned: dict) -> Array:
                return jnp.sum(self._potential.energy({**params, "params": learned}, graph))

            return jax.grad(energy)(params["params"])

        def add(total: Any, graph: Graph) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, slope(graph)), None

        def weigh(sums: tuple, frame: tuple[Graph, Array]) -> tuple[tuple, None]:
            graph, factor = frame
            one = jax.tree.map(lambda g, m: factor * (g - m), slope(graph), mean)
            return (jax.tree.map(jnp.add, sums[0], one), sums[1] + optax.tree.norm(one, squared=True)), None

        nothing = jax.tree.map(jnp.zeros_like, params["params"])
        mean = jax.tree.map(lambda total: total / len(values), jax.lax.scan(add, nothing, graphs)[0])
        factors = (values.mean() - values) / (KB * self._options.sampling.temperature)
        return jax.lax.scan(weigh, (nothing, jnp.zeros(())), (graphs, factors))[0]
