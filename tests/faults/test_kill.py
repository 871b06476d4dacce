"""A process that is killed at any moment leaves a record that can be read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from gradclip.errors import RecordError
from gradclip.record import RecordWriter, read_run

from .programs import WRITE, start

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("seed", range(50))
def test_kill_9_loses_at_most_the_last_batch(tmp_path: Path, seed: int) -> None:
    """The moment is random: from before the header until after some hundred batches."""
    path = tmp_path / "a.jsonl"
    moment = random.Random(seed)
    with start(WRITE, path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if seed % 5:
            for _ in range(moment.randrange(1, 400)):
                child.stdout.readline()
        else:
            time.sleep(moment.uniform(0.0, 1.0))
        child.send_signal(signal.SIGKILL)
        done = max((int(line) for line in child.stdout if line.endswith("\n")), default=0)
    assert child.returncode == -signal.SIGKILL
    if not path.exists() or path.stat().st_size == 0:
        assert done == 0
        with pytest.raises(RecordError):
            read_run(path)
        return
    run = read_run(path)
    assert run.end is None
    assert len(run.steps) > done - 50
    np.testing.assert_array_equal(run.column("norm"), run.steps)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT"])
def test_a_signal_loses_at_most_the_last_batch(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    with start(WRITE, path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        for _ in range(100):
            child.stdout.readline()
        child.send_signal(getattr(signal, name))
        done = max((int(line) for line in child.stdout if line.endswith("\n")), default=0)
    run = read_run(path)
    assert len(run.steps) > done - 50
    if name == "SIGINT":  # Python turns this signal into an error, and the exit ends the record.
        assert run.end is not None
        assert run.end.status == "error: KeyboardInterrupt: "
        assert run.end.steps == len(run.steps)
    else:
        assert run.end is None


def test_a_process_that_stops_and_goes_on_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with start(WRITE, path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(50):
            child.stdout.readline()
        child.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        child.send_signal(signal.SIGCONT)
        for _ in range(50):
            child.stdout.readline()
        child.kill()
        child.stdout.read()
    steps = read_run(path).steps
    np.testing.assert_array_equal(steps, np.arange(1, len(steps) + 1))


def test_after_a_kill_the_next_attempt_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    counted = 0
    for attempt in range(3):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        with start(WRITE, path, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(20 * (attempt + 1)):
                child.stdout.readline()
            child.kill()
            child.stdout.read()
        # A kill may cut the last line off too.
        last = tmp_path / ("a.jsonl" if attempt == 0 else f"a.{attempt + 1}.jsonl")
        os.truncate(last, last.stat().st_size - 5)
        counted += len(read_run(last).steps)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    with RecordWriter(path) as record:
        record.step(step=1)
    run = read_run(path)
    assert record.path.name == "a.4.jsonl"
    assert run.steps.tolist() == list(range(1, counted + 2))
    assert [event.name for event in run.events] == ["boundary"] * 3
    assert run.end is not None
    assert run.end.steps == counted + 1
