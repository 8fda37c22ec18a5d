"""Refinement: from a trained potential, data and targets to a corrected potential and a report, top to bottom."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlff.basics import compiler
from mlff.basics.errors import ConfigError, TrainingError
from mlff.basics.files import alone, write_text, writing
from mlff.basics.runtime import refuse_forked
from mlff.basics.signals import Stop, Terminated
from mlff.config.refinement import Refinement
from mlff.data.dataset import Splits, load_data
from mlff.potential import selfcheck
from mlff.potential.modelfile import CERTIFICATE
from mlff.potential.potential import Potential
from mlff.refinement.data import DataLoss
from mlff.refinement.observables import Measured, Target
from mlff.refinement.outcome import Look, Outcome, row, verdicts
from mlff.refinement.state import State
from mlff.refinement.targets import make_targets, shared
from mlff.refinement.transport import Diffusion
from mlff.training import optimizer, plasticity, start
from mlff.training.evaluate import evaluate

MODEL = "model.safetensors"  #: the refined potential in its folder
_BACKOFFS = 3  #: times that the learning rate is halved where the data are lost


def refine(config: Refinement, out_dir: str | Path, *, progress: bool = True) -> tuple[Potential, Outcome]:
    """Correct a trained potential to give the targets; saved as `out_dir`/model.safetensors. A folder with a state is resumed.

    Minimised is the sum over the targets of weight times mean squared deviation in error bars, plus the loss on a batch of
    the data over what the validation loss was at the start. Of all looks at which the error of the validation forces (without
    forces, of energies) has risen by no more than `force_limit` the one with the lowest sum is kept. All is computed in
    float64; runs of molecular dynamics, and the potential that is saved, keep the precision of the model.

    Raises ConfigError: a committee, a model without parameters, data in other units than the model's, a folder with another
    refinement; DataError, ModelFileError, StructureError, SimulationError, TrainingError; KeyboardInterrupt (Terminated) after
    Ctrl-C (SIGTERM), once the state is written.
    """
    refuse_forked()
    out = Path(out_dir)
    path = Path(config.model)
    potential = Potential.load(path / MODEL if path.is_dir() else path)
    _check_model(potential, path)
    splits = load_data(config.data, config.seed, config.loss, progress)
    for data in (splits.train, splits.valid, *splits.test.values()):
        for structure in data:
            potential.check(structure)
    start.check_replay(potential, splits.train, "data.train")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    double = potential.with_precision("float64")
    with alone(out / ".lock", f"{out}: another process refines there; wait for it or choose another --out"), double.scope():
        targets = make_targets(config, double, potential.precision)
        write_text(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        run = _Run(config, out, double, splits, targets, _identity(config, potential, splits))
        run.go(progress)
        return _finish(config, out, potential, splits, targets, run.state)


class _Run:
    """The optimisation."""

    def __init__(
        self, config: Refinement, out: Path, potential: Potential, splits: Splits, targets: list[Target], identity: dict
    ):
        self.config, self.out, self.targets, self.identity = config, out, targets, identity
        self._data = DataLoss(config, splits, potential)
        params = jax.tree.map(jnp.asarray, dict(potential.device_params))
        self._fixed = {name: value for name, value in params.items() if name != "params"}  # ranges of features
        learned = {"params": params["params"]}
        factors = plasticity.factors(config.optimizer, learned)
        begin = (learned, optimizer.make_optimizer(config.optimizer, 0.0).init(learned))
        self.state = State(begin, begin)
        self._update = _make_update(config, factors)
        held = self.state.load(out, identity)
        if held is not None:
            for target, one in zip(shared(targets), held, strict=False):
                target.restore(one)

    def go(self, progress: bool) -> None:
        """Until all targets are within their error bars, or the steps are done, or the data would be lost."""
        state, config = self.state, self.config
        columns = (
            TextColumn("refine"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Stop() as stop, Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as bar:
            task = bar.add_task("refine", total=config.steps, completed=state.step, note="")
            try:
                while not self._over():
                    self._one()
                    if stop.asked:
                        raise stop.error()
                    bar.update(task, completed=state.step, note=self._note())
            except (KeyboardInterrupt, Terminated):
                self._save()
                raise

    def _over(self) -> bool:
        looks, steps = self.state.looks, self.config.steps
        return self.state.ended or (self.state.step >= steps and bool(looks) and looks[-1].step >= steps)

    def _one(self) -> None:
        state, config = self.state, self.config
        params = {**self._fixed, **state.now[0]}
        measured = [target.measure(params) for target in self.targets]
        if state.step % config.check_every == 0 or state.step >= config.steps:
            back = self._look(params, measured)
            self._save()
            if back or self._over():
                return
        gradient = jax.tree.map(jnp.add, *self._gradients(params, measured))
        state.now, norm = self._update(state.now, gradient, state.factor, state.step / config.steps)
        if not np.isfinite(float(norm)):
            raise TrainingError(f"step {state.step}: the gradient is not finite; lower optimizer.learning_rate")
        state.step += 1

    def _gradients(self, params: dict, measured: list[Measured]) -> tuple[Any, Any]:
        """Of the data and of all targets together, by the parameters that are learned."""
        weight = self.config.data_weight / self.state.before_loss
        of_data = jax.tree.map(lambda g: weight * g, self._data.gradient(params, self.state.step)["params"])
        of_targets = [one.gradient["params"] for one in measured]
        return {"params": of_data}, {"params": jax.tree.map(lambda *all_: sum(all_), *of_targets)}

    def _look(self, params: dict, measured: list[Measured]) -> bool:
        """Judge the parameters by the validation data; True: they go back to the best ones, with half the learning rate."""
        state, config = self.state, self.config
        loss, forces, energy = self._data.look(params)
        if not state.looks:
            state.before, state.before_loss = [one.values.tolist() for one in measured], max(loss, 1e-12)
        deviations = tuple(target.goal.deviation(one.values) for target, one in zip(self.targets, measured, strict=True))
        look = Look(state.step, deviations, forces, energy, loss / state.before_loss)
        state.looks.append(look)
        squares = sum(t.goal.weight * d**2 for t, d in zip(self.targets, deviations, strict=True))
        score, lost = squares + config.data_weight * look.loss, not look.rise(state.looks[0]) <= config.force_limit
        if not lost and score < state.score:
            state.score, state.kept, state.best = score, state.step, state.now
        reached = all(deviation <= 1 for deviation in deviations) and not lost
        if reached:
            state.kept, state.best = state.step, state.now
        state.ended = reached or (lost and state.factor <= 0.5**_BACKOFFS)
        if lost:
            state.now, state.factor = state.best, 0.5 * state.factor
        return lost

    def _save(self) -> None:
        self.state.save(self.out, self.identity, [target.state() for target in shared(self.targets)])

    def _note(self) -> str:
        if not self.state.looks:
            return ""
        look = self.state.looks[-1]
        deviations = ", ".join(f"{deviation:.3g}" for deviation in look.deviations)
        return f"deviations in error bars: {deviations}; force error {100 * look.rise(self.state.looks[0]):+.1f} %"


def _make_update(config: Refinement, factors: plasticity.Factors | None) -> Callable:
    """Compiled ((parameters, optimiser), gradient, factor on the rate, progress) -> the same after a step, norm of the gradient."""

    def update(now: tuple, gradient: Any, factor: Any, progress: Any):
        norm = optax.tree.norm(gradient)
        rate = factor * optimizer.learning_rate(config.optimizer, progress)
        clipped = optimizer.clip(gradient, norm, config.optimizer.clip)
        updates, inner = optimizer.make_optimizer(config.optimizer, rate).update(clipped, now[1], now[0])
        if factors is not None:
            updates = plasticity.scaled(updates, factors(jnp.asarray(progress)))
        return (optax.apply_updates(now[0], updates), inner), norm

    return jax.jit(update, compiler_options=compiler.quick())


def _check_model(potential: Potential, path: Path) -> None:
    if potential.members > 1:
        raise ConfigError(f"model: {path}: is a committee; refine its members one by one")
    if not jax.tree.leaves(potential.params.get("params", {})):
        raise ConfigError(f"model: {path}: {potential.config.architecture} has no parameters that could be refined")


def _identity(config: Refinement, potential: Potential, splits: Splits) -> dict:
    """What two runs must share for one to continue the other: contents of model and data, and the config but for the steps."""
    options = config.model_dump(
        mode="json", exclude={"steps": True, "model": True, "data": {"train", "valid", "test", "lint"}}
    )
    options["optimizer"]["plasticity_map"] = plasticity.fingerprint(config.optimizer.plasticity_map)
    data = {"train": splits.train.fingerprint, "valid": splits.valid.fingerprint}
    return {"config": options, "content of model": potential.fingerprint, "content of data": data}


def _finish(
    config: Refinement, out: Path, potential: Potential, splits: Splits, targets: list[Target], state: State
) -> tuple[Potential, Outcome]:
    """The potential of the best look, saved, and the report, in which every target is computed anew."""
    best = {**potential.params, **state.best[0]}
    params = jax.tree.map(lambda new, old: np.asarray(new, np.asarray(old).dtype), best, dict(potential.params))
    refined = dataclasses.replace(potential, params=params)
    found = [target.fresh(refined) for target in targets]
    before = [np.array(values) for values in state.before]
    rows = [row(t.goal, old, *new) for t, old, new in zip(targets, before, found, strict=True)]
    data, errors = {}, {}
    for name, kept_aside in {"validation": splits.valid, **{f"test {k}": v for k, v in splits.test.items()}}.items():
        both = {"before": evaluate(potential, kept_aside), "after": evaluate(refined, kept_aside)}
        data[name] = {
            when: {"forces_rmse": found.forces_rmse, "energy_rmse_per_atom": found.energy_rmse_per_atom}
            for when, found in both.items()
        }
        errors[name] = both["after"].to_dict()
    lines = verdicts(rows, state.looks, config.force_limit)
    lines += tuple(line for target in targets if isinstance(target, Diffusion) for line in target.remarks())
    outcome = Outcome(state.step, state.kept, tuple(rows), data, lines)
    metadata = {key: value for key, value in potential.metadata.items() if key != CERTIFICATE}
    metadata |= {"errors": errors, "refinement": outcome.to_dict() | {"started_from": potential.fingerprint}}
    metadata[selfcheck.KEY] = selfcheck.record(refined, selfcheck.choose(splits.valid))
    refined = dataclasses.replace(refined, metadata=metadata)
    refined.save(out / MODEL)
    write_text(out / "refinement.json", json.dumps(outcome.to_dict(), indent=2))
    return refined, outcome
