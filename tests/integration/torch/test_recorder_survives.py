"""A real training that is recorded: killed, on a full disk, or very long."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradclip import read_run

EVERY = 20

TRAIN = """
import sys, warnings
import torch
from gradclip.torch import attach, record

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
clipper = attach(optimizer, "norm:0.5", model=model)

def step():
    optimizer.zero_grad()
    loss = model(torch.randn(4, 8)).square().mean()
    loss.backward()
    optimizer.step()
    return loss

def weights():
    return [round(float(p.detach().sum()), 12) for p in model.parameters()]
"""


def start(
    code: str, *arguments: object, prefix: tuple[str, ...] = (), **environ: str
) -> subprocess.Popen[str]:
    """Start a real Python process that trains."""
    command = [*prefix, sys.executable, "-c", TRAIN + code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environ
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(child: subprocess.Popen[str]) -> list[str]:
    """Return what it printed, once it has ended well."""
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert not err
    return out.splitlines()


# ---- Killed


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX's")
def test_kill_9_loses_at_most_the_steps_held_back(tmp_path: Path) -> None:
    """Steps, and an event among them so that the writer's own batches end elsewhere."""
    path = tmp_path / "run.jsonl"
    code = f"""
recorder = record(clipper, sys.argv[1], optimizer=optimizer, every={EVERY})
recorder.event("note", "text")
while True:
    loss = step()
    print(clipper.steps, float(clipper.last.total_norm), flush=True)
"""
    printed: list[str] = []
    with start(code, path) as child:
        assert child.stdout is not None
        while len(printed) < 333:
            printed.append(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        printed += [line for line in child.stdout if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    steps, norms = np.array([line.split() for line in printed], float).T
    run = read_run(path)
    assert run.end is None
    assert len(run.steps) > steps[-1] - EVERY
    kept = min(len(run.steps), len(steps))
    np.testing.assert_array_equal(run.steps[:kept], steps[:kept])
    np.testing.assert_array_equal(run.column("norm")[:kept], norms[:kept])


# ---- A full disk

GOES_ON = """
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with record(clipper, sys.argv[1], every=10) as recorder:
        for _ in range(400):
            step()
print(clipper.steps, recorder.steps, *weights())
print(*(f"{w.category.__name__}: {w.message}" for w in told), sep="\\n")
"""
PLAIN = "for _ in range(400): step()\nprint(clipper.steps, clipper.steps, *weights())"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_record_goes_on_elsewhere_where_no_byte_can_be_written(tmp_path: Path) -> None:
    trained, *warned = finish(start(GOES_ON, "/dev/full", TMPDIR=str(tmp_path)))
    assert [trained] == finish(start(PLAIN))
    (warning,) = warned
    assert warning == (
        "GradclipWarning: /dev/full cannot be written (No space left on device): the record goes "
        f"on in {tmp_path}/full, which has the rows from here on"
    )
    assert read_run(tmp_path / "full").steps.tolist() == list(range(1, 401))


def test_the_record_goes_on_elsewhere_when_a_file_system_fills_up(tmp_path: Path) -> None:
    """A file system of 64 KiB, in a mount namespace of the child's own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {folder}"
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if (
        not shutil.which("unshare")
        or subprocess.run([*prefix, mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system lets nobody mount a small file system")
    look = """
from gradclip import read_run
print(*read_run(sys.argv[1]).steps.tolist())
"""
    path = folder / "run.jsonl"
    in_it = (*prefix, f'{mount} && exec "$@"', "sh")
    child = start(GOES_ON + look, path, prefix=in_it, TMPDIR=str(tmp_path))
    trained, warning, first = finish(child)
    assert trained.split()[:2] == ["400", "400"]
    assert warning.startswith(f"GradclipWarning: {path} cannot be written (No space left")
    assert f"the record goes on in {tmp_path}/run.jsonl" in warning
    kept = [*map(int, first.split()), *read_run(tmp_path / "run.jsonl").steps.tolist()]
    assert 50 < len(first.split()) < 400
    assert kept == list(range(1, 401))


# ---- Long


def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    """What Python has allocated, and what the process has resident, between two long stretches."""
    pytest.importorskip("resource")
    code = """
import resource, tracemalloc

class Sink:
    count = 0
    def log(self, values, step): self.count += 1

sink = Sink()
with record(clipper, sys.argv[1], optimizer=optimizer, every=50, sinks=[sink]):
    def stretch(steps):
        for _ in range(steps):
            step()
    stretch(500)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stretch(2000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
    tracemalloc.start()
    stretch(100)
    before = tracemalloc.get_traced_memory()[0]
    stretch(400)
    print(tracemalloc.get_traced_memory()[0] - before)
print(sink.count)
"""
    path = tmp_path / "run.jsonl"
    resident, traced, sunk = map(int, finish(start(code, path)))
    assert sunk == len(read_run(path).steps) == 3000
    assert path.stat().st_size > 900_000
    unit = 1 if sys.platform == "darwin" else 1024
    assert resident * unit < 1_000_000
    assert traced < 50_000
