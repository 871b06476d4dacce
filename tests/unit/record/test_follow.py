"""Following a record: what was added is read once, whatever happens to the file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip.errors import GradclipWarning, RecordError
from gradclip.record import RecordWriter, read_run
from gradclip.record import follow as module
from gradclip.record.follow import Follower


def write(path: Path, steps: int, **header: Any) -> bytes:
    with RecordWriter(path, command=["train.py"], **header) as record:
        record.optimizer("SGD", [("w", (2,), "float32")])
        record.event("hello", "A word.", step=1)
        for step in range(1, steps + 1):
            record.step(step=step, norm=float(step), norms=[float(step)], loss=float("inf"))
    return path.read_bytes()


def drain(follower: Follower, most: int = module.READ_BYTES) -> list:
    runs = []
    while True:
        news = follower.read_added(most)
        if news.run is not None:
            runs.append(news.run)
        if not news.behind:
            return runs


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), max_size=8), most=st.integers(1, 400))
def test_a_record_that_comes_in_pieces_is_read_once(tmp_path_factory, cuts, most) -> None:
    folder = tmp_path_factory.mktemp("follow")
    text = write(folder / "whole.jsonl", 20)
    path = folder / "run.jsonl"
    path.touch()
    follower, runs = Follower(path), []
    for cut in [*sorted({min(cut, len(text)) for cut in cuts}), len(text)]:
        with path.open("ab") as file:
            file.write(text[path.stat().st_size : cut])
        runs += drain(follower, most)
    steps = np.concatenate([run.steps for run in runs])
    assert steps.tolist() == list(range(1, 21))
    assert sum(len(run.events) for run in runs) == 1
    assert [run.end.status for run in runs if run.end] == ["ok"]
    window = follower.window()
    assert window is not None
    whole = read_run(folder / "whole.jsonl")
    np.testing.assert_array_equal(window.column("norm"), whole.column("norm"))
    np.testing.assert_array_equal(window.norms().matrix, whole.norms().matrix)
    assert window.norms().names == ("w",)


def test_a_torn_last_line_waits(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    text = write(path, 3)
    path.write_bytes(text[:-20])
    follower = Follower(path)
    assert drain(follower)[0].end is None
    assert drain(follower) == []
    path.write_bytes(text)
    assert drain(follower)[0].end.status == "ok"


@pytest.mark.parametrize("how", ["truncated", "replaced", "truncated and longer"])
def test_another_run_in_its_place_starts_over(tmp_path, how) -> None:
    path = tmp_path / "run.jsonl"
    write(path, 5)
    follower = Follower(path)
    assert drain(follower)[0].steps.tolist() == [1, 2, 3, 4, 5]
    other = tmp_path / "other.jsonl"
    steps = 500 if how.endswith("longer") else 3
    text = write(other, steps, policy="norm:1")
    if how == "replaced":
        other.replace(path)
    else:
        path.write_bytes(text)
    news = follower.read_added()
    assert news.restarted
    assert news.run is not None
    assert news.run.steps.tolist() == list(range(1, steps + 1))
    window = follower.window()
    assert window is not None
    assert window.header.policy == "norm:1"
    assert not follower.read_added().restarted


def test_a_file_that_goes_away_and_comes_back(tmp_path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    follower = Follower(path)
    assert follower.read_added().missing
    assert follower.window() is None
    write(path, 2)
    assert not follower.read_added().missing
    path.unlink()
    assert follower.read_added().missing
    write(path, 3)
    news = follower.read_added()
    assert news.run is not None
    assert news.run.steps.tolist() == [1, 2, 3]


def test_memory_and_cost_do_not_grow(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "WINDOW_ROWS", 50)
    path = tmp_path / "run.jsonl"
    write(path, 3000)
    follower = Follower(path)
    drain(follower, 10_000)
    assert len(follower._window) == 50
    assert follower._window_bytes == sum(map(len, follower._window))
    asked: list[int] = []
    real = module.read_lines

    def counted(path, lines):
        text = lines.read()
        asked.append(text.count(b"\n"))
        lines.seek(0)
        return real(path, lines)

    monkeypatch.setattr(module, "read_lines", counted)
    with path.open("ab") as file:
        file.write(b'{"kind":"step","step":3001,"norm":1.0}\n')
    news = follower.read_added()
    assert news.run is not None
    assert news.run.steps.tolist() == [3001]
    assert asked == [3]  # the header, the optimizer, and what is new
    monkeypatch.setattr(module, "WINDOW_BYTES", 1)
    with path.open("ab") as file:
        file.write(b'{"kind":"step","step":3002,"norm":1.0}\n')
    follower.read_added()
    assert len(follower._window) == 1


def test_age(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, 1)
    old = time.time() - 100
    os.utime(path, (old, old))
    assert Follower(path).read_added().age == pytest.approx(100, abs=5)


BAD = {
    "foreign": b"a,b\n1,2\n",
    "binary": bytes(range(256)) * 20,
    "binary with a brace": b"{" + bytes(range(256)) * 20,
    "JSON": b'{"a": 1}',
    "JSON lines": b'{"a": 1}\n{"a": 2}\n',
    "a list": b"[1, 2]",
    "newer": b'{"kind":"header","schema":99}\n',
    "damaged": b'{"kind":"header","schema":1}\n{"kind":"step","step":1}\nhere\n{"kind":"end"}\n',
}


@pytest.mark.parametrize("name", BAD)
def test_it_fails_as_read_run_does(tmp_path, name) -> None:
    path = tmp_path / "bad"
    path.write_bytes(BAD[name])
    with pytest.raises(RecordError) as whole:
        read_run(path)
    with pytest.raises(RecordError) as followed:
        Follower(path).read_added()
    assert str(followed.value) == str(whole.value)


def test_damage_further_on_has_its_line(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, 7)
    follower = Follower(path)
    drain(follower)
    with path.open("ab") as file:
        file.write(b"here\n")
    with pytest.raises(RecordError, match="line 12 is damaged"):  # header, optimizer, event, end
        follower.read_added()


def test_a_folder_and_a_pipe(tmp_path) -> None:
    with pytest.raises(RecordError, match=r"cannot be read \(Is a directory\)"):
        Follower(tmp_path).read_added()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(RecordError, match="not a regular file"):
            Follower(tmp_path / "pipe").read_added()


@pytest.mark.parametrize("ended", [True, False])
def test_a_follower_turns_to_the_next_part_of_the_run(tmp_path, monkeypatch, ended) -> None:
    path = tmp_path / "run.jsonl"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    text = write(path, 3)
    if not ended:  # The first attempt was killed.
        path.write_bytes(text[:-30])
    follower = Follower(path)
    assert [run.steps.tolist() for run in drain(follower)] == [[1, 2, 3]]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    write(path, 2)
    assert (tmp_path / "run.2.jsonl").exists()
    assert follower.read_added().behind > 0
    news = follower.read_added()
    assert news.restarted
    assert news.run is not None
    assert news.run.steps.tolist() == [1, 2]
    assert news.behind == 0
    assert not follower.read_added().restarted


def test_a_follower_does_not_turn_to_another_run(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, 3)
    follower = Follower(path)
    drain(follower)
    with pytest.warns(GradclipWarning, match="exists and stays as it is"):
        RecordWriter(path).end()
    news = follower.read_added()
    assert (news.run, news.behind, news.restarted) == (None, 0, False)
