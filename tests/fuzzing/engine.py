"""Runs targets in processes of their own, so that a crash or a hang of one is a finding and not the end of the run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HANG = 30.0  #: s without the end of one input, by the clock; a busy machine needs room beyond the limit on CPU time
_BATCH = 20_000  #: inputs per process
_INDEX, _SINCE, _ACCEPTED, _REFUSED, _UNCLEAN, _SLOWEST, _SLOWEST_INDEX, _MEMORY = range(8)


@dataclass
class Job:
    """So many inputs of a target; input k of a seed is always the same."""

    target: str
    start: int
    stop: int


@dataclass
class Tally:
    """What became of the inputs of one target."""

    count: int = 0
    accepted: int = 0
    refused: int = 0
    unclean: int = 0
    slowest_cpu_s: float = 0.0
    slowest_input: int = -1
    peak_memory_mb: float = 0.0  #: resident memory that the process grew by after it had read the seeds
    seconds: float = 0.0
    warnings: Counter = field(default_factory=Counter)
    findings: dict[str, list] = field(default_factory=dict)  #: signature -> [count, index of the first input, what is wrong]

    def find(self, signature: str, index: int, why: str) -> None:
        self.findings.setdefault(signature, [0, index, why])[0] += 1


def make_input(target: str, seed: int, index: int, seeds) -> dict[str, bytes]:
    """Input number `index` of a target."""
    from tests.fuzzing.targets import TARGETS

    return TARGETS[target].mutate(random.Random(f"{seed} {target} {index}"), seeds)


def write_input(files: dict[str, bytes], folder: Path) -> None:
    """Empty the folder and put the files there."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in files.items():
        path = folder / name
        if "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def run(
    target: str, count: int, seed: int, on_step: Callable[[int, Tally], None] = lambda done, tally: None, save: Path | None = None
) -> Tally:
    """Fuzz one target with `count` inputs; the first input of each fault goes to the folder `save`."""
    tally = Tally()
    begin = time.monotonic()
    start = 0
    while start < count:
        stop = min(start + _BATCH, count)
        start = _run_batch(Job(target, start, stop), seed, tally, on_step, save)
        tally.seconds = time.monotonic() - begin
    return tally


def _run_batch(job: Job, seed: int, tally: Tally, on_step, save) -> int:
    """Work through a batch in one process; the index to go on from."""
    context = multiprocessing.get_context("spawn")
    board = context.Array("d", 8, lock=False)
    board[_INDEX] = job.start - 1
    receive, send = context.Pipe(duplex=False)
    base, done = Counter({name: getattr(tally, name) for name in ("accepted", "refused", "unclean")}), tally.count
    with tempfile.TemporaryDirectory(prefix="mlff-fuzz-") as root:
        process = context.Process(target=_work, args=(job, seed, root, board, send, None if save is None else str(save)), daemon=True)
        process.start()
        send.close()

        def take() -> None:
            tally.accepted = base["accepted"] + int(board[_ACCEPTED])
            tally.refused = base["refused"] + int(board[_REFUSED])
            tally.unclean = base["unclean"] + int(board[_UNCLEAN])
            tally.count = done + int(board[_ACCEPTED] + board[_REFUSED] + board[_UNCLEAN])
            if board[_SLOWEST] > tally.slowest_cpu_s:
                tally.slowest_cpu_s, tally.slowest_input = round(board[_SLOWEST], 4), int(board[_SLOWEST_INDEX])
            tally.peak_memory_mb = max(tally.peak_memory_mb, round(board[_MEMORY], 1))
            on_step(tally.count, tally)

        hang = False
        try:
            while process.is_alive() or receive.poll():
                try:
                    while receive.poll(0.2):
                        signature, index, why, warnings = receive.recv()
                        if signature:
                            tally.find(signature, index, why)
                        tally.warnings.update(warnings)
                except EOFError:
                    process.join(HANG)
                    break
                take()
                if board[_INDEX] >= job.start and time.monotonic() - board[_SINCE] > HANG:
                    hang = True
                    process.kill()
                    process.join()
                    break
        finally:
            if process.is_alive():
                process.kill()
            process.join()
        take()
        if process.exitcode == 0:
            return job.stop
        index = int(board[_INDEX])
        if index < job.start:
            raise RuntimeError(f"{job.target}: the process that fuzzes ended with {process.exitcode} before its first input")
        what = f"no end after {HANG:.0f} s" if hang else f"the process died ({process.exitcode})"
        tally.unclean += 1
        tally.count += 1
        tally.find(what, index, what)
        if save is not None:
            _keep(job.target, seed, index, what, Path(save), Path(root))
        on_step(tally.count, tally)
        return index + 1


def _keep(target: str, seed: int, index: int, why: str, save: Path, root: Path) -> None:
    """The files that a dead process was reading lie in its folder still."""
    folder = save / target.replace(" ", "_") / str(index)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "input", folder / "input")
    (folder / "why.txt").write_text(f"seed {seed}, input {index}\n{why}\n", encoding="utf-8")


def _work(job: Job, seed: int, root: str, board, send, save: str | None) -> None:
    os.environ["XDG_CACHE_HOME"] = f"{root}/input"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from tests.fuzzing.guard import Guard, peak_memory
    from tests.fuzzing.targets import TARGETS

    folder = Path(root) / "input"
    folder.mkdir()
    target = TARGETS[job.target]
    guard = Guard(folder)
    seeds = target.prepare(folder)
    for warm in range(-30, 0):  # late imports, caches
        write_input(make_input(job.target, seed, warm, seeds), folder)
        guard.judge(lambda: target.read(folder), target.names)
    guard.arm()
    memory = peak_memory()
    found: Counter[str] = Counter()
    for index in range(job.start, job.stop):
        files = make_input(job.target, seed, index, seeds)
        write_input(files, folder)
        board[_SINCE] = time.monotonic()
        board[_INDEX] = index
        verdict = guard.judge(lambda: target.read(folder), target.names)
        board[{"accepted": _ACCEPTED, "refused": _REFUSED, "unclean": _UNCLEAN}[verdict.kind]] += 1
        if verdict.cpu > board[_SLOWEST]:
            board[_SLOWEST], board[_SLOWEST_INDEX] = verdict.cpu, index
        if index % 16 == 0 or index == job.stop - 1:
            board[_MEMORY] = peak_memory() - memory
        if verdict.kind == "unclean":
            found[verdict.signature] += 1
            if found[verdict.signature] == 1 and save is not None:
                write_input(files, folder)
                _keep(job.target, seed, index, verdict.why, Path(save), Path(root))
            send.send((verdict.signature, index, verdict.why, {}))
    send.send(("", -1, "", dict(guard.warnings)))
    send.close()


def summary(tally: Tally) -> dict:
    """For JSON."""
    figures = {name: value for name, value in vars(tally).items() if name not in ("findings", "warnings")}
    figures["seconds"] = round(tally.seconds, 1)
    findings = [{"what": s, "count": n, "first_input": i} for s, (n, i, _) in tally.findings.items()]
    return json.loads(json.dumps(figures | {"findings": findings, "warnings": dict(tally.warnings.most_common(8))}))
