"""A real training for minutes, with a record, a sink and `gradclip watch` beside it: nothing grows.

`GRADCLIP_SOAK` is the number of seconds; 600 shows what 30 cannot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradclip.record import read_run

from .programs import start

pytestmark = pytest.mark.faults

SECONDS = float(os.environ.get("GRADCLIP_SOAK", "30"))
GROWTH = 16_000
"""Kilobytes by which a process may grow after the first third, for what Python keeps."""

TRAIN = """if True:
    import json, os, sys, time
    import torch
    from gradclip.torch import attach, record
    path, seconds = sys.argv[1], float(sys.argv[2])
    watcher = int(sys.argv[3])
    class Sink:
        steps = 0
        def log(self, values, step=None):
            self.steps += 1
    def status(process):
        rows = dict(line.split(":", 1) for line in open(f"/proc/{process}/status") if ":" in line)
        fds = len(os.listdir(f"/proc/{process}/fd"))
        return int(rows["VmRSS"].split()[0]), fds, int(rows["Threads"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    clipper = attach(optimizer, "zclip", model=model)
    sink, samples, step = Sink(), [], 0
    begun = sampled = time.monotonic()
    with record(clipper, path, optimizer=optimizer, sinks=[sink], loss=lambda: loss) as recorder:
        while time.monotonic() - begun < seconds:
            step += 1
            batch = torch.randn(16, 8)
            optimizer.zero_grad()
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            if step % 997 == 0: loss = loss * float("nan")
            elif step % 101 == 0: loss = loss * 1000
            loss.backward()
            optimizer.step()
            if time.monotonic() - sampled > seconds / 30:
                sampled = time.monotonic()
                samples.append([status(os.getpid()), status(watcher)])
    print(json.dumps({"steps": step, "sunk": sink.steps, "skipped": recorder.skipped,
                      "samples": samples}))
"""


def test_a_long_training_with_a_record_a_sink_and_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    watch = [sys.executable, "-m", "gradclip", "watch", str(path), "--every", "0.5"]
    with (
        (tmp_path / "watched").open("wb") as out,
        subprocess.Popen(watch, stdout=out, stderr=out, cwd=tmp_path) as watcher,
    ):
        try:
            with start(TRAIN, path, SECONDS, watcher.pid, stdout=subprocess.PIPE) as child:
                said, _ = child.communicate(timeout=SECONDS + 120)
            assert child.returncode == 0
            assert watcher.wait(60) == 0, (tmp_path / "watched").read_text()[-2000:]
        finally:
            watcher.kill()
    found = json.loads(said)
    run = read_run(path)
    assert run.steps.tolist() == list(range(1, found["steps"] + 1))
    assert run.end is not None
    assert run.end.status == "ok"
    assert found["sunk"] == found["steps"]
    assert int(run.column("skipped").sum()) == found["skipped"] == found["steps"] // 997
    assert f"{path}: ended" in (tmp_path / "watched").read_text()
    later = found["samples"][len(found["samples"]) // 3 :]
    assert len(later) > 10
    for process in range(2):
        memory, files, threads = zip(*(each[process] for each in later), strict=True)
        assert memory[-1] - memory[0] < GROWTH, memory
        assert max(files) <= files[0], files
        assert max(threads) <= threads[0], threads
