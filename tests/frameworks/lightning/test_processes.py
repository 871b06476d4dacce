"""Two processes with ddp on gloo: both clip, and both have the same weights."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from distributed.launch import processes
from gradclip import read_run

SCRIPT = Path(__file__).with_name("ddp_script.py")


def run(folder: Path, *arguments: str, runner: tuple[str, ...] = ()) -> str:
    """Train in two processes, as Lightning starts them; return what they print."""
    command = [sys.executable, *runner, str(SCRIPT), *arguments]
    done = processes(command, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(text: str) -> dict[str, list[str]]:
    """Return what rank 0 and rank 1 say of each thing."""
    found: dict[str, list[str]] = {}
    for rank, name, value in sorted(re.findall(r"^rank (\d) (\w+): (.*)$", text, re.MULTILINE)):
        assert len(found.setdefault(name, [])) == int(rank)
        found[name].append(value)
    assert {len(values) for values in found.values()} == {2}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """Return the folder of a training, and what its processes say."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, told(run(folder, "auto", "resume"))


def test_both_clip_alike_resume_and_leave_one_record(
    alone: tuple[Path, dict[str, list[str]]],
) -> None:
    folder, said = alone
    assert len(set(said["weights"])) == 1
    assert len(set(said["memory"])) == 1
    assert said["steps"] == ["8", "8"]
    assert said["clipped"] == said["clipped"][:1] * 2 != ["0", "0"]
    assert said["resumed"] == said["weights"]
    assert said["resumedmemory"] == said["memory"]
    assert sorted(p.name for p in folder.glob("*.jsonl")) == ["run.jsonl"]
    assert sorted(p.name for p in folder.glob("*.html")) == ["page.html"]
    assert len(read_run(folder / "run.jsonl").steps) == 8


def test_under_gradclip_run_the_callback_clips_and_run_records(
    alone: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    """`--clip` is left out in favour of the callback, in both processes."""
    options = ("--clip", "norm:0.001", "--record", "outer.jsonl")
    said = told(run(tmp_path, "auto", runner=("-m", "gradclip", "run", *options)))
    assert said["weights"] == alone[1]["weights"]
    outer, inner = read_run(tmp_path / "outer.jsonl"), read_run(tmp_path / "run.jsonl")
    assert list(outer.column("norm")) == list(inner.column("norm"))
    assert list(outer.column("loss")) == list(inner.column("loss"))
    assert any(event.name == "script-clips" for event in outer.events)
