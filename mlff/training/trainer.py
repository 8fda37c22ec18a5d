"""The optimisation of one run: epochs of compiled steps, validation, checkpoints, and what to do when it goes wrong."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np

from mlff.basics import compiler
from mlff.basics.errors import ModelFileError, TrainingError
from mlff.basics.runtime import on_host
from mlff.basics.signals import Stop, stopped
from mlff.data.batching import Sizes
from mlff.graph import Graph, Labels
from mlff.training import optimizer, plasticity, starts
from mlff.training.checkpoint import Checkpoints
from mlff.training.losses import Sums
from mlff.training.objectives import Params
from mlff.training.progress import MAX_BACKOFFS, SPIKE, TrainingProgress, errors
from mlff.training.runlog import RunLog, duration
from mlff.training.step import Report, copied, layers, make_step
from mlff.training.task import Task

IN_FLIGHT = 2  #: steps the device may be ahead of the host's book-keeping
AHEAD = 2  #: batches that are built before they are needed
SELDOM, OFTEN = 600.0, 10.0  #: seconds between checkpoints, at most and at least
_MEETING = 0.5  #: seconds between meetings of several processes about time and signals


class Trainer:
    """Owns the arrays (`state` now, `best` at the best validation) and the counters of one run.

    `runs` are the counters of each start, `run` those of the first, for what all share: epochs, steps and time. All else is
    decided for each start by itself, as if it were alone: best weights, skipped steps, ways back, plateaus, ends.
    """

    def __init__(self, task: Task, checkpoints: Checkpoints, journal: RunLog, identity: dict):
        self.task, self.config = task, task.config
        self.checkpoints, self.journal, self.identity = checkpoints, journal, identity
        if self.config.training.epochs is None and self.config.training.max_hours is None:
            raise TrainingError(
                "neither training.epochs nor training.max_hours: nothing says how long to train (mlff.training.recipe)"
            )
        compiler.check()
        self.count = task.starts
        self.runs = [TrainingProgress() for _ in range(self.count)]
        self.state = task.devices.replicated(task.initial_state())
        self.best = copied(self.state)
        factors = plasticity.factors(self.config.optimizer, task.params)
        self.step = make_step(task.objective, self.config, factors, self.count)
        self.measure = task.measure()
        self._compiled: set[tuple[str, Sizes]] = set()
        self._layers = list(layers(task.params))
        self._norms = np.zeros((self.count, 3, len(self._layers)))
        self._at_work = [True] * self.count  # the starts that have not come to their end
        self._from = [0] * self.count  # step from which on reports count, after a way back
        self._stop, self._stopping = Stop(), 0  # the signal that all processes have agreed to obey
        self._mark = self._shown = time.monotonic()
        self._spent = [0.0, 0.0]  # seconds and overhead since the last meeting
        self._saved = 0.0  # time of the run at the last checkpoint
        self._met = self._meeting = 0  # steps of the last meeting and the next
        self._shares, self._speed = (
            [0.0] * self.count,
            0.0,
        )  # progress at the last step, structures per second in the last epoch
        self._reported = [0] * self.count  # skipped steps the user knows of
        self._session: tuple[float, float] | None = None  # share and seconds when this process took over

    @property
    def run(self) -> TrainingProgress:
        """The counters of the first start."""
        return self.runs[0]

    @property
    def over(self) -> bool:
        """Whether all starts have come to their end."""
        return all(run.over(self.config) for run in self.runs)

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
        self.runs = starts.from_record(record, self.checkpoints.directory)
        if len(self.runs) != self.count:
            raise ModelFileError(
                f"{self.checkpoints.directory}: its checkpoints are of {len(self.runs)} starts; delete them to restart"
            )
        self._reported = [run.skipped for run in self.runs]
        self.journal.rewind(self.run.epoch)
        self.journal.say(f"resuming after {self.run.epoch} epochs and {self.run.position} steps")
        return True

    def fit(self) -> Params:
        """Train until epochs, hours or patience end; the averaged parameters of the best validation, on one device, of all starts.

        Raises TrainingError when backing off does not help, FileError; KeyboardInterrupt or Terminated, after a checkpoint.
        """
        run = self.run
        self._mark = time.monotonic()
        with self.journal, self._stop:
            self._meet()
            self._saved = run.elapsed
            while not self.over:
                self._train_epoch()
                if self._asked:
                    self.save()
                    raise stopped(self._asked)
                self._end_epoch()
        return self.task.devices.gathered(self.best.average)

    def save(self) -> None:
        """Write a checkpoint (in the background)."""
        record = starts.to_record(self.runs) | {"identity": self.identity}
        self.checkpoints.save(self.run.tried, {"state": self.state, "best": self.best}, record)
        self._saved = self.run.elapsed

    def _train_epoch(self) -> None:
        """What is left of the current epoch; its order is a function of seed, epoch and member only."""
        run = self.run
        plan = self.task.train.plan(np.random.default_rng([self.config.seed, run.epoch, self.config.member]))
        self._at_work = [not each.over(self.config) for each in self.runs]
        begun, structures = run.seconds, 0
        pending: collections.deque[tuple[int, jax.Array]] = collections.deque()
        with closing(self._batches(plan[run.position :])) as batches:
            while run.position < len(plan) and not run.out_of_time(self.config) and not self._asked:
                sizes, count, graph, labels = next(batches)
                look = run.position == len(plan) - 1  # at the norms of the layers: once an epoch
                controls = np.array(self._controls(len(plan), look), graph.positions.dtype)
                controls = controls if self.count > 1 else controls[0]
                self.state, report = self._first_use("step", sizes, self.step, self.state, controls, graph, labels)
                pending.append((run.tried, report))
                for each in self.runs:
                    each.position += 1
                    each.tried += 1
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

    def _controls(self, steps: int, look: bool) -> list[tuple[float, float, bool]]:
        """Of each start, see `make_step`; `steps` of the epoch."""
        self._shares = [run.progress(self.config, steps) for run in self.runs]
        for run, share in zip(self.runs, self._shares, strict=True):
            run.enter(optimizer.cycle(self.config.optimizer.schedule, share))
        return [(share, run.factor, look) for run, share in zip(self.runs, self._shares, strict=True)]

    def _layer_norms(self, start: int) -> dict[str, float]:
        """Of the last step of the epoch, for each layer: norm of the gradient, of the update, and of update over weights."""
        norms = self._norms[start]
        if not norms.any():
            return {}
        line = {}
        for name, (gradient, update, weights) in zip(self._layers, norms.T, strict=True):
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
        trained = [self._trained(start) for start in range(self.count)]
        self._norms = np.zeros_like(self._norms)
        for each in self.runs:
            each.end_epoch()
        validated = [{}] * self.count
        if run.epoch % config.training.validate_every == 0 or self.over:
            saturated = self._saturated()
            validated = [found | saturated for found in self._validate()]
        self._tick()
        shown = starts.leader(self.runs)
        line = {"epoch": run.epoch, "step": run.tried} | trained[shown] | validated[shown]
        if self.count > 1:
            line |= {"start": shown} | {f"valid_loss/{k}": found["valid_loss"] for k, found in enumerate(validated) if found}
        line |= {"skipped": sum(each.skipped for each in self.runs), "seconds": round(run.seconds, 2)}
        self.journal.record(line | {"structures_per_second": round(self._speed, 1)})
        due = run.epoch % config.training.checkpoint_every == 0 and run.elapsed - self._saved > OFTEN
        if due or self.over or self._asked:
            self.save()

    def _trained(self, start: int) -> dict[str, float]:
        """Learning rate, errors and norms of the epoch that ends; skipped steps are told."""
        run = self.runs[start]
        if run.skipped > self._reported[start]:
            new, self._reported[start] = run.skipped - self._reported[start], run.skipped
            self._warn(start, f"{new} steps with a non-finite loss or gradient were skipped", run.epoch + 1)
        line = {"learning_rate": self._rate(start), "train_loss": run.totals[1] / max(run.totals[0], 1.0)}
        return line | errors(Sums(*run.totals[2:]), "train") | self._layer_norms(start)

    def _validate(self) -> list[dict[str, float]]:
        """Of each start, errors of the averaged parameters on the validation set, and their score."""
        totals, loss, count = np.zeros((self.count, len(Sums._fields))), np.zeros(self.count), 0
        for sizes, indices in self.task.valid.plan(None):
            sizes, graph, labels = self.task.devices.place(self.task.valid, sizes, indices)
            vectors = self._first_use("measure", sizes, self.measure, self.state.average, graph, labels)
            for start, report in enumerate(self._reports(vectors)):
                totals[start] += report.sums
                loss[start] += len(indices) * report.loss
            count += len(indices)
        lines = []
        for start in range(self.count):
            sums = Sums(*totals[start])
            score = self.task.score(sums, loss[start] / count)
            if self._at_work[start]:
                self._judge(start, score)
            lines.append({"valid_loss": score, **errors(sums, "valid")})
        return lines

    def _saturated(self) -> dict[str, float]:
        """Share of saturated activations in one batch of the validation set, of the start that leads."""
        if self.task.activations is None:
            return {}
        average = starts.of_start(self.state.average, starts.leader(self.runs), self.count)
        sizes, indices = self.task.valid.plan(None)[0]
        graph, _ = self.task.valid.build(sizes, indices)
        params = self.task.devices.gathered(average)
        found = self._first_use("activations", sizes, self.task.activations, params, graph)
        return {f"saturated/{name}": float(share) for name, share in jax.device_get(found).items()}

    def _judge(self, start: int, score: float) -> None:
        """Keep the weights if they are the best, go back to those if it over-fits."""
        run = self.runs[start]
        if not np.isfinite(score):
            self._back_off(start, "the validation loss is not finite")
        elif run.judge(score, self.config):
            self.best = starts.replaced(self._only(start), self.state, self.best)
        elif run.over_fits(self.config):
            run.bring_end_forward(self.config)
            self.state = starts.replaced(self._only(start), self.best, self.state)
            self._warn(start, f"over-fitting since epoch {run.best_epoch}; on from there, with an early end", run.epoch)

    def _take(self, pending: collections.deque) -> None:
        """Book the oldest step of each start; after a way back, what was on its way then does not count."""
        number, vectors = pending.popleft()
        for start, report in enumerate(self._reports(vectors)):
            if self._at_work[start] and number >= self._from[start]:
                self._book(start, report)

    def _book(self, start: int, report: Report) -> None:
        """Too many skipped steps, or errors far above what they were, throw a start back to its best state."""
        run = self.runs[start]
        run.take(report)
        if report.norms.any():
            self._norms[start] = report.norms
        if run.unstable:
            self._back_off(start, f"{sum(run.recent)} of the last {len(run.recent)} steps were not finite")
        elif run.spiked:
            run.spikes += 1
            why = f"the error of the last {len(run.errors)} steps was more than {SPIKE:g} times what it had been"
            self._back_off(start, why, halve=1 < run.spikes and run.backoffs < MAX_BACKOFFS)

    def _drain(self, pending: collections.deque) -> None:
        while pending:
            self._take(pending)

    def _back_off(self, start: int, why: str, halve: bool = True) -> None:
        run = self.runs[start]
        self._from[start] = run.tried
        if halve and run.backoffs >= MAX_BACKOFFS:
            self._fail(start, f"{why}, also after {run.backoffs} times halving the learning rate")
            return
        run.backoffs += halve
        run.recent, run.errors = [], []
        self.state = starts.replaced(self._only(start), self.best, self.state)
        where = f"the weights of epoch {run.best_epoch}" if run.best_epoch else "the initial weights"
        self._warn(start, f"{why}; back to {where} with the learning rate x {run.factor:.3g}", run.epoch + 1)

    def _fail(self, start: int, why: str) -> None:
        """Leave a start behind, at its best weights. Raises TrainingError where no other is left."""
        self.runs[start].failed, self._at_work[start] = True, False
        if all(run.failed for run in self.runs):
            raise TrainingError(
                f"{why}: lower optimizer.learning_rate (now {self.config.optimizer.learning_rate:g}) or look for wrong labels "
                "in the training data"
            )
        self._warn(start, f"{why}: it is left behind", self.run.epoch + 1)

    def _warn(self, start: int, text: str, epoch: int) -> None:
        self.journal.warn(f"epoch {epoch}: {f'start {start}: ' if self.count > 1 else ''}{text}")

    def _only(self, start: int) -> list[bool]:
        return [k == start for k in range(self.count)]

    def _reports(self, vectors: jax.Array) -> list[Report]:
        """Of each start."""
        return [Report.unpack(vector) for vector in np.asarray(vectors).reshape(self.count, -1)]

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
        *agreed, self._stopping = self.task.devices.group.agree(*times, self._stop.signal)
        for each in self.runs:
            each.seconds, each.overhead = agreed
        self._spent = [0.0, 0.0]
        steps = run.tried - self._met
        self._met = run.tried
        self._meeting = run.tried + int(np.clip(_MEETING * steps / max(run.seconds - before, 1e-9), 1, 1000))

    @property
    def _asked(self) -> int:
        """The signal to obey, 0: none."""
        return self._stop.signal if self.task.devices.group.count == 1 else self._stopping

    def _rate(self, start: int) -> float:
        """The learning rate of the last step."""
        with on_host():
            return float(self.runs[start].factor * optimizer.learning_rate(self.config.optimizer, self._shares[start]))

    def _show(self, speed: float) -> None:
        if self._mark - self._shown < 0.5:
            return
        self._shown = self._mark
        run, done = self.runs[starts.leader(self.runs)], min(self._shares)
        self._session = self._session or (done, run.seconds)
        share, seconds = done - self._session[0], run.seconds - self._session[1]
        left = f"{duration((1 - done) * seconds / share)} left" if share > 0 else ""
        loss = run.totals[1] / max(run.totals[0], 1.0)
        rate = f"{speed:.3g}/s  loss {loss:.3g}"
        self.journal.show(completed=done, epoch=self._epoch_text(), rate=rate, left=left)

    def _epoch_text(self) -> str:
        epochs = self.config.training.epochs
        return f"{self.run.epoch + 1}/{epochs}" if epochs else f"{self.run.epoch + 1}"
