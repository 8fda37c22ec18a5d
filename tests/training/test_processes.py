"""A training of two processes in which one is killed, interrupted or fails: all end, with a line, and the run goes on."""

import signal
import time

import pytest

from tests.test_stopping import folder  # noqa: F401

from .test_devices import metrics, start, start_two

pytestmark = pytest.mark.slow

CONFIG = """
data: {train: data.xyz, lint: 'off', reference_energies: none}
model: {architecture: schnet, cutoff: 4.0, channels: 8, layers: 1, radial_basis: 4}
training: {epochs: 100000, batch_size: 4}
"""


def command(folder, devices, *more):  # noqa: F811
    files = [str(folder / "config.yaml"), "--out", str(folder / "run"), "--quiet", "--set", f"training.devices={devices}"]
    return ["-c", "from mlff.cli import main; main()", "train", *files, *more]


def wait_for(processes, run, epochs, checkpoint=False):
    """Until so many epochs are done, and a checkpoint is whole."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        done = len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0
        if done >= epochs and (not checkpoint or any(p.name.isdigit() for p in (run / "checkpoints").iterdir())):
            return
        time.sleep(0.1)
    raise AssertionError("too slow")


def said(process):
    """What a process said on stderr, without what the collectives of the CPU say of every start."""
    printed, text = process.communicate(timeout=120)
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


def goes_on(folder, devices):  # noqa: F811
    """The run resumes on so many devices of one process, and is stopped again."""
    run = folder / "run"
    before = len(metrics(run))
    process = start(command(folder, devices), JAX_NUM_CPU_DEVICES=devices)
    wait_for([process], run, before + 3)
    process.send_signal(signal.SIGINT)
    assert said(process) == ["error: interrupted"] and process.returncode == 130
    epochs = [line["epoch"] for line in metrics(run)]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_process_ends_the_others(folder, victim):  # noqa: F811
    (folder / "config.yaml").write_text(CONFIG)
    pair = start_two(command(folder, 2))
    wait_for(pair, folder / "run", 3, checkpoint=True)
    pair[victim].kill()
    begin = time.monotonic()
    lines = said(pair[1 - victim])
    assert time.monotonic() - begin < 60 and pair[1 - victim].returncode > 0 or victim == 0
    if victim:
        again = "is gone; the same command goes on from the last checkpoint, also on fewer devices"
        either = [
            f"error: {who} {again}" for who in ("another process of this training", "process 1 of 2")
        ]  # whoever sees it first
        assert pair[0].returncode == 1 and len(lines) == 1 and lines[0] in either, lines
    else:  # JAX itself ends those that lose the first process
        assert pair[1].returncode != 0 and any("gone" in line or "another task died" in line for line in lines), lines
    pair[victim].communicate()
    goes_on(folder, 1)


@pytest.mark.parametrize(
    ("asked", "number", "code", "line"), [(1, signal.SIGINT, 130, "interrupted"), (0, signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_to_one_process_ends_all_in_order(folder, asked, number, code, line):  # noqa: F811
    (folder / "config.yaml").write_text(CONFIG)
    pair = start_two(command(folder, 2))
    wait_for(pair, folder / "run", 3)
    pair[asked].send_signal(number)
    for process in pair:
        assert said(process) == [f"error: {line}"] and process.returncode == code
    assert any(path.name.isdigit() for path in (folder / "run" / "checkpoints").iterdir())
    if asked:
        goes_on(folder, 4)


def test_what_only_one_process_finds_wrong_ends_all(folder):  # noqa: F811
    """The first one finds that another training is at work in the directory."""
    (folder / "config.yaml").write_text(CONFIG)
    alone = start(command(folder, 1))
    wait_for([alone], folder / "run", 1)
    pair = start_two(command(folder, 2))
    first, second = said(pair[0]), said(pair[1])
    assert [process.returncode for process in pair] == [1, 1]
    (line,) = first
    assert "another process trains there" in line
    (other,) = second
    assert other.startswith("error: process 0 of 2 has stopped: ") and "another process trains there" in other
    alone.send_signal(signal.SIGINT)
    assert said(alone) == ["error: interrupted"]


def test_a_process_that_waits_in_vain_is_ended(tmp_path):
    """One that was killed while the others wait for it where no sum over devices tells them so."""
    code = "from mlff.training import processes as p; import time; p.HEARTBEAT = 10\nwith p.processes(2) as g:\n {}"
    waiting, gone = start_two(
        ["-c", code.format("g.wait(); print('met', flush=True); time.sleep(3 if g.index else 0); g.wait()")]
    )
    gone.stdout.readline()
    gone.kill()
    begin = time.monotonic()
    (line,) = said(waiting)
    assert waiting.returncode == 1 and time.monotonic() - begin < 60
    assert line.startswith("error: process 1 of 2 is gone; ")
    gone.communicate()


def test_the_whole_command(folder):  # noqa: F811
    """Two processes train, evaluate, save and report; the first one alone prints where the model is."""
    (folder / "config.yaml").write_text(CONFIG.replace("100000", "3"))
    pair = start_two(command(folder, 2, "--no-certify"))
    printed = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed
    lines = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in printed]
    assert lines == [[str(folder / "run" / "model.safetensors")], []]
    assert {"model.safetensors", "report.html", "parity.json", "run.json", "config.yaml"} <= {
        path.name for path in (folder / "run").iterdir()
    }
    process = start(command(folder, 1))
    process.communicate(timeout=120)
    assert process.returncode == 0 and len(metrics(folder / "run")) == 3
