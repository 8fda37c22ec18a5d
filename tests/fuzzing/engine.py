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
from dataclasses import dataclass, field, replace
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
    target: str, count: int, seed: int, on_step: Callable[[Tally], None] = lambda tally: None, save: Path | None = None
) -> Tally:
    """Fuzz one target with `count` inputs; the first input of each fault goes to the folder `save`."""
    tally = Tally()
    for start in range(0, count, _BATCH):
        run_jobs([Job(target, start, min(start + _BATCH, count))], seed, {target: tally}, on_step, save)
    return tally


def run_jobs(
    jobs: list[Job],
    seed: int,
    tallies: dict[str, Tally],
    on_step: Callable[[Tally], None] = lambda tally: None,
    save: Path | None = None,
) -> None:
    """Work through the jobs in one process, or as many as it takes when some die; the tallies are brought up to date."""
    while jobs:
        jobs = _run_process(jobs, seed, tallies, on_step, save)


def _run_process(jobs: list[Job], seed: int, tallies, on_step, save) -> list[Job]:
    """Work through jobs in one process; what is left of them when it died."""
    context = multiprocessing.get_context("spawn")
    boards = [context.Array("d", 8, lock=False) for _ in jobs]
    for job, board in zip(jobs, boards, strict=True):
        board[_INDEX] = job.start - 1
    receive, send = context.Pipe(duplex=False)
    before = [replace(tallies[job.target]) for job in jobs]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlff-fuzz-") as root:
        keep = None if save is None else str(Path(save).absolute())
        process = context.Process(target=_work, args=(jobs, seed, root, boards, send, keep), daemon=True)
        process.start()
        send.close()
        current, hang = 0, False
        try:
            while True:
                open_ended = _receive(receive, jobs, tallies)
                current = max(
                    (k for k, (job, board) in enumerate(zip(jobs, boards, strict=True)) if board[_INDEX] >= job.start),
                    default=0,
                )
                for job, board, old in zip(jobs[: current + 1], boards, before, strict=False):
                    _read_board(tallies[job.target], board, old)
                tallies[jobs[current].target].seconds = before[current].seconds + time.monotonic() - begin
                on_step(tallies[jobs[current].target])
                if not open_ended:
                    process.join(HANG)
                    break
                board = boards[current]
                hang = board[_INDEX] >= jobs[current].start and time.monotonic() - board[_SINCE] > HANG
                if hang:
                    break
        finally:
            if process.is_alive():
                process.kill()
            process.join()
        if process.exitcode == 0:
            return []
        job, index = jobs[current], int(boards[current][_INDEX])
        said = Path(root) / "stderr.txt"
        text = said.read_text(encoding="utf-8", errors="replace")[-2000:] if said.exists() else ""
        if process.exitcode == 1 or index < job.start:  # an exception beside the reading
            raise RuntimeError(f"{job.target}: the fuzzing itself failed after input {index}: {text}")
        what = f"no end after {HANG:.0f} s" if hang else f"the process died ({process.exitcode})"
        tally = tallies[job.target]
        tally.unclean += 1
        tally.count += 1
        tally.find(what, index, f"{what} {text}")
        if save is not None:
            _keep(job.target, seed, index, what, Path(save), Path(root))
        on_step(tally)
        rest = [replace(job, start=index + 1)] if index + 1 < job.stop else []
        return [*rest, *jobs[current + 1 :]]


def _receive(pipe, jobs: list[Job], tallies) -> bool:
    """Take findings from the process for a while; False once it has closed its end."""
    until = time.monotonic() + 0.3
    try:
        while pipe.poll(max(0.0, until - time.monotonic())):
            target, signature, index, why, warnings = pipe.recv()
            if signature:
                tallies[target].find(signature, index, why)
            tallies[target].warnings.update(warnings)
    except (EOFError, OSError):
        return False
    return True


def _read_board(tally: Tally, board, before: Tally) -> None:
    tally.accepted = before.accepted + int(board[_ACCEPTED])
    tally.refused = before.refused + int(board[_REFUSED])
    tally.unclean = before.unclean + int(board[_UNCLEAN])
    tally.count = before.count + int(board[_ACCEPTED] + board[_REFUSED] + board[_UNCLEAN])
    if board[_SLOWEST] > tally.slowest_cpu_s:
        tally.slowest_cpu_s, tally.slowest_input = round(board[_SLOWEST], 4), int(board[_SLOWEST_INDEX])
    tally.peak_memory_mb = max(tally.peak_memory_mb, round(board[_MEMORY], 1))


def _keep(target: str, seed: int, index: int, why: str, save: Path, root: Path) -> None:
    """The files that a dead process was reading lie in its folder still."""
    folder = save / target.replace(" ", "_") / str(index)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "input", folder / "input")
    (folder / "why.txt").write_text(f"seed {seed}, input {index}\n{why}\n", encoding="utf-8")


def _work(jobs: list[Job], seed: int, root: str, boards, send, save: str | None) -> None:
    os.environ["XDG_CACHE_HOME"] = f"{root}/input"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from tests.fuzzing.guard import Guard, peak_memory
    from tests.fuzzing.targets import TARGETS

    folder = Path(root) / "input"
    folder.mkdir()
    guard = Guard(folder)
    seeds = {}
    for job in jobs:
        target = TARGETS[job.target]
        seeds[job.target] = target.prepare(folder)
        for warm in range(-30, 0):  # late imports, caches
            write_input(make_input(job.target, seed, warm, seeds[job.target]), folder)
            guard.judge(lambda target=target: target.read(folder), target.names)
    guard.arm()
    for job, board in zip(jobs, boards, strict=True):
        target, memory, found = TARGETS[job.target], peak_memory(), set()
        guard.warnings.clear()
        for index in range(job.start, job.stop):
            files = make_input(job.target, seed, index, seeds[job.target])
            write_input(files, folder)
            board[_SINCE] = time.monotonic()
            board[_INDEX] = index
            verdict = guard.judge(lambda target=target: target.read(folder), target.names)
            board[{"accepted": _ACCEPTED, "refused": _REFUSED, "unclean": _UNCLEAN}[verdict.kind]] += 1
            if verdict.cpu > board[_SLOWEST]:
                board[_SLOWEST], board[_SLOWEST_INDEX] = verdict.cpu, index
            if index % 16 == 0 or index == job.stop - 1:
                board[_MEMORY] = peak_memory() - memory
            if verdict.kind == "unclean":
                if verdict.signature not in found and save is not None:
                    write_input(files, folder)
                    _keep(job.target, seed, index, verdict.why, Path(save), Path(root))
                found.add(verdict.signature)
                send.send((job.target, verdict.signature, index, verdict.why, {}))
        send.send((job.target, "", -1, "", dict(guard.warnings)))
    send.close()


def summary(tally: Tally) -> dict:
    """For JSON."""
    figures = {name: value for name, value in vars(tally).items() if name not in ("findings", "warnings")}
    figures["seconds"] = round(tally.seconds, 1)
    findings = [{"what": s, "count": n, "first_input": i} for s, (n, i, _) in tally.findings.items()]
    return json.loads(json.dumps(figures | {"findings": findings, "warnings": dict(tally.warnings.most_common(8))}))
