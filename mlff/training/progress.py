"""Where a run stands: what the host keeps beside the arrays, stored with every checkpoint as JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from mlff.basics.errors import ModelFileError
from mlff.basics.properties import MILLI, PREDICTED
from mlff.config.options import Config
from mlff.training.losses import Sums
from mlff.training.step import Report

IN_A_ROW, OF_RECENT, RECENT = 5, 20, 100  #: skipped steps (in a row, or of so many recent ones) that call for a back-off
MAX_BACKOFFS = 5
SPIKE, WINDOW = 3.0, 50  #: mean error of so many steps, over the lowest such mean before it, that calls for going back
ROUNDING = 1e-5  #: eV/Å or eV: such errors are those of float32 where all forces are zero by symmetry
MAX_SPIKES = 5  #: after so many a run takes its error as it is
STALLED = 0.15  #: share of the plan without a better validation, after which it may be over-fitting
WORSE = 1.25  #: and it is if these are so much worse on average; at large rates they are 15 % worse by chance, and recover
END, SHORTEST_END = (
    0.5,
    0.05,
)  #: the end that follows: this share of the time up to the best validation, at least that of the plan


@dataclass
class TrainingProgress:
    """Counters of a run. Epochs count from 0; an epoch is complete once it has been validated and recorded."""

    epoch: int = 0  #: complete epochs
    position: int = 0  #: batches done of the current one
    tried: int = 0  #: steps in all, skipped ones included
    totals: list[float] = field(default_factory=lambda: [0.0] * (2 + len(Sums._fields)))  #: steps, loss, sums of this epoch
    skipped: int = 0  #: steps skipped in all
    recent: list[int] = field(default_factory=list)  #: 1 for each skipped one of the last hundred steps
    best_score: float | None = None  #: lowest validation loss
    best_epoch: int = 0
    best_share: float = 0.0  #: of the plan, at the best validation
    since: float = 0.0  #: sum of the validation losses since then
    ending: list[float] | None = (
        None  #: share of the plan where the end was brought forward, progress it began at, its length
    )
    stale: int = 0  #: validations since the best one
    plateau_stale: int = 0  #: validations since the best one or the last cut of the learning rate
    plateau: float = 1.0  #: factor on the learning rate from plateaus
    backoffs: int = 0  #: each halves the learning rate
    errors: list[float] = field(
        default_factory=list
    )  #: of the last WINDOW steps: RMSE of forces (eV/Å), else of energies per atom (eV)
    lowest: float | None = None  #: lowest mean of such a window
    cycle: int = 0  #: which cosine of a schedule with warm restarts these errors are of
    spikes: int = 0  #: times the error rose far above what it had been, and the run went back to its best weights
    failed: bool = False  #: of several starts one that backing off did not help: it was left behind
    seconds: float = 0.0  #: spent optimising and validating
    overhead: float = 0.0  #: spent compiling and preparing

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: dict, source: object) -> TrainingProgress:
        """The counters in the record of a checkpoint. Raises ModelFileError, with `source`, for what is none."""
        try:
            run = cls(**record["run"])
            whole = [n for n in (getattr(run, f.name) for f in dataclasses.fields(cls) if f.type == "int")]
            real = [
                run.best_share,
                run.since,
                *([] if run.ending is None else run.ending),
                run.seconds,
                run.overhead,
                run.plateau,
                *run.totals,
                *([] if run.best_score is None else [run.best_score]),
            ]
            good = all(type(n) is int and 0 <= n < 2**53 for n in whole) and run.backoffs <= MAX_BACKOFFS
            good = good and type(run.failed) is bool
            good = good and all(type(x) in (int, float) and abs(x) < 1e300 for x in real) and 0 < run.plateau <= 1
            good = good and min(run.seconds, run.overhead) >= 0 and len(run.totals) == 2 + len(Sums._fields)
            good = good and (run.ending is None or len(run.ending) == 3 and run.ending[2] > 0)
            errors = [*run.errors, *([] if run.lowest is None else [run.lowest])]
            good = good and all(type(x) in (int, float) and 0 <= x < 1e300 for x in errors) and len(run.errors) <= WINDOW
            if good and len(run.recent) <= RECENT and all(bad in (0, 1) for bad in run.recent):
                return run
        except (KeyError, TypeError):
            pass
        raise ModelFileError(f"{source}: the record of a checkpoint is not that of a run of mlff; delete it to restart")

    @property
    def factor(self) -> float:
        """What the scheduled learning rate is multiplied by."""
        return self.plateau * 0.5**self.backoffs

    @property
    def elapsed(self) -> float:
        """Seconds of the run in all."""
        return self.seconds + self.overhead

    @property
    def unstable(self) -> bool:
        """Whether so many steps were skipped lately that training must back off."""
        return sum(self.recent) >= OF_RECENT or (len(self.recent) >= IN_A_ROW and all(self.recent[-IN_A_ROW:]))

    @property
    def spiked(self) -> bool:
        """Whether the error of the last steps is far above what it was: the weights were thrown off."""
        full = len(self.errors) == WINDOW and self.lowest is not None and self.spikes < MAX_SPIKES
        return full and _mean(self.errors) > SPIKE * max(self.lowest, ROUNDING)

    def progress(self, config: Config, steps: float = math.inf) -> float:
        """What schedules follow, 0 to 1: the share of the plan, or how far the end is that was brought forward."""
        share = self.share(config, steps)
        if self.ending is None:
            return share
        begun, progress, length = self.ending
        return min(progress + (1.0 - progress) * max(share - begun, 0.0) / length, 1.0)

    def share(self, config: Config, steps: float = math.inf) -> float:
        """Share of the plan, 0 to 1, the larger of those of epochs and of hours; `steps`: batches of the current epoch.

        Without `steps` whole epochs count alone.
        """
        epochs = config.training.epochs
        done = (self.epoch + self.position / steps) / epochs if epochs else 0.0
        return min(max(done, self._share_of_time(config)), 1.0)

    def out_of_time(self, config: Config) -> bool:
        return self._share_of_time(config) >= 1.0

    def over_fits(self, config: Config) -> bool:
        """Whether validation has become worse for so long that the rest of the plan would be spent in vain."""
        if self.ending is not None or not self.stale or config.optimizer.schedule.kind not in ("cosine", "exponential"):
            return False
        return self.share(config) - self.best_share >= STALLED and self.since > WORSE * self.best_score * self.stale

    def bring_end_forward(self, config: Config) -> None:
        """From the best validation on (the caller restores its weights) schedules run to their end in half the time it took."""
        length = max(END * self.best_share, SHORTEST_END)
        self.ending = [self.share(config), self.best_share, length]
        self.errors = []

    def over(self, config: Config) -> bool:
        """Whether the run has come to its end: epochs, hours, patience, or it has failed. Epochs count when they are complete."""
        epochs, patience = config.training.epochs, config.training.patience
        done = epochs is not None and self.epoch >= epochs
        impatient = patience is not None and self.stale >= patience
        ended = self.ending is not None and self.progress(config) >= 1.0
        return done or impatient or ended or self.failed or self.out_of_time(config)

    def _share_of_time(self, config: Config) -> float:
        hours = config.training.max_hours
        return self.seconds / max(3600 * hours - self.overhead, 1e-3) if hours else 0.0

    def take(self, report: Report) -> None:
        """Count one step of training."""
        bad = int(report.skipped > 0)
        self.skipped += bad
        self.recent = [*self.recent[-(RECENT - 1) :], bad]
        if not bad:
            self._watch(report.sums)
            self.totals = [old + new for old, new in zip(self.totals, (1.0, report.loss, *report.sums), strict=True)]

    def enter(self, cycle: int) -> None:
        """Errors of one cosine are no measure for those of the next, which begins at the full learning rate."""
        if cycle != self.cycle:
            self.cycle, self.errors, self.lowest = cycle, [], None

    def _watch(self, sums: Sums) -> None:
        squares, count = (
            (sums.forces_squares, sums.n_forces) if sums.n_forces else (sums.energy_per_atom_squares, sums.n_energy)
        )
        if not count:
            return
        self.errors = [*self.errors[-(WINDOW - 1) :], float(np.sqrt(squares / count))]
        if len(self.errors) == WINDOW:
            mean = _mean(self.errors)
            self.lowest = mean if self.lowest is None else min(mean, self.lowest)

    def judge(self, score: float, config: Config) -> bool:
        """Count one validation; True if it is the best so far."""
        schedule = config.optimizer.schedule
        if self.best_score is None or score < self.best_score:
            self.best_score, self.best_epoch, self.stale, self.plateau_stale = score, self.epoch, 0, 0
            self.best_share, self.since = self.share(config), 0.0
            return True
        self.stale += 1
        self.since += score
        self.plateau_stale += 1
        if schedule.kind == "plateau" and self.plateau_stale >= schedule.patience:
            self.plateau, self.plateau_stale = max(self.plateau * schedule.factor, schedule.final_fraction), 0
        return False

    def end_epoch(self) -> None:
        self.epoch += 1
        self.position = 0
        self.totals = [0.0] * len(self.totals)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def errors(sums: Sums, prefix: str) -> dict[str, float]:
    """RMSEs in meV and meV/Å from sums of squares; what has no label is left out."""

    found = {f"{name}_rmse": (getattr(sums, f"{name}_squares"), getattr(sums, f"n_{name}")) for name in PREDICTED}
    found["energy_rmse_per_atom"] = sums.energy_per_atom_squares, sums.n_energy
    return {f"{prefix}_{name}": float(MILLI * np.sqrt(squares / n)) for name, (squares, n) in found.items() if n}
