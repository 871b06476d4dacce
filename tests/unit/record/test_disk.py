"""A file that fails during a run: no row is lost in silence, and the training goes on."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip.errors import GradclipWarning
from gradclip.record import RecordWriter, read_run
from gradclip.record import disk as module
from gradclip.record.file import RecordFile


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """Collect the warnings as texts."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
        texts += [str(one.message) for one in found]


def steps_of(path: Path) -> set[int]:
    """Return the steps of the whole lines of a file, whatever else the file holds."""
    found: set[int] = set()
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, KeyError):
            row = json.loads(line)
            if row["kind"] == "step":
                found.add(row["step"])
    return found


def steps_in(folder: Path) -> set[int]:
    """Return every step that some file of a folder has."""
    return set().union(*(steps_of(path) for path in folder.rglob("*") if path.is_file()))


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("something else\n")
    other.replace(path)


def rename(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.{time.monotonic_ns()}.old"))


def write_to(path: Path) -> None:
    with path.open("a") as file:
        file.write("a foreign line\n")


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name(f"moved{time.monotonic_ns()}"))


FAULTS = {f.__name__: f for f in (delete, truncate, cut, replace, rename, write_to, move_folder)}
KEEPS = {"delete", "replace", "rename", "move_folder"}
"""The faults after which the open file still has every row."""


@settings(max_examples=40, deadline=None)
@given(plan=st.lists(st.sampled_from(["step", "step", "flush", *FAULTS]), max_size=14))
def test_no_row_is_lost_in_silence(tmp_path_factory, plan: list[str]) -> None:
    folder = tmp_path_factory.mktemp("faults")
    lost: set[int] = set()
    made = faults = 0
    with told() as texts:
        record = RecordWriter(folder / "in" / "a.jsonl", every=2)
        for name in plan:
            if name == "step":
                made += 1
                record.step(step=made, norm=1.0)
            elif name == "flush":
                record.flush(sync=False)
            elif faults < module.MOST_FILES - 1:
                record.flush(sync=True)  # The fault before is noticed, so that faults are apart.
                if name not in KEEPS:
                    lost |= steps_of(record.path)
                FAULTS[name](record.path)
                faults += 1
        record.end()
    assert len(texts) == faults
    assert all("the record goes on in" in text for text in texts)
    kept = set(range(1, made + 1)) - lost
    assert kept <= steps_in(folder)
    last = read_run(record.path)
    assert last.end is not None
    assert (last.end.status, last.end.steps) == ("ok", made)
    assert record.outcome() == f"record in {record.path}"


@pytest.mark.parametrize("name", ["cut", "truncate"])
def test_a_cut_file_gets_a_second_part_with_its_optimizers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    record = RecordWriter(path, every=1)
    record.optimizer("SGD", [("w", (2,), "float32")])
    record.step(step=1, norms=[1.0])
    FAULTS[name](path)
    with pytest.warns(GradclipWarning, match=r"a\.jsonl was cut from .* goes on in .*a\.2\.jsonl"):
        record.step(step=2, norms=[2.0])
    record.end()
    run = read_run(tmp_path / "a.2.jsonl")
    assert run.steps.tolist() == [2]
    assert run.norms().names == ("w",)
    assert [event.name for event in run.events] == ["record-moved"]
    if name == "cut":
        whole = read_run(path)
        assert whole.parts == (path, tmp_path / "a.2.jsonl")
        assert [event.name for event in whole.events] == ["boundary", "record-moved"]
    else:
        assert path.stat().st_size == 0


def test_a_script_may_change_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = RecordWriter("a.jsonl", every=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    record.step(step=1)
    record.end()
    assert record.path == Path("a.jsonl")
    assert read_run(tmp_path / "a.jsonl").steps.tolist() == [1]


# ---- A full disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_from_the_start_leaves_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(GradclipWarning, match=r"/dev/full cannot be written \(No space") as warned:
        record = RecordWriter("/dev/full", every=1)
    record.step(step=1)
    record.end()
    assert len(warned) == 1
    assert record.path == tmp_path / "full"
    assert record.outcome() == f"record in {record.path}"
    assert read_run(record.path).steps.tolist() == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_without_a_place_the_record_stops_with_one_warning_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    with pytest.warns(GradclipWarning, match=r"/dev/full stops here \(No space left") as warned:
        record = RecordWriter("/dev/full", every=1)
    for step in range(1, 21):
        record.step(step=step)
    record.end()
    assert len(warned) == 1
    assert isinstance(record.error, OSError)
    assert record.lost == 22  # the header, the steps and the end
    assert record.outcome().startswith("the record stopped (No space left on device): 22 rows")


def limit_size(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]) -> None:
    """Make files full at a size, by their names, as a disk quota does."""
    real = RecordFile.write

    def write(self: RecordFile, text: bytes) -> None:
        room = sizes.get(self.place.path.name, 1 << 60) - self.size
        real(self, text[: max(room, 0)])
        if len(text) > room:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordFile, "write", write)


