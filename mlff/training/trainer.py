"""The optimisation of one run: epochs of compiled steps, validation, checkpoints, and what to do when it goes wrong."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from mlff.basics import compiler
from mlff.basics.errors import TrainingError
from mlff.basics.runtime import on_host
from mlff.basics.signals import Stop, stopped
from mlff.config.options import Config
from mlff.data.batching import Batches, Sizes
from mlff.graph import Graph, Labels
from mlff.models.common import Statistics
from mlff.training import losses, optimizer, plasticity
from mlff.training.checkpoint import Checkpoints
from mlff.training.devices import Devices
from mlff.training.losses import Sums
from mlff.training.objectives import Apply, Objective, Params, supervised
from mlff.training.progress import MAX_BACKOFFS, SPIKE, TrainingProgress, errors
from mlff.training.runlog import RunLog, duration
from mlff.training.step import Report, copied, initial_state, layers, make_eval_step, make_step

IN_FLIGHT = 2  #: steps the device may be ahead of the host's book-keeping
AHEAD = 2  #: batches that are built before they are needed
SELDOM, OFTEN = 600.0, 10.0  #: seconds between checkpoints, at most and at least
_MEETING = 0.5  #: seconds between meetings of several processes about time and signals


@dataclass(frozen=True)
class Task:
    """What stays fixed in the course of a run."""

    config: Config
    elements: tuple[int, ...]
    baseline: dict[int, float]  #: Z -> eV
    statistics: Statistics
    apply: Apply
    params: Params  #: initial ones
    train: Batches
    valid: Batches
    ranges: dict = field(default_factory=dict)  #: of the potential to start from, see `mlff.training.ranges`
    devices: Devices = field(default_factory=Devices)  #: that share each step

    @property
    def objective(self) -> Objective:
        """What its training minimises."""
        return supervised(self.apply, self.config.loss, self.statistics.energy_scale, self.devices.summed)

    def measure(self) -> Callable[[Params, Graph, Labels], jax.Array]:
        """`measure(params, graph, labels) -> report vector` of a batch of the validation set, compiled."""
        stress = any("stress" in sample.labels for sample in self.valid.samples)
        return make_eval_step(self.apply, self.config, self.statistics.energy_scale, stress, self.devices.summed)

    def score(self, sums: Sums, loss: float) -> float:
        """What decides which epoch is best: the loss with the final weights, from sums over the validation set.

        `loss`: the mean over its structures of the loss of their batch.
        """
        with on_host():
            return float(losses.combine(sums, losses.weights(self.config.loss, 1.0)))

    def describe(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        shapes = ", ".join(f"{s.structures} x {s.atoms} atoms x {s.neighbors} neighbours" for s in self.train.sizes)
        return (
            f"{len(self.train.samples):,} training and {len(self.valid.samples):,} validation structures, "
            f"{count:,} parameters, {self.train.steps_per_epoch:,} steps per epoch ({shapes})"
        )


class Trainer:
    """Owns the arrays (`state` now, `best` at the best validation) and the counters (`run`) of one run."""

    def __init__(self, task: Task, checkpoints: Checkpoints, journal: RunLog, identity: dict):
        self.task, self.config = task, task.config
        self.checkpoints, self.journal, self.identity = checkpoints, journal, identity
        if self.config.training.epochs is None and self.config.training.max_hours is None:
            raise TrainingError(
                "neither training.epochs nor training.max_hours: nothing says how long to train (mlff.training.recipe)"
            )
        compiler.check()
        self.run = TrainingProgress()
        self.state = task.devices.replicated(initial_state(self.config, task.params))
        self.best = copied(self.state)
        self.step = make_step(task.objective, self.config, plasticity.factors(self.config.optimizer, task.params))
        self.measure = task.measure()
        self._compiled: set[tuple[str, Sizes]] = set()
        self._layers = list(layers(task.params))
        self._norms = np.zeros((3, len(self._layers)))
        self._stop, self._stopping = Stop(), 0  # the signal that all processes have agreed to obey
        self._mark = self._shown = time.monotonic()
        self._spent = [0.0, 0.0]  # seconds and overhead since the last meeting
        self._saved = 0.0  # time of the run at the last checkpoint
        self._met = self._meeting = 0  # steps of the last meeting and the next
        self._share = self._speed = 0.0  # progress at the last step, structures per second in the last epoch
        self._reported = 0  # skipped steps the user knows of
        self._session: tuple[float, float] | None = None  # share and seconds when this process took over

    def resume(self) -> bool:
        """Continue from the newest checkpoint, if there is one. Raises ModelFileError: all are damaged."""
        found = self.checkpoints.restore({"state": self.state, "best": self.best})
        if found is None:
            self.journal.rewind(0)
            return False
        arrays, record = found
        self.state, self.best = (
            self.task.devices.replicated(jax.tree.map(jnp.asarray, arrays[name])) for name in ("state", "best")
        )
        self.run = TrainingProgress.from_record(record, self.checkpoints.directory)
        self._reported = self.run.skipped
        self.journal.rewind(self.run.epoch)
        self.journal.say(f"resuming after {self.run.epoch} epochs and {self.run.position} steps")
        return True

    def fit(self) -> Params:
        """Train until epochs, hours or patience end; the averaged parameters of the best validation, on one device.

        Raises TrainingError when backing off does not help, FileError; KeyboardInterrupt or Terminated, after a checkpoint.
        """
        run = self.run
        self._mark = time.monotonic()
        with self.journal, self._stop:
            self._meet()
            self._saved = run.elapsed
            while not run.over(self.config):
                self._train_epoch()
                if self._asked:
                    self.save()
                    raise stopped(self._asked)
                self._end_epoch()
        return self.task.devices.gathered(self.best.average)

    def save(self) -> None:
        """Write a checkpoint (in the background)."""
        record = {"run": self.run.to_dict(), "identity": self.identity}
        self.checkpoints.save(self.run.tried, {"state": self.state, "best": self.best}, record)
        self._saved = self.run.elapsed

    def _train_epoch(self) -> None:
        """What is left of the current epoch; its order is a function of seed, epoch and member only."""
        run = self.run
        plan = self.task.train.plan(np.random.default_rng([self.config.seed, run.epoch, self.config.member]))
        begun, structures = run.seconds, 0
        pending: collections.deque[jax.Array] = collections.deque()
        with closing(self._batches(plan[run.position :])) as batches:
            while run.position < len(plan) and not run.out_of_time(self.config) and not self._asked:
                sizes, count, graph, labels = next(batches)
                self._share = run.progress(self.config, len(plan))
                look = run.position == len(plan) - 1  # at the norms of the layers: once an epoch
                controls = np.array([self._share, run.factor, look], graph.positions.dtype)
                self.state, report = self._first_use("step", sizes, self.step, self.state, controls, graph, labels)
                pending.append(report)
                run.position += 1
                run.tried += 1
                structures += count
                if len(pending) > IN_FLIGHT:
                    self._take(pending)
                self._tick()
                self._show(structures / max(run.seconds + self._spent[0] - begun, 1e-9))
                if run.elapsed - self._saved > SELDOM:
                    self._drain(pending)
                    self.save()
        self._drain(pending)
        self._meeting = run.tried
        self._tick()
        self._speed = structures / max(run.seconds - begun, 1e-9)

    def _layer_norms(self) -> dict[str, float]:
        """Of the last step of the epoch, for each layer: norm of the gradient, of the update, and of update over weights."""
        if not self._norms.any():
            return {}
        line = {}
        for name, (gradient, update, weights) in zip(self._layers, self._norms.T, strict=True):
            line |= {f"gradient/{name}": gradient, f"update/{name}": update, f"ratio/{name}": update / max(weights, 1e-30)}
        return {key: float(value) for key, value in line.items()}

    def _batches(self, plan: list[tuple[Sizes, list[int]]]) -> Iterator[tuple[Sizes, int, Graph, Labels]]:
        """Batches on the device, and of how many structures; each is built while the device works at the one before."""

        def build(sizes: Sizes, indices: list[int]) -> tuple[Sizes, int, Graph, Labels]:
            with jax.enable_x64(self.config.precision == "float64"):  # the thread's own
                sizes, graph, labels = self.task.devices.place(self.task.train, sizes, indices)
                return sizes, len(indices), graph, labels

        with ThreadPoolExecutor(1) as thread:
            ahead = collections.deque(thread.submit(build, *batch) for batch in plan[:AHEAD])
            for number in range(len(plan)):
                batch = ahead.popleft().result()
                if number + AHEAD < len(plan):
                    ahead.append(thread.submit(build, *plan[number + AHEAD]))
                yield batch

    def _end_epoch(self) -> None:
        run, config = self.run, self.config
        count = max(run.totals[0], 1.0)
        line = {"epoch": run.epoch + 1, "step": run.tried, "learning_rate": self._rate()}
        line |= {"train_loss": run.totals[1] / count} | errors(Sums(*run.totals[2:]), "train") | self._layer_norms()
        if run.skipped > self._reported:
            new, self._reported = run.skipped - self._reported, run.skipped
            self.journal.warn(f"epoch {run.epoch + 1}: {new} steps with a non-finite loss or gradient were skipped")
        self._norms = np.zeros_like(self._norms)
        run.end_epoch()
        if run.epoch % config.training.validate_every == 0 or run.over(config):
            line |= self._validate()
        self._tick()
        line |= {"skipped": run.skipped, "seconds": round(run.seconds, 2), "structures_per_second": round(self._speed, 1)}
        self.journal.record(line)
        due = run.epoch % config.training.checkpoint_every == 0 and run.elapsed - self._saved > OFTEN
        if due or run.over(config) or self._asked:
            self.save()

    def _validate(self) -> dict[str, float]:
        """Errors of the averaged parameters on the validation set, and its score."""
        totals, loss, count = np.zeros(len(Sums._fields)), 0.0, 0
        for sizes, indices in self.task.valid.plan(None):
            sizes, graph, labels = self.task.devices.place(self.task.valid, sizes, indices)
            vector = self._first_use("measure", sizes, self.measure, self.state.average, graph, labels)
            report = Report.unpack(vector)
            totals += report.sums
            loss += len(indices) * report.loss
            count += len(indices)
        sums = Sums(*totals)
        score = self.task.score(sums, loss / count)
        if not np.isfinite(score):
            self._back_off("the validation loss is not finite")
        elif self.run.judge(score, self.config):
            self.best = copied(self.state)
        elif self.run.over_fits(self.config):
            self.run.bring_end_forward(self.config)
            self.state = copied(self.best)
            best = self.run.best_epoch
            self.journal.warn(f"epoch {self.run.epoch}: over-fitting since epoch {best}; on from there, with an early end")
        return {"valid_loss": score, **errors(sums, "valid")}

    def _take(self, pending: collections.deque) -> None:
        """Book the oldest step; too many skipped ones, or errors far above what they were, throw back to the best state."""
        report = Report.unpack(pending.popleft())
        self.run.take(report)
        if report.norms.any():
            self._norms = report.norms
        if self.run.unstable:
            pending.clear()
            self._back_off(f"{sum(self.run.recent)} of the last {len(self.run.recent)} steps were not finite")
        elif self.run.spiked:
            pending.clear()
            self.run.spikes += 1
            why = f"the error of the last {len(self.run.errors)} steps was more than {SPIKE:g} times what it had been"
            self._back_off(why, halve=1 < self.run.spikes and self.run.backoffs < MAX_BACKOFFS)

    def _drain(self, pending: collections.deque) -> None:
        while pending:
            self._take(pending)

    def _back_off(self, why: str, halve: bool = True) -> None:
        run = self.run
        if halve and run.backoffs >= MAX_BACKOFFS:
            raise TrainingError(
                f"{why}, also after {run.backoffs} times halving the learning rate: lower optimizer.learning_rate "
                f"(now {self.config.optimizer.learning_rate:g}) or look for wrong labels in the training data"
            )
        run.backoffs += halve
        run.recent, run.errors = [], []
        self.state = copied(self.best)
        where = f"the weights of epoch {run.best_epoch}" if run.best_epoch else "the initial weights"
        self.journal.warn(f"epoch {run.epoch + 1}: {why}; back to {where} with the learning rate x {run.factor:.3g}")

    def _first_use(self, name: str, sizes: Sizes, function, *arguments):
        """Call; the first call of each padded size compiles, which counts as overhead rather than as training."""
        if (name, sizes) in self._compiled:
            return function(*arguments)
        self._tick()
        self.journal.show(epoch=self._epoch_text(), rate=f"compiling for {sizes.atoms} atoms x {sizes.neighbors} neighbours")
        result = jax.block_until_ready(function(*arguments))
        self._compiled.add((name, sizes))
        self._spent[1] += self._lap()
        return result

    def _lap(self) -> float:
        """Seconds since the last call."""
        before, self._mark = self._mark, time.monotonic()
        return self._mark - before

    def _tick(self) -> None:
        """Book the time since the last tick: one process at once, several when they meet."""
        self._spent[0] += self._lap()
        if self.task.devices.group.count == 1 or self.run.tried >= self._meeting:
            self._meet()

    def _meet(self) -> None:
        """Several processes take the time of the first, stop where one was asked to, and choose when to meet again."""
        run, before = self.run, self.run.seconds
        times = run.seconds + self._spent[0], run.overhead + self._spent[1]
        run.seconds, run.overhead, self._stopping = self.task.devices.group.agree(*times, self._stop.signal)
        self._spent = [0.0, 0.0]
        steps = run.tried - self._met
        self._met = run.tried
        self._meeting = run.tried + int(np.clip(_MEETING * steps / max(run.seconds - before, 1e-9), 1, 1000))

    @property
    def _asked(self) -> int:
        """The signal to obey, 0: none."""
        return self._stop.signal if self.task.devices.group.count == 1 else self._stopping

    def _rate(self) -> float:
        """The learning rate of the last step."""
        with on_host():
            return float(self.run.factor * optimizer.learning_rate(self.config.optimizer, self._share))

    def _show(self, speed: float) -> None:
        if self._mark - self._shown < 0.5:
            return
        self._shown = self._mark
        self._session = self._session or (self._share, self.run.seconds)
        share, seconds = self._share - self._session[0], self.run.seconds - self._session[1]
        left = f"{duration((1 - self._share) * seconds / share)} left" if share > 0 else ""
        loss = self.run.totals[1] / max(self.run.totals[0], 1.0)
        rate = f"{speed:.3g}/s  loss {loss:.3g}"
        self.journal.show(completed=self._share, epoch=self._epoch_text(), rate=rate, left=left)

    def _epoch_text(self) -> str:
        epochs = self.config.training.epochs
        return f"{self.run.epoch + 1}/{epochs}" if epochs else f"{self.run.epoch + 1}"
