"""`gradclip demo`, from the command to the page."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gradclip import read_run
from gradclip.cli import app


def run_demo(folder: Path, *args: str) -> Result:
    """Run the command in this process; each of its two trainings is a process all the same."""
    with contextlib.chdir(folder):
        ran = CliRunner().invoke(app, ["demo", *args], env={"COLUMNS": "100"})
    assert ran.exit_code == 0, ran.output
    return ran


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a short demo."""
    folder = tmp_path_factory.mktemp("demo")
    ran = run_demo(folder, "--steps", "30", "--out", "out")
    assert ran.stderr == ""
    return folder / "out", ran.stdout


def test_it_leaves_two_records_and_a_page(demo: tuple[Path, str]) -> None:
    out, text = demo
    assert sorted(p.name for p in out.iterdir()) == [
        "clipped.jsonl",
        "report.html",
        "unclipped.jsonl",
    ]
    plain, clipped = (read_run(out / f"{name}.jsonl") for name in ("unclipped", "clipped"))
    for run in (plain, clipped):
        assert run.steps.tolist() == list(range(1, 31))
        assert run.seen("loss").all()
        assert run.end is not None
        assert run.end.status == "ok"
    assert plain.header.policy is None
    assert clipped.header.policy is not None
    assert plain.column("loss")[0] == clipped.column("loss")[0]  # The same seed.
    assert not plain.column("clipped").any()
    assert clipped.column("clipped").any()
    assert f"The picture: {Path('out') / 'report.html'}" in text


def test_its_table_is_what_the_records_say(demo: tuple[Path, str]) -> None:
    out, text = demo
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in text.splitlines()
        if len(cells := line.strip("│ \n").split("│")) == 3
    }
    plain, clipped = (read_run(out / f"{name}.jsonl") for name in ("unclipped", "clipped"))
    count = int(clipped.column("clipped").sum())
    assert rows["steps clipped"] == ["0 of 30", f"{count} of 30"]
    assert rows["non-finite steps"] == [
        str(int((~np.isfinite(run.column("norm"))).sum())) for run in (plain, clipped)
    ]
    for shown, run in zip(rows["worst loss spike, nats"], (plain, clipped), strict=True):
        loss = run.column("loss")
        worst = max(loss[t] - np.nanmin(loss[:t]) for t in range(3, 30))
        if np.isfinite(loss).all():  # A rise that is no spike is not in the table.
            assert float(shown) in (0.0, pytest.approx(worst, rel=1e-3))
    assert not rows["worst loss spike, nats"][0].startswith("0.0")  # Unclipped it spikes.
    assert all(
        re.fullmatch(r"\d+\.\d+|nan|inf", cell)
        for cell in rows["final validation loss, nats per character"]
    )


def test_the_next_commands_of_the_readme_work_as_printed(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text()
    block = re.search(r"^source \.venv/bin/activate\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert len(block[1].splitlines()) == 3
    shutil.copytree(demo[0], tmp_path / "runs" / "demo")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-e", "-c", block[1]],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "report.html").is_file()


def test_its_json_is_what_the_records_say(tmp_path: Path) -> None:
    ran = run_demo(tmp_path, "--steps", "8", "--out", "out", "--json")
    assert ran.stdout.count("\n") == 1
    told = json.loads(ran.stdout, parse_constant=pytest.fail)
    assert (told["clip"], told["report"]) == ("norm:0.25", str(Path("out") / "report.html"))
    assert [row["name"] for row in told["runs"]] == ["unclipped", "clipped"]
    for row in told["runs"]:
        run = read_run(tmp_path / row["record"])
        assert row["steps"] == len(run.steps) == 8
        assert row["clipped"] == int(run.column("clipped").sum())
        assert row["final_loss"] == np.median(run.column("loss"))  # Of ten losses at least.
        assert row["validation_loss"] > 1.0
    assert (tmp_path / told["report"]).is_file()


def test_a_training_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "char_lm.py").write_text("raise ValueError('no data')")
    demo = sys.modules["gradclip.cli.demo"]
    monkeypatch.setattr(demo, "_script", lambda: tmp_path / "char_lm.py")
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["demo", "--steps", "1"])
    assert ran.exit_code == 2
    assert re.match("gradclip: the script ended with code 1: .*ValueError: no data", ran.stderr)
    assert ran.stderr.count("\n") == 1