@pytest.mark.parametrize("size", [200, 1000, 1003, 1111, 2000])
def test_a_disk_that_fills_up_goes_on_with_the_first_row_that_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    limit_size(monkeypatch, {"a.jsonl": size})
    with told() as texts:
        record = RecordWriter(tmp_path / "a.jsonl", every=3, command=["train.py"], versions={})
        for step in range(1, 21):
            record.step(step=step, norm=1.0)
        record.end()
    assert len(texts) == 1
    assert record.path.name == "a.2.jsonl"
    run = read_run(tmp_path / "a.jsonl")
    assert run.steps.tolist() == list(range(1, 21))
    assert run.end is not None
    assert run.end.steps is not None
    assert run.end.steps >= 20


def test_when_there_is_space_again_the_record_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    monkeypatch.setattr(module, "RETRY", 0.0)
    sizes = {"a.jsonl": 700, "a.2.jsonl": 0}
    limit_size(monkeypatch, sizes)
    with told() as texts:
        record = RecordWriter(tmp_path / "a.jsonl", every=1, command=["train.py"], versions={})
        for step in range(1, 8):
            record.step(step=step)
        assert record.outcome().startswith("the record stopped (")
        sizes.clear()
        for step in range(8, 11):
            record.step(step=step)
        record.end()
    assert len(texts) == 2
    assert "stops here" in texts[0]
    assert f"{record.lost} rows lost" in texts[1]
    run = read_run(tmp_path / "a.jsonl")
    assert len(run.steps) == 10 - record.lost
    assert run.steps.tolist()[-3:] == [8, 9, 10]
    assert run.end is not None
    assert run.end.extra == {"lost": record.lost}
    assert record.outcome() == f"record in {record.path}, without {record.lost} dropped rows"


# ---- A file system that hangs: no such disk is at hand, so a write that waits stands for it


@contextlib.contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make each write wait until the event is set."""
    go = threading.Event()
    real = RecordFile.write

    def write(self: RecordFile, text: bytes) -> None:
        go.wait(30)
        real(self, text)

    monkeypatch.setattr(RecordFile, "write", write)
    try:
        yield go
    finally:
        go.set()


def test_a_disk_that_hangs_does_not_hold_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 20_000)
    record = RecordWriter(tmp_path / "a.jsonl", every=10)
    with hanging(monkeypatch) as go, told() as texts:
        start = time.monotonic()
        for step in range(1, 1001):
            record.step(step=step, norm=1.0)
        took = time.monotonic() - start
        lost = record.lost
        go.set()
        record.flush()
        record.end()
    assert took < 10 * module.PATIENCE
    assert [text.split(" of ")[0] for text in texts] == ["the file system"]
    assert 0 < lost == record.lost < 1000
    run = read_run(tmp_path / "a.jsonl")
    assert len(run.steps) == 1000 - lost
    assert [event.name for event in run.events] == ["rows-dropped"]
    assert f"{lost:,} rows dropped here" in run.events[0].text
    assert run.end is not None
    assert (run.end.steps, run.end.extra) == (1000, {"lost": lost})


def test_a_disk_that_hangs_does_not_hold_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Disk.close, "__defaults__", (0.2,))
    record = RecordWriter(tmp_path / "a.jsonl", every=10)
    with hanging(monkeypatch) as go:
        record.step(step=1)
        with pytest.warns(GradclipWarning, match="does not answer: its last rows are missing"):
            record.end()
        assert "without its last rows: the file system does not answer" in record.outcome()
        go.set()
        record._disk._thread.join(10)
    assert read_run(tmp_path / "a.jsonl").steps.tolist() == [1]


# ---- Writers that nobody ends


def test_a_writer_that_is_dropped_writes_its_last_batch(tmp_path: Path) -> None:
    record = RecordWriter(tmp_path / "a.jsonl", seconds=1e9)
    record.step(step=1)
    thread = record._disk._thread
    del record
    gc.collect()
    run = read_run(tmp_path / "a.jsonl")
    assert run.steps.tolist() == [1]
    assert run.end is not None
    assert run.end.status == "error: the recorder was dropped before its end"
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("last", "status"), [("", "ok"), ("1 / 0", "error: ZeroDivisionError: division by zero")]
)
def test_the_exit_of_the_program_ends_the_record(tmp_path: Path, last: str, status: str) -> None:
    code = f"""if True:
        import sys
        from gradclip.record import RecordWriter
        record = RecordWriter(sys.argv[1], seconds=1e9)
        record.step(step=1)
        {last}
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert done.returncode == (1 if last else 0)
    run = read_run(tmp_path / "a.jsonl")
    assert run.steps.tolist() == [1]
    assert run.end is not None
    assert run.end.status == status


def test_threads_share_a_writer(tmp_path: Path) -> None:
    record = RecordWriter(tmp_path / "a.jsonl", every=3)

    def work(optimizer: int) -> None:
        for step in range(1, 201):
            record.step(step=step, optimizer=optimizer)

    threads = [threading.Thread(target=work, args=(id,)) for id in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.end()
    run = read_run(tmp_path / "a.jsonl")
    for id in range(4):
        assert run.column("step", id).tolist() == list(range(1, 201))
    assert run.end is not None
    assert run.end.steps == 800
