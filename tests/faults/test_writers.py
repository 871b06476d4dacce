"""Several writers of one path: each row is in the file of its own run, and nobody waits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gradclip.record import read_run

from .programs import start

pytestmark = pytest.mark.faults

TOGETHER = """if True:
    import sys, warnings
    from gradclip.record import RecordWriter
    path, mark, if_exists = sys.argv[1:]
    sys.stdin.readline()  # All begin at once.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        record = RecordWriter(path, if_exists=if_exists, every=3, policy=mark)
        for step in range(1, 301):
            record.step(step=step, mark=int(mark))
        record.end()
    print(record.path, *(str(one.message).replace(" ", "_") for one in told))
"""


@pytest.mark.parametrize("if_exists", ["part", "overwrite", "append"])
def test_processes_that_begin_at_once_have_a_file_each(tmp_path: Path, if_exists: str) -> None:
    path = tmp_path / "a.jsonl"
    count = 6
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = [start(TOGETHER, path, mark, if_exists, **options) for mark in range(count)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=120)[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    if if_exists == "part":
        assert len({words[0] for words in said}) == count
    for mark, (name, *told) in enumerate(said):
        if if_exists != "overwrite":  # What has ended may be erased when the user asks for it.
            rows = [run for run in _marks(Path(name)) if run == mark]
            assert len(rows) == 300
        assert len(told) == (Path(name) != path)
        assert all("this_record_is" in text for text in told)


def _marks(path: Path) -> list[float]:
    return read_run(path).column("mark").tolist()


FORK = """if True:
    import os, sys, time
    from gradclip.record import RecordWriter
    record = RecordWriter(sys.argv[1], every=1)
    for step in range(1, 51):
        record.step(step=step)
        if step % 10 == 0 and os.fork() == 0:
            record.step(step=1000)
            record.event("child", "a child writes nothing")
            record.flush()
            record.end("error: a child")
            time.sleep(1.0)  # The child has the file open after its parent has ended.
            os._exit(0)
    record.end()
    with RecordWriter(sys.argv[1], if_exists="append") as more:
        more.step(step=1)
    print(more.path)
    while True:
        try: os.wait()
        except ChildProcessError: break
"""


def test_forks_write_nothing_and_hold_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with start(FORK, path, stdout=subprocess.PIPE) as child:
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert out.strip() == str(path)
    run = read_run(path)
    assert run.steps.tolist() == list(range(1, 52))
    assert [event.name for event in run.events] == ["boundary"]


READ = """if True:
    import sys
    from gradclip.record import read_run
    from gradclip.record.follow import Follower
    follower = Follower(sys.argv[1])
    seen = 0
    while True:
        news = follower.read_added()
        if news.run is None: continue
        seen += len(news.run.steps)
        assert seen <= len(read_run(sys.argv[1]).steps)
        if news.run.end: break
    print(seen)
"""


def test_a_reader_beside_the_writer_sees_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writer = start(TOGETHER, path, 0, "part", **options)
    reader = start(READ, path, stdout=subprocess.PIPE)
    assert writer.communicate("go\n", timeout=60)[0].split() == [str(path)]
    assert reader.communicate(timeout=60)[0].split() == ["300"]
