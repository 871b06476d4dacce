"""Over many steps neither the memory of the writer nor its threads and files grow."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from pathlib import Path

import pytest

from gradclip.record import RecordWriter, read_run

pytestmark = pytest.mark.faults


def test_memory_is_flat_over_200_000_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    used = []
    with RecordWriter(path) as record:
        tracemalloc.start()
        try:
            for step in range(1, 200_001):
                record.step(step=step, norm=1.0, norms=[1.0] * 5)
                if step % 20_000 == 0:
                    used.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert max(used) < 300_000
    assert used[-1] < used[0] + 100_000
    assert len(read_run(path).steps) == 200_000


def test_many_writers_leave_no_threads_and_no_files(tmp_path: Path) -> None:
    threads, files = threading.active_count(), len([*Path("/proc/self/fd").iterdir()])
    for number in range(200):
        record = RecordWriter(tmp_path / f"{number}.jsonl")
        record.step(step=1)
        if number % 2:
            record.end()
        del record
    gc.collect()
    assert threading.active_count() <= threads
    assert len([*Path("/proc/self/fd").iterdir()]) <= files
    assert all(read_run(path).end is not None for path in tmp_path.iterdir())
