"""The files of pages and figures: which records are read, and which files are replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradclip.errors import GradclipError
from gradclip.record import RecordWriter
from gradclip.show.files import read_runs, replace_file

PAGE = b"<!doctype html>\n<p>new</p>\n"


def write_record(path: Path) -> bytes:
    RecordWriter(path).end()
    return path.read_bytes()


@pytest.mark.parametrize("old", [b"", b"old", b"<!DOCTYPE html>old"])
def test_an_old_page_is_replaced(tmp_path: Path, old: bytes) -> None:
    out = tmp_path / "page.html"
    out.write_bytes(old)
    replace_file(out, PAGE, ".html")
    assert out.read_bytes() == PAGE


def test_a_page_with_another_suffix_is_replaced_too(tmp_path: Path) -> None:
    out = tmp_path / "page"
    for _ in range(2):
        replace_file(out, PAGE, ".html")
    assert out.read_bytes() == PAGE


@pytest.mark.parametrize("name", ["a.jsonl", "a.html", "train.py", "r.parquet", "notes"])
def test_a_record_a_script_and_another_file_stay(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    contents = {"train.py": b"import torch\n", "r.parquet": b"PAR1...PAR1", "notes": b"1\n"}
    before = contents.get(name) or write_record(out)
    out.write_bytes(before)
    with pytest.raises(GradclipError, match=f"{name} holds something else, .*: give another path"):
        replace_file(out, PAGE, ".html")
    assert out.read_bytes() == before
    assert [*tmp_path.iterdir()] == [out]


def test_a_pipe_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GradclipError, match="pipe is not a regular file: give another path"):
        replace_file(tmp_path / "pipe", PAGE, ".html")
    assert (tmp_path / "pipe").is_fifo()


def test_a_part_of_a_given_run_is_not_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for requeues in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(requeues))
        write_record(tmp_path / "a.jsonl")
    write_record(tmp_path / "b.jsonl")
    runs = read_runs(sorted(tmp_path.iterdir()))
    assert [run.path.name for run in runs] == ["a.jsonl", "b.jsonl"]
    assert [len(run.parts) for run in runs] == [3, 1]
    assert [run.path.name for run in read_runs(tmp_path / "a.2.jsonl")] == ["a.2.jsonl"]
