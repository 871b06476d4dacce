"""Threads, recorders, readers and forks at one record at the same time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from gradclip.record import RecordWriter, read_run
from gradclip.torch import Clipper, record

from .programs import start
from .test_readers import run

pytestmark = pytest.mark.faults


def test_threads_that_write_to_one_record(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No row is lost, torn or mixed with another."""
    interval = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(interval))
    sys.setswitchinterval(1e-6)  # The threads take turns as often as they can.
    count, steps = 8, 2000
    path = tmp_path / "a.jsonl"
    ready = threading.Barrier(count)
    with RecordWriter(path, every=7) as writer:

        def write(mark: int) -> None:
            ready.wait()
            for step in range(1, steps + 1):
                writer.step(step=step, optimizer=mark, norm=float(step), norms=[mark] * 3)
                if step % 500 == 0:
                    writer.event("mark", str(mark), step=step)
                    writer.flush()

        threads = [threading.Thread(target=write, args=(mark,)) for mark in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    found = read_run(path)
    marks = found.column("optimizer")
    for mark in range(count):
        np.testing.assert_array_equal(found.steps[marks == mark], np.arange(1, steps + 1))
    assert len(found.events) == count * steps // 500
    assert found.end is not None
    assert not found.torn


def test_two_recorders_of_one_path_in_one_process(tmp_path: Path) -> None:
    """Each has a file of its own, with all of its steps."""
    path = tmp_path / "a.jsonl"
    clippers, recorders = [], []
    for mark in range(2):
        weight = torch.nn.Parameter(torch.ones(2))
        clippers.append(Clipper([(f"w{mark}", weight)], "norm:1.0"))
        if mark:
            with pytest.warns(UserWarning, match="this record is"):
                recorders.append(record(clippers[-1], path, every=5))
        else:
            recorders.append(record(clippers[-1], path, every=5))

    def train(clipper: Clipper) -> None:
        for step in range(100):
            clipper.params[0].grad = torch.full((2,), float(step))
            clipper.clip_()

    threads = [threading.Thread(target=train, args=(clipper,)) for clipper in clippers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for recorder in recorders:
        recorder.close()
    assert [each.path for each in recorders] == [path, tmp_path / "a.2.jsonl"]
    for mark, each in enumerate(recorders):
        found = read_run(each.path)
        assert found.steps.tolist() == list(range(1, 101))
        assert [p.name for p in found.optimizers[0].parameters] == [f"w{mark}"]


SLOWLY = """if True:
    import sys, time
    from gradclip.record import RecordWriter
    with RecordWriter(sys.argv[1], every=3) as record:
        record.optimizer("SGD", [("a", (2,), "float32"), ("b", (2,), "float32")])
        print("begun", flush=True)
        for step in range(1, int(sys.argv[2]) + 1):
            record.step(step=step, norm=1.0, loss=1.0, norms=[1.0, 2.0])
            time.sleep(0.001)
"""


def test_every_command_reads_while_a_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.jsonl"
    commands = ("diagnose", "watch --once", "advise", "report -o page.html",
                "export -o figure.svg --panel norm", "report --json -o page.html")  # fmt: skip
    with start(SLOWLY, path, 100_000, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            while not path.exists() or b'"step":3' not in path.read_bytes():
                assert child.poll() is None
            codes = [run(command, path) for command in commands]
            assert child.poll() is None, "the writer ended before the readers"
        finally:
            child.kill()
    assert codes == [0] * len(codes)


AGAIN = """if True:
    import sys, warnings
    from gradclip.record import RecordWriter
    path, mark = sys.argv[1:]
    warnings.simplefilter("ignore")
    for attempt in range(20):
        with RecordWriter(path, if_exists="append", every=3, policy=mark) as record:
            for step in range(1, 11):
                record.step(step=step, mark=int(mark), attempt=attempt)
"""


def test_two_processes_that_append_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    children = [start(AGAIN, path, mark) for mark in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    for mark in range(2):
        rows = 0
        for each in tmp_path.glob("*.jsonl"):
            found = read_run(each)
            assert not found.torn
            rows += int((found.column("mark") == mark).sum())
        assert rows == 200


FORK_AMID = """if True:
    import os, sys, threading, time
    from gradclip.record import RecordWriter
    record = RecordWriter(sys.argv[1], every=1)
    done = threading.Event()
    def write():
        for step in range(1, 3001):
            record.step(step=step, norms=[1.0] * 50)
        done.set()
    thread = threading.Thread(target=write)
    thread.start()
    children = []
    while not done.is_set():
        child = os.fork()
        if child == 0:  # The other thread held the record's lock, or did not.
            record.step(step=100_000)
            record.flush()
            record.end("error: a child")
            os._exit(0)
        children.append(child)
        time.sleep(0.01)
    thread.join()
    record.end()
    end = time.monotonic() + 30
    left = list(children)
    while left and time.monotonic() < end:
        left = [child for child in left if os.waitpid(child, os.WNOHANG) == (0, 0)]
        time.sleep(0.01)
    for child in left: os.kill(child, 9)
    print(len(children), len(left))
"""


def test_forks_during_a_write_neither_hang_nor_write(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with start(FORK_AMID, path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        out, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    forked, hung = map(int, out.split())
    assert forked > 3
    assert hung == 0
    found = read_run(path)
    assert found.steps.tolist() == list(range(1, 3001))
    assert found.end is not None
    assert found.end.status == "ok"
