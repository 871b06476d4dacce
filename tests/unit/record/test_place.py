"""The file of a new record: what exists stays as it is, unless the user says otherwise."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip.errors import GradclipWarning, PolicyError, RecordError
from gradclip.record import RecordWriter, read_run
from gradclip.record.place import IfExists


def write(path: Path, steps: int = 1, *, first: int = 1, **options) -> RecordWriter:
    with RecordWriter(path, every=1, **options) as record:
        record.optimizer("SGD", [("w", (2,), "float32")])
        for step in range(first, first + steps):
            record.step(step=step, norm=float(step), norms=[float(step)], clipped=step == 1)
    return record


def write_beside(path: Path, steps: int = 1, **options) -> RecordWriter:
    with pytest.warns(GradclipWarning, match="exists and stays as it is: this record is"):
        return write(path, steps, **options)


def test_each_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, 3)
    assert [write_beside(path, steps).path.name for steps in (4, 5)] == ["a.2.jsonl", "a.3.jsonl"]
    assert [len(read_run(p).steps) for p in sorted(tmp_path.iterdir())] == [4, 5, 3]
    assert read_run(path).parts == (path,)


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    assert write(path).path == path
    assert len(read_run(path).steps) == 1


def test_overwrite_erases_the_record_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, 3)
    write_beside(path, 4)
    assert write(path, 1, if_exists="overwrite").path == path
    assert len(read_run(path).steps) == 1
    assert len(read_run(tmp_path / "a.2.jsonl").steps) == 4


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_append_goes_on_in_the_file_also_after_a_line_that_was_cut_off(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "a.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes()[: -cut or None])
    before = path.read_bytes()
    for _ in range(2):
        assert write(path, 2, if_exists="append").path == path
    run = read_run(path)
    assert path.read_bytes().startswith(before)
    assert run.steps.tolist() == list(range(1, 8))
    assert [event.name for event in run.events] == ["boundary", "boundary"]
    assert run.end is not None
    assert (run.end.steps, run.end.clipped) == (7, 3)
    assert not run.torn


def test_damage_before_an_appended_part_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, 3)
    write(path, 2, if_exists="append")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b"here\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RecordError, match="line 4 is damaged"):
        read_run(path)
    lines[3], lines[8] = lines[2], b"here\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RecordError, match="line 9 is damaged"):
        read_run(path)


@pytest.mark.parametrize("if_exists", ["part", "overwrite", "append"])
def test_a_record_that_is_being_written_is_left_alone(tmp_path: Path, if_exists: IfExists) -> None:
    path = tmp_path / "a.jsonl"
    first = RecordWriter(path, every=1)
    first.step(step=1)
    with pytest.warns(GradclipWarning, match=r"is writing a\.jsonl: this record is a\.2\.jsonl"):
        second = RecordWriter(path, if_exists=if_exists, every=1)
    for step in (2, 3):
        first.step(step=step)
    second.step(step=1)
    first.end()
    second.end()
    assert read_run(path).steps.tolist() == [1, 2, 3]
    assert read_run(tmp_path / "a.2.jsonl").steps.tolist() == [1]


FOREIGN = {
    "a script": b"print('hello')\n",
    "JSON": b'{"a": 1}\n',
    "Parquet": b"PAR1PAR1",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("if_exists", ["part", "overwrite", "append"])
def test_a_file_that_is_not_a_record_is_refused(
    tmp_path: Path, content: str, if_exists: IfExists
) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(FOREIGN[content])
    with pytest.raises(RecordError, match=r"train\.py is not a gradclip record, .*another path"):
        RecordWriter(path, if_exists=if_exists)
    assert path.read_bytes() == FOREIGN[content]
    assert [*tmp_path.iterdir()] == [path]


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        for name, why in {
            "": "Is a directory",
            "pipe": "Is a pipe",
            "s": "Is a socket",
            "loop": "Too many levels",
        }.items():
            with pytest.raises(RecordError, match=rf"cannot be written \({why}.*: give a path"):
                RecordWriter(tmp_path / name)


def test_a_wrong_choice_is_refused_before_a_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="if_exists='replace' is not usable: choose one of 'part"):
        RecordWriter(tmp_path / "a", if_exists="replace")  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="'kind' is a key of the schema"):
        RecordWriter(tmp_path / "a", kind=1)
    assert not [*tmp_path.iterdir()]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "a.jsonl"
    link.symlink_to(tmp_path / "store" / "b.jsonl")
    write(link, 2)
    assert write_beside(link, 3).path == (tmp_path / "store" / "b.2.jsonl").resolve()
    assert link.is_symlink()
    assert len(read_run(link).steps) == 2


# ---- The parts of one run


def attempt(monkeypatch: pytest.MonkeyPatch, restarts: int, requeues: int | None = None) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    if requeues is not None:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(requeues))


@settings(max_examples=25, deadline=None)
@given(launches=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=4))
def test_the_attempts_of_each_launch_are_one_run(tmp_path_factory, launches) -> None:
    folder = tmp_path_factory.mktemp("launches")
    path = folder / "a.jsonl"
    starts: list[Path] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for steps in launches:
            for number, count in enumerate(steps):
                attempt(monkeypatch, number)
                first = number == 0
                writer = write_beside if first and starts else write
                record = writer(path, count)
                if first:
                    starts.append(record.path)
    for start, steps in zip(starts, launches, strict=True):
        run = read_run(start)
        assert run.steps.tolist() == list(range(1, sum(steps) + 1))
        assert len(run.parts) == len(steps)
        assert [event.name for event in run.events] == ["boundary"] * (len(steps) - 1)
        assert len(run.norms().steps) == sum(steps)
        assert run.end is not None
        assert (run.end.steps, run.end.clipped) == (sum(steps), len(steps))
        assert run.optimizers[0].class_name == "SGD"
    assert len([*folder.iterdir()]) == sum(map(len, launches))


def test_a_requeue_is_one_run_too_and_its_torchrun_counts_from_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    for restarts, requeues in ((0, 0), (1, 0), (0, 1)):
        attempt(monkeypatch, restarts, requeues)
        write(path, 2)
    assert read_run(path).steps.tolist() == [1, 2, 3, 4, 5, 6]


def test_steps_that_go_on_from_a_checkpoint_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    attempt(monkeypatch, 0)
    write(path, 3)
    attempt(monkeypatch, 1)
    write(path, 2, first=3)
    assert read_run(path).steps.tolist() == [1, 2, 3, 3, 4]


def test_an_erased_record_does_not_get_the_parts_of_the_old_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    attempt(monkeypatch, 0)
    write(path, 3)
    attempt(monkeypatch, 1)
    write(path, 2)
    write(path, 1, if_exists="overwrite")
    assert read_run(path).steps.tolist() == [1]
    assert read_run(tmp_path / "a.2.jsonl").steps.tolist() == [1, 2]


def test_append_goes_to_the_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    attempt(monkeypatch, 0)
    write(path, 3)
    attempt(monkeypatch, 1)
    write(path, 2)
    assert write(path, 1, if_exists="append").path.name == "a.2.jsonl"
    assert read_run(path).steps.tolist() == [1, 2, 3, 4, 5, 6]
